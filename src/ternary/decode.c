/*
 * decode.c - any weight as ternary codes + scales or as f32: checks the weight, walks rows in chunks, and settles what the
 * formats leave open (negative and zero scales, MLX's biases). Callers: the backend's packing, convert, reference kernels.
 * Any range of rows may be decoded by any number of threads at once: there is no state.
 */
#include "ternary/decode.h"
#include <math.h>

setun_status setun_weight_check(const setun_weight *w) {
    const char *name = setun_weight_label(w);
    const setun_format_kind kind = setun_format_get_kind(w->format);
    if (kind == SETUN_KIND_REFUSED)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s' has format %s: %s", name, setun_format_name(w->format), setun_format_refusal(w->format));
    if (kind == SETUN_KIND_INTEGER)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s' has format %s, which holds no weights; use a file whose weights are ternary, f32, f16, bf16 or quantised",
            name, setun_format_name(w->format));
    uint64_t bytes;
    setun_status status = setun_format_size(w->format, w->rows, w->columns, &bytes);
    if (status) return setun_fail_prefix(status, "tensor '%s'", name);
    if (!w->data || w->bytes < bytes)
        return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s' has %llu bytes; %lld x %lld weights in %s take %llu: the file is truncated or its type is wrong",
            name, (unsigned long long)w->bytes, (long long)w->rows, (long long)w->columns, setun_format_name(w->format), (unsigned long long)bytes);
    if (w->format == SETUN_FORMAT_MLX_2BIT) {
        if (!w->scales || !w->biases) return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s' is MLX 2-bit, but its %s are missing", name, w->scales ? "biases" : "scales");
        if (w->scales_format != SETUN_FORMAT_F32 && w->scales_format != SETUN_FORMAT_F16 && w->scales_format != SETUN_FORMAT_BF16)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': MLX scales are %s; f32, f16 and bf16 are read", name, setun_format_name(w->scales_format));
        if (w->group_size != 32 && w->group_size != 64 && w->group_size != 128)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': MLX group size %d; 32, 64 and 128 are read", name, w->group_size);
        if (w->columns % w->group_size)
            return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s': its rows of %lld weights are no multiple of the MLX group size %d", name, (long long)w->columns, w->group_size);
    }
    return SETUN_OK;
}

setun_status setun_decode_code3(const setun_weight *w, int64_t row, int64_t column) {
    if (w->format == SETUN_FORMAT_Q2_0 || w->format == SETUN_FORMAT_PQ2_0 || w->format == SETUN_FORMAT_MLX_2BIT)
        return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s', row %lld, column %lld: code 3 is the value +2: this %s tensor is not ternary; use a ternary model, or the same model in a dense format",
            setun_weight_label(w), (long long)row, (long long)column, setun_format_name(w->format));
    return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s', row %lld, column %lld: code 3, which %s never holds: the file is corrupt%s",
        setun_weight_label(w), (long long)row, (long long)column, setun_format_name(w->format),
        setun_format_gguf_id(w->format) == 36 ? " or has another I2_S layout" : "");
}

setun_status setun_decode_check_scale(const setun_weight *w, int64_t row, int64_t column, float scale) {
    /* I2_S and trits are used where they lie and HF codes are shared with other readers: nobody flips their codes, so a
     * negative scale is refused there. The others take it: the codes are mirrored while decoding. */
    const bool may_be_negative = w->format != SETUN_FORMAT_HF_2BIT && w->format != SETUN_FORMAT_TRITS && setun_format_gguf_id(w->format) != 36;
    if (isfinite(scale) && (scale >= 0 || may_be_negative)) return SETUN_OK;
    return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s', row %lld, column %lld: the scale of this %s block is %g: the file is corrupt",
        setun_weight_label(w), (long long)row, (long long)column, setun_format_name(w->format), (double)scale);
}

/* MLX: what the four codes mean in this group, as value + 1; 0xff where a code that occurs is none of -s, 0, +s. */
static bool mlx_meaning(const setun_weight *w, int64_t row, int64_t group, const uint8_t *codes, int count, uint8_t meaning[4], float *out_scale) {
    const float scale = setun_decode_scale(w, row, group), bias = setun_decode_bias(w, row, group);
    bool used[4] = {false, false, false, false};
    for (int i = 0; i < count; i++) used[codes[i]] = true;
    float value[4], largest = 0;
    for (int q = 0; q < 4; q++) {
        value[q] = (float)q * scale + bias;
        if (used[q] && fabsf(value[q]) > largest) largest = fabsf(value[q]);
    }
    for (int q = 0; q < 4; q++) {
        meaning[q] = value[q] > 0 ? 2 : value[q] < 0 ? 0 : 1;
        if (used[q] && value[q] != 0 && fabsf(value[q]) != largest) return false;
    }
    *out_scale = largest;
    return true;
}

setun_status setun_decode_settle(const setun_weight *w, int64_t row, int64_t column, int count, uint8_t *codes, float *out_scale, bool *out_ternary) {
    *out_ternary = true;
    const int base = setun_decode_group(w);
    const int64_t group = base ? column / base : 0;
    const float scale = setun_decode_scale(w, row, group);
    SETUN_TRY(setun_decode_check_scale(w, row, column, scale));
    if (w->format == SETUN_FORMAT_MLX_2BIT) {
        uint8_t meaning[4];
        const float bias = setun_decode_bias(w, row, group);
        if (!isfinite(bias))
            return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s', row %lld, column %lld: the bias of this MLX group is %g: the file is corrupt",
                setun_weight_label(w), (long long)row, (long long)column, (double)bias);
        *out_ternary = mlx_meaning(w, row, group, codes, count, meaning, out_scale);
        if (*out_ternary)
            for (int i = 0; i < count; i++) codes[i] = meaning[codes[i]];
        return SETUN_OK;
    }
    /* eight codes a word: code 3 has both bits, code 1 (value 0) exactly the low one */
    const uint64_t ones = 0x0101010101010101u, twos = 2 * ones;
    uint64_t bad = 0, nonzero = 0, x;
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        memcpy(&x, codes + i, 8);
        bad |= x & x >> 1;
        nonzero |= x ^ ones;
    }
    for (; i < count; i++) {
        bad |= (uint64_t)(codes[i] & codes[i] >> 1);
        nonzero |= (uint64_t)(codes[i] ^ 1);
    }
    if (bad & ones)
        for (i = 0; i < count; i++)
            if (codes[i] == 3) return setun_decode_code3(w, row, column + i);
    if (scale <= 0) {
        for (i = 0; i + 8 <= count; i += 8) {
            memcpy(&x, codes + i, 8);
            x = scale == 0 ? ones : twos - x;
            memcpy(codes + i, &x, 8);
        }
        for (; i < count; i++) codes[i] = scale == 0 ? 1 : (uint8_t)(2 - codes[i]);
    }
    *out_scale = scale != 0 && nonzero ? fabsf(scale) : 0;
    return SETUN_OK;
}

static setun_status not_ternary(const setun_weight *w, int64_t row, int64_t column) {
    return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s', row %lld, column %lld: its values are not a scale times -1, 0, +1", setun_weight_label(w), (long long)row, (long long)column);
}

static setun_status check_rows(const setun_weight *w, int64_t row0, int64_t rows) {
    if (row0 < 0 || rows < 0 || row0 > w->rows || rows > w->rows - row0)
        return setun_fail(SETUN_ERROR_ARGUMENT, "tensor '%s' has %lld rows; rows %lld .. %lld were asked for", setun_weight_label(w), (long long)w->rows, (long long)row0, (long long)row0 + rows - 1);
    return SETUN_OK;
}

/* Puts the scale of columns column .. of a row where info says; the first that is not 0 counts (they agree). */
static void put_scale(const setun_ternary_info *info, int64_t columns, int64_t local_row, int64_t column, float scale, float *scales) {
    if (!scales || info->scale == SETUN_SCALE_TENSOR) return;
    float *at = info->scale == SETUN_SCALE_ROW ? scales + local_row : scales + local_row * (columns / info->group_size) + column / info->group_size;
    if (*at == 0) *at = scale;
}

static setun_status decode_ternary_row(const setun_weight *w, const setun_ternary_info *info, int64_t row, int64_t local_row, uint8_t *codes, float *scales) {
    const int base = setun_decode_group(w);
    for (int64_t first = 0; first < w->columns; first += SETUN_DECODE_CHUNK) {
        const int64_t count = w->columns - first < SETUN_DECODE_CHUNK ? w->columns - first : SETUN_DECODE_CHUNK;
        setun_decode_codes(w, row, first, count, codes + first);
        const int64_t step = base ? base : count;
        for (int64_t g = 0; g < count; g += step) {
            float scale;
            bool ternary;
            SETUN_TRY(setun_decode_settle(w, row, first + g, (int)step, codes + first + g, &scale, &ternary));
            if (!ternary) return not_ternary(w, row, first + g);
            put_scale(info, w->columns, local_row, first + g, scale, scales);
        }
    }
    return SETUN_OK;
}

static setun_status decode_dense_row(const setun_weight *w, const setun_ternary_info *info, int64_t row, int64_t local_row, uint8_t *codes, float *scales) {
    float values[SETUN_DECODE_CHUNK];
    for (int64_t first = 0; first < w->columns; first += SETUN_DECODE_CHUNK) {
        const int64_t count = w->columns - first < SETUN_DECODE_CHUNK ? w->columns - first : SETUN_DECODE_CHUNK;
        setun_decode_dense(w, row, first, count, values);
        if (w->absmean) {
            setun_absmean_codes(values, count, info->tensor_scale, codes + first);
            continue;
        }
        for (int64_t i = 0; i < count; i++) codes[first + i] = (uint8_t)(1 + (values[i] > 0) - (values[i] < 0));
        const int64_t step = info->scale == SETUN_SCALE_GROUP ? info->group_size : count;
        for (int64_t g = 0; g < count; g += step) {
            float largest = 0;
            for (int64_t i = g; i < g + step; i++) largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
            put_scale(info, w->columns, local_row, first + g, largest, scales);
        }
    }
    return SETUN_OK;
}

setun_status setun_ternary_decode(const setun_weight *w, const setun_ternary_info *info, int64_t row0, int64_t rows, uint8_t *codes, float *scales) {
    SETUN_TRY(setun_weight_check(w));
    SETUN_TRY(check_rows(w, row0, rows));
    const bool dense = setun_format_get_kind(w->format) == SETUN_KIND_DENSE;
    const int base = dense ? 0 : setun_decode_group(w);
    if (!info->ternary) return setun_fail(SETUN_ERROR_ARGUMENT, "tensor '%s' is not ternary: it has no codes", setun_weight_label(w));
    int64_t per_row = info->scale == SETUN_SCALE_ROW ? 1 : 0;
    if (info->scale == SETUN_SCALE_GROUP) {
        const int g = info->group_size;
        if ((g != 32 && g != 64 && g != 128 && g != 256) || w->columns % g || g < base)
            return setun_fail(SETUN_ERROR_ARGUMENT, "tensor '%s': groups of %d do not fit its rows of %lld weights", setun_weight_label(w), g, (long long)w->columns);
        per_row = w->columns / g;
    }
    if (scales)
        for (int64_t i = 0; i < rows * per_row; i++) scales[i] = 0;
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *row_codes = codes + r * w->columns;
        SETUN_TRY(dense ? decode_dense_row(w, info, row0 + r, r, row_codes, scales) : decode_ternary_row(w, info, row0 + r, r, row_codes, scales));
    }
    return SETUN_OK;
}

void setun_decode_values(const setun_weight *w, int64_t row, int64_t first, int64_t count, float *out) {
    if (setun_format_get_kind(w->format) == SETUN_KIND_DENSE) {
        setun_decode_dense(w, row, first, count, out);
        return;
    }
    uint8_t codes[SETUN_DECODE_CHUNK];
    const int base = setun_decode_group(w);
    const int64_t step = base ? base : count;
    setun_decode_codes(w, row, first, count, codes);
    for (int64_t g = 0; g < count; g += step) {
        const int64_t group = base ? (first + g) / base : 0;
        const float scale = setun_decode_scale(w, row, group);
        if (w->format == SETUN_FORMAT_MLX_2BIT) {
            const float bias = setun_decode_bias(w, row, group);
            for (int64_t i = g; i < g + step; i++) out[i] = (float)codes[i] * scale + bias;
        } else
            for (int64_t i = g; i < g + step; i++) out[i] = scale * (float)(codes[i] - 1);
    }
}

setun_status setun_weight_to_f32(const setun_weight *w, int64_t row0, int64_t rows, float *out) {
    SETUN_TRY(setun_weight_check(w));
    SETUN_TRY(check_rows(w, row0, rows));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t first = 0; first < w->columns; first += SETUN_DECODE_CHUNK) {
            const int64_t count = w->columns - first < SETUN_DECODE_CHUNK ? w->columns - first : SETUN_DECODE_CHUNK;
            setun_decode_values(w, row0 + r, first, count, out + r * w->columns + first);
        }
    return SETUN_OK;
}
