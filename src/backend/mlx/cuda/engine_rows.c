/*
 * engine_rows.c - runs over rows: prompts, batches, and both at once, through embedding, products, attention and head, a launch each. Launches
 * overlap where the device can (driver.h); a batch of one row each that comes again is one launch of a graph.
 * Caller: engine.c. Knows the kernels' arguments (prompt.h, forward.h) and no frame but its ids.
 */
#include "backend/mlx/cuda/engine_parts.h"
#include <stdio.h>
#include <stdlib.h>

/* A run's numbers on the device, by their first int; sequences and work are structures of ints. */
typedef struct numbers { int ids, row_sequence, rows, singles, work, ints; } numbers;
typedef struct rows_run {
    setun_cuda_binding *binding;
    setun_frame *frame;
    int tokens, outputs, singles, works, parts, splits;
    numbers at;
    bool begun;                 /* the first launch follows copies, which it must wait for */
} rows_run;

static setun_status launch(rows_run *r, setun_cuda_function function, int blocks, int threads, int shared_bytes, void **arguments)
{
    setun_cuda_driver *d = r->binding->engine->driver;
    r->binding->counters.prompt_launches++;
    bool first = !r->begun;
    r->begun = true;
    return first ? setun_cuda_launch(d, function, blocks, threads, shared_bytes, arguments) : setun_cuda_launch_early(d, function, blocks, threads, shared_bytes, arguments);
}

static setun_status named(rows_run *r, const char *name, int shared_bytes, setun_cuda_function *out)
{
    SETUN_TRY(setun_cuda_function_get(r->binding->engine->driver, name, shared_bytes, out));
    return *out ? SETUN_OK : setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA kernels: the binaries have no %s: build them and the program from one tree", name);
}

static setun_cuda_pointer number(const rows_run *r, int first) { return r->binding->model->numbers + (setun_cuda_pointer)first * sizeof(int); }

/* ---- steps ---- */

static setun_status linear(rows_run *r, int index, setun_cuda_pointer in, setun_cuda_pointer residual, setun_cuda_pointer out)
{
    setun_cuda_engine *e = r->binding->engine;
    engine_model *m = r->binding->model;
    const setun_cuda_op *op = &m->described->model.ops[index];
    engine_op *o = &m->ops[index];
    int tokens = r->tokens, flags = (op->normed ? SETUN_PROMPT_NORM : 0) | (o->norm ? SETUN_PROMPT_WEIGHT : 0), columns = o->columns, blocks = (int)setun_prompt_blocks(columns);
    float epsilon = op->epsilon, factor = op->factor;
    setun_cuda_pointer norm = o->norm ? o->norm : o->scales, bias = o->bias ? o->bias : o->scales;
    void *rounding[] = {&in, &norm, &m->q8, &m->scale, &m->sum, &columns, &tokens, &flags, &epsilon};
    setun_cuda_function quantize = e->quantize; /* of rows of any length; those for shorter ones need no leave for their shared memory */
    if (strcmp(setun_prompt_quantize_kernel(columns), "setun_prompt_quantize")) SETUN_TRY(named(r, setun_prompt_quantize_kernel(columns), 0, &quantize));
    SETUN_TRY(launch(r, quantize, (int)setun_prompt_groups(tokens) * 8, SETUN_PROMPT_QUANTIZE_THREADS, setun_prompt_quantize_shared(columns), rounding));
    const setun_cuda_properties *p = setun_cuda_driver_properties(e->driver);
    setun_prompt_launch choice = setun_prompt_choose(o->rows, columns, tokens, p->multiprocessors, p->major == 9 && p->minor == 0);
    setun_cuda_function product;
    if (!choice.kernel) return setun_fail(SETUN_ERROR_UNSUPPORTED, "prompt kernels: %d rows of %d columns and %d tokens are too many", o->rows, columns, tokens);
    SETUN_TRY(named(r, choice.kernel, choice.shared_bytes, &product));
    if (!residual) residual = out;
    void *arguments[] = {&o->words, &o->scales, &m->q8, &m->scale, &m->sum, &bias, &residual, &out, &o->rows, &blocks, &tokens, &o->flags, &factor};
    return launch(r, product, choice.blocks, choice.threads, choice.shared_bytes, arguments);
}

static setun_status attend(rows_run *r, int index, setun_cuda_pointer qkv, setun_cuda_pointer out)
{
    setun_cuda_engine *e = r->binding->engine;
    engine_model *m = r->binding->model;
    const setun_cuda_model *model = &m->described->model;
    const setun_cuda_op *op = &model->ops[index];
    int heads = op->heads, kv_heads = op->kv_heads, size = model->head_size, layer = op->layer, window = op->window, interleaved = model->rope_interleaved, splits = r->splits;
    float factor = op->scale * 1.44269504f; /* the kernels' exponentials are powers of two */
    setun_cuda_pointer sequences = number(r, 0), row_sequence = number(r, r->at.row_sequence), work = number(r, r->at.work), singles = number(r, r->at.singles);
    setun_cuda_function function;
    char name[48];
    if (r->works > 0) {
        void *rotation[] = {&qkv, &m->cosines, &m->sines, &sequences, &row_sequence, &m->query, &heads, &kv_heads, &size, &layer, &interleaved, &factor};
        SETUN_TRY(launch(r, e->rope, r->tokens, 256, 0, rotation));
        snprintf(name, sizeof name, "setun_forward_attention_%d_%d", size, r->parts);
        SETUN_TRY(named(r, name, SETUN_FORWARD_SHARED(size, r->parts), &function));
        void *arguments[] = {&m->query, &sequences, &work, &out, &heads, &kv_heads, &layer, &window};
        SETUN_TRY(launch(r, function, r->works * kv_heads, SETUN_FORWARD_ATTENTION_THREADS(r->parts), SETUN_FORWARD_SHARED(size, r->parts), arguments));
    }
    if (r->singles == 0) return SETUN_OK;
    snprintf(name, sizeof name, "setun_forward_single_%d", size);
    SETUN_TRY(named(r, name, 0, &function));
    int sets = (heads / kv_heads + SETUN_FORWARD_HEADS - 1) / SETUN_FORWARD_HEADS;
    void *arguments[] = {&qkv, &m->cosines, &m->sines, &sequences, &singles, &out, &m->partial, &m->counters, &heads, &kv_heads, &layer, &window, &interleaved, &splits, &factor};
    return launch(r, function, r->singles * kv_heads * sets * splits, SETUN_FORWARD_SINGLE_THREADS, 0, arguments);
}

static setun_status head(rows_run *r, setun_cuda_pointer x)
{
    setun_cuda_engine *e = r->binding->engine;
    engine_model *m = r->binding->model;
    const setun_cuda_model *model = &m->described->model;
    int width = model->width, vocabulary = model->vocabulary, row_bytes = setun_cuda_dense_row_bytes(model->head_format, width), weighted = m->head_norm != 0, f16 = model->head_format != SETUN_CUDA_BF16;
    float epsilon = model->head_normed ? model->head_epsilon : -1.0f, factor = model->head_factor;
    setun_cuda_pointer norm = weighted ? m->head_norm : x, rows = number(r, r->at.rows);
    void *normed[] = {&x, &rows, &norm, &m->normed, &width, &weighted, &f16, &epsilon};
    SETUN_TRY(launch(r, e->norm, r->outputs, 256, 0, normed));
    int tiles = (vocabulary + SETUN_FORWARD_HEAD_ROWS - 1) / SETUN_FORWARD_HEAD_ROWS, most = 2 * setun_cuda_driver_properties(e->driver)->multiprocessors;
    for (int done = 0; done < r->outputs; done += SETUN_FORWARD_HEAD_TOKENS) {
        int tokens = r->outputs - done < SETUN_FORWARD_HEAD_TOKENS ? r->outputs - done : SETUN_FORWARD_HEAD_TOKENS, of = tokens <= 8 ? 8 : SETUN_FORWARD_HEAD_TOKENS;
        setun_cuda_pointer from = m->normed + (setun_cuda_pointer)done * 4 * (setun_cuda_pointer)SETUN_FORWARD_PADDED(width), to = m->logits + (setun_cuda_pointer)done * (setun_cuda_pointer)vocabulary * 4;
        setun_cuda_function function;
        char name[48];
        snprintf(name, sizeof name, "setun_forward_head_%s_%d", model->head_format == SETUN_CUDA_Q8 ? "q8" : f16 ? "f16" : "bf16", of);
        SETUN_TRY(named(r, name, SETUN_FORWARD_HEAD_SHARED(of), &function));
        void *arguments[] = {&m->head, &from, &to, &width, &vocabulary, &row_bytes, &tokens, &factor};
        SETUN_TRY(launch(r, function, tiles < most ? tiles : most, SETUN_FORWARD_THREADS, SETUN_FORWARD_HEAD_SHARED(of), arguments));
    }
    return SETUN_OK;
}

static setun_status launch_all(rows_run *r)
{
    engine_model *m = r->binding->model;
    const setun_cuda_model *model = &m->described->model;
    int width = model->width, row_bytes = setun_cuda_dense_row_bytes(model->embedding_format, width), format = model->embedding_format;
    float factor = model->embedding_factor;
    setun_cuda_pointer ids = number(r, r->at.ids);
    void *arguments[] = {&m->embedding, &ids, &m->x[0], &width, &row_bytes, &format, &factor};
    r->begun = false;
    SETUN_TRY(launch(r, r->binding->engine->embed, r->tokens, 256, 0, arguments));
    setun_cuda_pointer stream = m->x[0], other = m->x[1], current = stream;
    for (int i = 0; i < model->op_count; i++) {
        const setun_cuda_op *op = &model->ops[i];
        if (r->frame->cancel && atomic_load_explicit(r->frame->cancel, memory_order_relaxed)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
        setun_cuda_pointer free_wide = current == m->wide[0] ? m->wide[1] : m->wide[0];
        if (op->kind == SETUN_CUDA_ATTENTION) {
            SETUN_TRY(attend(r, i, current, free_wide));
            current = free_wide;
        } else if (op->residual) {
            SETUN_TRY(linear(r, i, current, stream, other));
            setun_cuda_pointer swap = stream;
            current = stream = other, other = swap;
        } else {
            SETUN_TRY(linear(r, i, current, 0, free_wide));
            current = free_wide;
        }
    }
    return r->outputs ? head(r, stream) : SETUN_OK;
}

/* ---- graphs ---- */

/* Every number that a launch has depends on these three, for rows that are alone in their sequences; a shape is kept when it comes a second time: by then
 * every kernel was loaded. */
static setun_status launch_single(rows_run *r)
{
    setun_cuda_driver *d = r->binding->engine->driver;
    engine_model *m = r->binding->model;
    engine_graph *g = NULL, *oldest = &m->graphs[0];
    for (int i = 0; i < ENGINE_GRAPHS && !g; i++) {
        engine_graph *one = &m->graphs[i];
        if (one->used && one->sequences == r->singles && one->outputs == r->outputs && one->splits == r->splits) g = one;
        else if (one->used < oldest->used) oldest = one;
    }
    if (!g) {
        setun_cuda_graph_release(d, oldest->graph);
        *oldest = (engine_graph){r->singles, r->outputs, r->splits, ++m->graph_clock, NULL};
        return launch_all(r);
    }
    g->used = ++m->graph_clock;
    if (!g->graph) {
        if (!setun_cuda_graph_begin(d)) return launch_all(r);
        setun_status status = launch_all(r);
        setun_cuda_graph made = setun_cuda_graph_end(d);
        if (status != SETUN_OK) {
            setun_cuda_graph_release(d, made);
            return status;
        }
        if (!made) return launch_all(r);
        g->graph = made;
    }
    r->binding->counters.graph_launches++;
    return setun_cuda_graph_launch(d, g->graph);
}

/* ---- a run ---- */

static int by_cost(const void *a, const void *b) { return ((const int *)b)[2] - ((const int *)a)[2]; }

/* The attention's work, longest first: blocks that begin late should end soon. Written as [sequence, first row]. */
static setun_status fill_work(const setun_sequence *sequences, int count, int group, int queries, int *to)
{
    int n = 0;
    for (int i = 0; i < count; i++)
        if (sequences[i].rows > 1) n += (sequences[i].rows * group + queries - 1) / queries;
    int (*work)[3] = setun_alloc((size_t)(n + 1) * sizeof *work);
    if (!work) return setun_fail_memory((size_t)n * sizeof *work);
    n = 0;
    for (int i = 0; i < count; i++)
        for (int first = 0; sequences[i].rows > 1 && first < sequences[i].rows * group; first += queries, n++)
            work[n][0] = i, work[n][1] = first, work[n][2] = sequences[i].cache->length + first / group;
    qsort(work, (size_t)n, sizeof *work, by_cost);
    for (int i = 0; i < n; i++) to[2 * i] = work[i][0], to[2 * i + 1] = work[i][1];
    setun_free(work);
    return SETUN_OK;
}

static int tiles_of(const setun_sequence *sequences, int count, int group, int queries)
{
    int n = 0;
    for (int i = 0; i < count; i++)
        if (sequences[i].rows > 1) n += (sequences[i].rows * group + queries - 1) / queries;
    return n;
}

setun_status engine_run_rows(setun_cuda_binding *b, setun_frame *frame, const setun_sequence *sequences, int count, const int32_t *rows, int outputs)
{
    setun_cuda_engine *e = b->engine;
    engine_model *m = b->model;
    int tokens = frame->tokens, group = m->heads / m->kv_heads, sets = (group + SETUN_FORWARD_HEADS - 1) / SETUN_FORWARD_HEADS, furthest = 0, longest = 0;
    int multiprocessors = setun_cuda_driver_properties(e->driver)->multiprocessors;
    rows_run r = {.binding = b, .frame = frame, .tokens = tokens, .outputs = outputs, .parts = 2, .splits = 1};
    for (int i = 0; i < count; i++) {
        int end = sequences[i].cache->length + sequences[i].rows;
        furthest = end > furthest ? end : furthest;
        r.singles += sequences[i].rows == 1;
        if (sequences[i].rows == 1 && end > longest) longest = end;
    }
    /* long prompts have blocks enough; of short ones two groups of warps share the keys */
    r.works = tiles_of(sequences, count, group, SETUN_FORWARD_QUERIES(1));
    if (r.works * m->kv_heads >= 2 * multiprocessors) r.parts = 1;
    else r.works = tiles_of(sequences, count, group, SETUN_FORWARD_QUERIES(2));
    /* contexts are cut until there are blocks enough, in parts that are worth a block */
    while (r.splits < SETUN_FORWARD_SPLITS && longest > 64 * r.splits && 2 * r.singles * m->kv_heads * sets * r.splits <= 3 * multiprocessors) r.splits *= 2; /* three are resident */
    numbers *at = &r.at;
    at->ids = count * (int)(sizeof(setun_forward_sequence) / sizeof(int));
    at->row_sequence = at->ids + tokens;
    at->rows = at->row_sequence + tokens;
    at->singles = at->rows + outputs;
    at->work = (at->singles + r.singles + 1) / 2 * 2;
    at->ints = at->work + 2 * r.works;
    /* before any launch: growing lets go of what launches would still read */
    SETUN_TRY(engine_model_tokens(e, m, tokens));
    SETUN_TRY(engine_model_rotations(e, m, furthest));
    SETUN_TRY(engine_model_numbers(e, m, at->ints, outputs));
    SETUN_TRY(engine_model_parts(e, m, r.singles, r.splits));
    int *host = m->numbers_host;
    const int32_t *ids = setun_frame_slot(frame, b->ids);
    for (int i = 0, single = 0; i < count; i++) {
        const setun_sequence *q = &sequences[i];
        device_cache *c;
        SETUN_TRY(engine_cache(e, q->cache, &c));
        setun_forward_sequence one = {q->first_row, q->rows, q->cache->length, q->cache->capacity, c->memory, c->memory + c->half};
        memcpy(host + (size_t)i * (sizeof one / sizeof(int)), &one, sizeof one);
        for (int t = 0; t < q->rows; t++) host[at->row_sequence + q->first_row + t] = i;
        if (q->rows == 1) host[at->singles + single++] = i;
    }
    for (int t = 0; t < tokens; t++) {
        if (ids[t] < 0 || ids[t] >= m->described->model.vocabulary) return setun_fail(SETUN_ERROR_ARGUMENT, "token id %d is not in the vocabulary", ids[t]);
        host[at->ids + t] = ids[t];
    }
    for (int o = 0; o < outputs; o++) host[at->rows + o] = rows ? rows[o] : o;
    SETUN_TRY(fill_work(sequences, count, group, SETUN_FORWARD_QUERIES(r.parts), host + at->work));
    SETUN_TRY(setun_cuda_to_device(e->driver, m->numbers, host, (size_t)at->ints * sizeof(int)));
    return r.singles == count && tokens == count ? launch_single(&r) : launch_all(&r);
}
