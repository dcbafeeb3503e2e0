/* fuzz_gguf.c - any bytes as a GGUF file: opened, and read to the last byte that is given out. */
#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* most of the work is behind the magic */
    if (size < 4 || memcmp(data, "GGUF", 4)) return 0;
    fuzz_open(data, size);
    return 0;
}
