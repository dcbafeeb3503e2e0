/* fuzz_json.c - any text as JSON: what Setun's parser takes, jansson must take too, and make the same of it. */
#include "file/file.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A number that only Setun takes: an integer wider than 64 bits. */
static bool has_reals(const json_t *json) {
    const char *key;
    size_t index;
    json_t *value;
    if (json_is_real(json)) return true;
    json_array_foreach(json, index, value) if (has_reals(value)) return true;
    json_object_foreach((json_t *)(uintptr_t)json, key, value) if (has_reals(value)) return true;
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *ours, *theirs;
    setun_status status = setun_json_parse((const char *)data, size, "input", &ours);
    if (status != SETUN_OK) {
        if (ours || !*setun_error()) __builtin_trap();
        /* short: the limits on depth and number of values can't be the reason; jansson takes a zero byte for the end */
        theirs = size < 100 && !memchr(data, 0, size) ? json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL) : NULL;
        if (theirs) __builtin_trap();
        return 0;
    }
    theirs = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);
    if (theirs ? !json_equal(ours, theirs) : !has_reals(ours)) __builtin_trap();
    json_decref(ours);
    json_decref(theirs);
    return 0;
}
