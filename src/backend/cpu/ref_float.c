/*
 * ref_float.c - the float kernels in plain C: what the fast ones must compute, bit for bit. Naive and permanent; the
 * oracle of the tests and the fallback of any CPU. Called through the kernel table. It knows nothing of vectors or threads.
 *
 * Each reduction is written as kernels.h and kernels.def describe it: 16 lanes, fmaf, a tail filled with zeros, a tree.
 */
#include "backend/cpu/isa.h"
#include "backend/cpu/float_ref.h"

/* ---- norms ---- */

/* Sum of squares in four sets of 16 lanes. */
static float sum_of_squares(const float *x, int64_t k) {
    float set[4][16] = {{0}};
    for (int64_t block = 0; block * 16 < k; block++)
        for (int l = 0; l < 16; l++) {
            float v = block * 16 + l < k ? x[block * 16 + l] : 0.0f;
            set[block & 3][l] = fmaf(v, v, set[block & 3][l]);
        }
    float sum[16];
    for (int l = 0; l < 16; l++) sum[l] = (set[0][l] + set[1][l]) + (set[2][l] + set[3][l]);
    return setun_scalar_tree16(sum);
}

void setun_ref_rms_norm(const float *x, const float *weight, float offset, int64_t k, float epsilon, float *out) {
    float inverse = 1.0f / sqrtf(sum_of_squares(x, k) / (float)k + epsilon);
    for (int64_t i = 0; i < k; i++) {
        float y = x[i] * inverse;
        out[i] = setun_scalar_canonical(weight ? y * (weight[i] + offset) : y);
    }
}

void setun_ref_l2_normalize(const float *x, int64_t k, float *out) {
    float norm = sqrtf(sum_of_squares(x, k));
    float inverse = 1.0f / (norm < 1e-12f ? 1e-12f : norm);
    for (int64_t i = 0; i < k; i++) out[i] = setun_scalar_canonical(x[i] * inverse);
}

/* ---- dense products ---- */

/* Element i of a row; every format's value is exact in f32 (q8_0: 11 + 7 significant bits, q6_k: 11 + 7 + 5). */
typedef float (*weight_at)(const uint8_t *row, int64_t i);

static float f32_at(const uint8_t *row, int64_t i) { return setun_load_f32(row + i * 4); }
static float f16_at(const uint8_t *row, int64_t i) { return setun_f16_to_f32(setun_load_u16(row + i * 2)); }
static float bf16_at(const uint8_t *row, int64_t i) { return setun_bf16_to_f32(setun_load_u16(row + i * 2)); }

/* 34 bytes for 32 weights: f16 d, int8 q[32]; d * q */
static float q8_0_at(const uint8_t *row, int64_t i) {
    const uint8_t *block = row + i / 32 * 34;
    return setun_f16_to_f32(setun_load_u16(block)) * (float)(int8_t)block[2 + i % 32];
}

/*
 * 210 bytes for 256 weights: uint8 low[128], high[64], int8 scale[16], f16 d; d * scale[i / 16] * (6-bit q - 32).
 * Each half of 128 weights has 64 bytes of low and 32 of high. Weight j of a half, quarter c = j / 32, column l = j % 32:
 * its low nibble is in low[l + 32 * (c & 1)], lower half of the byte for c < 2; its high 2 bits are bits 2c, 2c+1 of high[l].
 */
static float q6_k_at(const uint8_t *row, int64_t i) {
    const uint8_t *block = row + i / 256 * 210;
    int j = (int)(i % 256), half = j / 128, quarter = j % 128 / 32, l = j % 32;
    int low = block[half * 64 + (quarter & 1) * 32 + l] >> (quarter < 2 ? 0 : 4) & 15;
    int high = block[128 + half * 32 + l] >> (2 * quarter) & 3;
    float scale = setun_f16_to_f32(setun_load_u16(block + 208)) * (float)(int8_t)block[192 + j / 16];
    return scale * (float)((low | high << 4) - 32);
}

static void dense(weight_at at, const uint8_t *w, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens,
                  int64_t k, float *out, size_t out_stride) {
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) {
            const uint8_t *row = w + (size_t)r * row_bytes;
            const float *v = x + (size_t)t * x_stride;
            float sum[16] = {0};
            for (int64_t i = 0; i < k; i += 16)
                for (int l = 0; l < 16; l++)
                    sum[l] = i + l < k ? fmaf(at(row, i + l), v[i + l], sum[l]) : fmaf(0.0f, 0.0f, sum[l]);
            out[(size_t)t * out_stride + (size_t)r] = setun_scalar_canonical(setun_scalar_tree16(sum));
        }
}

#define DENSE(format) \
    void setun_ref_dense_##format(const uint8_t *w, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, \
                                  int64_t k, float *out, size_t out_stride) { \
        dense(format##_at, w, row_bytes, rows, x, x_stride, tokens, k, out, out_stride); \
    }
DENSE(f32)
DENSE(f16)
DENSE(bf16)
DENSE(q8_0)
DENSE(q6_k)

/* ---- rope ---- */

void setun_ref_rope(float *x, int heads, int head_size, int rotary, const float *cos, const float *sin, bool interleaved) {
    int pairs = rotary / 2;
    for (int h = 0; h < heads; h++, x += head_size)
        for (int i = 0; i < pairs; i++) {
            float *first = interleaved ? x + 2 * i : x + i;
            float *second = interleaved ? x + 2 * i + 1 : x + i + pairs;
            float a = *first, b = *second;
            *first = setun_scalar_canonical(fmaf(a, cos[i], -(b * sin[i])));
            *second = setun_scalar_canonical(fmaf(b, cos[i], a * sin[i]));
        }
}

/* ---- elementwise ---- */

#define ELEMENTWISE(name, params, expression) \
    void setun_ref_##name params { for (int64_t i = 0; i < n; i++) out[i] = setun_scalar_canonical(expression); }
ELEMENTWISE(silu, (const float *x, int64_t n, float *out), setun_scalar_silu(x[i]))
ELEMENTWISE(relu2, (const float *x, int64_t n, float *out), setun_scalar_relu2(x[i]))
ELEMENTWISE(gelu, (const float *x, int64_t n, float *out), setun_scalar_gelu(x[i]))
ELEMENTWISE(silu_mul, (const float *gate, const float *up, int64_t n, float *out), setun_scalar_silu(gate[i]) * up[i])
ELEMENTWISE(relu2_mul, (const float *gate, const float *up, int64_t n, float *out), setun_scalar_relu2(gate[i]) * up[i])
ELEMENTWISE(gelu_mul, (const float *gate, const float *up, int64_t n, float *out), setun_scalar_gelu(gate[i]) * up[i])
ELEMENTWISE(add, (const float *a, const float *b, int64_t n, float *out), a[i] + b[i])
ELEMENTWISE(multiply, (const float *a, const float *b, int64_t n, float *out), a[i] * b[i])
ELEMENTWISE(scale, (const float *x, float factor, int64_t n, float *out), x[i] * factor)
ELEMENTWISE(f16_to_f32, (const uint16_t *x, int64_t n, float *out), setun_f16_to_f32(x[i]))

void setun_ref_f32_to_f16(const float *x, int64_t n, uint16_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = setun_f32_to_f16(setun_scalar_canonical(x[i]));
}

void setun_ref_softmax(const float *x, int64_t n, float *out) {
    float max = -INFINITY, sum[16] = {0};
    for (int64_t i = 0; i < n; i++) max = setun_scalar_max(x[i], max);
    for (int64_t i = 0; i < n; i++) {
        out[i] = setun_scalar_exp(x[i] - max);
        sum[i & 15] += out[i];
    }
    float inverse = 1.0f / setun_scalar_tree16(sum);
    for (int64_t i = 0; i < n; i++) out[i] = setun_scalar_canonical(out[i] * inverse);
}

/* ---- Hadamard ---- */

void setun_ref_hadamard(float *x, int block) {
    for (int h = 1; h < block; h *= 2)
        for (int i = 0; i < block; i += 2 * h)
            for (int j = i; j < i + h; j++) {
                float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
    float factor = 1.0f / sqrtf((float)block);
    for (int i = 0; i < block; i++) x[i] = setun_scalar_canonical(x[i] * factor);
}

/* ---- attention ---- */

/*
 * For the fast kernels, in floats, with d = head_size rounded up to 16 and a tile of SETUN_ATTENTION_PAIRS (query, head) pairs:
 * queries, outputs and totals [pairs][d] each, keys and values [64][d], scores [pairs][64].
 */
size_t setun_attention_scratch_floats(int group, int head_size) {
    (void)group; /* pairs are tiled, so it does not grow with the group */
    size_t d = ((size_t)head_size + 15) / 16 * 16;
    return SETUN_ATTENTION_PAIRS * (3 * d + SETUN_ATTENTION_BLOCK) + 2 * SETUN_ATTENTION_BLOCK * d;
}

size_t setun_attention_partial_floats(int head_size) { return ((size_t)head_size + 15) / 16 * 16 + 16; }

static float attention_element(const setun_attention_args *a, const void *base, int64_t key, size_t i) {
    const void *elements = (const uint8_t *)base + (size_t)(key / SETUN_ATTENTION_RANGE) * a->range_stride;
    if (a->type == SETUN_F16) return setun_f16_to_f32(((const uint16_t *)elements)[i]);
    return a->type == SETUN_I8 ? (float)((const int8_t *)elements)[i] : ((const float *)elements)[i];
}
static float attention_key(const setun_attention_args *a, int64_t key, int d) {
    size_t n = (size_t)(key % SETUN_ATTENTION_RANGE), b = SETUN_ATTENTION_BLOCK;
    return attention_element(a, a->k, key, (n / b * (size_t)a->head_size + (size_t)d) * b + n % b);
}
static float attention_value(const setun_attention_args *a, int64_t key, int d) {
    return attention_element(a, a->v, key, (size_t)(key % SETUN_ATTENTION_RANGE) * (size_t)a->head_size + (size_t)d);
}
static float attention_factor(const setun_attention_args *a, const float *scales, int64_t key) {
    return ((const float *)(const void *)((const uint8_t *)scales + (size_t)(key / SETUN_ATTENTION_RANGE) * a->range_stride))[key % SETUN_ATTENTION_RANGE];
}

/* Keys [low, high) of one range; out: a record of partials */
static void attention_range(const setun_attention_args *a, const float *q, int64_t low, int64_t high, float *out) {
    float max = -INFINITY, sum = 0.0f, p[SETUN_ATTENTION_BLOCK];
    for (size_t d = 0; d + 16 < setun_attention_partial_floats(a->head_size); d++) out[d] = 0.0f;
    for (int64_t block = low / SETUN_ATTENTION_BLOCK * SETUN_ATTENTION_BLOCK; block < high; block += SETUN_ATTENTION_BLOCK) {
        int begin = block < low ? (int)(low - block) : 0;
        int end = high - block < SETUN_ATTENTION_BLOCK ? (int)(high - block) : SETUN_ATTENTION_BLOCK;
        float new_max = max;
        for (int j = begin; j < end; j++) {
            float s = 0.0f;
            for (int d = 0; d < a->head_size; d++) s = fmaf(attention_key(a, block + j, d), q[d], s);
            p[j] = s * (a->type == SETUN_I8 ? attention_factor(a, a->k_scales, block + j) * a->scale : a->scale);
            new_max = setun_scalar_max(p[j], new_max);
        }
        float correction = new_max > max ? setun_scalar_exp(max - new_max) : 1.0f;
        max = new_max;
        float lane[16] = {0};
        for (int j = begin; j < end; j++) {
            p[j] = setun_scalar_exp(p[j] - max);
            lane[j & 15] += p[j];
            if (a->type == SETUN_I8) p[j] *= attention_factor(a, a->v_scales, block + j);
        }
        sum = fmaf(sum, correction, setun_scalar_tree16(lane));
        for (int d = 0; d < a->head_size; d++) {
            float y = out[d] * correction;
            for (int j = begin; j < end; j++) y = fmaf(p[j], attention_value(a, block + j, d), y);
            out[d] = y;
        }
    }
    out[setun_attention_partial_floats(a->head_size) - 16] = max + 0.0f;
    out[setun_attention_partial_floats(a->head_size) - 15] = sum;
}

static void attention_merge(float *total, const float *next, int head_size) {
    size_t width = setun_attention_partial_floats(head_size) - 16;
    float max = setun_scalar_max(next[width], total[width]);
    float a = max > total[width] ? setun_scalar_exp(total[width] - max) : 1.0f, b = max > next[width] ? setun_scalar_exp(next[width] - max) : 1.0f;
    for (int d = 0; d < head_size; d++) total[d] = fmaf(total[d], a, next[d] * b);
    total[width] = max;
    total[width + 1] = fmaf(total[width + 1], a, next[width + 1] * b);
}

void setun_ref_attention_combine(float *partials, size_t stride, int ranges, int head_size, float *out) {
    for (int r = 1; r < ranges; r++) attention_merge(partials, partials + (size_t)r * stride, head_size);
    float inverse = 1.0f / partials[setun_attention_partial_floats(head_size) - 15];
    for (int d = 0; d < head_size; d++) out[d] = setun_scalar_canonical(partials[d] * inverse);
}

void setun_ref_attention(const setun_attention_args *args) {
    size_t record = setun_attention_partial_floats(args->head_size);
    for (int i = 0; i < args->queries; i++) {
        int64_t high = (int64_t)args->first + i + 1;
        int64_t low = args->window > 0 && high > args->window ? high - args->window : 0;
        int64_t first = args->partials ? args->range : low / SETUN_ATTENTION_RANGE, last = args->partials ? args->range : (high - 1) / SETUN_ATTENTION_RANGE;
        for (int g = 0; g < args->group; g++) {
            size_t at = (size_t)g * (size_t)args->head_size;
            float *total = args->partials ? args->partials + (size_t)(i * args->group + g) * record : args->scratch, *next = args->scratch + record;
            for (int64_t range = first; range <= last; range++) {
                int64_t begin = range * SETUN_ATTENTION_RANGE, end = begin + SETUN_ATTENTION_RANGE;
                if (begin < low) begin = low;
                if (end > high) end = high;
                attention_range(args, args->q + (size_t)i * args->q_stride + at, begin, end > begin ? end : begin, range == first ? total : next);
                if (range > first) attention_merge(total, next, args->head_size);
            }
            if (!args->partials) setun_ref_attention_combine(total, record, 1, args->head_size, args->out + (size_t)i * args->out_stride + at);
        }
    }
}
