/*
 * The layouts of the CUDA kernels for prompts, without a GPU: what the tensor cores read, lane by lane as PTX defines the fragments of
 * mma.m16n8k32, must give the plain product; packing must place every word once; the choice of a kernel must fit the device. SETUN_TEST_SEED=n repeats a run.
 */
#include "backend/mlx/cuda/prompt.h"
#include "ternary/ternary.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <cmocka.h>

static uint64_t seed, state;

static uint32_t next_random(void) { /* xorshift64*, Vigna 2014 */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ull) >> 32);
}
static int below(int n) { return (int)(next_random() % (uint32_t)n); }

/* D [16 x 8] += A [16 x 32] B [32 x 8] of one warp, from what its lanes hold. Lane l: group g = l / 4, quad q = l % 4. */
static void tensor_core(const uint32_t a[32][4], const uint32_t b[32][2], int32_t d[32][4])
{
    int32_t wide_a[16][32], wide_b[32][8];
    for (int l = 0; l < 32; l++)
        for (int byte = 0; byte < 4; byte++) {
            int g = l / 4, k = l % 4 * 4 + byte;
            for (int r = 0; r < 4; r++) wide_a[g + r % 2 * 8][k + r / 2 * 16] = (int)(a[l][r] >> 8 * byte & 255);
            for (int r = 0; r < 2; r++) wide_b[k + r * 16][g] = (int8_t)(b[l][r] >> 8 * byte & 255);
        }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 32; k++) d[l][i] += wide_a[l / 4 + i / 2 * 8][k] * wide_b[k][l % 4 * 2 + i % 2];
}

static void test_fragments_give_the_product(void **unused)
{
    (void)unused;
    state = seed;
    for (int round = 0; round < 4; round++) {
        int rows = 1 + below(300), columns = 1 + below(400), tokens = 1 + below(20), blocks = (int)setun_prompt_blocks(columns), groups = (int)setun_prompt_groups(tokens);
        int64_t row_bytes = setun_packed_row_bytes(columns);
        uint8_t *codes = malloc((size_t)rows * (size_t)columns), *packed = malloc((size_t)rows * (size_t)row_bytes + 1);
        uint32_t *words = malloc(setun_prompt_weight_words(rows, columns) * 4);
        int8_t *x = malloc((size_t)tokens * (size_t)columns), *tiled = calloc(setun_prompt_activation_bytes(tokens, columns), 1);
        assert_true(codes && packed && words && x && tiled);
        for (int i = 0; i < rows * columns; i++) codes[i] = (uint8_t)below(3);
        for (int r = 0; r < rows; r++) setun_pack_row(codes + (size_t)r * (size_t)columns, columns, packed + 1 + r * row_bytes); /* unaligned */
        setun_prompt_pack_begin(words, rows, columns);
        setun_prompt_pack(packed + 1, (size_t)row_bytes, rows, columns, 0, 1, words);
        for (int t = 0; t < tokens; t++)
            for (int k = 0; k < columns; k++) x[t * columns + k] = tiled[setun_prompt_activation_index(t, groups, k)] = (int8_t)(below(256) - 128);
        for (int slab = 0; slab < (rows + 15) / 16; slab++)
            for (int group = 0; group < groups; group++) {
                int32_t d[32][4] = {{0}}, high[32][4] = {{0}};
                for (int block = 0; block < blocks; block++)
                    for (int step = 0; step < 4; step++) {
                        uint32_t a[32][4], a_high[32][4], b[32][2];
                        for (int l = 0; l < 32; l++) {
                            const uint32_t *four = words + ((((size_t)(slab / 16) * (size_t)blocks + (size_t)block) * 16 + (size_t)(slab % 16)) * 32 + (size_t)l) * 4;
                            for (int i = 0; i < 4; i++) {
                                a[l][i] = four[i] >> (6 - 2 * step) & 0x03030303u;
                                a_high[l][i] = four[i] << 2 * step & 0xc0c0c0c0u;
                            }
                            for (int i = 0; i < 2; i++) /* a warp reads 8 rows of 128 swizzled bytes */
                                memcpy(&b[l][i], tiled + ((size_t)block * (size_t)groups + (size_t)group) * 1024 + l / 4 * 128 + ((2 * step + i) ^ (l / 4)) * 16 + l % 4 * 4, 4);
                        }
                        tensor_core(a, b, d);
                        tensor_core(a_high, b, high);
                    }
                for (int l = 0; l < 32; l++)
                    for (int i = 0; i < 4; i++) {
                        int row = slab * 16 + l / 4 * 2 + i / 2, token = group * 8 + l % 4 * 2 + i % 2;
                        assert_int_equal(high[l][i], d[l][i] * 64);
                        if (row >= rows || token >= tokens) continue;
                        int32_t want = 0;
                        for (int k = 0; k < columns; k++) want += codes[row * columns + k] * x[token * columns + k];
                        assert_int_equal(d[l][i], want);
                    }
            }
        free(codes), free(packed), free(words), free(x), free(tiled);
    }
}

/* q, k and v one after the other, or gate and up row by row: every word of every row is in one place, and the rest is zeros. */
static void test_packing_places_every_word_once(void **unused)
{
    (void)unused;
    enum { COLUMNS = 300, BLOCKS = 3, BYTES = BLOCKS * 32 };
    for (int gated = 0; gated < 2; gated++) {
        int rows[2] = {70, gated ? 70 : 203}, all = rows[0] + rows[1];
        uint64_t count = setun_prompt_weight_words(all, COLUMNS), found = 0;
        assert_int_equal(count, 512 / 64 * BLOCKS * 256 * (all > 256 ? 2 : 1));
        uint32_t *words = malloc(count * 4), *source = malloc((size_t)all * BYTES);
        assert_true(words && source);
        for (int i = 0; i < all * BYTES / 4; i++) source[i] = (uint32_t)i;
        setun_prompt_pack_begin(words, all, COLUMNS);
        setun_prompt_pack((const uint8_t *)source, BYTES, rows[0], COLUMNS, 0, gated ? 2 : 1, words);
        setun_prompt_pack((const uint8_t *)source + rows[0] * BYTES, BYTES, rows[1], COLUMNS, gated ? 1 : rows[0], gated ? 2 : 1, words);
        for (int r = 0; r < all; r++)
            for (int b = 0; b < BLOCKS; b++)
                for (int q = 0; q < 8; q++) {
                    int from = gated ? r % 2 * rows[0] + r / 2 : r;
                    assert_int_equal(words[setun_prompt_word_index(r, BLOCKS, b, q)], (from * BLOCKS + b) * 8 + q);
                }
        for (uint64_t i = 0; i < count; i++) found += words[i] != SETUN_PROMPT_CODE_ONE;
        assert_int_equal(found, all * BYTES / 4);
        free(words), free(source);
    }
}

static void test_activations_fill_their_tiles(void **unused)
{
    (void)unused;
    enum { TOKENS = 21, COLUMNS = 256 };
    uint64_t bytes = setun_prompt_activation_bytes(TOKENS, COLUMNS);
    assert_int_equal(bytes, 2 * 3 * 1024);
    uint8_t *used = calloc(bytes, 1);
    assert_non_null(used);
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < COLUMNS; k++) {
            uint64_t at = setun_prompt_activation_index(t, 3, k);
            assert_true(at < bytes && !used[at]);
            used[at] = 1;
        }
    free(used);
}

static void test_choice_fits_the_device(void **unused)
{
    (void)unused;
    state = seed;
    for (int i = 0; i < 3000; i++) {
        int64_t rows = 1 + below(i % 2 ? 20000 : 300), columns = 1 + below(20000), tokens = 1 + below(i % 3 ? 40 : 5000);
        int hopper = below(2), multiprocessors = 1 + below(150);
        setun_prompt_launch l = setun_prompt_choose(rows, columns, tokens, multiprocessors, hopper);
        assert_non_null(l.kernel);
        bool wide = !strncmp(l.kernel, "setun_prompt_wgmma_", 19);
        assert_true(hopper || !wide);
        assert_true(l.blocks >= 1 && l.cost > 0);
        if (wide) {
            int n = atoi(l.kernel + 19);
            assert_true(l.blocks <= multiprocessors && l.threads == SETUN_PROMPT_WGMMA_THREADS);
            assert_true(l.shared_bytes == SETUN_PROMPT_WGMMA_SHARED(n) && l.shared_bytes <= 227 * 1024 && SETUN_PROMPT_STAGES(n) >= 4);
            assert_true(SETUN_PROMPT_STAGES(n) * 8 <= 128); /* barriers before the tokens' scales */
        } else {
            int s = atoi(l.kernel + 17), n = atoi(strchr(l.kernel + 17, 'x') + 1);
            assert_true(l.threads == SETUN_PROMPT_MMA_THREADS && l.shared_bytes <= 48 * 1024);
            assert_int_equal(l.blocks, (rows + 16 * s - 1) / (16 * s) * ((tokens + n - 1) / n));
        }
    }
    /* As measured on an H200: few tokens go to the small tiles, prompts to the large ones */
    assert_string_equal(setun_prompt_choose(2560, 2560, 8, 132, 1).kernel, "setun_prompt_mma_1x8");
    assert_string_equal(setun_prompt_choose(3840, 2560, 512, 132, 1).kernel, "setun_prompt_wgmma_64");
    assert_string_equal(setun_prompt_choose(2560, 6912, 512, 132, 1).kernel, "setun_prompt_wgmma_48");
    assert_string_equal(setun_prompt_choose(13824, 2560, 2048, 132, 1).kernel, "setun_prompt_wgmma_96");
    assert_null(setun_prompt_choose(2560, (int64_t)1 << 23, 8, 132, 1).kernel);
    assert_null(setun_prompt_choose((int64_t)1 << 20, 2560, 1 << 11, 132, 1).kernel);
    assert_null(setun_prompt_choose(0, 2560, 8, 132, 1).kernel);
    assert_memory_equal(setun_prompt_choose(2560, 1 << 17, 512, 132, 1).kernel, "setun_prompt_mma_", 17); /* 64 times the sum would not fit */
}

int main(void)
{
    const char *given = getenv("SETUN_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) | 1 : (uint64_t)time(NULL) | 1;
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fragments_give_the_product),
        cmocka_unit_test(test_packing_places_every_word_once),
        cmocka_unit_test(test_activations_fill_their_tiles),
        cmocka_unit_test(test_choice_fits_the_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
