/* formats.c: names, ids, sizes, refusals. */
#include "ternary/ternary.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void names_and_ids(void **state) {
    (void)state;
    for (int i = 0; i < SETUN_FORMAT_COUNT; i++) {
        setun_format f = (setun_format)i;
        assert_int_equal(setun_format_from_name(setun_format_name(f)), f);
        int id = setun_format_gguf_id(f);
        if (id >= 0 && f != SETUN_FORMAT_I2_S_64 && f != SETUN_FORMAT_I2_S_ROW4) assert_int_equal(setun_format_from_gguf((uint32_t)id), f);
        assert_int_equal(setun_format_refusal(f) != NULL, setun_format_get_kind(f) == SETUN_KIND_REFUSED);
    }
    static const struct { setun_format format; int id; } ids[] = {
        {SETUN_FORMAT_F32, 0}, {SETUN_FORMAT_F16, 1}, {SETUN_FORMAT_Q4_0, 2}, {SETUN_FORMAT_Q4_1, 3}, {SETUN_FORMAT_Q8_0, 8}, {SETUN_FORMAT_Q4_K, 12},
        {SETUN_FORMAT_Q6_K, 14}, {SETUN_FORMAT_BF16, 30}, {SETUN_FORMAT_TQ1_0, 34}, {SETUN_FORMAT_TQ2_0, 35}, {SETUN_FORMAT_I2_S, 36}, {SETUN_FORMAT_I2_S_64, 36},
        {SETUN_FORMAT_I2_S_ROW4, 36}, {SETUN_FORMAT_TL1, 38}, {SETUN_FORMAT_TL2, 39}, {SETUN_FORMAT_Q2_0, 42}, {SETUN_FORMAT_IQ1_BN, 134},
        {SETUN_FORMAT_IQ2_BN, 135}, {SETUN_FORMAT_PQ2_0, 142}, {SETUN_FORMAT_PTQ1_0, 143}, {SETUN_FORMAT_HF_2BIT, -1}, {SETUN_FORMAT_MLX_2BIT, -1}, {SETUN_FORMAT_TRITS, 7300}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) assert_int_equal(setun_format_gguf_id(ids[i].format), ids[i].id);
    assert_int_equal(setun_format_from_name("TQ2_0"), SETUN_FORMAT_TQ2_0);
    assert_int_equal(setun_format_from_name("nonsense"), SETUN_FORMAT_UNKNOWN);
    assert_int_equal(setun_format_from_name(NULL), SETUN_FORMAT_UNKNOWN);
    assert_int_equal(setun_format_from_gguf(9999), SETUN_FORMAT_UNKNOWN);
    assert_int_equal(setun_format_from_gguf(0xffffffffu), SETUN_FORMAT_UNKNOWN);
    assert_string_equal(setun_format_name((setun_format)-3), "unknown");
    assert_int_equal(setun_format_get_kind((setun_format)1000), SETUN_KIND_REFUSED);
}

static void sizes(void **state) {
    (void)state;
    static const struct { setun_format format; int64_t rows, columns; uint64_t bytes; } cases[] = {
        {SETUN_FORMAT_F32, 3, 5, 60}, {SETUN_FORMAT_F16, 3, 5, 30}, {SETUN_FORMAT_BF16, 1, 7, 14}, {SETUN_FORMAT_Q8_0, 2, 64, 136}, {SETUN_FORMAT_Q4_0, 1, 576, 324},
        {SETUN_FORMAT_Q4_1, 1, 32, 20}, {SETUN_FORMAT_Q4_K, 2, 256, 288}, {SETUN_FORMAT_Q6_K, 1, 512, 420}, {SETUN_FORMAT_TQ1_0, 4, 512, 432},
        {SETUN_FORMAT_TQ2_0, 4, 512, 528}, {SETUN_FORMAT_I2_S, 3, 128, 96 + 32}, {SETUN_FORMAT_I2_S_64, 3, 64, 48 + 32}, {SETUN_FORMAT_I2_S_ROW4, 4, 7, 7 + 32},
        {SETUN_FORMAT_IQ1_BN, 2, 576, 2 * (2 + 117)}, {SETUN_FORMAT_IQ2_BN, 2, 576, 2 * (4 + 144)}, {SETUN_FORMAT_Q2_0, 1, 128, 36}, {SETUN_FORMAT_PQ2_0, 1, 128, 34},
        {SETUN_FORMAT_PTQ1_0, 1, 256, 56}, {SETUN_FORMAT_HF_2BIT, 8, 5, 10}, {SETUN_FORMAT_MLX_2BIT, 3, 64, 48},
        {SETUN_FORMAT_TRITS, 1, 1, 64 + 64}, {SETUN_FORMAT_TRITS, 17, 576, 6 * 384 + 128}, {SETUN_FORMAT_TRITS, 2560, 6912, 854 * 4352 + 10240}, {SETUN_FORMAT_I64, 1, 3, 24}};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(setun_format_size(cases[i].format, cases[i].rows, cases[i].columns, &bytes), SETUN_OK);
        assert_int_equal(bytes, cases[i].bytes);
    }
}

static void expect(setun_format format, int64_t rows, int64_t columns, setun_status status, const char *word) {
    uint64_t bytes = 1;
    assert_int_equal(setun_format_size(format, rows, columns, &bytes), status);
    assert_int_equal(bytes, 0);
    if (!strstr(setun_error(), word)) fail_msg("'%s' does not say '%s'", setun_error(), word);
}

static void size_refusals(void **state) {
    (void)state;
    expect(SETUN_FORMAT_TQ1_0, 4, 576, SETUN_ERROR_FORMAT, "iq1_bn, iq2_bn, q2_0"); /* names what fits */
    expect(SETUN_FORMAT_TQ1_0, 4, 576, SETUN_ERROR_FORMAT, "256");
    expect(SETUN_FORMAT_I2_S, 4, 576, SETUN_ERROR_FORMAT, "128");
    expect(SETUN_FORMAT_IQ1_BN, 1, 100, SETUN_ERROR_FORMAT, "64");
    expect(SETUN_FORMAT_HF_2BIT, 6, 64, SETUN_ERROR_FORMAT, "rows in multiples of 4");
    expect(SETUN_FORMAT_MLX_2BIT, 1, 17, SETUN_ERROR_FORMAT, "16");
    expect(SETUN_FORMAT_F32, 0, 5, SETUN_ERROR_FORMAT, "no weights");
    expect(SETUN_FORMAT_F32, 5, -1, SETUN_ERROR_FORMAT, "no weights");
    expect(SETUN_FORMAT_TL1, 5, 128, SETUN_ERROR_UNSUPPORTED, "I2_S");
    expect(SETUN_FORMAT_TL2, 5, 128, SETUN_ERROR_UNSUPPORTED, "tile sizes");
    expect(SETUN_FORMAT_UNKNOWN, 5, 128, SETUN_ERROR_UNSUPPORTED, "does not know");
    expect((setun_format)999, 5, 128, SETUN_ERROR_UNSUPPORTED, "does not know");
    expect(SETUN_FORMAT_F32, INT64_MAX, INT64_MAX, SETUN_ERROR_FORMAT, "more than any file");
    expect(SETUN_FORMAT_F32, INT64_C(1) << 61, 2, SETUN_ERROR_FORMAT, "more than any file"); /* the product fits, the bytes do not */
    expect(SETUN_FORMAT_I2_S, INT64_C(1) << 60, 1 << 20, SETUN_ERROR_FORMAT, "more than any file");
    expect(SETUN_FORMAT_TRITS, INT64_MAX, 1, SETUN_ERROR_FORMAT, "more than any file");
    expect(SETUN_FORMAT_TRITS, 1, INT64_MAX, SETUN_ERROR_FORMAT, "more than any file");
    expect(SETUN_FORMAT_TRITS, INT64_C(1) << 40, 1 << 30, SETUN_ERROR_FORMAT, "more than any file");
    expect(SETUN_FORMAT_IQ2_BN, INT64_MAX, 64, SETUN_ERROR_FORMAT, "more than any file");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(names_and_ids), cmocka_unit_test(sizes), cmocka_unit_test(size_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
