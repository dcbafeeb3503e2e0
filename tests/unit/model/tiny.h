/*
 * tiny.h - makes small model files to order for the tests of the model room: every tensor and every key can be changed,
 * left out or added before the file is written. Weights are random codes (the seed is fixed: the tests are about structure).
 */
#ifndef TINY_H
#define TINY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/thread.h"
#include "model/model.h"

enum { TINY_U32, TINY_F32, TINY_BOOL, TINY_STRING, TINY_F32S, TINY_I32S, TINY_STRINGS };

typedef struct tiny_key {
    char name[96];
    int kind;
    uint32_t u;
    float f;
    char text[96];
    int32_t integers[64];
    const char *strings[64];
    uint64_t count;
    bool left_out;
} tiny_key;

typedef struct tiny_tensor {
    char name[96];
    setun_format format;
    char dtype[8]; /* safetensors */
    int rank;
    int64_t shape[2];
    uint8_t *data;
    uint64_t bytes;
    bool left_out;
} tiny_tensor;

typedef struct tiny {
    tiny_key keys[48];
    int key_count;
    tiny_tensor tensors[96];
    int tensor_count;
    json_t *config; /* Hugging Face */
    char folder[64], path[128];
    uint64_t random;
} tiny;

static inline uint32_t tiny_next(tiny *t) {
    t->random = t->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(t->random >> 33);
}

static inline tiny_key *tiny_key_named(tiny *t, const char *name) {
    for (int i = 0; i < t->key_count; i++)
        if (strcmp(t->keys[i].name, name) == 0) return &t->keys[i];
    assert_true(t->key_count < 48);
    tiny_key *k = &t->keys[t->key_count++];
    memset(k, 0, sizeof *k);
    snprintf(k->name, sizeof k->name, "%s", name);
    return k;
}
static inline void tiny_u32(tiny *t, const char *name, uint32_t v) { tiny_key *k = tiny_key_named(t, name); k->kind = TINY_U32; k->u = v; }
static inline void tiny_f32(tiny *t, const char *name, float v) { tiny_key *k = tiny_key_named(t, name); k->kind = TINY_F32; k->f = v; }
static inline void tiny_bool(tiny *t, const char *name, bool v) { tiny_key *k = tiny_key_named(t, name); k->kind = TINY_BOOL; k->u = v; }
static inline void tiny_text(tiny *t, const char *name, const char *v) { tiny_key *k = tiny_key_named(t, name); k->kind = TINY_STRING; snprintf(k->text, sizeof k->text, "%s", v); }
static inline void tiny_strings(tiny *t, const char *name, uint64_t count, const char *const *v) {
    tiny_key *k = tiny_key_named(t, name);
    k->kind = TINY_STRINGS;
    k->count = count;
    for (uint64_t i = 0; i < count; i++) k->strings[i] = v[i];
}
static inline void tiny_integers(tiny *t, const char *name, uint64_t count, const int32_t *v) {
    tiny_key *k = tiny_key_named(t, name);
    k->kind = TINY_I32S;
    k->count = count;
    memcpy(k->integers, v, count * sizeof *v);
}
static inline void tiny_without_key(tiny *t, const char *name) { tiny_key_named(t, name)->left_out = true; }

static inline tiny_tensor *tiny_find(tiny *t, const char *name) {
    for (int i = 0; i < t->tensor_count; i++)
        if (strcmp(t->tensors[i].name, name) == 0) return &t->tensors[i];
    return NULL;
}

static inline tiny_tensor *tiny_add(tiny *t, const char *name, setun_format format, const char *dtype, int rank, int64_t rows, int64_t columns, uint64_t bytes) {
    tiny_tensor *x = tiny_find(t, name);
    if (!x) {
        assert_true(t->tensor_count < 96);
        x = &t->tensors[t->tensor_count++];
        memset(x, 0, sizeof *x);
        snprintf(x->name, sizeof x->name, "%s", name);
    }
    x->format = format;
    snprintf(x->dtype, sizeof x->dtype, "%s", dtype);
    x->rank = rank;
    x->shape[0] = rank == 1 ? columns : rows;
    x->shape[1] = columns;
    x->bytes = bytes;
    free(x->data);
    x->data = calloc(1, bytes ? bytes : 1);
    assert_non_null(x->data);
    return x;
}

/* Floats around 1: norms, biases, embeddings. */
static inline tiny_tensor *tiny_floats(tiny *t, const char *name, int rank, int64_t rows, int64_t columns) {
    tiny_tensor *x = tiny_add(t, name, SETUN_FORMAT_F32, "F32", rank, rows, columns, (uint64_t)(rows * columns) * 4);
    for (int64_t i = 0; i < rows * columns; i++) {
        float v = 0.75f + (float)(tiny_next(t) % 1024) / 2048;
        memcpy(x->data + 4 * i, &v, 4);
    }
    return x;
}

static inline tiny_tensor *tiny_ternary(tiny *t, const char *name, setun_format format, int64_t rows, int64_t columns) {
    uint64_t bytes;
    assert_int_equal(setun_format_size(format, rows, columns, &bytes), SETUN_OK);
    tiny_tensor *x = tiny_add(t, name, format, "U8", 2, rows, columns, bytes);
    uint8_t *codes = malloc((size_t)(rows * columns));
    assert_non_null(codes);
    for (int64_t i = 0; i < rows * columns; i++) codes[i] = (uint8_t)(tiny_next(t) % 3);
    setun_ternary_info info = {.ternary = true, .scale = SETUN_SCALE_TENSOR, .tensor_scale = 0.0625f};
    bool exact;
    double error;
    assert_int_equal(setun_format_encode_ternary(format, name, &info, rows, columns, codes, NULL, x->data, &exact, &error), SETUN_OK);
    free(codes);
    return x;
}

#define TINY_LAYERS 2
#define TINY_WIDTH 128
#define TINY_FF 256
#define TINY_HEADS 4
#define TINY_KV 2
#define TINY_HEAD 32
#define TINY_VOCABULARY 24

static inline void tiny_shape(setun_role role, int64_t *rows, int64_t *columns) {
    setun_hparams h = {.width = TINY_WIDTH, .feed_forward = TINY_FF, .heads = TINY_HEADS, .kv_heads = TINY_KV, .head_size = TINY_HEAD, .vocabulary = TINY_VOCABULARY};
    setun_role_shape(role, &h, rows, columns);
}

/* roles: which of the optional ones there are. */
static inline void tiny_start(tiny *t) {
    memset(t, 0, sizeof *t);
    t->random = 42;
    snprintf(t->folder, sizeof t->folder, "/tmp/setun-model-test-XXXXXX");
    assert_non_null(mkdtemp(t->folder));
}

static inline bool tiny_has(setun_role role, setun_family family) {
    switch (role) {
    case SETUN_ROLE_OUTPUT: return false;
    case SETUN_ROLE_Q_NORM: case SETUN_ROLE_K_NORM: return family == SETUN_FAMILY_QWEN3 || family == SETUN_FAMILY_GEMMA3;
    case SETUN_ROLE_ATTN_SUB_NORM: case SETUN_ROLE_FFN_SUB_NORM: return family == SETUN_FAMILY_BITNET;
    case SETUN_ROLE_POST_ATTN_NORM: case SETUN_ROLE_POST_FFN_NORM: return family == SETUN_FAMILY_GEMMA3;
    default: return true;
    }
}

/* A GGUF model: linears in `linear`, the rest f32, the head tied. */
static inline void tiny_gguf(tiny *t, const char *architecture, setun_family family, setun_format linear) {
    char key[96], name[96];
    tiny_start(t);
    tiny_text(t, "general.architecture", architecture);
    tiny_text(t, "general.name", "tiny");
    static const struct { const char *key; uint32_t value; } numbers[] = {{"block_count", TINY_LAYERS}, {"context_length", 64}, {"embedding_length", TINY_WIDTH}, {"feed_forward_length", TINY_FF},
        {"attention.head_count", TINY_HEADS}, {"attention.head_count_kv", TINY_KV}, {"vocab_size", TINY_VOCABULARY}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        snprintf(key, sizeof key, "%s.%s", architecture, numbers[i].key);
        tiny_u32(t, key, numbers[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", architecture);
    tiny_f32(t, key, 1e-5f);
    for (int r = 0; r < SETUN_ROLE_COUNT; r++) {
        setun_role role = (setun_role)r;
        if (!tiny_has(role, family)) continue;
        int64_t rows, columns;
        tiny_shape(role, &rows, &columns);
        for (int layer = 0; layer < (setun_role_is_per_layer(role) ? TINY_LAYERS : 1); layer++) {
            assert_int_equal(setun_role_name(role, layer, true, "weight", name, sizeof name), SETUN_OK);
            if (setun_role_is_linear(role)) tiny_ternary(t, name, linear, rows, columns);
            else tiny_floats(t, name, setun_role_is_matrix(role) ? 2 : 1, rows, columns);
        }
    }
    if (family == SETUN_FAMILY_QWEN2)
        for (int layer = 0; layer < TINY_LAYERS; layer++)
            for (int r = SETUN_ROLE_Q; r <= SETUN_ROLE_V; r++) {
                int64_t rows, columns;
                tiny_shape((setun_role)r, &rows, &columns);
                assert_int_equal(setun_role_name((setun_role)r, layer, true, "bias", name, sizeof name), SETUN_OK);
                tiny_floats(t, name, 1, 1, rows);
            }
}

static inline void tiny_write_gguf(tiny *t) {
    setun_gguf_writer *w;
    snprintf(t->path, sizeof t->path, "%s/model.gguf", t->folder);
    assert_int_equal(setun_gguf_writer_create(t->path, true, 0, &w), SETUN_OK);
    for (int i = 0; i < t->key_count; i++) {
        const tiny_key *k = &t->keys[i];
        if (k->left_out) continue;
        size_t lengths[64];
        setun_status s = SETUN_OK;
        switch (k->kind) {
        case TINY_U32: s = setun_gguf_add_u32(w, k->name, k->u); break;
        case TINY_F32: s = setun_gguf_add_f32(w, k->name, k->f); break;
        case TINY_BOOL: s = setun_gguf_add_bool(w, k->name, k->u); break;
        case TINY_STRING: s = setun_gguf_add_string(w, k->name, k->text, strlen(k->text)); break;
        case TINY_I32S: s = setun_gguf_add_i32s(w, k->name, k->integers, k->count); break;
        case TINY_STRINGS:
            for (uint64_t j = 0; j < k->count; j++) lengths[j] = strlen(k->strings[j]);
            s = setun_gguf_add_strings(w, k->name, k->strings, lengths, k->count);
            break;
        }
        assert_int_equal(s, SETUN_OK);
    }
    for (int i = 0; i < t->tensor_count; i++) {
        const tiny_tensor *x = &t->tensors[i];
        if (!x->left_out && setun_gguf_add_tensor(w, x->name, x->format, x->rank, x->shape, x->bytes) != SETUN_OK) fail_msg("%s", setun_error());
    }
    assert_int_equal(setun_gguf_begin_data(w), SETUN_OK);
    for (int i = 0; i < t->tensor_count; i++)
        if (!t->tensors[i].left_out) assert_int_equal(setun_gguf_write_tensor(w, t->tensors[i].data, t->tensors[i].bytes), SETUN_OK);
    assert_int_equal(setun_gguf_commit(w), SETUN_OK);
}

/* ---- Hugging Face folders ---- */

static inline void tiny_packed(tiny *t, const char *base, int64_t rows, int64_t columns, float scale) {
    char name[96];
    snprintf(name, sizeof name, "%s.weight", base);
    tiny_tensor *x = tiny_add(t, name, SETUN_FORMAT_U8, "U8", 2, rows / 4, columns, (uint64_t)(rows / 4 * columns));
    for (uint64_t i = 0; i < x->bytes; i++) x->data[i] = (uint8_t)(tiny_next(t) % 3 | tiny_next(t) % 3 << 2 | tiny_next(t) % 3 << 4 | tiny_next(t) % 3 << 6);
    snprintf(name, sizeof name, "%s.weight_scale", base);
    x = tiny_add(t, name, SETUN_FORMAT_F32, "F32", 1, 1, 1, 4);
    memcpy(x->data, &scale, 4);
}

/* architecture's config and tensors; linears packed with scale 0.25, or f32 masters. */
static inline void tiny_huggingface(tiny *t, const char *architecture, setun_family family, bool packed) {
    char name[96];
    tiny_start(t);
    t->config = json_pack("{s:[s], s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:s, s:b}", "architectures", architecture, "hidden_size", TINY_WIDTH, "intermediate_size", TINY_FF, "num_hidden_layers", TINY_LAYERS,
        "num_attention_heads", TINY_HEADS, "num_key_value_heads", TINY_KV, "vocab_size", TINY_VOCABULARY, "max_position_embeddings", 64, "rms_norm_eps", 1e-5, "hidden_act",
        family == SETUN_FAMILY_GEMMA3 ? "gelu_pytorch_tanh" : "silu", "tie_word_embeddings", 1);
    assert_non_null(t->config);
    if (family == SETUN_FAMILY_GEMMA3) json_object_set_new(t->config, "head_dim", json_integer(TINY_HEAD));
    if (packed) json_object_set_new(t->config, "quantization_config", json_pack("{s:s, s:s}", "quant_method", "bitnet", "linear_class", "autobitlinear"));
    for (int r = 0; r < SETUN_ROLE_COUNT; r++) {
        setun_role role = (setun_role)r;
        if (!tiny_has(role, family)) continue;
        int64_t rows, columns;
        tiny_shape(role, &rows, &columns);
        for (int layer = 0; layer < (setun_role_is_per_layer(role) ? TINY_LAYERS : 1); layer++) {
            assert_int_equal(setun_role_name_family(role, family, layer, false, "weight", name, sizeof name), SETUN_OK);
            if (setun_role_is_linear(role) && packed) {
                name[strlen(name) - strlen(".weight")] = 0;
                tiny_packed(t, name, rows, columns, 0.25f);
            } else {
                tiny_floats(t, name, setun_role_is_matrix(role) ? 2 : 1, rows, columns);
            }
        }
    }
}

static inline void tiny_write_config(tiny *t) {
    char path[160];
    snprintf(path, sizeof path, "%s/config.json", t->folder);
    assert_int_equal(json_dump_file(t->config, path, JSON_INDENT(1)), 0);
}

static inline void tiny_write_huggingface(tiny *t) {
    char path[160];
    tiny_write_config(t);
    setun_safetensors_writer *w;
    snprintf(path, sizeof path, "%s/model.safetensors", t->folder);
    assert_int_equal(setun_safetensors_writer_create(path, true, &w), SETUN_OK);
    for (int i = 0; i < t->tensor_count; i++) {
        const tiny_tensor *x = &t->tensors[i];
        if (!x->left_out && setun_safetensors_add_tensor(w, x->name, x->dtype, x->rank, x->shape, x->bytes) != SETUN_OK) fail_msg("%s", setun_error());
    }
    assert_int_equal(setun_safetensors_begin_data(w), SETUN_OK);
    for (int i = 0; i < t->tensor_count; i++)
        if (!t->tensors[i].left_out) assert_int_equal(setun_safetensors_write_tensor(w, t->tensors[i].data, t->tensors[i].bytes), SETUN_OK);
    assert_int_equal(setun_safetensors_commit(w), SETUN_OK);
    snprintf(t->path, sizeof t->path, "%s", t->folder);
}

static inline void tiny_end(tiny *t) {
    static const char *const files[] = {"model.gguf", "model.safetensors", "config.json"};
    char path[160];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", t->folder, files[i]);
        unlink(path);
    }
    rmdir(t->folder);
    for (int i = 0; i < t->tensor_count; i++) free(t->tensors[i].data);
    json_decref(t->config);
    memset(t, 0, sizeof *t);
}

/* ---- loading ---- */

static setun_context tiny_context;

static inline int tiny_context_make(void **state) {
    (void)state;
    return setun_pool_create(4, false, &tiny_context.pool) == SETUN_OK ? 0 : -1;
}
static inline int tiny_context_end(void **state) {
    (void)state;
    setun_pool_destroy(tiny_context.pool);
    return 0;
}

static inline setun_model *tiny_load(const tiny *t) {
    setun_model *m;
    if (setun_model_load(&tiny_context, t->path, NULL, &m) != SETUN_OK) fail_msg("%s", setun_error());
    return m;
}

/* The file must be refused with this status, and the message must name every one of the words (up to three, NULL ends). */
static inline void tiny_refuse_at(const char *file, int line, const tiny *t, setun_status status, const char *first, const char *second, const char *third) {
    setun_model *m = (setun_model *)(uintptr_t)1;
    int64_t live = setun_alloc_live();
    setun_status got = setun_model_load(&tiny_context, t->path, NULL, &m);
    if (got != status) {
        print_error("%s:%d: %s: %s\n", file, line, setun_status_name(got), got ? setun_error() : "loaded");
        fail();
    }
    assert_null(m);
    const char *words[3] = {first, second, third};
    for (int i = 0; i < 3 && words[i]; i++)
        if (!strstr(setun_error(), words[i])) fail_msg("%s:%d: '%s' is not in: %s", file, line, words[i], setun_error());
    assert_int_equal(setun_alloc_live(), live);
}
#define tiny_refuse(t, status, a, b, c) tiny_refuse_at(__FILE__, __LINE__, t, status, a, b, c)

#endif
