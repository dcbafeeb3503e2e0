/*
 * test_allocation.c - every allocation of the public calls fails, once alone and once with all after it: the answer is
 * SETUN_ERROR_MEMORY, nothing is left behind and what was there still works; where a call succeeds without, its result is the true one. Opening a model,
 * generating and contexts are swept in test_generate.c: here is the rest - inspect, tokenizers, chat, graphs of one's
 * own, explain, convert - and JSON's own allocations.
 */
#include "integration/support.h"

#define LLAMA SETUN_TEST_GOLDEN "/families/llama_bitnet"
#define PACKED SETUN_TEST_GOLDEN "/families/bitnet_packed"
#define MLX SETUN_TEST_GOLDEN "/families/bonsai_mlx"
#define ROTATED SETUN_TEST_GOLDEN "/families/rotated/model.gguf"
#define CORPUS_BPE SETUN_TEST_SOURCE "/fuzz/corpus/model/q2_0" /* has a chat template and a vocabulary */
#define CORPUS_SPM SETUN_TEST_SOURCE "/fuzz/corpus/model/i2_s"

static setun_context *context;
static char folder[128];

/* What a call made, so that a success without the memory can be compared with one that had it. */
typedef struct product { char *text; size_t length; } product;

static void keep(product *p, const void *bytes, size_t length)
{
    char *more = realloc(p->text, p->length + length + 1);
    if (!more) abort();
    memcpy(more + p->length, bytes, length);
    p->text = more;
    p->length += length;
    more[p->length] = 0;
}

typedef setun_status (*work)(const char *path, product *p);

static void sweep(const char *name, work f, const char *path, uint64_t most)
{
    product wanted = {0};
    EXPECT_OK(f(path, &wanted)); /* also fills what is made once */
    int64_t live = setun_alloc_live();
    uint64_t start = setun_alloc_count();
    product again = {0};
    EXPECT_OK(f(path, &again));
    uint64_t all = setun_alloc_count() - start;
    if (again.length != wanted.length || memcmp(again.text ? again.text : "", wanted.text ? wanted.text : "", wanted.length)) fail_msg("%s: two calls differ", name);
    free(again.text);
    again = (product){0};
    assert_int_equal(setun_alloc_live(), live);
    assert_true(all > 2);
    uint64_t step = all > most ? all / most : 1, memory = 0; /* every n, or the first and a spread of the others */
    for (uint64_t n = 1; n <= all; n += n < 200 ? 1 : step)
        for (int alone = 0; alone < 2; alone++) {
            product got = {0};
            if (alone) setun_alloc_fail_once(n);
            else setun_alloc_fail_at(n);
            setun_status status = f(path, &got);
            setun_alloc_fail_once(0);
            setun_alloc_fail_at(0);
            const char *how = alone ? "" : " and all after it";
            if (status == SETUN_OK) {
                size_t same = 0; /* both end with a 0 that is not counted */
                while (same < got.length && same < wanted.length && got.text[same] == wanted.text[same]) same++;
                if (same < got.length || same < wanted.length)
                    fail_msg("%s: allocation %llu of %llu%s failed, and it succeeded with another result: %.100s instead of %.100s", name, (unsigned long long)n, (unsigned long long)all, how,
                             got.text + same, wanted.text + same);
            } else if (status != SETUN_ERROR_MEMORY) {
                fail_msg("%s: allocation %llu of %llu%s failed, and the answer was %s: %s", name, (unsigned long long)n, (unsigned long long)all, how, setun_status_name(status), setun_error());
            } else if (!strstr(setun_error(), "memory")) {
                fail_msg("%s: allocation %llu%s failed: %s", name, (unsigned long long)n, how, setun_error());
            }
            memory += status == SETUN_ERROR_MEMORY;
            free(got.text);
            if (setun_alloc_live() != live)
                fail_msg("%s: allocation %llu of %llu%s failed and %lld blocks leaked", name, (unsigned long long)n, (unsigned long long)all, how, (long long)(setun_alloc_live() - live));
        }
    assert_true(memory > 0);
    EXPECT_OK(f(path, &again)); /* nothing is broken for good */
    free(again.text);
    free(wanted.text);
    print_message("%-28s %llu allocations\n", name, (unsigned long long)all);
}

/* ---- files ---- */

static setun_status inspect(const char *path, product *p)
{
    for (int deep = 0; deep < 2; deep++) {
        char *json;
        setun_status status = setun_file_inspect(context, path, NULL, deep, &json);
        if (status != SETUN_OK) {
            assert_null(json);
            return status;
        }
        keep(p, json, strlen(json));
        setun_free(json);
    }
    return SETUN_OK;
}

static setun_status open_model(const char *path, product *p)
{
    setun_model *model;
    setun_model_info info = {.size = sizeof info};
    SETUN_TRY(setun_model_open(context, path, NULL, &model));
    setun_status status = setun_model_get_info(model, &info);
    bool tokenizer = setun_model_tokenizer(model);
    keep(p, &info.parameters, sizeof info.parameters);
    keep(p, &tokenizer, sizeof tokenizer);
    setun_model_close(model);
    return status;
}

static setun_status describe(const char *path, product *p)
{
    char *json;
    (void)path;
    SETUN_TRY(setun_context_describe(context, &json));
    keep(p, json, strlen(json));
    setun_free(json);
    return SETUN_OK;
}

static void files(void **state)
{
    (void)state;
    sweep("inspect folder", inspect, PACKED, 300);
    sweep("inspect mlx", inspect, MLX, 300);
    sweep("inspect gguf", inspect, ROTATED, 300);
    sweep("inspect gguf with tokenizer", inspect, CORPUS_SPM, 300);
    sweep("open gguf with tokenizer", open_model, CORPUS_BPE, 300);
    sweep("describe", describe, "", 300);
    json_set_alloc_funcs(setun_alloc, setun_free); /* this process is the test's own */
    sweep("inspect folder, jansson", inspect, PACKED, 600);
    sweep("open folder, jansson", open_model, LLAMA, 600);
    json_set_alloc_funcs(malloc, free);
}

/* ---- tokenizers ---- */

static setun_status use_tokenizer(const setun_tokenizer *t, product *p)
{
    static const char text[] = "The cat, don't 123 \xc3\xa9\xff<|im_end|>\n the cat";
    int32_t *ids;
    size_t count, length;
    char *back;
    for (int flags = 0; flags < 4; flags++) {
        SETUN_TRY(setun_tokenizer_encode(t, text, sizeof text - 1, flags, &ids, &count));
        keep(p, ids, count * sizeof *ids);
        setun_status status = setun_tokenizer_decode(t, ids, count, true, &back, &length);
        setun_free(ids);
        if (status != SETUN_OK) return status;
        keep(p, back, length);
        setun_free(back);
    }
    if (!setun_chat_template(t)) return SETUN_OK;
    const setun_message messages[] = {{"system", "Be brief"}, {"user", "Hi <|im_end|>"}};
    SETUN_TRY(setun_chat_encode(t, messages, 2, true, &ids, &count));
    keep(p, ids, count * sizeof *ids);
    setun_free(ids);
    SETUN_TRY(setun_chat_format(t, messages, 2, true, &back, &length));
    keep(p, back, length);
    setun_free(back);
    return SETUN_OK;
}

static setun_status open_tokenizer(const char *path, product *p)
{
    setun_tokenizer *t;
    SETUN_TRY(setun_tokenizer_open(path, &t));
    const char *chat = setun_chat_template(t);
    if (chat) keep(p, chat, strlen(chat));
    setun_status status = use_tokenizer(t, p);
    setun_tokenizer_close(t);
    return status;
}

static void tokenizers(void **state)
{
    (void)state;
    sweep("tokenizer gguf bpe, chat", open_tokenizer, CORPUS_BPE, 400);
    sweep("tokenizer gguf spm", open_tokenizer, CORPUS_SPM, 400);
    sweep("tokenizer unigram", open_tokenizer, SETUN_TEST_GOLDEN "/text/spm_t5.gguf", 400);
    sweep("tokenizer.json bpe", open_tokenizer, SETUN_TEST_GOLDEN "/text/llama3.json", 400);
    sweep("tokenizer.json unigram", open_tokenizer, SETUN_TEST_GOLDEN "/text/t5.json", 400);
    json_set_alloc_funcs(setun_alloc, setun_free);
    sweep("tokenizer.json, jansson", open_tokenizer, SETUN_TEST_GOLDEN "/text/nfkc.json", 600);
    json_set_alloc_funcs(malloc, free);
}

/* ---- sessions and explain in the ways that test_generate.c leaves out ---- */

static bool keep_logits(void *user, size_t index, const float *logits, int vocabulary)
{
    (void)index;
    keep(user, logits, (size_t)vocabulary * sizeof *logits);
    return true;
}

static setun_status run_model(const char *path, product *p)
{
    setun_model *model;
    SETUN_TRY(setun_model_open(context, path, NULL, &model));
    setun_status status = SETUN_OK;
    for (int way = 0; way < 3 && status == SETUN_OK; way++) {
        setun_session_options options = {.size = sizeof options, .context = 8, .batch = 3, .kv_type = way ? "f32" : NULL, .no_fusion = way == 1, .no_activation_quantisation = way == 2};
        setun_session *session;
        status = setun_session_create(model, &options, &session); /* after a failure the model must still serve the next session */
        if (status != SETUN_OK) break;
        const int32_t ids[4] = {1, 2, 3, 4};
        status = setun_session_feed_all(session, ids, 4, keep_logits, p);
        if (status == SETUN_OK) status = setun_session_truncate(session, 2);
        if (status == SETUN_OK) status = setun_session_feed(session, ids, 2);
        setun_session_destroy(session);
        setun_explain_options explain = {.size = sizeof explain, .session = options, .json = true};
        char *text = NULL;
        if (status == SETUN_OK) status = setun_model_explain(model, &explain, &text);
        if (text) keep(p, text, strlen(text));
        setun_free(text);
    }
    setun_model_close(model);
    return status;
}

static void models(void **state)
{
    (void)state;
    sweep("sessions gguf bpe", run_model, CORPUS_BPE, 300);
    sweep("sessions folder", run_model, PACKED, 300);
}

/* A session that could not be made leaves the model as it was: the next one gives the same logits. */
static void a_model_survives(void **state)
{
    (void)state;
    setun_model *model;
    EXPECT_OK(setun_model_open(context, PACKED, NULL, &model));
    const int32_t ids[3] = {7, 8, 9};
    setun_session_options options = {.size = sizeof options, .context = 8};
    setun_status status = SETUN_ERROR_MEMORY;
    int64_t live = setun_alloc_live();
    product first = {0}, second = {0};
    for (uint64_t n = 1; status != SETUN_OK; n++) {
        setun_session *session;
        setun_alloc_fail_at(n);
        status = setun_session_create(model, &options, &session);
        setun_alloc_fail_at(0);
        if (status == SETUN_OK) {
            EXPECT_OK(setun_session_feed_all(session, ids, 3, keep_logits, &first));
            setun_session_destroy(session);
        } else {
            assert_int_equal(status, SETUN_ERROR_MEMORY);
            assert_null(session);
        }
    }
    assert_true(setun_alloc_live() >= live); /* packed weights stay with the model */
    setun_model_close(model);
    EXPECT_OK(setun_model_open(context, PACKED, NULL, &model));
    setun_session *session;
    EXPECT_OK(setun_session_create(model, &options, &session));
    EXPECT_OK(setun_session_feed_all(session, ids, 3, keep_logits, &second));
    assert_int_equal(first.length, second.length);
    assert_memory_equal(first.text, second.text, first.length);
    setun_session_destroy(session);
    setun_model_close(model);
    free(first.text);
    free(second.text);
}

/* ---- graphs of one's own ---- */

static setun_status build_and_run(setun_graph *g, product *p)
{
    enum { WIDTH = 64, HEADS = 2, SIZE = 32, TOKENS = 3 };
    int8_t codes[WIDTH * WIDTH];
    float scales[1] = {0.125f}, norm[WIDTH], signs[WIDTH];
    for (int i = 0; i < WIDTH * WIDTH; i++) codes[i] = (int8_t)(i * 7 % 3 - 1);
    for (int i = 0; i < WIDTH; i++) norm[i] = 1 + (float)i / 100, signs[i] = i % 3 ? 1.0f : -1.0f;
    setun_node x = setun_graph_input(g, "x", SETUN_F32, 2, (const int64_t[]){SETUN_DIM_TOKENS, WIDTH});
    setun_node positions = setun_graph_input(g, "positions", SETUN_I32, 1, (const int64_t[]){SETUN_DIM_TOKENS});
    setun_node rows = setun_graph_input(g, "rows", SETUN_I32, 1, (const int64_t[]){SETUN_DIM_OUTPUTS});
    setun_node w = setun_graph_ternary_weight(g, "w", WIDTH, WIDTH, codes, scales, -1);
    setun_node h = setun_graph_rms_norm(g, x, setun_graph_weight(g, "norm", 1, (const int64_t[]){WIDTH}, norm), 1e-5f, false);
    h = setun_graph_linear(g, w, setun_graph_quantize(g, h), SETUN_NODE_NONE);
    setun_rope_options rope = {.size = sizeof rope, .theta = 10000};
    setun_attention_options attention = {.size = sizeof attention, .cache_layer = 1};
    setun_node q = setun_graph_rope(g, setun_graph_reshape(g, h, 3, (const int64_t[]){SETUN_DIM_TOKENS, HEADS, SIZE}), positions, &rope);
    h = setun_graph_add(g, x, setun_graph_attention(g, q, q, q, &attention));
    h = setun_graph_hadamard(g, setun_graph_silu(g, h), 32, signs, WIDTH, false);
    h = setun_graph_select_rows(g, setun_graph_multiply(g, h, setun_graph_gelu(g, x)), rows);
    SETUN_TRY(setun_graph_output(g, setun_graph_softmax(g, h), "y"));
    setun_compile_options options = {.size = sizeof options, .tokens_max = 4, .outputs_max = 2, .cache_tokens = 8, .kv_type = "f32"};
    setun_plan *plan;
    setun_tensor *t = NULL;
    SETUN_TRY(setun_graph_compile(g, &options, &plan));
    float data[TOKENS * WIDTH];
    int32_t position[TOKENS] = {0, 1, 2}, row[2] = {0, 2};
    for (int i = 0; i < TOKENS * WIDTH; i++) data[i] = (float)(i % 17) / 16;
    const struct { const char *name; setun_dtype dtype; int rank; int64_t shape[2]; void *data; } inputs[] = {
        {"x", SETUN_F32, 2, {TOKENS, WIDTH}, data}, {"positions", SETUN_I32, 1, {TOKENS}, position}, {"rows", SETUN_I32, 1, {2}, row}};
    setun_status status = SETUN_OK;
    for (int i = 0; i < 3 && status == SETUN_OK; i++) {
        status = setun_tensor_wrap(inputs[i].dtype, inputs[i].rank, inputs[i].shape, inputs[i].data, &t);
        if (status == SETUN_OK) status = setun_plan_set_input(plan, inputs[i].name, t);
        setun_tensor_destroy(t);
        t = NULL;
    }
    if (status == SETUN_OK) status = setun_plan_run(plan, TOKENS, 2);
    if (status == SETUN_OK) status = setun_plan_get_output(plan, "y", &t);
    if (status == SETUN_OK) keep(p, setun_tensor_data(t), setun_tensor_bytes(t));
    setun_tensor_destroy(t);
    if (status == SETUN_OK) status = setun_plan_rewind(plan, 0);
    for (int json = 0; json < 2 && status == SETUN_OK; json++) {
        char *text;
        status = setun_plan_explain(plan, json, &text);
        if (status == SETUN_OK) keep(p, text, strlen(text));
        if (status == SETUN_OK) setun_free(text);
    }
    setun_plan_destroy(plan);
    return status;
}

static setun_status own_graph(const char *path, product *p)
{
    (void)path;
    setun_graph *g;
    SETUN_TRY(setun_graph_create(context, &g));
    setun_status status = build_and_run(g, p);
    setun_graph_destroy(g);
    return status;
}

static void graphs(void **state)
{
    (void)state;
    sweep("own graph", own_graph, "", 2000);
}

/* ---- convert ---- */

static setun_status convert_to(const char *path, const char *name, product *p)
{
    bool to_gguf = strstr(name, ".gguf");
    char out[256], *json;
    snprintf(out, sizeof out, "%s/%s", folder, name);
    setun_convert_options options = {.size = sizeof options, .container = to_gguf ? "gguf" : "safetensors", .ternary = to_gguf ? "q2_0" : "hf", .force = true};
    setun_status status = setun_convert(context, path, out, &options, &json);
    if (status == SETUN_OK) {
        assert_int_equal(access(out, F_OK), 0);
        keep(p, json, strlen(json));
        setun_free(json);
    } else {
        assert_null(json);
    }
    return status;
}

static setun_status to_gguf(const char *path, product *p) { return convert_to(path, "out.gguf", p); }
static setun_status to_folder(const char *path, product *p) { return convert_to(path, "out", p); }

static void remove_all(const char *path)
{
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", path);
    if (system(command)) fail_msg("%s", command);
}

static void conversions(void **state)
{
    (void)state;
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/setun-test-XXXXXX", temporary && *temporary && strlen(temporary) < 90 ? temporary : "/tmp");
    assert_non_null(mkdtemp(folder));
    char made[160];
    product report = {0};
    sweep("convert gguf to folder", to_folder, CORPUS_BPE, 250);
    EXPECT_OK(convert_to(CORPUS_BPE, "made", &report));
    free(report.text);
    snprintf(made, sizeof made, "%s/made", folder);
    sweep("convert folder to gguf", to_gguf, made, 250);
    remove_all(folder);
}

static int set_up(void **state)
{
    (void)state;
    context = test_context(2, NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    setun_context_destroy(context);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files), cmocka_unit_test(tokenizers), cmocka_unit_test(models), cmocka_unit_test(a_model_survives), cmocka_unit_test(graphs), cmocka_unit_test(conversions),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
