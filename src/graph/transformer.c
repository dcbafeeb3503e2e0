/*
 * transformer.c - the one description of a decoder transformer, for every family: a model's hyper-parameters and weights
 * become a graph by the same builder calls that a user has. Caller: session, explain. Knows nothing of families' names, files,
 * fusion or backends: what repeats (a norm before q, k and v) is written as often as it is meant, the plan merges it.
 */
#include "graph/internal.h"

typedef struct transformer {
    setun_graph *graph;
    setun_model *model;
    const setun_description *d;
    const setun_hparams *h;
    bool quantise; /* ternary linears take int8 activations */
    setun_node positions;
} transformer;

static setun_node weight_node(transformer *t, const setun_weight *weight) { return setun_graph_add_weight(t->graph, t->model, weight); }

static setun_node optional(transformer *t, const setun_weight *weight) { return weight ? weight_node(t, weight) : SETUN_NODE_NONE; }

static setun_node norm(transformer *t, setun_node x, const setun_weight *weight) { return setun_graph_rms_norm(t->graph, x, weight_node(t, weight), t->h->epsilon, t->h->norm_one_plus); }

/* Without the weight there is no such norm in this family. */
static setun_node norm_if(transformer *t, setun_node x, const setun_weight *weight) { return weight ? norm(t, x, weight) : x; }

/* Rotated models: x' = H (s * x), because the stored weight is W H diag(s). */
static setun_node rotate(transformer *t, setun_node x, const setun_hadamard *hadamard, bool inverse) {
    if (!t->d->rotated || hadamard->block == 0) return x;
    return setun_graph_hadamard(t->graph, x, hadamard->block, hadamard->signs, hadamard->signs ? hadamard->sign_count : 0, inverse);
}

static const setun_hadamard *rotation_of(transformer *t, setun_role role) {
    return role == SETUN_ROLE_O ? &t->d->hadamard_attention : role == SETUN_ROLE_DOWN ? &t->d->hadamard_feed_forward : &t->d->hadamard_width;
}

/* One linear of a layer with what its family puts before it: a norm, a rotation, rounding to int8. Dense weights take floats. */
static setun_node linear(transformer *t, const setun_layer *layer, int index, setun_role role, setun_node x) {
    const setun_weight *weight = layer->weight[role];
    if (!weight) {
        char name[128];
        if (setun_role_name(role, index, true, "weight", name, sizeof name) != SETUN_OK) snprintf(name, sizeof name, "role %d of layer %d", (int)role, index);
        return setun_graph_refuse(t->graph, SETUN_ERROR_FORMAT, "%s: tensor '%s' is missing; a transformer needs it", t->model->path ? t->model->path : "the model", name);
    }
    if (t->h->projection_norm) x = setun_graph_rms_norm(t->graph, x, optional(t, layer->input_norm[role]), t->h->projection_norm_epsilon, false);
    x = rotate(t, x, rotation_of(t, role), false);
    if (t->quantise && weight->probed && weight->info.ternary) x = setun_graph_quantize(t->graph, x);
    return setun_graph_linear(t->graph, weight_node(t, weight), x, optional(t, layer->bias[role]));
}

static setun_node activation(transformer *t, setun_node x) {
    switch (t->h->activation) {
    case SETUN_ACT_SILU: return setun_graph_silu(t->graph, x);
    case SETUN_ACT_RELU2: return setun_graph_relu2(t->graph, x);
    case SETUN_ACT_GELU: return setun_graph_gelu(t->graph, x);
    }
    return setun_graph_refuse(t->graph, SETUN_ERROR_UNSUPPORTED, "activation %d is unknown", (int)t->h->activation);
}

/* x [T, heads * d] -> [T, heads, d], with the family's norm over each head (weight [d]) or over all of them (weight [heads * d]). */
static setun_node heads(transformer *t, setun_node x, int count, const setun_weight *norm_weight) {
    int64_t shape[3] = {SETUN_DIM_TOKENS, count, t->h->head_size};
    bool each = norm_weight && norm_weight->columns == t->h->head_size;
    if (norm_weight && !each) x = norm(t, x, norm_weight);
    x = setun_graph_reshape(t->graph, x, 3, shape);
    return each ? norm(t, x, norm_weight) : x;
}

/* [T, width] -> [T, width]: the attention block without its residual. index is 0-based. rows: i32 [O], only these rows are wanted after the
 * attention itself: the block is [O, width], and so is *residual_x, which is x otherwise; NONE: all. */
static setun_node attention_block(transformer *t, const setun_layer *layer, int index, setun_node x, setun_node rows, setun_node *residual_x) {
    const setun_hparams *h = t->h;
    /* every sliding_pattern-th layer sees everything; without a pattern all layers slide, if any does */
    bool slides = h->sliding_window > 0 && (h->sliding_pattern <= 0 || (index + 1) % h->sliding_pattern != 0);
    bool local = slides && h->rope_local_theta > 0;
    setun_rope_options rope = {.size = sizeof rope, .theta = h->rope_theta, .rotary = h->rotary, .interleaved = h->rope_interleaved};
    if (local) {
        rope.theta = h->rope_local_theta; /* short distances: the long-context scaling is for the global layers */
    } else {
        rope.frequency_factors = h->rope_factors;
        rope.scale = h->rope_scale;
        rope.magnitude = h->rope_magnitude;
    }
    setun_node normed = norm_if(t, x, layer->weight[SETUN_ROLE_ATTN_NORM]);
    setun_node q = heads(t, linear(t, layer, index, SETUN_ROLE_Q, normed), h->heads, layer->weight[SETUN_ROLE_Q_NORM]);
    setun_node k = heads(t, linear(t, layer, index, SETUN_ROLE_K, normed), h->kv_heads, layer->weight[SETUN_ROLE_K_NORM]);
    setun_node v = heads(t, linear(t, layer, index, SETUN_ROLE_V, normed), h->kv_heads, NULL);
    q = setun_graph_rope(t->graph, q, t->positions, &rope);
    k = setun_graph_rope(t->graph, k, t->positions, &rope);
    setun_attention_options attention = {.size = sizeof attention, .scale = h->attention_scale, .window = slides ? h->sliding_window : 0, .cache_layer = index + 1};
    setun_node y = setun_graph_attention(t->graph, q, k, v, &attention);
    *residual_x = x;
    if (rows != SETUN_NODE_NONE) {
        y = setun_graph_select_rows(t->graph, y, rows);
        *residual_x = setun_graph_select_rows(t->graph, x, rows);
    }
    y = norm_if(t, y, layer->weight[SETUN_ROLE_ATTN_SUB_NORM]);
    y = linear(t, layer, index, SETUN_ROLE_O, y);
    return norm_if(t, y, layer->weight[SETUN_ROLE_POST_ATTN_NORM]);
}

/* [T, width] -> [T, width]: the feed-forward block without its residual. */
static setun_node feed_forward_block(transformer *t, const setun_layer *layer, int index, setun_node x) {
    setun_node normed = norm_if(t, x, layer->weight[SETUN_ROLE_FFN_NORM]);
    setun_node y;
    if (layer->weight[SETUN_ROLE_GATE]) {
        setun_node gate = activation(t, linear(t, layer, index, SETUN_ROLE_GATE, normed));
        y = setun_graph_multiply(t->graph, gate, linear(t, layer, index, SETUN_ROLE_UP, normed));
    } else {
        y = activation(t, linear(t, layer, index, SETUN_ROLE_UP, normed));
    }
    y = norm_if(t, y, layer->weight[SETUN_ROLE_FFN_SUB_NORM]);
    y = linear(t, layer, index, SETUN_ROLE_DOWN, y);
    return norm_if(t, y, layer->weight[SETUN_ROLE_POST_FFN_NORM]);
}

static setun_node residual(transformer *t, setun_node x, setun_node block) {
    if (t->h->residual_scale != 0 && t->h->residual_scale != 1) block = setun_graph_scale(t->graph, block, t->h->residual_scale);
    return setun_graph_add(t->graph, x, block);
}

/* [O, width] -> [O, vocabulary]. The head keeps float activations in every family. */
static setun_node head(transformer *t, setun_node x) {
    const setun_weight *output = t->d->global.weight[SETUN_ROLE_OUTPUT];
    const setun_weight *embedding = t->d->global.weight[SETUN_ROLE_EMBEDDING];
    /* A tied head is the embedding matrix, whose rows are s * (H z): (s * Hz) . x = z . H(s * x) */
    if (t->d->output_rotated) x = rotate(t, x, &t->d->hadamard_width, false);
    setun_node logits = setun_graph_linear(t->graph, weight_node(t, output ? output : embedding), x, optional(t, t->d->global.bias[SETUN_ROLE_OUTPUT]));
    if (t->h->logit_scale != 0 && t->h->logit_scale != 1) logits = setun_graph_scale(t->graph, logits, t->h->logit_scale);
    return logits;
}

setun_status setun_transformer_build(setun_graph *graph, setun_model *model, const setun_transformer_options *options) {
    if (!graph || !model) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_transformer_build: %s is NULL", graph ? "model" : "graph");
    static const setun_transformer_options defaults;
    if (!options) options = &defaults;
    const setun_description *d = &model->description;
    const char *path = model->path ? model->path : "the model";
    if (!d->global.weight[SETUN_ROLE_EMBEDDING] || !d->global.weight[SETUN_ROLE_OUTPUT_NORM])
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' is missing; a transformer needs it", path, d->global.weight[SETUN_ROLE_EMBEDDING] ? "output_norm.weight" : "token_embd.weight");
    if (d->h.logit_softcap != 0) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: logits are soft-capped at %g, which Setun does not do; use a model without it", path, (double)d->h.logit_softcap);
    transformer t = {.graph = graph, .model = model, .d = d, .h = &d->h, .quantise = d->h.activation_int8 && !options->no_activation_quantisation};

    int64_t tokens_shape[1] = {SETUN_DIM_TOKENS}, outputs_shape[1] = {SETUN_DIM_OUTPUTS};
    setun_node tokens = setun_graph_input(graph, "tokens", SETUN_I32, 1, tokens_shape);
    t.positions = setun_graph_input(graph, "positions", SETUN_I32, 1, tokens_shape);
    setun_node outputs = setun_graph_input(graph, "outputs", SETUN_I32, 1, outputs_shape);

    setun_node x = setun_graph_embedding(graph, weight_node(&t, d->global.weight[SETUN_ROLE_EMBEDDING]), tokens); /* [T, width] */
    if (d->embedding_rotated) x = rotate(&t, x, &d->hadamard_width, true);
    if (d->h.embedding_scale != 0 && d->h.embedding_scale != 1) x = setun_graph_scale(graph, x, d->h.embedding_scale);
    for (int i = 0; i < d->h.layers && graph->error == SETUN_OK; i++) {
        /* What follows the last layer's keys and values serves the wanted rows alone: of a prompt, usually one. */
        bool last = i == d->h.layers - 1;
        setun_node block = attention_block(&t, &d->layers[i], i, x, last ? outputs : SETUN_NODE_NONE, &x);
        x = residual(&t, x, block); /* [T, width]; after the last layer [O, width] */
        x = residual(&t, x, feed_forward_block(&t, &d->layers[i], i, x));
    }
    if (d->h.layers == 0) x = setun_graph_select_rows(graph, x, outputs);
    x = norm(&t, x, d->global.weight[SETUN_ROLE_OUTPUT_NORM]);
    if (options->embedding) setun_graph_output(graph, setun_graph_l2_normalize(graph, x), "embedding");
    else setun_graph_output(graph, head(&t, x), "logits");
    if (graph->error != SETUN_OK) return setun_fail(graph->error, "%s", graph->error_message);
    return SETUN_OK;
}
