/* Decoding: golden files from other readers, every byte of the trit formats, any range of rows, damaged weights. */
#include "unit/ternary/golden.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void goldens(void **state) {
    (void)state;
    for (size_t f = 0; f < GOLDEN_FORMATS; f++) {
        golden g;
        assert_true(golden_read(golden_formats[f].file, golden_formats[f].format, &g));
        const setun_weight *w = &g.weight;
        const size_t row_bytes = (size_t)w->columns * 4;
        /* an odd address: files align nothing we may rely on */
        uint8_t *moved = malloc(w->bytes + 1);
        memcpy(moved + 1, w->data, w->bytes);
        setun_weight odd = *w;
        odd.data = moved + 1;
        float *out = malloc(row_bytes * (size_t)w->rows);
        assert_int_equal(setun_weight_to_f32(&odd, 0, w->rows, out), SETUN_OK);
        if (memcmp(out, g.decoded, row_bytes * (size_t)w->rows)) fail_msg("%s decodes differently", golden_formats[f].file);
        for (int64_t row = 0; row < w->rows; row++)
            for (int64_t rows = 0; row + rows <= w->rows; rows++) {
                memset(out, 0x5a, row_bytes * (size_t)w->rows);
                assert_int_equal(setun_weight_to_f32(w, row, rows, out), SETUN_OK);
                assert_memory_equal(out, g.decoded + (size_t)row * row_bytes, (size_t)rows * row_bytes);
                if (row + rows < w->rows) assert_int_equal(((uint8_t *)out)[(size_t)rows * row_bytes], 0x5a);
            }
        assert_int_equal(setun_weight_to_f32(w, -1, 1, out), SETUN_ERROR_ARGUMENT);
        assert_int_equal(setun_weight_to_f32(w, 1, w->rows, out), SETUN_ERROR_ARGUMENT);
        free(out);
        free(moved);
        free(g.file);
    }
}

/* The digits of a byte by the definition: b = ceil(v * 256 / 243), v in base 3; other bytes by the rule in docs/formats.md. */
static int digit_by_rule(int byte, int n) {
    int power = 1;
    for (int i = 0; i < n; i++) power *= 3;
    return ((byte * power) % 256 * 3) >> 8;
}

static void every_trit_byte(void **state) {
    (void)state;
    static const struct { setun_format format; int columns, bytes, data_at; } cases[] = {{SETUN_FORMAT_TQ1_0, 256, 54, 0}, {SETUN_FORMAT_PTQ1_0, 128, 28, 0}, {SETUN_FORMAT_IQ1_BN, 64, 15, 2}};
    int canonical[256];
    for (int b = 0; b < 256; b++) canonical[b] = -1;
    for (int v = 0; v < 243; v++) canonical[(v * 256 + 242) / 243] = v;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int b = 0; b < 256; b++) {
            uint8_t block[54], codes[256];
            const float one = 1;
            memset(block, b, sizeof block);
            const uint16_t half = setun_f32_to_f16(one);
            memcpy(block + (c == 0 ? 52 : c == 1 ? 26 : 0), &half, 2);
            setun_weight w = {.name = "x", .format = cases[c].format, .rows = 1, .columns = cases[c].columns, .data = block, .bytes = (uint64_t)cases[c].bytes};
            setun_ternary_info info;
            assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
            assert_int_equal(setun_ternary_decode(&w, &info, 0, 1, codes, NULL), SETUN_OK);
            uint64_t zeros = 0;
            for (int e = 0; e < cases[c].columns; e++) {
                int n; /* which digit, most significant first */
                if (c == 0) n = e < 160 ? e / 32 : e < 240 ? (e - 160) / 16 : (e - 240) / 4;
                else if (c == 1) n = e < 80 ? e / 16 : e < 120 ? (e - 80) / 8 : (e - 120) / 2;
                else n = e % 16 == 15 ? 4 - e / 16 : 4 - e % 16 % 5;
                assert_int_equal(codes[e], digit_by_rule(b, n));
                zeros += codes[e] == 1;
                if (canonical[b] >= 0) {
                    int v = canonical[b];
                    for (int i = 0; i < 4 - n; i++) v /= 3;
                    assert_int_equal(codes[e], v % 3);
                }
            }
            assert_int_equal(info.zeros, zeros);
        }
}

static void every_two_bit_byte(void **state) {
    (void)state;
    /* place[e]: byte and shift of weight e by docs/formats.md */
    for (int b = 0; b < 256; b++) {
        if ((b & b >> 1 & 0x55) != 0) continue; /* code 3 */
        static const struct { setun_format format; int columns, lanes, high_first; } cases[] = {
            {SETUN_FORMAT_I2_S, 128, 32, 1}, {SETUN_FORMAT_I2_S_64, 64, 16, 1}, {SETUN_FORMAT_IQ2_BN, 64, 16, 0}, {SETUN_FORMAT_Q2_0, 64, 0, 0}, {SETUN_FORMAT_PQ2_0, 128, 0, 0}};
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            uint8_t block[64 + 32], codes[128];
            const float one = 1;
            const uint16_t half = setun_f32_to_f16(one);
            memset(block, b, sizeof block);
            setun_weight w = {.name = "x", .format = cases[c].format, .rows = 1, .columns = cases[c].columns, .data = block};
            assert_int_equal(setun_format_size(w.format, 1, w.columns, &w.bytes), SETUN_OK);
            if (cases[c].high_first) memcpy(block + cases[c].columns / 4, &one, 4);
            else if (w.format == SETUN_FORMAT_IQ2_BN) memcpy(block, &one, 4);
            else memcpy(block, &half, 2);
            setun_ternary_info info;
            assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
            assert_int_equal(setun_ternary_decode(&w, &info, 0, 1, codes, NULL), SETUN_OK);
            for (int e = 0; e < cases[c].columns; e++) {
                int shift = cases[c].lanes ? e / cases[c].lanes * 2 : e % 4 * 2;
                if (cases[c].high_first) shift = 6 - shift;
                assert_int_equal(codes[e], b >> shift & 3);
            }
        }
    }
}

static void codes_of_goldens(void **state) {
    (void)state;
    for (size_t f = 0; f < GOLDEN_FORMATS; f++) {
        golden g;
        assert_true(golden_read(golden_formats[f].file, golden_formats[f].format, &g));
        if (!g.encoded || setun_format_get_kind(g.weight.format) != SETUN_KIND_TERNARY) {
            free(g.file);
            continue;
        }
        setun_weight w = g.weight;
        w.data = g.encoded;
        setun_ternary_info info;
        assert_int_equal(setun_ternary_probe(&w, &info), SETUN_OK);
        assert_true(info.ternary);
        uint8_t *codes = malloc((size_t)(w.rows * w.columns));
        float *scales = malloc((size_t)(w.rows * w.columns) * 4);
        const int per = info.scale == SETUN_SCALE_GROUP ? info.group_size : (int)w.columns;
        for (int64_t row = 0; row < w.rows; row++) { /* one row at a time, as threads do */
            assert_int_equal(setun_ternary_decode(&w, &info, row, 1, codes, scales), SETUN_OK);
            for (int64_t c = 0; c < w.columns; c++) {
                const float s = info.scale == SETUN_SCALE_TENSOR ? info.tensor_scale : scales[c / per];
                assert_true(s * (float)(codes[c] - 1) == setun_load_f32(g.values + 4 * (row * w.columns + c)));
            }
        }
        free(codes);
        free(scales);
        free(g.file);
    }
}

static void refusals(void **state) {
    (void)state;
    uint8_t data[64] = {0};
    float out[64];
    setun_weight w = {.name = "blk.0.ffn_up.weight", .format = SETUN_FORMAT_TL1, .rows = 1, .columns = 128, .data = data, .bytes = 64};
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(setun_error(), "blk.0.ffn_up.weight"));
    w.format = SETUN_FORMAT_I32;
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_UNSUPPORTED);
    w.format = SETUN_FORMAT_I2_S;
    w.bytes = 63; /* 32 + 32 are needed */
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "truncated"));
    w.format = SETUN_FORMAT_MLX_2BIT;
    w.bytes = 32;
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_FORMAT);
    assert_non_null(strstr(setun_error(), "scales"));
    w.scales = w.biases = data;
    w.scales_format = SETUN_FORMAT_F16;
    w.group_size = 48;
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_UNSUPPORTED);
    w.group_size = 0;
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_UNSUPPORTED);
    w.group_size = 64;
    w.scales_format = SETUN_FORMAT_I8;
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_UNSUPPORTED);
    w.scales_format = SETUN_FORMAT_BF16;
    w.columns = 96;
    assert_int_equal(setun_weight_to_f32(&w, 0, 1, out), SETUN_ERROR_FORMAT);
    /* not ternary: no codes */
    setun_ternary_info info = {.ternary = false};
    uint8_t codes[64];
    w = (setun_weight){.name = "x", .format = SETUN_FORMAT_F32, .rows = 1, .columns = 16, .data = data, .bytes = 64};
    assert_int_equal(setun_ternary_decode(&w, &info, 0, 1, codes, NULL), SETUN_ERROR_ARGUMENT);
    info = (setun_ternary_info){.ternary = true, .scale = SETUN_SCALE_GROUP, .group_size = 32};
    assert_int_equal(setun_ternary_decode(&w, &info, 0, 1, codes, out), SETUN_ERROR_ARGUMENT);
}

static void packed_rows(void **state) {
    (void)state;
    uint8_t codes[400], packed[128], back[400];
    srand(7);
    for (int columns = 1; columns <= 400; columns++) {
        for (int i = 0; i < columns; i++) codes[i] = (uint8_t)(rand() % 3);
        memset(packed, 0xee, sizeof packed);
        memset(back, 9, sizeof back);
        const int64_t bytes = setun_packed_row_bytes(columns);
        setun_pack_row(codes, columns, packed);
        for (int64_t i = 0; i < bytes * 4; i++) /* the drawing in ternary.h */
            assert_int_equal(packed[i / 128 * 32 + i % 32] >> (6 - 2 * (i % 128 / 32)) & 3, i < columns ? codes[i] : 1);
        if (bytes < 128) assert_int_equal(packed[bytes], 0xee);
        setun_unpack_row(packed, columns, back);
        assert_memory_equal(back, codes, (size_t)columns);
        if (columns < 400) assert_int_equal(back[columns], 9);
    }
}

static void packed_is_i2_s(void **state) {
    (void)state;
    golden g;
    assert_true(golden_read("i2_s", SETUN_FORMAT_I2_S, &g));
    uint8_t codes[512], packed[128];
    setun_ternary_info info;
    assert_int_equal(setun_ternary_probe(&g.weight, &info), SETUN_OK);
    for (int64_t row = 0; row < g.weight.rows; row++) {
        assert_int_equal(setun_ternary_decode(&g.weight, &info, row, 1, codes, NULL), SETUN_OK);
        setun_pack_row(codes, 512, packed);
        assert_memory_equal(packed, g.weight.data + row * 128, 128);
    }
    free(g.file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(goldens), cmocka_unit_test(every_trit_byte), cmocka_unit_test(every_two_bit_byte), cmocka_unit_test(codes_of_goldens),
        cmocka_unit_test(refusals), cmocka_unit_test(packed_rows), cmocka_unit_test(packed_is_i2_s)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
