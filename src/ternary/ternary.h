/*
 * ternary.h - floor 1: on-disk weight formats. Decodes any of them to f32 or to ternary codes + scales, encodes, and
 * recognises dense data that is exactly ternary. Pure functions over memory: knows no files, no models, no kernels.
 */
#ifndef SETUN_TERNARY_H
#define SETUN_TERNARY_H

#include "base/base.h"

typedef enum setun_format {
#define SETUN_FORMAT(e, name, id, elements, bytes, kind) SETUN_FORMAT_##e,
#include "ternary/formats.def"
#undef SETUN_FORMAT
    SETUN_FORMAT_COUNT
} setun_format;

typedef enum setun_format_kind { SETUN_KIND_DENSE, SETUN_KIND_TERNARY, SETUN_KIND_INTEGER, SETUN_KIND_REFUSED } setun_format_kind;

const char *setun_format_name(setun_format format);
setun_format setun_format_from_name(const char *name); /* SETUN_FORMAT_UNKNOWN if there is none; case-insensitive */
setun_format setun_format_from_gguf(uint32_t id);      /* 36 -> I2_S, 42 -> Q2_0 (the caller tells PQ2_0 by the byte span) */
int setun_format_gguf_id(setun_format format);         /* I2_S_* -> 36; -1 if none */
setun_format_kind setun_format_get_kind(setun_format format);
/* Why a refused format is refused, and which file to use instead; NULL for the others. */
const char *setun_format_refusal(setun_format format);
/* Bytes of rows x columns weights in this format, or an error that says which row length the format needs. A vector has rows 1. */
setun_status setun_format_size(setun_format format, int64_t rows, int64_t columns, uint64_t *out_bytes);
/* Does a matrix of this shape have a size in this format? No message. */
bool setun_format_fits(setun_format format, int64_t rows, int64_t columns);

/* The scales of a ternary weight. */
typedef enum setun_scale_kind { SETUN_SCALE_TENSOR, SETUN_SCALE_ROW, SETUN_SCALE_GROUP } setun_scale_kind;

/* What a weight is, found by reading it all (fast: a few GB/s). */
typedef struct setun_ternary_info {
    bool ternary;             /* every value is scale * {-1, 0, +1} with a scale per tensor, row or group */
    setun_scale_kind scale;   /* the coarsest that is exact (scales compared bit for bit; all-zero blocks fit any scale) */
    int group_size;           /* SETUN_SCALE_GROUP: 32, 64, 128 or 256 */
    float tensor_scale;       /* SETUN_SCALE_TENSOR */
    uint64_t zeros;           /* weights that are 0 */
} setun_ternary_info;
/*
 * A weight matrix as it lies on disk: borrowed memory and what is needed to read it. rows = out, columns = in.
 * Vectors (norms, biases) are rows 1.
 */
typedef struct setun_weight {
    const char *name;       /* borrowed from the file */
    setun_format format;
    int64_t rows, columns;
    const uint8_t *data;    /* not aligned in general */
    uint64_t bytes;
    /* formats whose scale lies outside the data: */
    float tensor_scale;     /* HF_2BIT: multiplies the codes (the "divide" convention is inverted by who makes this); else unused */
    const uint8_t *scales, *biases; /* MLX_2BIT: [rows, columns/group] */
    setun_format scales_format;     /* F32, F16, BF16 */
    int group_size;         /* MLX_2BIT */
    bool absmean;           /* a dense master to be made ternary at load: s = max(mean|W|, 1e-5), q = clamp(rint(W/s), -1, 1) */
    /* filled by who owns the weight: */
    bool mapped;            /* data lies in a mapped file */
    bool probed;            /* info is filled */
    bool unchecked;         /* probed by setun_ternary_probe_late: whoever reads the codes first looks for those that cannot be */
    setun_ternary_info info;
    void *prepared;         /* backend's packed form, see backend/backend.h; guarded by the model's lock */
} setun_weight;

/* Validates too: code 3, a NaN, infinite or negative scale are SETUN_ERROR_FORMAT naming the weight, the row and column.
 * (Negative scales: made positive by flipping the codes where the format's convention allows it: not in I2_S and HF_2BIT.)
 * Also handles `absmean`. A dense weight with other values gives ternary = false, no error; it is read only up to its first
 * span of 32 that is not ternary, and a NaN or infinity found on the way is an error. MLX_2BIT with other values: ternary = false. */
setun_status setun_ternary_probe(const setun_weight *w, setun_ternary_info *out);
/* The same without `zeros`, which is left 0 where counting would take longer than the rest. */
setun_status setun_ternary_probe_quick(const setun_weight *w, setun_ternary_info *out);
/* The same for a format that says without its codes what it is; they stay to be checked. UNSUPPORTED, without a message, for the others. */
setun_status setun_ternary_probe_late(const setun_weight *w, setun_ternary_info *out);
/* Is there a code 3 among these bytes of 2-bit codes? */
bool setun_has_code3(const uint8_t *codes, size_t bytes);

/* Codes (value + 1: 0, 1, 2) of rows row0 .. row0+rows-1, one byte each, [rows, columns]; and, if scales is not NULL,
 * one scale per group of info->group_size (SCALE_GROUP), per row (SCALE_ROW), or untouched (SCALE_TENSOR). */
setun_status setun_ternary_decode(const setun_weight *w, const setun_ternary_info *info, int64_t row0, int64_t rows, uint8_t *codes, float *scales);

/* Any decodable weight as f32, [rows, columns]. Plain arithmetic on what is stored: code 3 is 2*scale, masters (`absmean`) are themselves. */
setun_status setun_weight_to_f32(const setun_weight *w, int64_t row0, int64_t rows, float *out);

/* ---- the packed form in memory: the layout every CPU kernel reads ----
 * SETUN_PACKED_2BIT: a row is ceil(columns/128) * 32 bytes. Byte p of each 32 bytes holds weights p, 32+p, 64+p, 96+p
 * of its 128 in bits 7-6, 5-4, 3-2, 1-0, as code = value + 1; past the last column the code is 1 (value 0).
 *   bit   7 6   5 4   3 2   1 0
 *        w[p] w[32+p] w[64+p] w[96+p]
 * For columns % 128 == 0 it is I2_S as published (128x32) byte for byte, so those files are used where they lie.
 */
static inline int64_t setun_packed_row_bytes(int64_t columns) { return (columns + 127) / 128 * 32; }
void setun_pack_row(const uint8_t *codes, int64_t columns, uint8_t *packed);
void setun_unpack_row(const uint8_t *packed, int64_t columns, uint8_t *codes);

/* ---- the denser packed form: three rows in 5 bits ----
 * SETUN_PACKED_TRITS: three rows x 64 columns are a block of 64 fields of 5 bits, field = c0 + 3 c1 + 9 c2 of the rows' codes; 27..31 do
 * not occur. Rows are padded to a multiple of 3 and columns to one of 64 with code 1. A triple of rows is setun_trits_triple_bytes long:
 * first groups of 8 blocks in 320 bytes, then the remaining blocks in 40 bytes each, then zeros up to a multiple of 64.
 *   group: 5 x 64 bytes are 8 lanes of 5 little-endian words of 64 bits, word i of lane j at byte 64i + 8j. The 320 bits of a lane, from
 *          bit 0 of its word 0: field q (0..7) of block b (0..7) in bits 40b+5q .. 40b+5q+4; it is column 64b + 8j + q of the group.
 *   block: lane j in bytes 5j .. 5j+4: field q in bits 5q .. 5q+4; it is column 8j + q.
 */
static inline int64_t setun_trits_blocks(int64_t columns) { return (columns + 63) / 64; }
static inline int64_t setun_trits_triple_bytes(int64_t columns) { return (setun_trits_blocks(columns) * 40 + 63) / 64 * 64; }
static inline int64_t setun_trits_triples(int64_t rows) { return (rows + 2) / 3; }
/* On disk (SETUN_FORMAT_TRITS) the triples are followed by one f32 scale a row, padded with zeros to a multiple of 64. */
static inline uint64_t setun_trits_scale_bytes(int64_t rows) { return ((uint64_t)rows * 4 + 63) / 64 * 64; }
/* From three SETUN_PACKED_2BIT rows; NULL stands for a row of zeros. False: a row holds code 3, what was written is no triple. */
bool setun_pack_trits(const uint8_t *row0, const uint8_t *row1, const uint8_t *row2, int64_t columns, uint8_t *triple);
/* To SETUN_PACKED_2BIT rows, blocks block .. block+count-1 (block a multiple of 8); a row may be NULL. False: a field of 27..31, taken as 0. */
bool setun_unpack_trits(const uint8_t *triple, int64_t columns, int64_t block, int64_t count, uint8_t *row0, uint8_t *row1, uint8_t *row2);
bool setun_trits_valid(const uint8_t *triple, int64_t columns); /* no field of 27..31 */
/* Codes of one of the three rows (digit 0..2), columns first .. first+count-1, first a multiple of 8; 3 for a wrong field. */
void setun_trits_codes(const uint8_t *triple, int64_t columns, int digit, int64_t first, int64_t count, uint8_t *codes);

/* ---- encoding, for convert ----
 * setun_format_encode writes rows x columns weights in `format` to out (setun_format_size bytes). For ternary formats codes and
 * scales come as setun_ternary_decode gives them with `info`; *out_exact tells whether the format's scale type holds
 * the scales exactly (f16 scales may not); *out_max_error is the largest |difference| of a weight. For dense formats codes is NULL and values is f32. */
setun_status setun_format_encode_ternary(setun_format format, const char *name, const setun_ternary_info *info, int64_t rows, int64_t columns, const uint8_t *codes, const float *scales, uint8_t *out, bool *out_exact, double *out_max_error);
setun_status setun_format_encode_dense(setun_format format, const char *name, int64_t rows, int64_t columns, const float *values, uint8_t *out, bool *out_exact, double *out_max_error);

/* Can the format store scales as fine as these (shape aside)? */
bool setun_format_holds_scales(setun_format format, const setun_ternary_info *info);

/* Absmean quantiser: s = max(mean|W|, 1e-5) over rows*columns, code = clamp(rint(W/s), -1, 1) + 1. (BitNet b1.58, arXiv 2402.17764, eq. 1-3) */
void setun_absmean(const float *values, int64_t count, float *out_scale, uint8_t *codes /* may be NULL */);
/* Reference of the activation quantiser: s = 127/max(max|x|,1e-5), q = clamp(rint(x*s),-128,127); returns 1/s's exact inverse max/127. */
float setun_absmax_i8(const float *x, int64_t count, int8_t *out);

#endif
