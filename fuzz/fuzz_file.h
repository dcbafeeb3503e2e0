/* fuzz_file.h - opens bytes as a model file and reads all that it gives out; shared by fuzz_gguf.c and fuzz_safetensors.c. */
#ifndef SETUN_FUZZ_FILE_H
#define SETUN_FUZZ_FILE_H

#include "file/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t fuzz_sum(const void *data, uint64_t count) {
    const uint8_t *p = data;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) sum += p[i];
    return sum;
}

static void fuzz_open(const uint8_t *data, size_t size) {
    static volatile uint64_t sink; /* so that the reading is not optimised away */
    setun_file *file;
    if (setun_file_open_memory(data, size, "input", &file) != SETUN_OK) {
        if (!*setun_error() || file) __builtin_trap(); /* a refusal says why, and leaves nothing */
        return;
    }
    uint64_t sum = 0;
    for (int i = 0; i < setun_file_tensor_count(file); i++) {
        const setun_file_tensor *t = setun_file_tensor_at(file, i);
        if (setun_file_find_tensor(file, t->name) != t || t->rank < 0 || t->rank > SETUN_MAX_RANK || t->bytes > size || t->offset > size - t->bytes || t->data != data + t->offset) __builtin_trap();
        for (int k = 0; k < t->rank; k++)
            if (t->shape[k] < 0) __builtin_trap();
        sum += fuzz_sum(t->data, t->bytes) + strlen(t->type_name);
    }
    for (int i = 0; i < setun_file_value_count(file); i++) {
        const setun_value *v = setun_file_value_at(file, i);
        const char *text;
        size_t length;
        int64_t integer;
        double real;
        bool truth;
        if (setun_file_find_value(file, v->key) != v) __builtin_trap();
        if (setun_value_string(v, &text, &length)) sum += fuzz_sum(text, length);
        if (setun_value_i64(v, &integer)) sum += (uint64_t)integer;
        if (setun_value_f64(v, &real)) sum += real > 0;
        if (setun_value_bool(v, &truth)) sum += truth;
        for (uint64_t k = 0; v->type == SETUN_VALUE_ARRAY && k < v->count; k++) {
            if (setun_value_string_at(v, k, &text, &length)) sum += fuzz_sum(text, length);
            else if (setun_value_i64_at(v, k, &integer)) sum += (uint64_t)integer;
            else if (setun_value_f64_at(v, k, &real)) sum += real > 0;
        }
    }
    sink = sink + sum;
    setun_file_close(file);
}

#endif
