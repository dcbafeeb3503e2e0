/*
 * formats.c - the table of on-disk formats: names, GGUF ids, kinds, sizes, and why some are refused.
 * Callers: file (sizes of tensors), model, convert, the program. Knows no bits: those are in decode_*.c and encode_*.c.
 */
#include "ternary/ternary.h"
#include <strings.h>

typedef struct format_row {
    const char *name;
    int gguf_id;
    int elements, bytes;
    setun_format_kind kind;
} format_row;

#define DENSE SETUN_KIND_DENSE
#define TERNARY SETUN_KIND_TERNARY
#define INTEGER SETUN_KIND_INTEGER
#define REFUSED SETUN_KIND_REFUSED
static const format_row table[SETUN_FORMAT_COUNT] = {
#define SETUN_FORMAT(e, name, id, elements, bytes, kind) [SETUN_FORMAT_##e] = {name, id, elements, bytes, kind},
#include "ternary/formats.def"
#undef SETUN_FORMAT
};
#undef DENSE
#undef TERNARY
#undef INTEGER
#undef REFUSED

static bool known(setun_format format) { return (unsigned)format < SETUN_FORMAT_COUNT; }

const char *setun_format_name(setun_format format) { return known(format) ? table[format].name : "unknown"; }

setun_format setun_format_from_name(const char *name) {
    if (name)
        for (int i = 0; i < SETUN_FORMAT_COUNT; i++)
            if (strcasecmp(name, table[i].name) == 0) return (setun_format)i;
    return SETUN_FORMAT_UNKNOWN;
}

setun_format setun_format_from_gguf(uint32_t id) {
    for (int i = 0; i < SETUN_FORMAT_COUNT; i++)
        if (table[i].gguf_id >= 0 && (uint32_t)table[i].gguf_id == id) return (setun_format)i;
    return SETUN_FORMAT_UNKNOWN;
}

int setun_format_gguf_id(setun_format format) {
    /* The layouts of I2_S share one id: nothing in a file tells them apart. */
    if (format == SETUN_FORMAT_I2_S_64 || format == SETUN_FORMAT_I2_S_ROW4) return table[SETUN_FORMAT_I2_S].gguf_id;
    return known(format) ? table[format].gguf_id : -1;
}

setun_format_kind setun_format_get_kind(setun_format format) { return known(format) ? table[format].kind : SETUN_KIND_REFUSED; }

const char *setun_format_refusal(setun_format format) {
    switch (format) {
    case SETUN_FORMAT_TL1:
    case SETUN_FORMAT_TL2:
        return "TL1 and TL2 permute the weights by tile sizes of the machine that wrote them, and the file does not say which; "
               "use the I2_S, TQ1_0 or TQ2_0 file of the same model, or its Hugging Face safetensors";
    default:
        if (known(format) && table[format].kind != SETUN_KIND_REFUSED) return NULL;
        return "Setun does not know this tensor type; use a file whose matrices are I2_S, TQ1_0, TQ2_0, IQ1_BN, IQ2_BN, Q2_0 or "
               "one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, or convert the model's Hugging Face safetensors";
    }
}

/* Rows (columns) of a tensor in this format come in multiples of this. */
static int row_multiple(setun_format format) { return format == SETUN_FORMAT_I2_S_ROW4 || format == SETUN_FORMAT_HF_2BIT ? 4 : 1; }

static int column_multiple(setun_format format) {
    switch (format) {
    case SETUN_FORMAT_I2_S: return 128;
    case SETUN_FORMAT_I2_S_64: return 64;
    case SETUN_FORMAT_MLX_2BIT: return 16;
    default: return table[format].elements > 1 ? table[format].elements : 1;
    }
}

/* Bytes of a row before its blocks. */
static int row_header(setun_format format) { return format == SETUN_FORMAT_IQ1_BN ? 2 : format == SETUN_FORMAT_IQ2_BN ? 4 : 0; }

bool setun_format_fits(setun_format format, int64_t rows, int64_t columns) {
    return known(format) && table[format].kind != SETUN_KIND_REFUSED && rows > 0 && columns > 0 &&
           rows % row_multiple(format) == 0 && columns % column_multiple(format) == 0;
}

/* "iq1_bn, iq2_bn": formats of the same kind that hold such a matrix, for messages. */
static void list_fitting(setun_format_kind kind, int64_t rows, int64_t columns, char *out, size_t size) {
    size_t length = 0;
    out[0] = 0;
    for (int i = 0; i < SETUN_FORMAT_COUNT; i++) {
        setun_format f = (setun_format)i;
        if (table[i].kind != kind || !setun_format_fits(f, rows, columns)) continue;
        int n = snprintf(out + length, size - length, "%s%s", length ? ", " : "", table[i].name);
        if (n < 0 || (size_t)n >= size - length) break;
        length += (size_t)n;
    }
}

setun_status setun_format_size(setun_format format, int64_t rows, int64_t columns, uint64_t *out_bytes) {
    *out_bytes = 0;
    if (!known(format) || table[format].kind == SETUN_KIND_REFUSED)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "format %s: %s", setun_format_name(format), setun_format_refusal(format));
    if (rows <= 0 || columns <= 0)
        return setun_fail(SETUN_ERROR_FORMAT, "format %s: a shape of %lld x %lld holds no weights", table[format].name, (long long)rows, (long long)columns);
    if (!setun_format_fits(format, rows, columns)) {
        char fitting[160];
        list_fitting(table[format].kind, rows, columns, fitting, sizeof fitting);
        bool by_rows = rows % row_multiple(format) != 0;
        return setun_fail(SETUN_ERROR_FORMAT, "format %s needs %s in multiples of %d, and %s; formats that hold %lld x %lld weights: %s",
            table[format].name, by_rows ? "rows" : "row lengths", by_rows ? row_multiple(format) : column_multiple(format),
            by_rows ? "the number of rows is not" : "the row length is not", (long long)rows, (long long)columns, fitting[0] ? fitting : "none");
    }
    uint64_t weights, bytes;
    bool ok = setun_mul_ok((uint64_t)rows, (uint64_t)columns, &weights);
    switch (format) {
    case SETUN_FORMAT_I2_S:
    case SETUN_FORMAT_I2_S_64:
    case SETUN_FORMAT_I2_S_ROW4: /* the codes, the f32 scale, padding */
        bytes = weights / 4 + 32;
        break;
    case SETUN_FORMAT_HF_2BIT:
    case SETUN_FORMAT_MLX_2BIT: /* the codes; the scales are tensors of their own */
        bytes = weights / 4;
        break;
    case SETUN_FORMAT_TRITS:
        /* sizes of one triple and of the scales fit where these do; the product may not */
        ok = ok && rows < INT64_MAX / 64 && columns < INT64_MAX / 64 && setun_mul_ok((uint64_t)setun_trits_triples(rows), (uint64_t)setun_trits_triple_bytes(columns), &bytes) &&
             setun_add_ok(bytes, setun_trits_scale_bytes(rows), &bytes);
        if (!ok) bytes = 0;
        break;
    default: {
        uint64_t row;
        ok = ok && setun_mul_ok((uint64_t)(columns / table[format].elements), (uint64_t)table[format].bytes, &row) &&
             setun_add_ok(row, (uint64_t)row_header(format), &row) && setun_mul_ok(row, (uint64_t)rows, &bytes);
    }
    }
    if (!ok || bytes > (uint64_t)INT64_MAX || weights > (uint64_t)INT64_MAX)
        return setun_fail(SETUN_ERROR_FORMAT, "format %s: %lld x %lld weights are more than any file holds", table[format].name, (long long)rows, (long long)columns);
    *out_bytes = bytes;
    return SETUN_OK;
}
