/*
 * safetensors.c - reads one safetensors file: u64 header length, a JSON header, data. Callers: file.c, folder.c.
 * Refuses to know what the tensors are for; packed weights are plain U8 or U32 tensors here.
 *
 * The header maps each name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets from the end of the header;
 * "__metadata__" is a map of strings. Holes between tensors are tolerated, overlaps are not.
 */
#include "file/file_internal.h"
#include <inttypes.h>

#define HEADER_BYTES_MAX ((uint64_t)100000000) /* the limit of the reference implementation */

static const struct dtype { const char *name; unsigned bytes; setun_format format; } dtypes[] = {
    {"F32", 4, SETUN_FORMAT_F32}, {"F16", 2, SETUN_FORMAT_F16}, {"BF16", 2, SETUN_FORMAT_BF16}, {"F64", 8, SETUN_FORMAT_F64},
    {"I8", 1, SETUN_FORMAT_I8}, {"I16", 2, SETUN_FORMAT_I16}, {"I32", 4, SETUN_FORMAT_I32}, {"I64", 8, SETUN_FORMAT_I64},
    {"U8", 1, SETUN_FORMAT_U8}, {"U32", 4, SETUN_FORMAT_U32}, {"BOOL", 1, SETUN_FORMAT_U8},
    /* sizes are known, so they are checked; nothing reads them */
    {"U16", 2, SETUN_FORMAT_UNKNOWN}, {"U64", 8, SETUN_FORMAT_UNKNOWN}, {"F8_E4M3", 1, SETUN_FORMAT_UNKNOWN}, {"F8_E5M2", 1, SETUN_FORMAT_UNKNOWN},
    {"F8_E8M0", 1, SETUN_FORMAT_UNKNOWN}, {"C64", 8, SETUN_FORMAT_UNKNOWN},
};

static const struct dtype *find_dtype(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(name, dtypes[i].name)) return &dtypes[i];
    return NULL;
}

unsigned setun_safetensors_dtype_bytes(const char *dtype, const char **out_name) {
    const struct dtype *known = find_dtype(dtype);
    *out_name = known ? known->name : NULL;
    return known ? known->bytes : 0;
}

bool setun_safetensors_looks_like(const uint8_t *bytes, uint64_t count) {
    if (count < 9) return false;
    uint64_t length = setun_load_u64(bytes);
    /* a header that is too long still looks like one if "{" follows: the reader then says what is wrong with it */
    return length >= 2 && bytes[8] == '{' && (length <= count - 8 || length <= (uint64_t)1 << 40);
}

static setun_status refuse(const char *path, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
static setun_status refuse(const char *path, const char *name, const char *format, ...) {
    char why[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%.150s': %s", path, name, why);
}

static bool whole_number(const json_t *value, uint64_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static setun_status read_shape(const char *path, setun_file_tensor *t, const json_t *shape, uint64_t *out_count) {
    if (!json_is_array(shape)) return refuse(path, t->name, "header field shape is not an array; the file is corrupt");
    size_t rank = json_array_size(shape);
    if (rank > SETUN_MAX_RANK) {
        refuse(path, t->name, "header field shape has %zu dimensions, Setun reads at most %d", rank, SETUN_MAX_RANK);
        return SETUN_ERROR_UNSUPPORTED;
    }
    t->rank = (int)rank;
    *out_count = 1;
    bool empty = false;
    for (size_t i = 0; i < rank; i++) {
        uint64_t dimension;
        if (!whole_number(json_array_get(shape, i), &dimension)) return refuse(path, t->name, "header field shape[%zu] is not a whole number; the file is corrupt", i);
        /* zeros don't make the product of the others harmless: whoever multiplies some of them must not overflow */
        if (dimension == 0) empty = true;
        else if (!setun_mul_ok(*out_count, dimension, out_count) || *out_count > (uint64_t)1 << 56)
            return refuse(path, t->name, "header field shape[%zu] is %" PRIu64 ", which makes the tensor overflow; the file is corrupt", i, dimension);
        t->shape[i] = (int64_t)dimension;
    }
    if (empty) *out_count = 0;
    return SETUN_OK;
}

static setun_status read_entry(setun_file *file, setun_file_tensor *t, const json_t *entry, uint64_t data_start) {
    const setun_shard *shard = &file->shards[t->shard];
    if (!json_is_object(entry)) return refuse(shard->path, t->name, "its header entry is not an object; the file is corrupt");
    const json_t *dtype = json_object_get(entry, "dtype"), *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_string(dtype)) return refuse(shard->path, t->name, "header field dtype is missing or not a string; the file is corrupt");
    uint64_t count = 0, begin = 0, end = 0;
    SETUN_TRY(read_shape(shard->path, t, json_object_get(entry, "shape"), &count));
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !whole_number(json_array_get(offsets, 0), &begin) || !whole_number(json_array_get(offsets, 1), &end))
        return refuse(shard->path, t->name, "header field data_offsets is not a pair of whole numbers; the file is corrupt");
    if (begin > end) return refuse(shard->path, t->name, "header field data_offsets ends (%" PRIu64 ") before it begins (%" PRIu64 "); the file is corrupt", end, begin);
    uint64_t data_bytes = shard->count - data_start;
    if (end > data_bytes)
        return refuse(shard->path, t->name, "header field data_offsets ends at byte %" PRIu64 " + %" PRIu64 ", the file ends at %" PRIu64 "; it is truncated, download it again", data_start, end, shard->count);

    const struct dtype *known = find_dtype(json_string_value(dtype));
    if (known) {
        t->type_name = known->name;
        t->format = known->format;
        if (count * known->bytes != end - begin) /* count <= 2^56: no overflow */
            return refuse(shard->path, t->name, "header field data_offsets spans %" PRIu64 " bytes, but its shape and dtype %s need %" PRIu64 "; the file is corrupt", end - begin, known->name, count * known->bytes);
    } else {
        const char *problem = setun_name_problem((const uint8_t *)json_string_value(dtype), json_string_length(dtype));
        if (problem) return refuse(shard->path, t->name, "header field dtype %s; the file is corrupt", problem);
        t->format = SETUN_FORMAT_UNKNOWN;
        t->type_name = setun_file_keep_name(file, json_string_value(dtype), json_string_length(dtype));
        if (!t->type_name) return SETUN_ERROR_MEMORY;
    }
    t->offset = data_start + begin;
    t->bytes = end - begin;
    t->data = shard->bytes + t->offset;
    return SETUN_OK;
}

/* Tensors first .. tensor_count-1 of one shard. */
static setun_status check_overlap(setun_file *file, int first) {
    size_t count = 0;
    setun_extent *order = setun_alloc((size_t)(file->tensor_count - first) * sizeof *order);
    if (!order) return SETUN_ERROR_MEMORY;
    for (int i = first; i < file->tensor_count; i++)
        if (file->tensors[i].bytes) order[count++] = (setun_extent){file->tensors[i].offset, (uint32_t)i};
    setun_extents_sort(order, count);
    setun_status status = SETUN_OK;
    for (size_t k = 1; k < count && status == SETUN_OK; k++) {
        const setun_file_tensor *a = &file->tensors[order[k - 1].index], *b = &file->tensors[order[k].index];
        if (a->offset + a->bytes > b->offset)
            status = refuse(file->shards[b->shard].path, b->name, "header field data_offsets begins at byte %" PRIu64 ", inside tensor '%.150s', which ends at byte %" PRIu64 "; the file is corrupt", b->offset, a->name, a->offset + a->bytes);
    }
    setun_free(order);
    return status;
}

static setun_status read_header(setun_file *file, int shard, json_t *header, uint64_t data_start) {
    const char *path = file->shards[shard].path;
    int first = file->tensor_count;
    SETUN_TRY(setun_file_reserve_tensors(file, json_object_size(header)));
    const char *key;
    json_t *entry;
    json_object_foreach(header, key, entry) {
        if (!strcmp(key, "__metadata__")) {
            if (!json_is_object(entry)) return setun_fail(SETUN_ERROR_FORMAT, "%s: header field __metadata__ is not an object; the file is corrupt", path);
            continue;
        }
        const char *problem = setun_name_problem((const uint8_t *)key, strlen(key));
        if (problem) return setun_fail(SETUN_ERROR_FORMAT, "%s: the name of header entry %d %s; the file is corrupt", path, file->tensor_count - first, problem);
        setun_file_tensor *t = &file->tensors[file->tensor_count];
        memset(t, 0, sizeof *t);
        t->shard = shard;
        t->name = setun_file_keep_name(file, key, strlen(key));
        if (!t->name) return SETUN_ERROR_MEMORY;
        SETUN_TRY(read_entry(file, t, entry, data_start));
        file->tensor_count++;
    }
    SETUN_TRY(setun_file_name_tensors(file, file->tensor_count - first));
    return check_overlap(file, first);
}

setun_status setun_safetensors_read(setun_file *file, int shard) {
    const setun_shard *s = &file->shards[shard];
    if (s->count < 8) return setun_fail(SETUN_ERROR_FORMAT, "%s: header length at byte 0 needs 8 bytes, the file has %" PRIu64 "; it is truncated, download it again", s->path, s->count);
    uint64_t length = setun_load_u64(s->bytes);
    if (length > HEADER_BYTES_MAX) return setun_fail(SETUN_ERROR_FORMAT, "%s: header length at byte 0 is %" PRIu64 ", the limit is %" PRIu64 "; it is not a safetensors file, or corrupt", s->path, length, HEADER_BYTES_MAX);
    if (length > s->count - 8) return setun_fail(SETUN_ERROR_FORMAT, "%s: header length at byte 0 is %" PRIu64 ", the file ends after %" PRIu64 "; it is truncated, download it again", s->path, length, s->count - 8);
    json_t *header;
    setun_status status = setun_json_parse((const char *)s->bytes + 8, (size_t)length, s->path, &header);
    if (status != SETUN_OK) return setun_fail_prefix(status, "safetensors header (from byte 8)");
    status = json_is_object(header) ? read_header(file, shard, header, 8 + length)
                                    : setun_fail(SETUN_ERROR_FORMAT, "%s: safetensors header at byte 8 is not a JSON object; the file is corrupt", s->path);
    json_decref(header);
    return status;
}
