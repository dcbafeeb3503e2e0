/*
 * clean.c - the passes over the graph: common nodes become one, dead nodes go. Called by setun_plan_build on its own copy of
 * the nodes. Knows operations only as attributes to compare; computes nothing.
 */
#include "plan/passes.h"

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
    hash *= 0xff51afd7ed558ccdu;
    return hash ^ (hash >> 33);
}

static uint64_t mix_float(uint64_t hash, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return mix(hash, bits);
}

static uint64_t node_hash(const setun_graph_node *n) {
    uint64_t hash = mix((uint64_t)n->op, (uint64_t)n->dtype);
    for (int i = 0; i < n->input_count; i++) hash = mix(hash, (uint64_t)n->input[i]);
    for (int i = 0; i < n->shape.rank; i++) hash = mix(hash, (uint64_t)n->shape.dim[i]);
    hash = mix(hash, (uint64_t)(uintptr_t)n->weight);
    hash = mix_float(mix_float(hash, n->epsilon), n->factor);
    return mix(mix_float(hash, n->rope.theta), (uint64_t)n->attention.cache_layer);
}

static bool float_same(float a, float b) { return !memcmp(&a, &b, sizeof a); } /* bits: 0 and -0 differ */

/* Field by field: structs have padding. Signs and factors are interned by the storage, so pointers tell. */
static bool node_same(const setun_graph_node *a, const setun_graph_node *b) {
    if (a->op != b->op || a->dtype != b->dtype || a->input_count != b->input_count || a->shape.rank != b->shape.rank) return false;
    for (int i = 0; i < a->input_count; i++)
        if (a->input[i] != b->input[i]) return false;
    for (int i = 0; i < a->shape.rank; i++)
        if (a->shape.dim[i] != b->shape.dim[i]) return false;
    return a->weight == b->weight && a->model == b->model && float_same(a->epsilon, b->epsilon) && float_same(a->factor, b->factor) && a->one_plus == b->one_plus && a->inverse == b->inverse &&
           a->block == b->block && a->signs == b->signs && a->sign_count == b->sign_count && float_same(a->rope.theta, b->rope.theta) && a->rope.rotary == b->rope.rotary &&
           a->rope.interleaved == b->rope.interleaved && float_same(a->rope.scale, b->rope.scale) && float_same(a->rope.magnitude, b->rope.magnitude) && a->rope.factors == b->rope.factors &&
           float_same(a->attention.scale, b->attention.scale) && a->attention.window == b->attention.window && a->attention.cache_layer == b->attention.cache_layer;
}

/* Renumbers inputs by map; nodes with map[i] != their new place are dropped. New places rise, so this works in place. */
static void renumber(setun_graph *graph, const int *map, const bool *keep) {
    int kept = 0;
    for (int i = 0; i < graph->node_count; i++) {
        if (!keep[i]) continue;
        setun_graph_node node = graph->nodes[i];
        for (int j = 0; j < node.input_count; j++) node.input[j] = map[node.input[j]];
        graph->nodes[kept++] = node;
    }
    graph->node_count = kept;
    for (int i = 0; i < graph->output_count; i++) graph->outputs[i].node = map[graph->outputs[i].node];
}

/* The first node that computes a thing stands for all that do. One pass is enough: inputs come before. */
static void merge_common(setun_graph *graph, int *map, bool *keep, int *next, int *heads, int head_count, setun_plan_stats *stats) {
    int *stand_in = map; /* old node -> old node that stands for it, then old -> new */
    for (int i = 0; i < head_count; i++) heads[i] = -1;
    for (int i = 0; i < graph->node_count; i++) {
        setun_graph_node *n = &graph->nodes[i];
        for (int j = 0; j < n->input_count; j++) n->input[j] = stand_in[n->input[j]];
        stand_in[i] = i;
        keep[i] = true;
        if (n->op == SETUN_OP_INPUT) continue; /* each has its name */
        int *head = &heads[node_hash(n) % (uint64_t)head_count];
        for (int other = *head; other >= 0; other = next[other])
            if (node_same(&graph->nodes[other], n)) {
                stand_in[i] = other;
                keep[i] = false;
                if (n->op != SETUN_OP_WEIGHT) stats->common_nodes++; /* a leaf costs nothing: naming it twice is no finding */
                break;
            }
        if (keep[i]) {
            next[i] = *head;
            *head = i;
        }
    }
    int kept = 0;
    for (int i = 0; i < graph->node_count; i++) stand_in[i] = keep[i] ? kept++ : stand_in[stand_in[i]];
    /* inputs already name the stand-ins, by their old numbers */
    renumber(graph, map, keep);
}

static void drop_dead(setun_graph *graph, int *map, bool *keep, setun_plan_stats *stats) {
    for (int i = 0; i < graph->node_count; i++) keep[i] = graph->nodes[i].op == SETUN_OP_INPUT; /* callers bind all by name */
    for (int i = 0; i < graph->output_count; i++) keep[graph->outputs[i].node] = true;
    for (int i = graph->node_count - 1; i >= 0; i--)
        for (int j = 0; keep[i] && j < graph->nodes[i].input_count; j++) keep[graph->nodes[i].input[j]] = true;
    int kept = 0;
    for (int i = 0; i < graph->node_count; i++) {
        map[i] = kept;
        if (keep[i]) kept++;
        else stats->dead_nodes++;
    }
    renumber(graph, map, keep);
}

setun_status setun_plan_clean(setun_graph *graph, setun_plan_stats *stats) {
    int count = graph->node_count, head_count = count * 2 + 1;
    stats->graph_nodes = count;
    size_t bytes = (size_t)count * (2 * sizeof(int) + sizeof(bool)) + (size_t)head_count * sizeof(int);
    int *memory = setun_alloc(bytes);
    if (!memory) return setun_fail_memory(bytes);
    int *map = memory, *next = map + count, *heads = next + count;
    bool *keep = (bool *)(heads + head_count);
    merge_common(graph, map, keep, next, heads, head_count, stats);
    drop_dead(graph, map, keep, stats);
    setun_free(memory);
    return SETUN_OK;
}
