/*
 * Float kernels: every ISA gives the bits of ref (memcmp), at every size, misalignment and special value, inside guard pages;
 * ref is near double precision; and ref's own bits are pinned, so x86-64 and aarch64 agree with each other too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "backend/cpu/float_ref.h"
#include "backend/cpu/isa.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- random numbers: integers and exact operations only, so that the pinned bits don't hang on a libm ---- */

static uint64_t rng = 1;
static uint32_t next(void) {
    rng += 0x9e3779b97f4a7c15u;
    uint64_t z = rng;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}
static int below(int n) { return (int)(next() % (uint32_t)n); }
/* about normal, standard deviation 1 */
static float gauss(void) {
    int sum = 0;
    for (int i = 0; i < 6; i++) sum += (int)(next() & 0xffff);
    return (float)(sum - 3 * 0xffff) * (1.0f / 46341.0f);
}

typedef enum { PLAIN, WIDE, SPECIAL } values;

static float special(void) {
    static const uint32_t list[] = {0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0xffc12345, 1, 0x80000001,
                                    0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x3f800000, 0xbf800000, 0xc2aeac50, 0xc2aeac4f,
                                    0x42b17217, 0x42b17218, 0x42b17219, 0x477fefff, 0x477ff000, 0x33000000, 0x33000001, 0xc2000000};
    return setun_bits_float(list[below((int)(sizeof list / sizeof *list))]);
}
static float value(values kind) {
    if (kind == SPECIAL && below(8) == 0) return special();
    if (kind == PLAIN) return gauss();
    return setun_bits_float((next() & 0x807fffff) | (uint32_t)(97 + below(60)) << 23); /* 2^-30 .. 2^29 */
}

/* ---- memory that ends (or begins) at a page nobody may touch ---- */

typedef struct { uint8_t *map; size_t map_bytes; uint8_t *p; } guarded;

/* `shift` bytes short of the guard page: shift 0 catches one byte too far, others make misaligned pointers. */
static guarded guard(size_t bytes, size_t shift, bool front) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (bytes + shift + page) / page * page;
    guarded g;
    g.map_bytes = inner + 2 * page;
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.map != MAP_FAILED);
    assert_int_equal(mprotect(g.map, page, PROT_NONE), 0);
    assert_int_equal(mprotect(g.map + page + inner, page, PROT_NONE), 0);
    g.p = front ? g.map + page + shift : g.map + page + inner - bytes - shift;
    memset(g.p, 0xa5, bytes);
    return g;
}
static void unguard(guarded g) { munmap(g.map, g.map_bytes); }

static float *floats(guarded g) { return (float *)(void *)g.p; }
static void fill(float *x, int64_t n, values kind) { for (int64_t i = 0; i < n; i++) x[i] = value(kind); }

/* ---- the ISAs ---- */

static const setun_kernels *fast[8];
static int fast_count;

static void compare(const char *kernel, const char *isa, const void *want, const void *got, size_t element, int64_t n, const char *what) {
    if (!memcmp(want, got, element * (size_t)n)) return;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *a = (const uint8_t *)want + element * (size_t)i, *b = (const uint8_t *)got + element * (size_t)i;
        if (memcmp(a, b, element)) {
            uint32_t u = 0, v = 0;
            memcpy(&u, a, element);
            memcpy(&v, b, element);
            fail_msg("%s on %s, %s: element %lld of %lld: ref %08x, got %08x", kernel, isa, what, (long long)i, (long long)n, u, v);
        }
    }
}

#define FOR_EACH_FAST(table, member) \
    for (int isa_ = 0; isa_ < fast_count; isa_++) \
        for (const setun_kernels *table = fast[isa_]; table && table->member; table = NULL)

static const int sizes[] = {127, 128, 129, 191, 255, 256, 257, 319, 576, 577, 1000, 1536, 2559, 2560, 2561, 6912};
enum { SIZES = 70 + (int)(sizeof sizes / sizeof *sizes) };
static int size_at(int i) { return i < 70 ? i + 1 : sizes[i - 70]; }

/* ---- elementwise, norms, softmax ---- */

typedef void (*unary)(const float *x, int64_t n, float *out);
typedef void (*binary)(const float *a, const float *b, int64_t n, float *out);

static void check_unary(const char *name, unary ref, unary got, const char *isa) {
    for (int i = 0; i < SIZES; i++)
        for (values kind = PLAIN; kind <= SPECIAL; kind++) {
            int n = size_at(i);
            size_t bytes = (size_t)n * 4, shift = (size_t)below(16) * 4;
            guarded x = guard(bytes, i & 1 ? shift : 0, below(2)), want = guard(bytes, 0, false), out = guard(bytes, i & 1 ? 4 : 0, below(2));
            fill(floats(x), n, kind);
            ref(floats(x), n, floats(want));
            got(floats(x), n, floats(out));
            compare(name, isa, want.p, out.p, 4, n, "apart");
            got(floats(x), n, floats(x));
            compare(name, isa, want.p, x.p, 4, n, "in place");
            unguard(x), unguard(want), unguard(out);
        }
}

static void check_binary(const char *name, binary ref, binary got, const char *isa) {
    for (int i = 0; i < SIZES; i++)
        for (values kind = PLAIN; kind <= SPECIAL; kind++) {
            int n = size_at(i);
            size_t bytes = (size_t)n * 4;
            guarded a = guard(bytes, (size_t)below(16) * 4, false), b = guard(bytes, 0, below(2));
            guarded want = guard(bytes, 0, false), out = guard(bytes, (size_t)below(2) * 4, false);
            fill(floats(a), n, kind);
            fill(floats(b), n, kind);
            ref(floats(a), floats(b), n, floats(want));
            got(floats(a), floats(b), n, floats(out));
            compare(name, isa, want.p, out.p, 4, n, "apart");
            got(floats(a), floats(b), n, below(2) ? floats(a) : floats(b));
            unguard(want), unguard(out);
            unguard(a), unguard(b);
        }
}

static void set_scale(const float *x, int64_t n, float *out, const setun_kernels *k) { k->scale(x, -1.37f, n, out); }
static const setun_kernels *wrapped;
static void wrapped_scale(const float *x, int64_t n, float *out) { set_scale(x, n, out, wrapped); }
static void ref_scale(const float *x, int64_t n, float *out) { set_scale(x, n, out, &setun_kernels_ref); }
static void wrapped_norm(const float *x, int64_t n, float *out) { wrapped->rms_norm(x, NULL, 0.0f, n, 1e-5f, out); }
static void ref_norm(const float *x, int64_t n, float *out) { setun_ref_rms_norm(x, NULL, 0.0f, n, 1e-5f, out); }
static void wrapped_norm_weight(const float *x, const float *w, int64_t n, float *out) { wrapped->rms_norm(x, w, 1.0f, n, 1e-6f, out); }
static void ref_norm_weight(const float *x, const float *w, int64_t n, float *out) { setun_ref_rms_norm(x, w, 1.0f, n, 1e-6f, out); }

#define SAME_UNARY(name) FOR_EACH_FAST(k, name) check_unary(#name, setun_ref_##name, (unary)k->name, k->isa)
#define SAME_BINARY(name) FOR_EACH_FAST(k, name) check_binary(#name, setun_ref_##name, (binary)k->name, k->isa)

static void l2(const float *x, int64_t n, float *out) { wrapped->l2_normalize(x, n, out); }

static void test_elementwise(void **state) {
    (void)state;
    SAME_UNARY(silu);
    SAME_UNARY(relu2);
    SAME_UNARY(gelu);
    SAME_UNARY(softmax);
    SAME_BINARY(silu_mul);
    SAME_BINARY(relu2_mul);
    SAME_BINARY(gelu_mul);
    SAME_BINARY(add);
    SAME_BINARY(multiply);
    FOR_EACH_FAST(k, scale) { wrapped = k; check_unary("scale", ref_scale, wrapped_scale, k->isa); }
}

static void test_norms(void **state) {
    (void)state;
    FOR_EACH_FAST(k, rms_norm) {
        wrapped = k;
        check_unary("rms_norm", ref_norm, wrapped_norm, k->isa);
        check_binary("rms_norm with weight", ref_norm_weight, wrapped_norm_weight, k->isa);
    }
    FOR_EACH_FAST(k, l2_normalize) { wrapped = k; check_unary("l2_normalize", setun_ref_l2_normalize, l2, k->isa); }
}

/* Softmax's own corners: all -inf, one +inf, one NaN, equal values. */
static void test_softmax_corners(void **state) {
    (void)state;
    static const uint32_t fills[] = {0xff800000, 0x7f800000, 0x7fc00000, 0x00000000, 0xff7fffff, 0x7f7fffff};
    FOR_EACH_FAST(k, softmax)
        for (int n = 1; n < 40; n++)
            for (int f = 0; f < 6; f++)
                for (int g = 0; g < 6; g++) {
                    float x[40], want[40], out[40];
                    for (int i = 0; i < n; i++) x[i] = setun_bits_float(fills[f]);
                    x[below(n)] = setun_bits_float(fills[g]);
                    setun_ref_softmax(x, n, want);
                    k->softmax(x, n, out);
                    compare("softmax", k->isa, want, out, 4, n, "corners");
                }
}

/* Every f16, and every f32 of which the low bits decide the rounding. */
static void test_halves(void **state) {
    (void)state;
    static uint16_t all[65536], got16[65536], want16[65536];
    static float wide[65536], got[65536], tail[70];
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    setun_ref_f16_to_f32(all, 65536, wide);
    for (int i = 0; i < 65536; i++)
        if ((i & 0x7fff) <= 0x7c00) assert_int_equal(setun_f32_to_f16(wide[i]), i);
        else assert_int_equal(setun_float_bits(wide[i]), SETUN_NAN_BITS);
    FOR_EACH_FAST(k, f16_to_f32) {
        k->f16_to_f32(all, 65536, got);
        compare("f16_to_f32", k->isa, wide, got, 4, 65536, "all");
        for (int n = 1; n < 70; n++) {
            guarded in = guard((size_t)n * 2, (size_t)below(8) * 2, below(2)), out = guard((size_t)n * 4, 0, false);
            for (int i = 0; i < n; i++) ((uint16_t *)(void *)in.p)[i] = (uint16_t)next();
            setun_ref_f16_to_f32((uint16_t *)(void *)in.p, n, tail);
            k->f16_to_f32((uint16_t *)(void *)in.p, n, floats(out));
            compare("f16_to_f32", k->isa, tail, out.p, 4, n, "tails");
            unguard(in), unguard(out);
        }
    }
    FOR_EACH_FAST(k, f32_to_f16) {
        for (int round = 0; round < 40; round++) {
            for (int i = 0; i < 65536; i++) {
                uint32_t low = round < 8 ? (uint32_t[]){0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000}[round] : next() & 0xffff;
                wide[i] = setun_bits_float((uint32_t)i << 16 | low);
            }
            setun_ref_f32_to_f16(wide, 65536, want16);
            k->f32_to_f16(wide, 65536, got16);
            compare("f32_to_f16", k->isa, want16, got16, 2, 65536, "all");
        }
        for (int n = 1; n < 70; n++) {
            guarded in = guard((size_t)n * 4, 0, below(2)), out = guard((size_t)n * 2, (size_t)below(8) * 2, false);
            fill(floats(in), n, SPECIAL);
            setun_ref_f32_to_f16(floats(in), n, want16);
            k->f32_to_f16(floats(in), n, (uint16_t *)(void *)out.p);
            compare("f32_to_f16", k->isa, want16, out.p, 2, n, "tails");
            unguard(in), unguard(out);
        }
    }
}

/* ---- rope, Hadamard ---- */

static void test_rope(void **state) {
    (void)state;
    FOR_EACH_FAST(k, rope)
        for (int round = 0; round < 400; round++) {
            int rotary = 2 * (1 + below(round & 1 ? 8 : 68)), head_size = rotary + below(2) * below(40), heads = 1 + below(5);
            values kind = (values)(round % 3);
            bool interleaved = below(2);
            size_t bytes = (size_t)heads * (size_t)head_size * 4;
            guarded x = guard(bytes, (size_t)below(4) * 4, below(2)), want = guard(bytes, 0, false);
            guarded c = guard((size_t)rotary * 2, 0, below(2)), s = guard((size_t)rotary * 2, 0, false);
            fill(floats(x), heads * head_size, kind);
            fill(floats(c), rotary / 2, kind);
            fill(floats(s), rotary / 2, kind);
            memcpy(want.p, x.p, bytes);
            setun_ref_rope(floats(want), heads, head_size, rotary, floats(c), floats(s), interleaved);
            k->rope(floats(x), heads, head_size, rotary, floats(c), floats(s), interleaved);
            compare("rope", k->isa, want.p, x.p, 4, heads * head_size, interleaved ? "interleaved" : "halves");
            unguard(x), unguard(want), unguard(c), unguard(s);
        }
}

static void test_hadamard(void **state) {
    (void)state;
    FOR_EACH_FAST(k, hadamard)
        for (int block = 1; block <= 8192; block *= 2)
            for (int round = 0; round < 6; round++) {
                guarded x = guard((size_t)block * 4, (size_t)below(4) * 4, below(2)), want = guard((size_t)block * 4, 0, false);
                fill(floats(x), block, (values)(round % 3));
                memcpy(want.p, x.p, (size_t)block * 4);
                setun_ref_hadamard(floats(want), block);
                k->hadamard(floats(x), block);
                compare("hadamard", k->isa, want.p, x.p, 4, block, "block");
                unguard(x), unguard(want);
            }
}

/* ---- dense ---- */

typedef void (*dense_fn)(const uint8_t *w, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, float *out, size_t out_stride);
typedef enum { F32, F16, BF16, Q8_0, Q6_K, DENSE_FORMATS } dense_format;
static const char *const dense_names[] = {"dense_f32", "dense_f16", "dense_bf16", "dense_q8_0", "dense_q6_k"};

static dense_fn dense_of(const setun_kernels *k, dense_format f) {
    return f == F32 ? k->dense_f32 : f == F16 ? k->dense_f16 : f == BF16 ? k->dense_bf16 : f == Q8_0 ? k->dense_q8_0 : k->dense_q6_k;
}
static size_t dense_row_bytes(dense_format f, int64_t k) {
    return (size_t)(f == F32 ? k * 4 : f == Q8_0 ? (k + 31) / 32 * 34 : f == Q6_K ? (k + 255) / 256 * 210 : k * 2);
}
static void put_u16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static void dense_fill(dense_format f, uint8_t *row, int64_t k, values kind) {
    if (f == F32) for (int64_t i = 0; i < k; i++) { float v = value(kind); memcpy(row + i * 4, &v, 4); }
    else if (f == F16) for (int64_t i = 0; i < k; i++) put_u16(row + i * 2, setun_f32_to_f16(kind == WIDE ? gauss() * 1e-5f : value(kind)));
    else if (f == BF16) for (int64_t i = 0; i < k; i++) put_u16(row + i * 2, setun_f32_to_bf16(value(kind)));
    else {
        size_t block = f == Q8_0 ? 34 : 210, at = f == Q8_0 ? 0 : 208, bytes = dense_row_bytes(f, k);
        for (size_t i = 0; i < bytes; i++) row[i] = (uint8_t)next();
        for (size_t i = 0; i < bytes; i += block)
            put_u16(row + i + at, setun_f32_to_f16(kind == SPECIAL ? value(SPECIAL) : kind == WIDE ? 6e-8f * (float)below(2000) : gauss() * 0.01f));
    }
}

static void check_dense(const setun_kernels *table, dense_format f, int rows, int tokens, int64_t k, values kind) {
    size_t row_bytes = dense_row_bytes(f, k), w_stride = row_bytes + (size_t)below(2) * (size_t)below(9);
    size_t x_stride = (size_t)(k + below(2) * below(20)), out_stride = (size_t)(rows + below(2) * below(5));
    guarded w = guard(w_stride * (size_t)(rows - 1) + row_bytes, below(3) ? 0 : (size_t)below(16), false);
    guarded x = guard((x_stride * (size_t)(tokens - 1) + (size_t)k) * 4, (size_t)below(2) * 4, false);
    size_t outs = out_stride * (size_t)(tokens - 1) + (size_t)rows;
    guarded out = guard(outs * 4, 0, below(2)), want = guard(outs * 4, 0, false);
    for (int r = 0; r < rows; r++) dense_fill(f, w.p + (size_t)r * w_stride, k, kind);
    for (int t = 0; t < tokens; t++) {
        for (size_t i = 0; i < x_stride && (t < tokens - 1 || i < (size_t)k); i++) /* what lies between the rows of x must not matter */
            floats(x)[(size_t)t * x_stride + i] = i < (size_t)k ? value(kind) : NAN;
    }
    dense_of(&setun_kernels_ref, f)(w.p, w_stride, rows, floats(x), x_stride, tokens, k, floats(want), out_stride);
    dense_of(table, f)(w.p, w_stride, rows, floats(x), x_stride, tokens, k, floats(out), out_stride);
    char what[96];
    snprintf(what, sizeof what, "%d rows, %d tokens, k %lld, kind %d", rows, tokens, (long long)k, (int)kind);
    compare(dense_names[f], table->isa, want.p, out.p, 4, (int64_t)outs, what);
    unguard(w), unguard(x), unguard(out), unguard(want);
}

static void test_dense(void **state) {
    (void)state;
    for (dense_format f = F32; f < DENSE_FORMATS; f++)
        for (int i = 0; i < fast_count; i++) {
            if (!dense_of(fast[i], f)) continue;
            for (int k = 1; k <= 70; k++) check_dense(fast[i], f, 1 + below(9), 1, k, (values)(k % 3)), check_dense(fast[i], f, 1 + below(20), 2 + below(9), k, (values)(k % 3));
            static const int ks[] = {255, 256, 257, 300, 512, 543, 576, 768, 1027};
            for (int j = 0; j < 9; j++)
                for (values kind = PLAIN; kind <= SPECIAL; kind++) {
                    check_dense(fast[i], f, 1 + below(9), 1, ks[j], kind);
                    check_dense(fast[i], f, 1 + below(20), 1 + below(8), ks[j], kind);
                }
            for (int tokens = 1; tokens <= 14; tokens++) check_dense(fast[i], f, 1 + below(18), tokens, 272, (values)(tokens % 3));
            check_dense(fast[i], f, 83, 3, 64, PLAIN);   /* more than a block of rows */
            check_dense(fast[i], f, 18, 31, 272, PLAIN); /* more than a block of tokens */
            check_dense(fast[i], f, 5, 1, 2560, PLAIN);
            check_dense(fast[i], f, 3, 3, 2560, SPECIAL);
        }
}

/* ---- attention ---- */

typedef struct { int queries, group, head_size, first, window; setun_dtype type; values kind; } attention_case;

static const setun_dtype kv_types[] = {SETUN_F32, SETUN_F16, SETUN_I8};
static size_t element_of(setun_dtype type) { return type == SETUN_F32 ? 4 : type == SETUN_F16 ? 2 : 1; }
static int rounded(int n, int to) { return (n + to - 1) / to * to; }

/* Keys, values and factors of one head as the kernel wants them, each in a block that ends at a guard page, with `gap` bytes more than needed between ranges. */
typedef struct kv_head { guarded k, v, ks, vs; size_t stride; setun_dtype type; int d, keys; } kv_head;

static size_t key_at(const kv_head *h, int n, int d) { return ((size_t)(n % SETUN_ATTENTION_RANGE / SETUN_ATTENTION_BLOCK) * (size_t)h->d + (size_t)d) * SETUN_ATTENTION_BLOCK + (size_t)(n % SETUN_ATTENTION_BLOCK); }

static kv_head make_head(setun_dtype type, int keys, int d, size_t gap) {
    kv_head h = {.type = type, .d = d, .keys = keys, .stride = (size_t)SETUN_ATTENTION_RANGE * (size_t)d * element_of(type)};
    if (h.stride < SETUN_ATTENTION_RANGE * sizeof(float)) h.stride = SETUN_ATTENTION_RANGE * sizeof(float);
    h.stride = (h.stride + gap) / 4 * 4;
    size_t ranges = (size_t)((keys - 1) / SETUN_ATTENTION_RANGE), last = (size_t)(keys - (int)ranges * SETUN_ATTENTION_RANGE), whole = (size_t)rounded((int)last, SETUN_ATTENTION_BLOCK);
    size_t before = ranges * h.stride;
    h.k = guard(before + whole * (size_t)d * element_of(type), 0, false);
    h.v = guard(before + last * (size_t)d * element_of(type), 0, false);
    h.ks = guard(before + whole * 4, 0, false), h.vs = guard(before + whole * 4, 0, false);
    memset(h.k.p, 0xff, before + whole * (size_t)d * element_of(type)); /* NaN where no key is, and between ranges */
    memset(h.v.p, 0xff, before + last * (size_t)d * element_of(type));
    memset(h.ks.p, 0xff, before + whole * 4), memset(h.vs.p, 0xff, before + whole * 4);
    return h;
}
static void free_head(kv_head h) { unguard(h.k), unguard(h.v), unguard(h.ks), unguard(h.vs); }

static void put(setun_dtype type, uint8_t *base, size_t i, float x) {
    if (type == SETUN_F32) memcpy(base + i * 4, &x, 4);
    else if (type == SETUN_F16) ((uint16_t *)(void *)base)[i] = setun_f32_to_f16(x);
    else ((int8_t *)base)[i] = (int8_t)(x == x ? fmaxf(-128, fminf(127, rintf(x * 40))) : 0);
}
static void put_kv(const kv_head *h, int n, int d, float key, float val) {
    size_t range = (size_t)(n / SETUN_ATTENTION_RANGE) * h->stride;
    put(h->type, h->k.p + range, key_at(h, n, d), key);
    put(h->type, h->v.p + range, (size_t)(n % SETUN_ATTENTION_RANGE) * (size_t)h->d + (size_t)d, val);
}
static void put_scales(const kv_head *h, int n, float key, float val) {
    size_t range = (size_t)(n / SETUN_ATTENTION_RANGE) * h->stride, i = (size_t)(n % SETUN_ATTENTION_RANGE);
    ((float *)(void *)(h->ks.p + range))[i] = key;
    ((float *)(void *)(h->vs.p + range))[i] = val;
}
static setun_attention_args args_of(const kv_head *h) {
    return (setun_attention_args){.head_size = h->d, .type = h->type, .k = h->k.p, .v = h->v.p, .k_scales = floats(h->ks), .v_scales = floats(h->vs), .range_stride = h->stride};
}

/* By ranges and combined must be the same as all at once, and the ranges' records the same on every ISA. */
static void check_ranges(const setun_kernels *table, setun_attention_args args, const float *want, const char *what) {
    size_t record = setun_attention_partial_floats(args.head_size), pairs = (size_t)args.queries * (size_t)args.group;
    int ranges = (args.first + args.queries - 1) / SETUN_ATTENTION_RANGE + 1;
    float *records = malloc((size_t)ranges * pairs * record * 4), *reference = malloc((size_t)ranges * pairs * record * 4), *out = calloc(pairs * (size_t)args.head_size, 4);
    assert_true(records && reference && out);
    size_t width = record - 16, d = (size_t)args.head_size;
    for (int r = ranges - 1; r >= 0; r--) { /* in any order */
        args.range = r;
        args.partials = reference + (size_t)r * pairs * record;
        setun_ref_attention(&args);
        args.partials = records + (size_t)r * pairs * record;
        args.next = r & 1 ? args.k : NULL;
        table->attention(&args);
        for (size_t i = 0; i < pairs * record; i++) { /* NaN may be any in a record, what lies after head_size or the sum too */
            float *a = reference + (size_t)r * pairs * record + i, *b = args.partials + i;
            size_t at = i % record;
            bool counts = at < d || (at >= width && at < width + 2);
            if (!counts || (*a != *a && *b != *b)) *a = *b = NAN;
        }
        compare("attention", table->isa, reference + (size_t)r * pairs * record, args.partials, 4, (int64_t)(pairs * record), what);
    }
    for (int i = 0; i < args.queries; i++)
        for (int g = 0; g < args.group; g++) {
            int high = args.first + i + 1, low = args.window && high > args.window ? high - args.window : 0;
            int first = low / SETUN_ATTENTION_RANGE, last = (high - 1) / SETUN_ATTENTION_RANGE;
            float *from = records + ((size_t)first * pairs + (size_t)(i * args.group + g)) * record;
            table->attention_combine(from, pairs * record, last - first + 1, args.head_size, out + (size_t)(i * args.group + g) * d);
            compare("attention_combine", table->isa, want + (size_t)i * args.out_stride + (size_t)g * d, out + (size_t)(i * args.group + g) * d, 4, (int64_t)d, what);
        }
    free(records), free(reference), free(out);
}

static void check_attention(const setun_kernels *table, attention_case c, bool in_place) {
    size_t d = (size_t)c.head_size;
    int keys = c.first + c.queries;
    size_t q_stride = (size_t)c.group * d + (size_t)below(2) * 3, out_stride = in_place ? q_stride : (size_t)c.group * d + (size_t)below(2) * 5;
    size_t q_count = q_stride * (size_t)(c.queries - 1) + (size_t)c.group * d, out_count = out_stride * (size_t)(c.queries - 1) + (size_t)c.group * d;
    guarded q = guard(q_count * 4, (size_t)below(2) * 4, below(2)), want = guard(out_count * 4, 0, false), out = guard(out_count * 4, 0, below(2));
    kv_head h = make_head(c.type, keys, c.head_size, (size_t)below(3) * 64);
    size_t scratch_floats = setun_attention_scratch_floats(c.group, c.head_size);
    assert_int_equal(scratch_floats % 16, 0);
    size_t page = (size_t)sysconf(_SC_PAGESIZE), scratch_bytes = scratch_floats * 4;
    guarded scratch = guard(scratch_bytes, 0, false);
    assert_true(page % 64 == 0 && (uintptr_t)scratch.p % 64 == 0);
    memset(scratch.p, 0xff, scratch_bytes); /* NaN: what scratch held before must not matter */
    fill(floats(q), (int64_t)q_count, c.kind == SPECIAL ? PLAIN : c.kind);
    if (c.kind == SPECIAL && below(2)) floats(q)[below((int)q_count)] = special();
    for (int n = 0; n < keys; n++) {
        values kind = c.kind == SPECIAL ? PLAIN : c.kind; /* few special values, or all results were NaN */
        for (int i = 0; i < c.head_size; i++) {
            float a = value(kind), b = value(kind);
            if (c.kind == WIDE) a *= 0x1p-20f;
            if (c.kind == SPECIAL && below(keys * c.head_size) == 0) a = special();
            if (c.kind == SPECIAL && below(c.head_size) == 0) b = special();
            put_kv(&h, n, i, a, b);
        }
        put_scales(&h, n, c.kind == SPECIAL && below(keys) == 0 ? special() : 0.001f * (float)(1 + below(40)), c.kind == SPECIAL && below(keys) == 0 ? special() : value(kind));
    }
    setun_attention_args args = args_of(&h);
    args.q = floats(q), args.q_stride = q_stride, args.queries = c.queries, args.group = c.group, args.first = c.first, args.window = c.window;
    args.scale = c.kind == WIDE ? 0x1p-4f : 0.088f, args.out = floats(want), args.out_stride = out_stride, args.scratch = floats(scratch);
    char what[160];
    snprintf(what, sizeof what, "%d queries, %d heads of %d, first %d, window %d, type %d, kind %d", c.queries, c.group, c.head_size, c.first, c.window, (int)c.type, (int)c.kind);
    if (in_place) memcpy(want.p, q.p, q_count * 4);
    if (in_place) args.q = floats(want);
    setun_ref_attention(&args);
    args.q = floats(q);
    check_ranges(table, args, floats(want), what);
    args.out = in_place ? floats(q) : floats(out);
    table->attention(&args);
    compare("attention", table->isa, want.p, args.out, 4, (int64_t)out_count, what);
    unguard(q), unguard(want), unguard(out), unguard(scratch);
    free_head(h);
}

static void test_attention(void **state) {
    (void)state;
    FOR_EACH_FAST(table, attention) {
        static const int head_sizes[] = {1, 7, 16, 32, 48, 64, 80, 96, 128, 100};
        for (int round = 0; round < 240; round++) {
            attention_case c = {1 + below(round % 4 ? 3 : 40), 1 + below(round % 5 ? 5 : 17), head_sizes[below(10)], below(round % 3 ? 70 : 300), 0, kv_types[below(3)], (values)(round % 3)};
            if (round % 2) c.window = 1 + below(round % 4 == 1 ? 20 : 150);
            check_attention(table, c, round % 7 == 0);
        }
        for (int t = 0; t < 3; t++) {
            for (int queries = 1; queries <= 2; queries++)
                for (int group = 1; group <= 14; group++) check_attention(table, (attention_case){queries, group, 64, 127 + group, 0, kv_types[t], PLAIN}, false);
            check_attention(table, (attention_case){16, 3, 64, 500, 300, kv_types[t], PLAIN}, false);
            check_attention(table, (attention_case){40, 4, 48, 495, 0, kv_types[t], WIDE}, false); /* queries on both sides of a range's end */
            check_attention(table, (attention_case){3, 2, 20, 767, 256, kv_types[t], SPECIAL}, false);
        }
        check_attention(table, (attention_case){1, 71, 64, 65, 0, SETUN_F16, PLAIN}, false); /* one kv head for all */
        check_attention(table, (attention_case){64, 4, 128, 0, 0, SETUN_F16, PLAIN}, false);
    }
}

/* A query's result must not hang on which others come with it. */
static void test_attention_tiling(void **state) {
    (void)state;
    enum { D = 64, N = 300, G = 3 };
    static float q[N * G * D], whole[N * G * D], single[N * G * D];
    float *scratch = aligned_alloc(64, setun_attention_scratch_floats(G, D) * 4);
    assert_non_null(scratch);
    fill(q, N * G * D, PLAIN);
    for (int t = 0; t < 3; t++) {
        kv_head h = make_head(kv_types[t], N, D, 0);
        for (int n = 0; n < N; n++) {
            for (int d = 0; d < D; d++) put_kv(&h, n, d, value(PLAIN), value(PLAIN));
            put_scales(&h, n, 0.01f, 0.02f);
        }
        for (int isa = -1; isa < fast_count; isa++) {
            const setun_kernels *table = isa < 0 ? &setun_kernels_ref : fast[isa];
            if (!table->attention) continue;
            for (int window = 0; window < 100; window += 33) {
                setun_attention_args args = args_of(&h);
                args.q_stride = args.out_stride = G * D, args.group = G, args.window = window, args.scale = 0.125f, args.scratch = scratch;
                args.q = q, args.queries = N, args.out = whole;
                table->attention(&args);
                args.queries = 1;
                for (int i = 0; i < N; i++) {
                    args.q = q + i * G * D, args.first = i, args.out = single + i * G * D;
                    table->attention(&args);
                }
                compare("attention", table->isa, whole, single, 4, N * G * D, "together or one by one");
            }
        }
        free_head(h);
    }
    free(scratch);
}

/* ---- ref against double precision ---- */

static double relative(double got, double want, double floor_) { return fabs(got - want) / fmax(fabs(want), floor_); }

static void test_exp_accuracy(void **state) {
    (void)state;
    double worst = 0;
    for (uint64_t u = 0; u <= 0xffffffffu; u += 1021) {
        float x = setun_bits_float((uint32_t)u), y = setun_scalar_exp(x);
        if (x != x) assert_true(y != y);
        else if (x > SETUN_EXP_HIGHEST) assert_true(y == INFINITY);
        else if (x < SETUN_EXP_LOWEST) assert_true(y == 0.0f);
        else {
            double want = exp((double)x);
            double ulp = ldexp(1.0, ilogb(want) - 23), error = fabs((double)y - want) / ulp;
            if (error > worst) worst = error;
        }
    }
    print_message("exp: worst error %.3f ulp\n", worst);
    assert_true(worst > 0.4 && worst < 1.0);
    assert_true(setun_scalar_exp(0.0f) == 1.0f);
    /* the limits themselves */
    assert_true(setun_scalar_exp(SETUN_EXP_LOWEST) >= 0x1p-126f && setun_scalar_exp(SETUN_EXP_HIGHEST) <= 0x1.fffffep127f);
    assert_true(setun_scalar_exp(SETUN_EXP_HIGHEST) > 0x1.fff8p127f);
    assert_true(setun_scalar_exp(-INFINITY) == 0.0f && setun_scalar_exp(-3e38f) == 0.0f && setun_scalar_exp(3e38f) == INFINITY);
}

static void test_activations_accuracy(void **state) {
    (void)state;
    double worst_silu = 0, worst_gelu = 0;
    for (int i = -2000000; i <= 2000000; i += 7) {
        float x = (float)i * 1e-5f, y;
        double d = (double)x;
        setun_ref_silu(&x, 1, &y);
        worst_silu = fmax(worst_silu, relative((double)y, d / (1 + exp(-d)), 1e-30));
        setun_ref_gelu(&x, 1, &y); /* the tail of gelu is exp of a large rounded number: absolute there */
        worst_gelu = fmax(worst_gelu, fabs((double)y - 0.5 * d * (1 + tanh(0.7978845608028654 * (d + 0.044715 * d * d * d)))) / fmax(fabs(d), 1e-30));
    }
    print_message("silu: worst relative error %.2e; gelu: worst error / |x| %.2e\n", worst_silu, worst_gelu);
    assert_true(worst_silu < 3e-7 && worst_gelu < 2e-7);
    float x[3] = {-2.0f, 3.0f, -0.0f}, y[3];
    setun_ref_relu2(x, 3, y);
    assert_true(y[0] == 0.0f && y[1] == 9.0f && y[2] == 0.0f);
}

static void test_norm_accuracy(void **state) {
    (void)state;
    static float x[6912], w[6912], y[6912];
    for (int i = 0; i < SIZES; i++) {
        int n = size_at(i);
        fill(x, n, PLAIN), fill(w, n, PLAIN);
        double sum = 0;
        for (int j = 0; j < n; j++) sum += (double)x[j] * (double)x[j];
        setun_ref_rms_norm(x, w, 1.0f, n, 1e-5f, y);
        for (int j = 0; j < n; j++) {
            double want = (double)x[j] / sqrt(sum / n + 1e-5) * ((double)w[j] + 1);
            assert_true(fabs((double)y[j] - want) <= 2e-6 * fabs((double)x[j] / sqrt(sum / n)) * (fabs((double)w[j]) + 1) + 1e-30);
        }
        setun_ref_l2_normalize(x, n, y);
        for (int j = 0; j < n; j++) assert_true(relative((double)y[j], (double)x[j] / fmax(sqrt(sum), 1e-12), 1e-30) < 2e-6);
        setun_ref_softmax(x, n, y);
        double total = 0;
        for (int j = 0; j < n; j++) total += exp((double)x[j]);
        for (int j = 0; j < n; j++) assert_true(relative((double)y[j], exp((double)x[j]) / total, 1e-30) < 4e-6);
    }
    float zero[20] = {0}, out[20];
    setun_ref_l2_normalize(zero, 20, out);
    for (int j = 0; j < 20; j++) assert_true(out[j] == 0.0f);
}

static void test_rope_hadamard_accuracy(void **state) {
    (void)state;
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        float x[3 * 20], y[3 * 20], c[8], s[8];
        fill(x, 60, PLAIN);
        for (int i = 0; i < 8; i++) c[i] = (float)cos(i * 0.7), s[i] = (float)sin(i * 0.7);
        memcpy(y, x, sizeof x);
        setun_ref_rope(y, 3, 20, 16, c, s, interleaved);
        for (int h = 0; h < 3; h++) {
            for (int i = 0; i < 8; i++) {
                int p = h * 20 + (interleaved ? 2 * i : i), q = h * 20 + (interleaved ? 2 * i + 1 : i + 8);
                assert_true(fabs((double)y[p] - ((double)x[p] * cos(i * 0.7) - (double)x[q] * sin(i * 0.7))) < 1e-6);
                assert_true(fabs((double)y[q] - ((double)x[q] * cos(i * 0.7) + (double)x[p] * sin(i * 0.7))) < 1e-6);
            }
            assert_memory_equal(x + h * 20 + 16, y + h * 20 + 16, 16); /* not rotated: untouched */
        }
    }
    for (int block = 1; block <= 512; block *= 2) {
        float x[512], y[512];
        fill(x, block, PLAIN);
        memcpy(y, x, sizeof x);
        setun_ref_hadamard(y, block);
        for (int i = 0; i < block; i++) {
            double sum = 0;
            for (int j = 0; j < block; j++) sum += __builtin_popcount((unsigned)(i & j)) & 1 ? -(double)x[j] : (double)x[j];
            assert_true(fabs((double)y[i] - sum / sqrt(block)) < 2e-6);
        }
    }
}

/* The weights decoded a second way, independent of ref's. */
static double dense_weight(dense_format f, const uint8_t *row, int i) {
    if (f == F32) return (double)setun_load_f32(row + i * 4);
    if (f == F16) return (double)setun_f16_to_f32(setun_load_u16(row + i * 2));
    if (f == BF16) return (double)setun_bf16_to_f32(setun_load_u16(row + i * 2));
    if (f == Q8_0) return (double)setun_f16_to_f32(setun_load_u16(row + i / 32 * 34)) * (int8_t)row[i / 32 * 34 + 2 + i % 32];
    const uint8_t *b = row + i / 256 * 210, *ql = b + (i % 256 / 128) * 64, *qh = b + 128 + (i % 256 / 128) * 32;
    int l = i % 32, q;
    switch (i % 128 / 32) {
    case 0: q = (ql[l] & 0xf) | (qh[l] & 3) << 4; break;
    case 1: q = (ql[l + 32] & 0xf) | (qh[l] >> 2 & 3) << 4; break;
    case 2: q = ql[l] >> 4 | (qh[l] >> 4 & 3) << 4; break;
    default: q = ql[l + 32] >> 4 | (qh[l] >> 6 & 3) << 4; break;
    }
    return (double)setun_f16_to_f32(setun_load_u16(b + 208)) * (int8_t)b[192 + i % 256 / 16] * (q - 32);
}

static void test_dense_accuracy(void **state) {
    (void)state;
    static uint8_t w[3 * 2560 * 4];
    static float x[2 * 2560];
    for (dense_format f = F32; f < DENSE_FORMATS; f++)
        for (int k = 256; k <= 2560; k += 768) {
            float y[6];
            size_t row_bytes = dense_row_bytes(f, k);
            for (int r = 0; r < 3; r++) dense_fill(f, w + (size_t)r * row_bytes, k, PLAIN);
            fill(x, 2 * k, PLAIN);
            dense_of(&setun_kernels_ref, f)(w, row_bytes, 3, x, (size_t)k, 2, k, y, 3);
            for (int t = 0; t < 2; t++)
                for (int r = 0; r < 3; r++) {
                    double sum = 0, size = 0;
                    for (int i = 0; i < k; i++) {
                        double product = dense_weight(f, w + (size_t)r * row_bytes, i) * (double)x[t * k + i];
                        sum += product, size += fabs(product);
                    }
                    assert_true(fabs((double)y[t * 3 + r] - sum) <= (k / 16 + 5) * 0x1p-24 * size); /* one rounding a step, 4 in the tree */
                }
        }
}

static void test_attention_accuracy(void **state) {
    (void)state;
    double worst = 0;
    for (int round = 0; round < 12; round++) {
        enum { D = 80, MAX = 600 };
        static float q[40 * 2 * D], k[MAX * D], v[MAX * D], out[40 * 2 * D];
        int queries = 1 + below(40), first = below(MAX - 40), window = round & 1 ? 1 + below(320) : 0;
        fill(q, queries * 2 * D, PLAIN);
        kv_head h = make_head(kv_types[round % 3], first + queries, D, 0);
        for (int n = 0; n < first + queries; n++) {
            float ks = 0.02f + 0.001f * (float)below(9), vs = 0.02f + 0.001f * (float)below(9);
            put_scales(&h, n, ks, vs);
            for (int i = 0; i < D; i++) {
                float a = value(PLAIN), b = value(PLAIN);
                if (h.type == SETUN_F16) a = setun_f16_to_f32(setun_f32_to_f16(a)), b = setun_f16_to_f32(setun_f32_to_f16(b));
                put_kv(&h, n, i, a, b);
                size_t range = (size_t)(n / SETUN_ATTENTION_RANGE) * h.stride;
                k[n * D + i] = h.type == SETUN_I8 ? (float)((int8_t *)h.k.p)[range + key_at(&h, n, i)] * ks : a;
                v[n * D + i] = h.type == SETUN_I8 ? (float)((int8_t *)h.v.p)[range + (size_t)(n % SETUN_ATTENTION_RANGE * D + i)] * vs : b;
            }
        }
        float *scratch = aligned_alloc(64, setun_attention_scratch_floats(2, D) * 4);
        assert_non_null(scratch);
        setun_attention_args args = args_of(&h);
        args.q = q, args.q_stride = args.out_stride = 2 * D, args.queries = queries, args.group = 2, args.first = first, args.window = window, args.scale = 0.3f, args.out = out, args.scratch = scratch;
        setun_ref_attention(&args);
        free(scratch);
        free_head(h);
        for (int i = 0; i < queries; i++)
            for (int g = 0; g < 2; g++) {
                int high = first + i + 1, low = window && high > window ? high - window : 0;
                const float *qi = q + (i * 2 + g) * D;
                double score[MAX], sum = 0, max = -1e300;
                for (int j = low; j < high; j++) {
                    score[j] = 0;
                    for (int d = 0; d < D; d++) score[j] += (double)qi[d] * (double)k[j * D + d];
                    score[j] *= (double)0.3f;
                    max = fmax(max, score[j]);
                }
                for (int j = low; j < high; j++) sum += exp(score[j] - max);
                for (int d = 0; d < D; d++) {
                    double want = 0;
                    for (int j = low; j < high; j++) want += exp(score[j] - max) / sum * (double)v[j * D + d];
                    worst = fmax(worst, fabs((double)out[(i * 2 + g) * D + d] - want));
                }
            }
    }
    print_message("attention: worst error %.2e\n", worst);
    assert_true(worst < 1e-5); /* scores up to about 10: rounding 6e-7 each, values of size 3 */
}

/* ---- ref's own bits ---- */

#define SETUN_PINNED 0xbaaf9e3f647014f1u /* changes only with the definition of a kernel */
static uint64_t hash;
static void hash_bytes(const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
}

static void test_pinned_bits(void **state) {
    (void)state;
    uint64_t keep = rng;
    rng = 42;
    hash = 0xcbf29ce484222325u;
    static float x[2048], y[2048], out[2048];
    static uint8_t w[4 * 2048 * 4];
    static uint16_t h[2048];
    for (values kind = PLAIN; kind <= SPECIAL; kind++) {
        fill(x, 2048, kind), fill(y, 2048, kind);
#define HASH(call) do { call; hash_bytes(out, sizeof out); } while (0)
        HASH(setun_ref_silu(x, 2048, out));
        HASH(setun_ref_gelu(x, 2048, out));
        HASH(setun_ref_relu2(x, 2048, out));
        HASH(setun_ref_silu_mul(x, y, 2048, out));
        HASH(setun_ref_gelu_mul(x, y, 2048, out));
        HASH(setun_ref_relu2_mul(x, y, 2048, out));
        HASH(setun_ref_add(x, y, 2048, out));
        HASH(setun_ref_multiply(x, y, 2048, out));
        HASH(setun_ref_rms_norm(x, y, 0.5f, 2000, 1e-5f, out));
        HASH(setun_ref_l2_normalize(x, 2001, out));
        HASH(setun_ref_softmax(x, 2048, out));
        setun_ref_f32_to_f16(x, 2048, h);
        hash_bytes(h, sizeof h);
        HASH(setun_ref_f16_to_f32(h, 2048, out));
        HASH(setun_ref_rope(out, 16, 128, 96, x, y, kind & 1));
        HASH(setun_ref_hadamard(out, 2048));
        for (dense_format f = F32; f < DENSE_FORMATS; f++) {
            for (int r = 0; r < 4; r++) dense_fill(f, w + (size_t)r * dense_row_bytes(f, 1000), 1000, kind);
            HASH(dense_of(&setun_kernels_ref, f)(w, dense_row_bytes(f, 1000), 4, x, 1024, 2, 1000, out, 4));
        }
        static float scratch[64 * 1024] __attribute__((aligned(64)));
        assert_true(setun_attention_scratch_floats(2, 24) <= 64 * 1024);
        fill(y, 2048, kind == SPECIAL ? PLAIN : kind);
        for (int t = 0; t < 3; t++) {
            kv_head head = make_head(kv_types[t], 303, 24, 0);
            for (int n = 0; n < 303; n++) {
                put_scales(&head, n, y[n], y[n + 400]);
                for (int i = 0; i < 24; i++) put_kv(&head, n, i, y[(n * 24 + i) % 2048], y[(n * 24 + i + 1000) % 2048]);
            }
            setun_attention_args args = args_of(&head);
            args.q = x, args.q_stride = args.out_stride = 48, args.queries = 3, args.group = 2, args.first = 300, args.window = kind == WIDE ? 70 : 0, args.scale = 0.2f, args.out = out, args.scratch = scratch;
            HASH(setun_ref_attention(&args));
            free_head(head);
        }
    }
    rng = keep;
    print_message("hash of ref's bits: %016llx\n", (unsigned long long)hash);
    assert_true(hash == SETUN_PINNED);
}

int main(void) {
    const char *given = getenv("SETUN_TEST_SEED");
    rng = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)rng);
    for (int i = 1; i < setun_isa_count() && fast_count < 8; i++)
        if (setun_isa_available(i)) fast[fast_count++] = setun_isa_table(i), printf("testing %s\n", setun_isa_name(i));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_softmax_corners),
        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_hadamard),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_tiling),
        cmocka_unit_test(test_exp_accuracy),
        cmocka_unit_test(test_activations_accuracy),
        cmocka_unit_test(test_norm_accuracy),
        cmocka_unit_test(test_rope_hadamard_accuracy),
        cmocka_unit_test(test_dense_accuracy),
        cmocka_unit_test(test_attention_accuracy),
        cmocka_unit_test(test_pinned_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
