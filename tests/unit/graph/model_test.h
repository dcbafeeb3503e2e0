/* model_test.h - a small model made by hand: a description and weights whose values nobody reads. For tests of graph and plan. */
#ifndef SETUN_MODEL_TEST_H
#define SETUN_MODEL_TEST_H

#include "graph/graph.h"
#include <stdlib.h>

enum {
    TEST_SUB_NORMS = 1, TEST_QK_NORM = 2, TEST_UNTIED = 4, TEST_BIASES = 8, TEST_POST_NORMS = 16, TEST_INPUT_NORMS = 32, TEST_ROTATED = 64,
    TEST_DENSE = 128, TEST_NO_GATE = 256, TEST_QK_NORM_WIDE = 512
};

typedef struct test_model {
    setun_model model;
    setun_weight *weights; /* grows by test_weight; never moves */
    char (*names)[64];
    int count;
} test_model;

static const float test_values[1] = {1.0f};

static inline setun_weight *test_weight(test_model *m, const char *name, int layer, int64_t rows, int64_t columns, bool ternary) {
    setun_weight *w = &m->weights[m->count];
    snprintf(m->names[m->count], sizeof m->names[0], name, layer);
    w->name = m->names[m->count++];
    w->format = SETUN_FORMAT_F32;
    w->rows = rows;
    w->columns = columns;
    w->data = (const uint8_t *)test_values;
    w->probed = true;
    w->info.ternary = ternary;
    w->info.tensor_scale = 1;
    return w;
}

static inline setun_hparams test_hparams(int layers) {
    return (setun_hparams){.architecture = "test", .layers = layers, .width = 128, .feed_forward = 320, .heads = 4, .kv_heads = 2, .head_size = 32, .vocabulary = 500, .context = 256,
                           .epsilon = 1e-5f, .activation = SETUN_ACT_SILU, .activation_int8 = true, .rope_theta = 10000};
}

static inline void test_model_create(test_model *m, const setun_hparams *h, unsigned flags) {
    memset(m, 0, sizeof *m);
    int most = 4 + h->layers * 32;
    m->weights = calloc((size_t)most, sizeof *m->weights);
    m->names = calloc((size_t)most, sizeof *m->names);
    setun_description *d = &m->model.description;
    m->model.path = (char *)"test.gguf";
    d->h = *h;
    d->layers = calloc((size_t)h->layers + 1, sizeof *d->layers);
    bool ternary = !(flags & TEST_DENSE);
    int64_t q = (int64_t)h->heads * h->head_size, kv = (int64_t)h->kv_heads * h->head_size;
    d->global.weight[SETUN_ROLE_EMBEDDING] = test_weight(m, "token_embd.weight", 0, h->vocabulary, h->width, false);
    d->global.weight[SETUN_ROLE_OUTPUT_NORM] = test_weight(m, "output_norm.weight", 0, 1, h->width, false);
    if (flags & TEST_UNTIED) d->global.weight[SETUN_ROLE_OUTPUT] = test_weight(m, "output.weight", 0, h->vocabulary, h->width, false);
    for (int i = 0; i < h->layers; i++) {
        const struct { setun_role role; const char *name; int64_t rows, columns; bool on; } rows[] = {
            {SETUN_ROLE_ATTN_NORM, "blk.%d.attn_norm.weight", 1, h->width, true},
            {SETUN_ROLE_Q, "blk.%d.attn_q", q, h->width, true},
            {SETUN_ROLE_K, "blk.%d.attn_k", kv, h->width, true},
            {SETUN_ROLE_V, "blk.%d.attn_v", kv, h->width, true},
            {SETUN_ROLE_O, "blk.%d.attn_output", h->width, q, true},
            {SETUN_ROLE_Q_NORM, "blk.%d.attn_q_norm.weight", 1, flags & TEST_QK_NORM_WIDE ? q : h->head_size, flags & (TEST_QK_NORM | TEST_QK_NORM_WIDE)},
            {SETUN_ROLE_K_NORM, "blk.%d.attn_k_norm.weight", 1, flags & TEST_QK_NORM_WIDE ? kv : h->head_size, flags & (TEST_QK_NORM | TEST_QK_NORM_WIDE)},
            {SETUN_ROLE_ATTN_SUB_NORM, "blk.%d.attn_sub_norm.weight", 1, q, flags & TEST_SUB_NORMS},
            {SETUN_ROLE_POST_ATTN_NORM, "blk.%d.post_attention_norm.weight", 1, h->width, flags & TEST_POST_NORMS},
            {SETUN_ROLE_FFN_NORM, "blk.%d.ffn_norm.weight", 1, h->width, true},
            {SETUN_ROLE_GATE, "blk.%d.ffn_gate", h->feed_forward, h->width, !(flags & TEST_NO_GATE)},
            {SETUN_ROLE_UP, "blk.%d.ffn_up", h->feed_forward, h->width, true},
            {SETUN_ROLE_DOWN, "blk.%d.ffn_down", h->width, h->feed_forward, true},
            {SETUN_ROLE_FFN_SUB_NORM, "blk.%d.ffn_sub_norm.weight", 1, h->feed_forward, flags & TEST_SUB_NORMS},
            {SETUN_ROLE_POST_FFN_NORM, "blk.%d.post_ffw_norm.weight", 1, h->width, flags & TEST_POST_NORMS},
        };
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            if (!rows[r].on) continue;
            setun_layer *layer = &d->layers[i];
            layer->weight[rows[r].role] = test_weight(m, rows[r].name, i, rows[r].rows, rows[r].columns, rows[r].rows > 1 && ternary);
            if (rows[r].rows == 1) continue;
            if (flags & TEST_BIASES) layer->bias[rows[r].role] = test_weight(m, "blk.%d.bias", i, 1, rows[r].rows, false);
            if (flags & TEST_INPUT_NORMS) layer->input_norm[rows[r].role] = test_weight(m, "blk.%d.input_norm", i, 1, rows[r].columns, false);
        }
    }
    if (flags & TEST_ROTATED) {
        d->rotated = d->embedding_rotated = d->output_rotated = true;
        d->hadamard_width.block = d->hadamard_feed_forward.block = d->hadamard_attention.block = 64;
        d->hadamard_width.sign_count = h->width;
        d->hadamard_width.signs = malloc((size_t)h->width * sizeof(float));
        for (int i = 0; i < h->width; i++) d->hadamard_width.signs[i] = i % 3 ? 1.0f : -1.0f;
    }
}

static inline void test_model_destroy(test_model *m) {
    free(m->model.description.hadamard_width.signs);
    free(m->model.description.layers);
    free(m->weights);
    free(m->names);
}

/* xorshift: tests print their seed */
static inline uint32_t test_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}

#endif
