/*
 * random_graph.h - graphs of random operations over three widths: chains, residuals, gated blocks, attention over views, several
 * readers. For tests of the plan (played on memory) and of plan and backend together (fused against unfused).
 */
#ifndef SETUN_RANDOM_GRAPH_H
#define SETUN_RANDOM_GRAPH_H

#include "unit/graph/model_test.h"
#include <setjmp.h>
#include <cmocka.h>

#define T SETUN_DIM_TOKENS
#define S(...) (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}
#define NONE SETUN_NODE_NONE

typedef struct random_pool { setun_node node[400]; int64_t width[400]; int count; } random_pool;

static inline setun_node random_pick(random_pool *p, uint64_t *seed, int64_t width) {
    for (int tries = 0; tries < 50; tries++) {
        /* mostly recent values, so that old ones die */
        int back = test_random(seed) % 3 ? (int)(test_random(seed) % 6) : (int)(test_random(seed) % (uint32_t)p->count);
        int i = p->count - 1 - back % p->count;
        if (width == 0 || p->width[i] == width) return p->node[i];
    }
    for (int i = p->count - 1; i >= 0; i--)
        if (p->width[i] == width || !width) return p->node[i];
    return NONE;
}

static inline void random_push(random_pool *p, setun_node node, int64_t width) {
    assert_int_not_equal(node, NONE);
    p->node[p->count] = node;
    p->width[p->count++] = width;
}

static const int64_t random_widths[3] = {32, 64, 160};

static inline setun_graph *random_graph(setun_context *context, uint64_t *seed, int operations, bool cached) {
    setun_graph *g;
    assert_int_equal(setun_graph_create(context, &g), SETUN_OK);
    static float values[160 * 160];
    static int8_t codes[160 * 160];
    for (int i = 0; i < 160 * 160; i++) {
        values[i] = ((float)(i * 7 % 19) - 9.5f) / 64;
        codes[i] = (int8_t)(i * 5 % 7 % 3 - 1);
    }
    setun_node dense[3][3], ternary[3][3], vector[3];
    float scale = 0.125f;
    char name[32];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "v%d", i);
        vector[i] = setun_graph_weight(g, name, S(random_widths[i]), values);
        for (int j = 0; j < 3; j++) {
            snprintf(name, sizeof name, "d%d%d", i, j);
            dense[i][j] = setun_graph_weight(g, name, S(random_widths[i], random_widths[j]), values);
            snprintf(name, sizeof name, "t%d%d", i, j);
            ternary[i][j] = setun_graph_ternary_weight(g, name, random_widths[i], random_widths[j], codes, &scale, -1);
        }
    }
    random_pool p = {.count = 0};
    setun_node positions = setun_graph_input(g, "positions", SETUN_I32, S(T));
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "x%d", i);
        random_push(&p, setun_graph_input(g, name, SETUN_F32, S(T, random_widths[i])), random_widths[i]);
    }
    int layers = 0;
    for (int n = 0; n < operations; n++) {
        int i = (int)(test_random(seed) % 3), j = (int)(test_random(seed) % 3);
        setun_node x = random_pick(&p, seed, random_widths[j]);
        switch (test_random(seed) % 13) {
        case 0: random_push(&p, setun_graph_linear(g, dense[i][j], x, NONE), random_widths[i]); break;
        case 1: random_push(&p, setun_graph_linear(g, ternary[i][j], setun_graph_quantize(g, x), NONE), random_widths[i]); break;
        case 2: random_push(&p, setun_graph_rms_norm(g, x, vector[j], 1e-5f, false), random_widths[j]); break;
        case 3: random_push(&p, setun_graph_add(g, x, random_pick(&p, seed, random_widths[j])), random_widths[j]); break;
        case 4: random_push(&p, setun_graph_multiply(g, x, random_pick(&p, seed, random_widths[j])), random_widths[j]); break;
        case 5: random_push(&p, setun_graph_scale(g, x, 2), random_widths[j]); break;
        case 6: random_push(&p, setun_graph_silu(g, x), random_widths[j]); break;
        case 7: random_push(&p, setun_graph_softmax(g, x), random_widths[j]); break;
        case 8: random_push(&p, setun_graph_hadamard(g, x, 32, NULL, 0, false), random_widths[j]); break;
        case 9: { /* a gated block with a residual */
            setun_node q = setun_graph_quantize(g, setun_graph_rms_norm(g, x, NONE, 1e-5f, false));
            setun_node y = setun_graph_multiply(g, setun_graph_silu(g, setun_graph_linear(g, ternary[i][j], q, NONE)), setun_graph_linear(g, ternary[i][j], q, vector[i]));
            random_push(&p, setun_graph_add(g, x, setun_graph_linear(g, ternary[j][i], setun_graph_quantize(g, y), NONE)), random_widths[j]);
            break;
        }
        case 10: { /* attention over views */
            int64_t shape[3] = {T, random_widths[j] / 32, 32}, flat[2] = {T, random_widths[j]};
            setun_node q = setun_graph_reshape(g, x, 3, shape), k = setun_graph_reshape(g, random_pick(&p, seed, random_widths[j]), 3, shape);
            setun_node v = setun_graph_reshape(g, random_pick(&p, seed, random_widths[j]), 3, shape);
            setun_attention_options attention = {.size = sizeof attention, .window = test_random(seed) % 3 ? 0 : 3, .cache_layer = cached && j == 1 ? ++layers : 0}; /* one shape of cache */
            if (test_random(seed) % 2) q = setun_graph_rms_norm(g, q, NONE, 1e-5f, false);
            q = setun_graph_rope(g, q, positions, NULL), k = setun_graph_rope(g, k, positions, NULL);
            random_push(&p, setun_graph_attention(g, q, k, v, &attention), random_widths[j]);
            random_push(&p, setun_graph_reshape(g, k, 2, flat), random_widths[j]); /* a rotated key read again */
            break;
        }
        case 11: { /* views of views, read after their value */
            int64_t shape[4] = {T, 2, 2, random_widths[j] / 4}, flat[2] = {T, random_widths[j]};
            random_push(&p, setun_graph_reshape(g, setun_graph_silu(g, setun_graph_reshape(g, x, 4, shape)), 2, flat), random_widths[j]);
            break;
        }
        case 12: random_push(&p, setun_graph_add(g, setun_graph_linear(g, dense[j][j], x, NONE), x), random_widths[j]); break; /* x is the residual, too */
        }
    }
    int outputs = 1 + (int)(test_random(seed) % 4);
    for (int n = 0; n < outputs; n++) {
        snprintf(name, sizeof name, "out%d", n);
        assert_int_equal(setun_graph_output(g, n ? random_pick(&p, seed, 0) : p.node[p.count - 1], name), SETUN_OK);
    }
    return g;
}

#endif
