/* fuzz_safetensors.c - a JSON header and data as a safetensors file: the header's length is made right, so that its content is tried. */
#include "fuzz_file.h"
#include <stdlib.h>

/* The input is the file itself where it starts with a sensible length; else header text, with 64 bytes of data after it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size >= 8 && setun_load_u64(data) <= size - 8) {
        fuzz_open(data, size);
        return 0;
    }
    uint8_t *file = malloc(8 + size + 64);
    if (!file) return 0;
    uint64_t length = size;
    memcpy(file, &length, 8);
    if (size) memcpy(file + 8, data, size);
    memset(file + 8 + size, 7, 64);
    fuzz_open(file, 8 + size + 64);
    free(file);
    return 0;
}
