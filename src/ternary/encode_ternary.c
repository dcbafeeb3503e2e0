/*
 * encode_ternary.c - codes and scales into the ternary formats, the mirror of decode_ternary.c. Caller: convert.
 * Writes the same weights or refuses: scales finer than the format holds are never averaged. Only the rounding of a scale to
 * f16 may change values, and that is reported.
 */
#include "ternary/decode.h"
#include <math.h>

/* ---- codes ---- */

static inline void planes_high_first(const uint8_t *codes, int lanes, uint8_t *out) {
    for (int p = 0; p < lanes; p++) out[p] = (uint8_t)(codes[p] << 6 | codes[lanes + p] << 4 | codes[2 * lanes + p] << 2 | codes[3 * lanes + p]);
}

static inline void planes_low_first(const uint8_t *codes, int lanes, uint8_t *out) {
    for (int p = 0; p < lanes; p++) out[p] = (uint8_t)(codes[p] | codes[lanes + p] << 2 | codes[2 * lanes + p] << 4 | codes[3 * lanes + p] << 6);
}

static inline void bytes_in_order(const uint8_t *codes, int count, uint8_t *out) {
    for (int j = 0; j < count / 4; j++) out[j] = (uint8_t)(codes[4 * j] | codes[4 * j + 1] << 2 | codes[4 * j + 2] << 4 | codes[4 * j + 3] << 6);
}

/* v < 243 -> the byte whose digits, read by multiplying (setun_trit), are v's. */
static inline uint8_t trit_byte(unsigned v) { return (uint8_t)((v * 256 + 242) / 243); }

/* Digit n of byte p is code n*lanes + p, digit 0 most significant; a missing fifth digit is 0. */
static inline void trit_planes(const uint8_t *codes, int lanes, int digits, uint8_t *out) {
    for (int p = 0; p < lanes; p++) {
        unsigned v = 0;
        for (int n = 0; n < 5; n++) v = 3 * v + (n < digits ? codes[n * lanes + p] : 0);
        out[p] = trit_byte(v);
    }
}

static void iq1_bn_block(const uint8_t *codes, uint8_t *out) {
    unsigned extra = 0;
    for (int i = 3; i >= 0; i--) {
        for (int k = 0; k < 3; k++) {
            unsigned v = 0;
            for (int j = 4; j >= 0; j--) v = 3 * v + codes[16 * i + 5 * k + j];
            out[3 * i + k] = trit_byte(v);
        }
        extra = 3 * extra + codes[16 * i + 15];
    }
    out[12] = trit_byte(extra);
}

/* ---- scales ---- */

static bool all_zero(const uint8_t *codes, int64_t count) {
    uint8_t nonzero = 0;
    for (int64_t i = 0; i < count; i++) nonzero |= (uint8_t)(codes[i] ^ 1);
    return nonzero == 0;
}

static const char *scale_words(const setun_ternary_info *info, char buffer[40]) {
    if (info->scale == SETUN_SCALE_GROUP) snprintf(buffer, 40, "one scale per %d weights", info->group_size);
    else snprintf(buffer, 40, "one scale per %s", info->scale == SETUN_SCALE_ROW ? "row" : "tensor");
    return buffer;
}

/* Weights per scale that a format stores: 0 a row, -1 a tensor. */
static int stored_group(setun_format format) {
    switch (format) {
    case SETUN_FORMAT_TQ1_0:
    case SETUN_FORMAT_TQ2_0: return 256;
    case SETUN_FORMAT_PQ2_0:
    case SETUN_FORMAT_PTQ1_0: return 128;
    case SETUN_FORMAT_Q2_0: return 64;
    case SETUN_FORMAT_TRITS:
    case SETUN_FORMAT_IQ1_BN:
    case SETUN_FORMAT_IQ2_BN: return 0;
    default: return -1;
    }
}

bool setun_format_holds_scales(setun_format format, const setun_ternary_info *info) {
    const int stored = stored_group(format);
    if (info->scale == SETUN_SCALE_TENSOR) return true;
    if (info->scale == SETUN_SCALE_ROW) return stored >= 0;
    return stored > 0 && stored <= info->group_size;
}

static setun_status scales_too_fine(setun_format format, const char *name, const setun_ternary_info *info, int64_t rows, int64_t columns) {
    static const setun_format candidates[] = {SETUN_FORMAT_TQ1_0, SETUN_FORMAT_TQ2_0, SETUN_FORMAT_IQ1_BN, SETUN_FORMAT_IQ2_BN, SETUN_FORMAT_TRITS, SETUN_FORMAT_PTQ1_0, SETUN_FORMAT_PQ2_0, SETUN_FORMAT_Q2_0};
    char fitting[120] = "", words[40];
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++)
        if (setun_format_fits(candidates[i], rows, columns) && setun_format_holds_scales(candidates[i], info)) {
            const size_t length = strlen(fitting);
            snprintf(fitting + length, sizeof fitting - length, "%s%s", length ? ", " : "", setun_format_name(candidates[i]));
        }
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s' has %s, more than %s holds; ternary formats that hold it exactly: %s",
        name, scale_words(info, words), setun_format_name(format), fitting[0] ? fitting : "none; keep its own");
}

typedef struct encoding {
    setun_format format;
    const char *name;
    const setun_ternary_info *info;
    int64_t rows, columns;
    const uint8_t *codes;
    const float *scales;
    bool exact;
    double max_error;
} encoding;

static float given_scale(const encoding *e, int64_t row, int64_t column) {
    if (e->info->scale == SETUN_SCALE_TENSOR) return e->info->tensor_scale;
    if (e->info->scale == SETUN_SCALE_ROW) return e->scales[row];
    return e->scales[row * (e->columns / e->info->group_size) + column / e->info->group_size];
}

/* The one scale of columns column .. column+count-1 of a row, 0 where all are zeros; false if there are two. */
static bool common_scale(const encoding *e, int64_t row, int64_t column, int64_t count, float *scale) {
    const uint8_t *codes = e->codes + row * e->columns + column;
    const int64_t step = e->info->scale == SETUN_SCALE_GROUP && e->info->group_size < count ? e->info->group_size : count;
    for (int64_t i = 0; i < count; i += step) {
        const float s = given_scale(e, row, column + i);
        if (s == *scale || all_zero(codes + i, step)) continue;
        if (*scale != 0) return false;
        *scale = s;
    }
    return true;
}

static setun_status put_f16(encoding *e, int64_t row, float scale, uint8_t *out) {
    const uint16_t half = setun_f32_to_f16(scale);
    const float back = setun_f16_to_f32(half);
    if (!isfinite(back))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s', row %lld: the scale %g is beyond f16, which %s uses; iq2_bn and i2_s hold an f32 scale",
            e->name, (long long)row, (double)scale, setun_format_name(e->format));
    memcpy(out, &half, 2);
    if (back != scale) {
        const double error = fabs((double)back - (double)scale);
        e->exact = false;
        if (error > e->max_error) e->max_error = error;
    }
    return SETUN_OK;
}

static void put_f32(float scale, uint8_t *out) { memcpy(out, &scale, 4); }

/* ---- formats ---- */

static setun_status encode_blocks(encoding *e, int group, int stride, int scale_at, uint8_t *out) {
    for (int64_t row = 0; row < e->rows; row++)
        for (int64_t column = 0; column < e->columns; column += group, out += stride) {
            const uint8_t *codes = e->codes + row * e->columns + column;
            float scale = 0;
            if (!common_scale(e, row, column, group, &scale)) return scales_too_fine(e->format, e->name, e->info, e->rows, e->columns);
            SETUN_TRY(put_f16(e, row, scale, out + scale_at));
            switch (e->format) {
            case SETUN_FORMAT_TQ2_0:
                planes_low_first(codes, 32, out);
                planes_low_first(codes + 128, 32, out + 32);
                break;
            case SETUN_FORMAT_TQ1_0:
                trit_planes(codes, 32, 5, out);
                trit_planes(codes + 160, 16, 5, out + 32);
                trit_planes(codes + 240, 4, 4, out + 48);
                break;
            case SETUN_FORMAT_PTQ1_0:
                trit_planes(codes, 16, 5, out);
                trit_planes(codes + 80, 8, 5, out + 16);
                trit_planes(codes + 120, 2, 4, out + 24);
                break;
            default: bytes_in_order(codes, group, out + 2); break; /* Q2_0, PQ2_0 */
            }
        }
    return SETUN_OK;
}

static setun_status encode_rows(encoding *e, uint8_t *out) {
    const bool one = e->format == SETUN_FORMAT_IQ1_BN;
    for (int64_t row = 0; row < e->rows; row++) {
        const uint8_t *codes = e->codes + row * e->columns;
        float scale = 0;
        if (!common_scale(e, row, 0, e->columns, &scale)) return scales_too_fine(e->format, e->name, e->info, e->rows, e->columns);
        if (one) {
            SETUN_TRY(put_f16(e, row, scale, out));
            out += 2;
        } else {
            put_f32(scale, out);
            out += 4;
        }
        for (int64_t c = 0; c < e->columns; c += 64) {
            if (one) iq1_bn_block(codes + c, out);
            else planes_low_first(codes + c, 16, out);
            out += one ? 13 : 16;
        }
    }
    return SETUN_OK;
}

/* The i-th of four source rows of byte row r, in bits shift(i): I2_S row4 takes neighbours, HF takes quarters. */
static void encode_row_planes(const encoding *e, bool neighbours, uint8_t *out) {
    const int64_t quarter = e->rows / 4, columns = e->columns;
    for (int64_t r = 0; r < quarter; r++, out += columns) {
        const uint8_t *first = e->codes + (neighbours ? 4 * r : r) * columns;
        const int64_t step = neighbours ? columns : quarter * columns;
        if (neighbours)
            for (int64_t c = 0; c < columns; c++) out[c] = (uint8_t)(first[c] << 6 | first[step + c] << 4 | first[2 * step + c] << 2 | first[3 * step + c]);
        else
            for (int64_t c = 0; c < columns; c++) out[c] = (uint8_t)(first[c] | first[step + c] << 2 | first[2 * step + c] << 4 | first[3 * step + c] << 6);
    }
}

/* Triples of rows, then the rows' scales. */
static setun_status encode_trits(encoding *e, uint8_t *out) {
    const int64_t row_bytes = setun_packed_row_bytes(e->columns), triple_bytes = setun_trits_triple_bytes(e->columns);
    uint8_t *rows = setun_alloc((size_t)(3 * row_bytes)), *scales = out + setun_trits_triples(e->rows) * triple_bytes;
    if (!rows) return setun_fail_memory((size_t)(3 * row_bytes));
    for (int64_t row = 0; row < e->rows; row += 3, out += triple_bytes) {
        const int64_t count = e->rows - row < 3 ? e->rows - row : 3;
        for (int64_t r = 0; r < count; r++) setun_pack_row(e->codes + (row + r) * e->columns, e->columns, rows + r * row_bytes);
        (void)setun_pack_trits(rows, count > 1 ? rows + row_bytes : NULL, count > 2 ? rows + 2 * row_bytes : NULL, e->columns, out); /* codes were checked */
    }
    setun_free(rows);
    memset(scales, 0, setun_trits_scale_bytes(e->rows));
    for (int64_t row = 0; row < e->rows; row++) {
        float scale = 0;
        if (e->info->scale != SETUN_SCALE_GROUP) scale = given_scale(e, row, 0);
        else if (!common_scale(e, row, 0, e->columns, &scale)) return scales_too_fine(e->format, e->name, e->info, e->rows, e->columns);
        put_f32(scale, scales + 4 * row);
    }
    return SETUN_OK;
}

static setun_status encode_tensor(encoding *e, uint8_t *out) {
    float scale = e->info->tensor_scale;
    if (e->info->scale != SETUN_SCALE_TENSOR) {
        if (e->format == SETUN_FORMAT_HF_2BIT) return scales_too_fine(e->format, e->name, e->info, e->rows, e->columns);
        scale = 0;
        for (int64_t row = 0; row < e->rows; row++)
            if (!common_scale(e, row, 0, e->columns, &scale)) return scales_too_fine(e->format, e->name, e->info, e->rows, e->columns);
    }
    const int64_t weights = e->rows * e->columns;
    switch (e->format) {
    case SETUN_FORMAT_HF_2BIT: encode_row_planes(e, false, out); return SETUN_OK; /* its scale is another tensor */
    case SETUN_FORMAT_I2_S_ROW4: encode_row_planes(e, true, out); break;
    case SETUN_FORMAT_I2_S_64:
        for (int64_t i = 0; i < weights; i += 64) planes_high_first(e->codes + i, 16, out + i / 4);
        break;
    default: /* I2_S */
        for (int64_t i = 0; i < weights; i += 128) planes_high_first(e->codes + i, 32, out + i / 4);
        break;
    }
    memset(out + weights / 4, 0, 32);
    put_f32(scale, out + weights / 4);
    return SETUN_OK;
}

setun_status setun_format_encode_ternary(setun_format format, const char *name, const setun_ternary_info *info, int64_t rows, int64_t columns, const uint8_t *codes, const float *scales, uint8_t *out, bool *out_exact, double *out_max_error) {
    encoding e = {format, name ? name : "(unnamed)", info, rows, columns, codes, scales, true, 0};
    uint64_t bytes;
    *out_exact = false;
    *out_max_error = 0;
    if (setun_format_get_kind(format) != SETUN_KIND_TERNARY || format == SETUN_FORMAT_MLX_2BIT)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "tensor '%s': %s is not written as a ternary format; choose tq1_0, tq2_0, i2_s, iq1_bn, iq2_bn, q2_0, pq2_0, ptq1_0, trits or hf", e.name, setun_format_name(format));
    setun_status status = setun_format_size(format, rows, columns, &bytes);
    if (status) return setun_fail_prefix(status, "tensor '%s'", e.name);
    if (!info->ternary || (info->scale != SETUN_SCALE_TENSOR && !scales) || (info->scale == SETUN_SCALE_GROUP && (info->group_size <= 0 || columns % info->group_size)))
        return setun_fail(SETUN_ERROR_ARGUMENT, "tensor '%s': its codes come without the scales they need", e.name);
    uint8_t bad = 0;
    for (int64_t i = 0; i < rows * columns; i++) bad |= codes[i] > 2;
    if (bad) return setun_fail(SETUN_ERROR_ARGUMENT, "tensor '%s': a code is none of 0, 1, 2", e.name);
    switch (format) {
    case SETUN_FORMAT_TQ1_0: status = encode_blocks(&e, 256, 54, 52, out); break;
    case SETUN_FORMAT_TQ2_0: status = encode_blocks(&e, 256, 66, 64, out); break;
    case SETUN_FORMAT_PTQ1_0: status = encode_blocks(&e, 128, 28, 26, out); break;
    case SETUN_FORMAT_PQ2_0: status = encode_blocks(&e, 128, 34, 0, out); break;
    case SETUN_FORMAT_Q2_0: status = encode_blocks(&e, 64, 18, 0, out); break;
    case SETUN_FORMAT_IQ1_BN:
    case SETUN_FORMAT_IQ2_BN: status = encode_rows(&e, out); break;
    case SETUN_FORMAT_TRITS: status = encode_trits(&e, out); break;
    default: status = encode_tensor(&e, out); break;
    }
    if (status) return status;
    *out_exact = e.exact;
    *out_max_error = e.max_error;
    return SETUN_OK;
}
