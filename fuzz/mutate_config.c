/* mutate_config.c - changes values of a config.json, so that most inputs are still JSON. Linked with fuzz_config.c under libFuzzer. */
#include "mutate.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    any_seed(seed);
    return mutate_json_text(data, size, most);
}
