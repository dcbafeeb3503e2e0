/*
 * test_zero_copy.c - a model file in a layout that the kernels read natively is used where it is mapped: written here as f16 masters, converted to I2_S,
 * opened on MLX's CPU. At least 99 % of the weights' bytes are the file's, by pointer, and running the model takes no memory of the size of
 * its weights; explain says so. What no kernel reads in place (Setun's own packed rows of three, formats with blocks) is packed once, and said so.
 * The CPU backend: the same for files in its native layouts.
 */
#include "mlx_test.h"

#include <stdio.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <unistd.h>
#include "backend/mlx/lower.h"
#include "file/file.h"
#include "run/run.h"

enum { WIDTH = 1024, FORWARD = 3072, HEADS = 8, LAYERS = 2, VOCABULARY = 300 };
static char folder[512], master[600], native[600], packed[600], blocks[600];

static const struct { const char *name; int rows, columns; } linears[] = {{"attn_q", WIDTH, WIDTH}, {"attn_k", WIDTH / 4, WIDTH}, {"attn_v", WIDTH / 4, WIDTH}, {"attn_output", WIDTH, WIDTH},
                                                                        {"ffn_gate", FORWARD, WIDTH}, {"ffn_up", FORWARD, WIDTH}, {"ffn_down", WIDTH, FORWARD}};
enum { LINEARS = sizeof linears / sizeof linears[0] };

#define good(call) do { if ((call) != SETUN_OK) fail_msg("%s: %s", #call, setun_error()); } while (0)

static void add_tensor(setun_gguf_writer *w, const char *name, setun_format format, int rows, int columns) {
    int64_t shape[2] = {rows, columns};
    good(setun_gguf_add_tensor(w, name, format, rows > 1 ? 2 : 1, rows > 1 ? shape : shape + 1, (uint64_t)rows * (uint64_t)columns * (format == SETUN_FORMAT_F16 ? 2 : 4)));
}

/* Two layers of BitNet with random -s, 0, s. */
static void write_master(void) {
    setun_gguf_writer *w;
    char name[64], piece[VOCABULARY][16];
    const char *pieces[VOCABULARY];
    size_t lengths[VOCABULARY];
    int32_t kinds[VOCABULARY];
    good(setun_gguf_writer_create(master, true, 0, &w));
    good(setun_gguf_add_string(w, "general.architecture", "bitnet-b1.58", 12));
    static const struct { const char *key; uint32_t value; } numbers[] = {{"block_count", LAYERS}, {"context_length", 128}, {"embedding_length", WIDTH}, {"feed_forward_length", FORWARD}, {"attention.head_count", HEADS},
                                                                         {"attention.head_count_kv", HEADS / 4}, {"rope.dimension_count", WIDTH / HEADS}, {"vocab_size", VOCABULARY}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        snprintf(name, sizeof name, "bitnet-b1.58.%s", numbers[i].key);
        good(setun_gguf_add_u32(w, name, numbers[i].value));
    }
    good(setun_gguf_add_f32(w, "bitnet-b1.58.attention.layer_norm_rms_epsilon", 1e-5f));
    good(setun_gguf_add_f32(w, "bitnet-b1.58.rope.freq_base", 10000.0f));
    for (int i = 0; i < VOCABULARY; i++) {
        lengths[i] = (size_t)snprintf(piece[i], sizeof piece[i], i < 94 ? "%c" : "<|%d|>", i < 94 ? 33 + i : i);
        pieces[i] = piece[i];
        kinds[i] = i < 94 ? 1 : 3;
    }
    good(setun_gguf_add_string(w, "tokenizer.ggml.model", "gpt2", 4));
    good(setun_gguf_add_string(w, "tokenizer.ggml.pre", "llama-bpe", 9));
    good(setun_gguf_add_strings(w, "tokenizer.ggml.tokens", pieces, lengths, VOCABULARY));
    good(setun_gguf_add_i32s(w, "tokenizer.ggml.token_type", kinds, VOCABULARY));
    good(setun_gguf_add_strings(w, "tokenizer.ggml.merges", NULL, NULL, 0));
    good(setun_gguf_add_u32(w, "tokenizer.ggml.bos_token_id", VOCABULARY - 2));
    good(setun_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", VOCABULARY - 1));
    static const struct { const char *name; int width; } norms[] = {{"attn_norm", WIDTH}, {"attn_sub_norm", WIDTH}, {"ffn_norm", WIDTH}, {"ffn_sub_norm", FORWARD}};
    uint16_t *half = malloc((size_t)FORWARD * WIDTH * 2);
    float *ones = malloc(FORWARD * sizeof *ones);
    assert_true(half && ones);
    for (int i = 0; i < FORWARD; i++) ones[i] = 1.0f + (float)(i % 7) / 16.0f;
    for (int pass = 0; pass < 2; pass++) { /* declared, then written */
        uint64_t state = 88172645463325252u;
        if (pass) good(setun_gguf_begin_data(w));
        if (!pass) add_tensor(w, "token_embd.weight", SETUN_FORMAT_F16, VOCABULARY, WIDTH), add_tensor(w, "output_norm.weight", SETUN_FORMAT_F32, 1, WIDTH);
        else {
            for (int i = 0; i < VOCABULARY * WIDTH; i++) {
                state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64, Marsaglia 2003 */
                half[i] = setun_f32_to_f16((float)(int)(state % 2001) / 1000.0f - 1.0f);
            }
            good(setun_gguf_write_tensor(w, half, (uint64_t)VOCABULARY * WIDTH * 2));
            good(setun_gguf_write_tensor(w, ones, WIDTH * 4));
        }
        for (int layer = 0; layer < LAYERS; layer++) {
            for (int i = 0; i < 4; i++) {
                snprintf(name, sizeof name, "blk.%d.%s.weight", layer, norms[i].name);
                if (!pass) add_tensor(w, name, SETUN_FORMAT_F32, 1, norms[i].width);
                else good(setun_gguf_write_tensor(w, ones, (uint64_t)norms[i].width * 4));
            }
            for (int i = 0; i < LINEARS; i++) {
                int count = linears[i].rows * linears[i].columns;
                snprintf(name, sizeof name, "blk.%d.%s.weight", layer, linears[i].name);
                if (!pass) add_tensor(w, name, SETUN_FORMAT_F16, linears[i].rows, linears[i].columns);
                else {
                    uint16_t values[3] = {setun_f32_to_f16(-0.0625f), 0, setun_f32_to_f16(0.0625f)};
                    for (int j = 0; j < count; j++) {
                        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
                        half[j] = values[state % 3];
                    }
                    good(setun_gguf_write_tensor(w, half, (uint64_t)count * 2));
                }
            }
        }
    }
    free(half);
    free(ones);
    good(setun_gguf_commit(w));
}

static int make_files(void **state) {
    (void)state;
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/setun_zero_XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) return 1;
    snprintf(master, sizeof master, "%s/master.gguf", folder);
    snprintf(native, sizeof native, "%s/i2_s.gguf", folder);
    snprintf(packed, sizeof packed, "%s/packed.gguf", folder);
    snprintf(blocks, sizeof blocks, "%s/tq2_0.gguf", folder);
    write_master();
    static const char *const formats[] = {"i2_s", "packed", "tq2_0"};
    char *const paths[] = {native, packed, blocks};
    for (int i = 0; i < 3; i++) {
        char *report = NULL;
        setun_convert_options o = {.size = sizeof o, .ternary = formats[i]};
        good(setun_convert(context, master, paths[i], &o, &report));
        setun_free(report);
    }
    unlink(master);
    return 0;
}
static int remove_files(void **state) {
    (void)state;
    unlink(native);
    unlink(packed);
    unlink(blocks);
    return rmdir(folder);
}

static double share_of(const char *json) {
    const char *at = strstr(json, "\"mapped_share\": ");
    assert_non_null(at);
    return strtod(at + 16, NULL);
}

/* Memory of the process's own, in bytes; 0 where the system does not tell. */
static long own_memory(void) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[128];
    long kib = 0;
#ifdef __SANITIZE_ADDRESS__
    if (f) fclose(f); /* its quarantine keeps what was freed */
    f = NULL;
#endif
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) sscanf(line, "RssAnon: %ld", &kib);
    fclose(f);
    return kib * 1024;
}

typedef struct opened { setun_model *model; setun_session *session; double share; char *explained; } opened;
static opened open_on(const char *path, const char *device, const char *weights) {
    opened o = {0};
    setun_model_options m = {.size = sizeof m, .device = device, .weights = weights};
    setun_session_options so = {.size = sizeof so, .context = 32, .batch = 4};
    good(setun_model_open(context, path, &m, &o.model));
    good(setun_session_create(o.model, &so, &o.session));
    setun_explain_options e = {.size = sizeof e, .session = so, .json = true};
    good(setun_model_explain(o.model, &e, &o.explained));
    o.share = share_of(o.explained);
    return o;
}
static void close_opened(opened *o) {
    setun_free(o->explained);
    setun_session_destroy(o->session);
    setun_model_close(o->model);
}

static void pointers_are_the_files(void **state) {
    (void)state;
    opened o = open_on(native, "mlx:cpu", NULL);
    int matrices = 0, vectors = 0;
    for (int i = 0; i < o.session->plan->step_count; i++) {
        const setun_step *step = &o.session->plan->steps[i];
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) {
            if (!step->weight[j]) continue;
            const mlx_weight *w = step->prepared[j];
            const void *data;
            ok(t->array_data(w->values, &data));
            assert_true(step->weight[j]->mapped);
            if (data != (const void *)step->weight[j]->data) fail_msg("%s: %p, in the file %p", step->weight[j]->name, data, (const void *)step->weight[j]->data);
            assert_int_equal(step->report[j].origin, SETUN_WEIGHT_MAPPED);
            *(step->weight[j]->rows > 1 ? &matrices : &vectors) += 1;
        }
    }
    assert_int_equal(matrices, LAYERS * LINEARS + 2); /* embedding, and head, which is the embedding again */
    assert_int_equal(vectors, LAYERS * 4 + 1);
    if (!(o.share >= 0.99)) fail_msg("%.4f of the bytes are the file's", o.share);
    assert_non_null(strstr(o.explained, "\"weights_packed\": 0, \"weights_copied\": 0"));
    close_opened(&o);
}

static void running_takes_no_copy(void **state) {
    (void)state;
    enum { STEPS = 2 };
    int64_t weights = 0;
    for (int i = 0; i < LINEARS; i++) weights += (int64_t)LAYERS * linears[i].rows * linears[i].columns / 4;
    opened cpu = open_on(native, "cpu", "map");
    int vocabulary;
    static float want[STEPS][VOCABULARY];
    int32_t ids[3] = {5, 77, 200};
    for (int i = 0; i < STEPS; i++) {
        good(setun_session_feed(cpu.session, ids, i ? 1 : 3));
        memcpy(want[i], setun_session_logits(cpu.session, &vocabulary), sizeof want[i]);
    }
    close_opened(&cpu);
    /* once to make what stays (stacks of the host form, MLX's threads, its cache), then measured; last a file that has to be packed: the
     * measure sees a copy where there is one */
    char *const paths[] = {native, native, blocks};
    for (int round = 0; round < 3; round++) {
        long before = own_memory();
        opened o = open_on(paths[round], "mlx:cpu", NULL);
        for (int i = 0; i < STEPS; i++) {
            good(setun_session_feed(o.session, ids, i ? 1 : 3));
            assert_memory_equal(setun_session_logits(o.session, &vocabulary), want[i], sizeof want[i]);
        }
        long grown = own_memory() - before;
        setun_session_stats stats = {.size = sizeof stats};
        good(setun_session_get_stats(o.session, &stats));
        assert_int_equal(stats.device_runs, STEPS);
        assert_int_equal(stats.device_synchronisations, STEPS); /* one wait a run */
        if (round) print_message("%.2f MiB of ternary weights; running them %s took %.2f MiB of the process's own memory\n", (double)weights / 1048576, round == 1 ? "in place" : "packed", (double)grown / 1048576);
        assert_true(stats.weight_bytes >= (uint64_t)weights && (stats.weight_bytes_mapped * 100 >= stats.weight_bytes * 99) == (round < 2));
        if (round == 1) assert_true(stats.packed_bytes < (uint64_t)weights / 64); /* scales */
        if (round == 1 && before > 0) assert_true(grown < weights / 4);
        if (round == 2 && before > 0) assert_true(grown > weights / 2);
        close_opened(&o);
    }
    assert_true(weights > 5 << 20);
}

static void what_is_packed_says_so(void **state) {
    (void)state;
    const char *const paths[] = {packed, blocks};
    for (int i = 0; i < 2; i++) {
        opened o = open_on(paths[i], "mlx:cpu", NULL);
        assert_true(o.share < 0.5);
        char counts[64];
        snprintf(counts, sizeof counts, "\"weights_packed\": %d, \"weights_copied\": 0", LAYERS * LINEARS);
        if (!strstr(o.explained, counts)) fail_msg("no %s in %s", counts, strstr(o.explained, "\"fallbacks\""));
        if (!strstr(o.explained, "convert --to i2_s")) fail_msg("no reason");
        close_opened(&o);
    }
}

static void the_cpu_too(void **state) {
    (void)state;
    const struct { const char *path, *weights; } ways[] = {{native, "map"}, {packed, "auto"}};
    for (int i = 0; i < 2; i++) {
        opened o = open_on(ways[i].path, "cpu", ways[i].weights);
        if (!(o.share >= 0.99)) fail_msg("%s: %.4f of the bytes are the file's", ways[i].path, o.share);
        close_opened(&o);
    }
}

int main(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 256 << 10); /* large blocks go back to the system when they are freed, so that growth is seen */
#endif
    int skip = open_mlx();
    if (skip) return skip;
    const struct CMUnitTest tests[] = {cmocka_unit_test(pointers_are_the_files), cmocka_unit_test(running_takes_no_copy), cmocka_unit_test(what_is_packed_says_so), cmocka_unit_test(the_cpu_too)};
    int failed = cmocka_run_group_tests(tests, make_files, remove_files);
    close_mlx();
    return failed;
}
