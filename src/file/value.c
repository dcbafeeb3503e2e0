/*
 * value.c - reads GGUF metadata values as numbers, booleans and strings, whatever width the writer chose for them.
 * Callers: model (hyper-parameters), text (vocabularies), inspect. Refuses to know any key's meaning.
 */
#include "file/file_internal.h"
#include <inttypes.h>
#include <math.h>

unsigned setun_value_bytes(uint32_t type) {
    switch (type) {
    case SETUN_VALUE_U8: case SETUN_VALUE_I8: case SETUN_VALUE_BOOL: return 1;
    case SETUN_VALUE_U16: case SETUN_VALUE_I16: return 2;
    case SETUN_VALUE_U32: case SETUN_VALUE_I32: case SETUN_VALUE_F32: return 4;
    case SETUN_VALUE_U64: case SETUN_VALUE_I64: case SETUN_VALUE_F64: return 8;
    default: return 0;
    }
}

const char *setun_value_type_name(uint32_t type) {
    static const char *const names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
    return type < sizeof names / sizeof *names ? names[type] : "unknown";
}

/* A number as the file has it: an integer (sign and magnitude, so that both I64 and U64 fit), or a double. */
typedef struct number { bool integer, negative; uint64_t magnitude; double real; } number;

static number integer_number(int64_t v) {
    number n = {.integer = true, .negative = v < 0, .magnitude = v < 0 ? 0 - (uint64_t)v : (uint64_t)v};
    return n;
}

static bool load_number(setun_value_type type, const uint8_t *p, number *out) {
    memset(out, 0, sizeof *out);
    switch (type) {
    case SETUN_VALUE_U8: *out = integer_number(*p); return true;
    case SETUN_VALUE_I8: *out = integer_number((int8_t)*p); return true;
    case SETUN_VALUE_U16: *out = integer_number(setun_load_u16(p)); return true;
    case SETUN_VALUE_I16: *out = integer_number((int16_t)setun_load_u16(p)); return true;
    case SETUN_VALUE_U32: *out = integer_number(setun_load_u32(p)); return true;
    case SETUN_VALUE_I32: *out = integer_number((int32_t)setun_load_u32(p)); return true;
    case SETUN_VALUE_I64: *out = integer_number((int64_t)setun_load_u64(p)); return true;
    case SETUN_VALUE_U64: out->integer = true; out->magnitude = setun_load_u64(p); return true;
    case SETUN_VALUE_F32: out->real = (double)setun_load_f32(p); return true;
    case SETUN_VALUE_F64: memcpy(&out->real, p, 8); return true;
    default: return false;
    }
}

static bool number_to_i64(number n, int64_t *out) {
    if (n.integer) {
        if (n.magnitude > (uint64_t)INT64_MAX + (n.negative ? 1 : 0)) return false;
        *out = n.negative ? (int64_t)(0 - n.magnitude) : (int64_t)n.magnitude;
        return true;
    }
    if (!(n.real >= -0x1p63 && n.real < 0x1p63) || n.real != trunc(n.real)) return false; /* also NaN */
    *out = (int64_t)n.real;
    return true;
}

static bool number_to_f64(number n, double *out) {
    if (!n.integer) {
        *out = n.real;
        return true;
    }
    double d = (double)n.magnitude;
    if (d >= 0x1p64 || (uint64_t)d != n.magnitude) return false; /* more than 53 significant bits */
    *out = n.negative ? -d : d;
    return true;
}

static bool wrong_type(const setun_value *v, const char *wanted) {
    if (v->type == SETUN_VALUE_ARRAY)
        setun_fail(SETUN_ERROR_FORMAT, "metadata key '%.200s' is an array of %s where %s is expected", v->key, setun_value_type_name(v->element), wanted);
    else
        setun_fail(SETUN_ERROR_FORMAT, "metadata key '%.200s' has type %s where %s is expected", v->key, setun_value_type_name(v->type), wanted);
    return false;
}

static bool does_not_fit(const setun_value *v, const char *wanted) {
    setun_fail(SETUN_ERROR_FORMAT, "metadata key '%.200s' (%s) has a value that is not exactly %s", v->key, setun_value_type_name(v->type == SETUN_VALUE_ARRAY ? v->element : v->type), wanted);
    return false;
}

bool setun_value_i64(const setun_value *v, int64_t *out) {
    number n;
    *out = 0;
    if (!v) return false;
    if (!load_number(v->type, v->data, &n)) return wrong_type(v, "an integer");
    return number_to_i64(n, out) || does_not_fit(v, "a 64-bit integer");
}

bool setun_value_f64(const setun_value *v, double *out) {
    number n;
    *out = 0;
    if (!v) return false;
    if (!load_number(v->type, v->data, &n)) return wrong_type(v, "a number");
    return number_to_f64(n, out) || does_not_fit(v, "a 64-bit float");
}

bool setun_value_bool(const setun_value *v, bool *out) {
    *out = false;
    if (!v) return false;
    if (v->type != SETUN_VALUE_BOOL) return wrong_type(v, "a bool");
    *out = *v->data != 0;
    return true;
}

bool setun_value_string(const setun_value *v, const char **out, size_t *out_length) {
    *out = NULL;
    *out_length = 0;
    if (!v) return false;
    if (v->type != SETUN_VALUE_STRING) return wrong_type(v, "a string");
    *out = (const char *)v->data;
    *out_length = (size_t)v->count;
    return true;
}

static bool element_there(const setun_value *v, uint64_t index) {
    if (index < v->count) return true;
    setun_fail(SETUN_ERROR_FORMAT, "metadata key '%.200s' has %" PRIu64 " elements, element %" PRIu64 " was wanted", v->key, v->count, index);
    return false;
}

bool setun_value_string_at(const setun_value *v, uint64_t index, const char **out, size_t *out_length) {
    *out = NULL;
    *out_length = 0;
    if (!v) return false;
    if (v->type != SETUN_VALUE_ARRAY || v->element != SETUN_VALUE_STRING) return wrong_type(v, "an array of strings");
    if (!element_there(v, index)) return false;
    const uint8_t *p = v->data + v->string_offsets[index];
    *out = (const char *)p + 8;
    *out_length = (size_t)setun_load_u64(p);
    return true;
}

static const uint8_t *element_at(const setun_value *v, uint64_t index) { return v->data + index * setun_value_bytes(v->element); }

bool setun_value_i64_at(const setun_value *v, uint64_t index, int64_t *out) {
    number n;
    *out = 0;
    if (!v) return false;
    if (v->type != SETUN_VALUE_ARRAY || !setun_value_bytes(v->element) || v->element == SETUN_VALUE_F32 || v->element == SETUN_VALUE_F64)
        return wrong_type(v, "an array of integers");
    if (!element_there(v, index)) return false;
    if (v->element == SETUN_VALUE_BOOL) {
        *out = *element_at(v, index) != 0;
        return true;
    }
    load_number(v->element, element_at(v, index), &n);
    return number_to_i64(n, out) || does_not_fit(v, "a 64-bit integer");
}

bool setun_value_f64_at(const setun_value *v, uint64_t index, double *out) {
    number n;
    *out = 0;
    if (!v) return false;
    if (v->type != SETUN_VALUE_ARRAY || !setun_value_bytes(v->element) || v->element == SETUN_VALUE_BOOL) return wrong_type(v, "an array of numbers");
    if (!element_there(v, index)) return false;
    load_number(v->element, element_at(v, index), &n);
    return number_to_f64(n, out) || does_not_fit(v, "a 64-bit float");
}
