/*
 * support.h - what the integration tests share: cmocka, the model in the repository, the golden references.
 */
#ifndef SETUN_TEST_SUPPORT_H
#define SETUN_TEST_SUPPORT_H

#include "run/run.h"
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <unistd.h>
/* after the standard headers, as cmocka wants */
#include <cmocka.h>

#define EXPECT_OK(call) do { setun_status expect_status_ = (call); if (expect_status_ != SETUN_OK) fail_msg("%s: %s: %s", #call, setun_status_name(expect_status_), setun_error()); } while (0)

/* True when the model is there; a test program without it exits with 77, which CTest counts as skipped. */
static inline bool test_model_exists(void)
{
    if (access(SETUN_TEST_MODEL, R_OK) == 0) return true;
    print_message("skipped: %s is not there\n", SETUN_TEST_MODEL);
    return false;
}

static inline setun_context *test_context(int threads, const char *isa)
{
    setun_context_options options = {.size = sizeof options, .threads = threads, .isa = isa};
    setun_context *context;
    EXPECT_OK(setun_context_create(&options, &context));
    return context;
}

static inline json_t *test_references(void)
{
    json_error_t error;
    json_t *root = json_load_file(SETUN_TEST_GOLDEN "/references/references.json", 0, &error);
    if (!root) fail_msg("references.json: %s", error.text);
    return root;
}

/* An array of integers; the caller frees it. */
static inline int32_t *test_ids(const json_t *array, size_t *count)
{
    *count = json_array_size(array);
    int32_t *ids = malloc((*count + 1) * sizeof *ids);
    for (size_t i = 0; i < *count; i++) ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

#endif
