/*
 * gguf.c - reads the GGUF container, versions 2 and 3: metadata values and tensor descriptions, all checked before anyone
 * looks at them. Caller: file.c. Refuses to know what any key or tensor is for, `general.alignment` apart.
 *
 *   "GGUF"  u32 version  u64 tensor count  u64 value count
 *   values:  string key, u32 type, the value (array: u32 element type, u64 count, elements)
 *   tensors: string name, u32 rank, u64 dimension[rank] (innermost first), u32 type, u64 offset into the data
 *   zeros up to a multiple of general.alignment (32 if absent), then the data
 *   string:  u64 length, bytes. Everything is little-endian and unaligned.
 */
#include "file/file_internal.h"
#include <inttypes.h>
#include <limits.h>

#define ALIGNMENT_DEFAULT 32u
#define ALIGNMENT_MIN 8u
#define ALIGNMENT_MAX (1u << 20)
/* The fewest bytes a value and a tensor take: counts are held against the file's size before anything is allocated. */
#define VALUE_BYTES_MIN (8u + 1u + 4u + 1u)
#define TENSOR_BYTES_MIN (8u + 1u + 4u + 4u + 8u)
#define ID_I2_S 36u
#define ID_TL2_OR_MXFP4 39u
#define ID_Q2_0 42u

/* Where in the file we are, and what we are reading there, for the messages. */
typedef struct cursor {
    const char *path;
    const uint8_t *bytes;
    uint64_t size, at;
    const char *kind;  /* "metadata value", "tensor"; NULL in the header */
    uint64_t index;
    const char *name;  /* key or tensor name, once it is known */
} cursor;

static setun_status refuse(const cursor *c, setun_status status, const char *field, uint64_t at, const char *format, ...) __attribute__((format(printf, 5, 6)));
static setun_status refuse(const cursor *c, setun_status status, const char *field, uint64_t at, const char *format, ...) {
    char why[400], what[256] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    if (c->kind && c->name) snprintf(what, sizeof what, "%s %" PRIu64 " '%.150s': ", c->kind, c->index, c->name);
    else if (c->kind) snprintf(what, sizeof what, "%s %" PRIu64 ": ", c->kind, c->index);
    return setun_fail(status, "%s: %s%s at byte %" PRIu64 " %s", c->path, what, field, at, why);
}

static setun_status take(cursor *c, uint64_t count, const char *field, const uint8_t **out) {
    *out = NULL;
    if (count > c->size - c->at)
        return refuse(c, SETUN_ERROR_FORMAT, field, c->at, "needs %" PRIu64 " bytes, the file ends after %" PRIu64 "; it is truncated or corrupt, download it again", count, c->size - c->at);
    *out = c->bytes + c->at;
    c->at += count;
    return SETUN_OK;
}

static setun_status take_u32(cursor *c, const char *field, uint32_t *out) {
    const uint8_t *p;
    *out = 0;
    SETUN_TRY(take(c, 4, field, &p));
    *out = setun_load_u32(p);
    return SETUN_OK;
}

static setun_status take_u64(cursor *c, const char *field, uint64_t *out) {
    const uint8_t *p;
    *out = 0;
    SETUN_TRY(take(c, 8, field, &p));
    *out = setun_load_u64(p);
    return SETUN_OK;
}

static setun_status take_string(cursor *c, const char *field, const uint8_t **out, uint64_t *out_length) {
    *out = NULL;
    SETUN_TRY(take_u64(c, field, out_length));
    return take(c, *out_length, field, out);
}

/* A key or a tensor's name: checked, and kept with a 0 at its end. */
static setun_status take_name(cursor *c, setun_file *file, const char *field, const char **out) {
    const uint8_t *bytes;
    uint64_t length, at = c->at;
    SETUN_TRY(take_string(c, field, &bytes, &length));
    const char *problem = setun_name_problem(bytes, length);
    if (problem) return refuse(c, SETUN_ERROR_FORMAT, field, at, "%s; the file is corrupt", problem);
    *out = setun_file_keep_name(file, (const char *)bytes, (size_t)length);
    return *out ? SETUN_OK : SETUN_ERROR_MEMORY;
}

/* ---- metadata ---- */

static setun_status check_bools(const cursor *c, const uint8_t *p, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (p[i] > 1) return refuse(c, SETUN_ERROR_FORMAT, "bool", (uint64_t)(p - c->bytes) + i, "is %u, neither 0 nor 1; the file is corrupt", p[i]);
    return SETUN_OK;
}

static setun_status read_array(cursor *c, setun_file *file, setun_value *v) {
    uint32_t element;
    uint64_t type_at = c->at;
    SETUN_TRY(take_u32(c, "array element type", &element));
    if (element == SETUN_VALUE_ARRAY) return refuse(c, SETUN_ERROR_UNSUPPORTED, "array element type", type_at, "says array: arrays of arrays are not supported");
    unsigned width = setun_value_bytes(element);
    if (!width && element != SETUN_VALUE_STRING) return refuse(c, SETUN_ERROR_FORMAT, "array element type", type_at, "is %u, which is no known type; the file is corrupt or newer than Setun", element);
    v->element = (setun_value_type)element;
    uint64_t count_at = c->at;
    SETUN_TRY(take_u64(c, "array count", &v->count));
    uint64_t left = c->size - c->at;
    if (v->count > left / (width ? width : 8))
        return refuse(c, SETUN_ERROR_FORMAT, "array count", count_at, "is %" PRIu64 " elements of type %s, but only %" PRIu64 " bytes follow; the file is truncated or corrupt", v->count, setun_value_type_name(element), left);
    v->data = c->bytes + c->at;
    if (width) {
        c->at += v->count * width;
        return element == SETUN_VALUE_BOOL ? check_bools(c, v->data, v->count) : SETUN_OK;
    }
    uint32_t *offsets = setun_file_keep(file, (size_t)v->count * sizeof *offsets);
    if (!offsets) return SETUN_ERROR_MEMORY;
    uint64_t start = c->at;
    for (uint64_t i = 0; i < v->count; i++) {
        const uint8_t *bytes;
        uint64_t length;
        if (c->at - start > UINT32_MAX) return refuse(c, SETUN_ERROR_UNSUPPORTED, "array of strings", start, "is larger than 4 GiB");
        offsets[i] = (uint32_t)(c->at - start);
        SETUN_TRY(take_string(c, "string in an array", &bytes, &length));
    }
    v->string_offsets = offsets;
    return SETUN_OK;
}

static setun_status read_value(cursor *c, setun_file *file, setun_value *v) {
    uint32_t type;
    SETUN_TRY(take_name(c, file, "key", &v->key));
    c->name = v->key;
    uint64_t at = c->at;
    SETUN_TRY(take_u32(c, "value type", &type));
    v->type = (setun_value_type)type;
    if (type == SETUN_VALUE_STRING) return take_string(c, "string", &v->data, &v->count);
    if (type == SETUN_VALUE_ARRAY) return read_array(c, file, v);
    unsigned width = setun_value_bytes(type);
    if (!width) return refuse(c, SETUN_ERROR_FORMAT, "value type", at, "is %u, which is no known type; the file is corrupt or newer than Setun", type);
    SETUN_TRY(take(c, width, "value", &v->data));
    return type == SETUN_VALUE_BOOL ? check_bools(c, v->data, 1) : SETUN_OK;
}

static setun_status read_values(cursor *c, setun_file *file, uint64_t count) {
    if (!count) return SETUN_OK;
    file->values = setun_calloc((size_t)count, sizeof *file->values);
    if (!file->values) return SETUN_ERROR_MEMORY;
    c->kind = "metadata value";
    for (uint64_t i = 0; i < count; i++) {
        c->index = i;
        c->name = NULL;
        uint64_t at = c->at;
        SETUN_TRY(read_value(c, file, &file->values[i]));
        int64_t existing;
        SETUN_TRY(setun_names_add(&file->value_names, file->values, sizeof *file->values, (uint32_t)i, &existing));
        if (existing >= 0) return refuse(c, SETUN_ERROR_FORMAT, "key", at, "is also the key of value %" PRId64 "; the file is corrupt", existing);
        file->value_count++;
    }
    c->kind = c->name = NULL;
    return SETUN_OK;
}

static setun_status read_alignment(const cursor *c, const setun_file *file, uint32_t *out) {
    const setun_value *v = setun_file_find_value(file, "general.alignment");
    *out = ALIGNMENT_DEFAULT;
    if (!v) return SETUN_OK;
    uint64_t at = (uint64_t)(v->data - c->bytes);
    if (v->type != SETUN_VALUE_U32) return refuse(c, SETUN_ERROR_FORMAT, "general.alignment", at, "has type %s where u32 is expected", setun_value_type_name(v->type));
    *out = setun_load_u32(v->data);
    if (*out < ALIGNMENT_MIN || *out > ALIGNMENT_MAX || (*out & (*out - 1)))
        return refuse(c, SETUN_ERROR_FORMAT, "general.alignment", at, "is %u, not a power of two from %u to %u; the file is corrupt", *out, ALIGNMENT_MIN, ALIGNMENT_MAX);
    return SETUN_OK;
}

/* ---- tensors ---- */

/* Names of types that exist and that Setun does not read, for people who inspect such a file. */
static const char *foreign_type_name(uint32_t id) {
    static const struct { uint32_t id; const char *name; } known[] = {
        {6, "q5_0"}, {7, "q5_1"}, {9, "q8_1"}, {10, "q2_k"}, {11, "q3_k"}, {13, "q5_k"}, {15, "q8_k"}, {16, "iq2_xxs"}, {17, "iq2_xs"},
        {18, "iq3_xxs"}, {19, "iq1_s"}, {20, "iq4_nl"}, {21, "iq3_s"}, {22, "iq2_s"}, {23, "iq4_xs"}, {29, "iq1_m"}, {40, "nvfp4"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].id == id) return known[i].name;
    return NULL;
}

static setun_status read_tensor(cursor *c, setun_file *file, uint32_t alignment, setun_file_tensor *t) {
    SETUN_TRY(take_name(c, file, "name", &t->name));
    c->name = t->name;
    uint32_t rank;
    uint64_t at = c->at, count = 1;
    SETUN_TRY(take_u32(c, "number of dimensions", &rank));
    if (rank > SETUN_MAX_RANK) return refuse(c, SETUN_ERROR_FORMAT, "number of dimensions", at, "is %u, the most is %d; the file is corrupt", rank, SETUN_MAX_RANK);
    t->rank = (int)rank;
    for (uint32_t i = 0; i < rank; i++) {
        uint64_t dimension;
        at = c->at;
        SETUN_TRY(take_u64(c, "dimension", &dimension));
        if (!dimension) return refuse(c, SETUN_ERROR_FORMAT, "dimension", at, "is 0 (dimension %u of %u); the file is corrupt", i, rank);
        /* 2^56 elements: far beyond any file, and small enough that a size in bytes can't overflow later */
        if (!setun_mul_ok(count, dimension, &count) || count > (uint64_t)1 << 56)
            return refuse(c, SETUN_ERROR_FORMAT, "dimension", at, "is %" PRIu64 ", which makes the tensor overflow; the file is corrupt", dimension);
        t->shape[rank - 1 - i] = (int64_t)dimension;
    }
    SETUN_TRY(take_u32(c, "type", &t->type_id));
    at = c->at;
    SETUN_TRY(take_u64(c, "offset", &t->offset));
    if (t->offset % alignment) return refuse(c, SETUN_ERROR_FORMAT, "offset", at, "is %" PRIu64 ", not a multiple of the alignment %u; the file is corrupt", t->offset, alignment);
    return SETUN_OK;
}

static void rows_and_columns(const setun_file_tensor *t, int64_t *rows, int64_t *columns) {
    *rows = 1;
    *columns = t->rank ? t->shape[t->rank - 1] : 1;
    for (int i = 0; i + 1 < t->rank; i++) *rows *= t->shape[i];
}

static uint64_t align_up(uint64_t bytes, uint32_t alignment) { return (bytes + alignment - 1) & ~(uint64_t)(alignment - 1); }

/*
 * Type 42 is Q2_0 (18 bytes a 64 weights), and in older files PQ2_0 (34 bytes a 128). The bytes up to the next tensor
 * tell; for small tensors padding can make both fit: then *sure is false.
 */
static setun_format q2_0_by_span(const setun_file_tensor *t, uint64_t span, uint32_t alignment, bool *sure) {
    int64_t rows, columns;
    rows_and_columns(t, &rows, &columns);
    *sure = true;
    if (columns % 128) return SETUN_FORMAT_Q2_0;
    uint64_t blocks = (uint64_t)rows * (uint64_t)columns / 128;
    uint64_t q = blocks * 36, p = blocks * 34;
    bool fits_q = span == q || span == align_up(q, alignment), fits_p = span == p || span == align_up(p, alignment);
    if (fits_q && fits_p) {
        *sure = span == q || span == p; /* the last tensor of a file that is not padded at its end */
        return span == p ? SETUN_FORMAT_PQ2_0 : SETUN_FORMAT_Q2_0;
    }
    return fits_p || span < q ? SETUN_FORMAT_PQ2_0 : SETUN_FORMAT_Q2_0; /* a larger span: a hole after the tensor */
}

static setun_format format_of(const setun_file_tensor *t, uint64_t span, uint32_t alignment, setun_format q2_0, const char *i2s_layout) {
    bool sure;
    if (t->type_id == ID_I2_S && i2s_layout && !strcmp(i2s_layout, "64x16")) return SETUN_FORMAT_I2_S_64;
    if (t->type_id == ID_I2_S && i2s_layout && !strcmp(i2s_layout, "row4")) return SETUN_FORMAT_I2_S_ROW4;
    if (t->type_id == ID_Q2_0) {
        setun_format format = q2_0_by_span(t, span, alignment, &sure);
        return sure ? format : q2_0;
    }
    if (t->type_id == ID_TL2_OR_MXFP4) {
        /* 39 is TL2 in bitnet.cpp's fork and MXFP4 (17 bytes a 32 weights) upstream */
        int64_t rows, columns;
        rows_and_columns(t, &rows, &columns);
        uint64_t bytes = (uint64_t)rows * (uint64_t)columns / 32 * 17;
        if (columns % 32 == 0 && (span == bytes || span == align_up(bytes, alignment))) return SETUN_FORMAT_UNKNOWN;
    }
    return setun_format_from_gguf(t->type_id);
}

/* Gives the tensor its format, size and data; `span` bytes lie between its offset and the next tensor's, or the end. */
static setun_status place(cursor *c, setun_file *file, setun_file_tensor *t, uint64_t data_start, uint64_t span, const setun_file_tensor *next, setun_format format) {
    uint64_t at = data_start + t->offset;
    t->format = format;
    if (setun_format_get_kind(format) == SETUN_KIND_REFUSED) {
        t->bytes = span;
        if (!span) return refuse(c, SETUN_ERROR_FORMAT, "data", at, "has no room: tensor '%.150s' or the file's end comes at once; the file is corrupt", next ? next->name : "");
        const char *name = format != SETUN_FORMAT_UNKNOWN ? setun_format_name(format) : t->type_id == ID_TL2_OR_MXFP4 ? "mxfp4" : foreign_type_name(t->type_id);
        if (!name) {
            char text[32];
            int n = snprintf(text, sizeof text, "type %u", t->type_id);
            name = setun_file_keep_name(file, text, (size_t)n);
            if (!name) return SETUN_ERROR_MEMORY;
        }
        t->type_name = name;
    } else {
        int64_t rows, columns;
        rows_and_columns(t, &rows, &columns);
        setun_status status = setun_format_size(format, rows, columns, &t->bytes);
        if (status != SETUN_OK) return setun_fail_prefix(status, "%s: tensor %" PRIu64 " '%.150s'", c->path, c->index, t->name);
        t->type_name = setun_format_name(format);
        if (t->bytes > span && next)
            return refuse(c, SETUN_ERROR_FORMAT, "data", at, "needs %" PRIu64 " bytes (%s) and overlaps tensor '%.150s', which starts %" PRIu64 " bytes later; the file is corrupt", t->bytes, t->type_name, next->name, span);
        if (t->bytes > span)
            return refuse(c, SETUN_ERROR_FORMAT, "data", at, "needs %" PRIu64 " bytes (%s), the file ends after %" PRIu64 "; it is truncated, download it again", t->bytes, t->type_name, span);
    }
    t->offset = at;
    t->data = c->bytes + at;
    return SETUN_OK;
}

/* All descriptions are read: find each tensor's bytes. */
static setun_status place_tensors(cursor *c, setun_file *file, uint32_t alignment, const setun_file_options *options) {
    int count = file->tensor_count;
    if (!count) return SETUN_OK;
    uint64_t data_start = align_up(c->at, alignment);
    if (data_start > c->size) return refuse(c, SETUN_ERROR_FORMAT, "tensor data", data_start, "lies past the file's end at byte %" PRIu64 "; it is truncated, download it again", c->size);
    uint64_t data_bytes = c->size - data_start;
    setun_extent *order = setun_alloc((size_t)count * sizeof *order);
    if (!order) return SETUN_ERROR_MEMORY;
    for (int i = 0; i < count; i++) order[i] = (setun_extent){file->tensors[i].offset, (uint32_t)i};
    setun_extents_sort(order, (size_t)count);

    setun_status status = SETUN_OK;
    setun_format q2_0 = SETUN_FORMAT_Q2_0; /* what type 42 is in this file, where a tensor alone doesn't tell */
    c->kind = "tensor";
    for (int pass = 0; pass < 2 && status == SETUN_OK; pass++) {
        for (int k = 0; k < count && status == SETUN_OK; k++) {
            setun_file_tensor *t = &file->tensors[order[k].index];
            c->index = order[k].index;
            c->name = t->name;
            if (order[k].offset > data_bytes) {
                status = refuse(c, SETUN_ERROR_FORMAT, "offset", data_start, "+ %" PRIu64 " lies past the file's end at byte %" PRIu64 "; it is truncated, download it again", order[k].offset, c->size);
                break;
            }
            uint64_t span = (k + 1 < count && order[k + 1].offset < data_bytes ? order[k + 1].offset : data_bytes) - order[k].offset;
            bool sure;
            if (pass == 0) {
                if (t->type_id != ID_Q2_0) continue;
                setun_format format = q2_0_by_span(t, span, alignment, &sure);
                if (sure && format == SETUN_FORMAT_PQ2_0) q2_0 = format;
            } else {
                const setun_file_tensor *next = k + 1 < count && order[k + 1].offset <= data_bytes ? &file->tensors[order[k + 1].index] : NULL;
                status = place(c, file, t, data_start, span, next, format_of(t, span, alignment, q2_0, options ? options->i2s_layout : NULL));
            }
        }
    }
    setun_free(order);
    c->kind = c->name = NULL;
    return status;
}

setun_status setun_gguf_read(setun_file *file, int shard, const setun_file_options *options) {
    cursor c = {.path = file->shards[shard].path, .bytes = file->shards[shard].bytes, .size = file->shards[shard].count, .at = 4};
    uint32_t version, alignment;
    uint64_t tensors, values;
    SETUN_TRY(take_u32(&c, "version", &version));
    if (version == 1) return refuse(&c, SETUN_ERROR_UNSUPPORTED, "version", 4, "is 1, an early form; Setun reads versions 2 and 3: convert the model again");
    if (version && !(version & 0xffff)) return refuse(&c, SETUN_ERROR_UNSUPPORTED, "version", 4, "is byte-swapped: the file is big-endian; get the little-endian one");
    if (version != 2 && version != 3) return refuse(&c, SETUN_ERROR_UNSUPPORTED, "version", 4, "is %u; Setun reads versions 2 and 3", version);
    SETUN_TRY(take_u64(&c, "tensor count", &tensors));
    SETUN_TRY(take_u64(&c, "metadata value count", &values));
    uint64_t left = c.size - c.at;
    if (tensors > left / TENSOR_BYTES_MIN || tensors > INT_MAX / 2) return refuse(&c, SETUN_ERROR_FORMAT, "tensor count", 8, "is %" PRIu64 ", more than the %" PRIu64 " bytes that follow can hold; the file is truncated or corrupt", tensors, left);
    if (values > left / VALUE_BYTES_MIN || values > INT_MAX / 2) return refuse(&c, SETUN_ERROR_FORMAT, "metadata value count", 16, "is %" PRIu64 ", more than the %" PRIu64 " bytes that follow can hold; the file is truncated or corrupt", values, left);

    SETUN_TRY(read_values(&c, file, values));
    SETUN_TRY(read_alignment(&c, file, &alignment));
    SETUN_TRY(setun_file_reserve_tensors(file, tensors));
    c.kind = "tensor";
    for (uint64_t i = 0; i < tensors; i++) {
        setun_file_tensor *t = &file->tensors[file->tensor_count];
        memset(t, 0, sizeof *t);
        t->shard = shard;
        c.index = i;
        c.name = NULL;
        SETUN_TRY(read_tensor(&c, file, alignment, t));
        file->tensor_count++;
    }
    c.kind = c.name = NULL;
    SETUN_TRY(setun_file_name_tensors(file, (int)tensors));
    return place_tensors(&c, file, alignment, options);
}
