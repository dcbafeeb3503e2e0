/*
 * engine_model.c - a model's memory on the device: weights in the order of the decode kernel and of the prompt kernels, tables, buffers.
 * Caller: engine.c. Knows layouts and no run.
 */
#include "backend/mlx/cuda/engine_parts.h"
#include "ternary/ternary.h"

static setun_status upload(setun_cuda_engine *e, const void *from, size_t bytes, setun_cuda_pointer *out)
{
    SETUN_TRY(setun_cuda_allocate(e->driver, bytes, out));
    return setun_cuda_to_device(e->driver, *out, from, bytes);
}

/* ---- weights ---- */

typedef struct pack_job {
    const setun_cuda_model *model;
    const setun_cuda_header *table;
    uint8_t *weights;
    uint32_t **words;           /* [op] of the prompt path, from malloc */
    atomic_int failed;
} pack_job;

/* Rows of one matrix into the words of the prompt kernels. */
static bool pack_words(const setun_cuda_model *m, const setun_cuda_matrix *w, int64_t first, int64_t step, uint32_t *words)
{
    enum { ROWS = 16 };
    size_t row_bytes = (size_t)setun_packed_row_bytes(w->columns);
    uint8_t *codes = setun_alloc((size_t)w->columns * ROWS + row_bytes);
    if (!codes) return false;
    uint8_t *packed = codes + (size_t)w->columns * ROWS;
    bool ok = true;
    for (int64_t row = 0; row < w->rows && ok; row += ROWS) {
        int64_t rows = w->rows - row < ROWS ? w->rows - row : ROWS;
        ok = m->codes(w->source, row, rows, codes);
        for (int64_t r = 0; r < rows && ok; r++) {
            setun_pack_row(codes + r * w->columns, w->columns, packed);
            setun_prompt_pack(packed, row_bytes, 1, w->columns, first + (row + r) * step, step, words);
        }
    }
    setun_free(codes);
    return ok;
}

static int packed_rows(const setun_cuda_op *op)
{
    int64_t rows = 0;
    for (int i = 0; i < op->matrix_count; i++) rows += op->matrix[i].rows;
    return (int)rows;
}

static void pack_ops(void *argument, int64_t first, int64_t last, int worker)
{
    (void)worker;
    pack_job *job = argument;
    for (int64_t i = first; i < last; i++) {
        const setun_cuda_op *op = &job->model->ops[i];
        if (op->kind != SETUN_CUDA_LINEAR) continue;
        int64_t columns = op->matrix[0].columns, at = 0;
        bool ok = setun_cuda_pack_op(job->model, job->table, (int)i, job->weights);
        if (ok) {
            setun_prompt_pack_begin(job->words[i], packed_rows(op), columns);
            for (int j = 0; j < op->matrix_count && ok; j++) {
                ok = pack_words(job->model, &op->matrix[j], op->gated ? j : at, op->gated ? 2 : 1, job->words[i]);
                at += op->matrix[j].rows;
            }
        }
        if (!ok) atomic_store(&job->failed, 1);
    }
}

/* Scales and biases by packed rows. */
static void fill_rows(const setun_cuda_op *op, float *scales, float *bias)
{
    int64_t at = 0;
    for (int j = 0; j < op->matrix_count; j++) {
        const setun_cuda_matrix *w = &op->matrix[j];
        for (int64_t r = 0; r < w->rows; r++) {
            int64_t to = op->gated ? 2 * r + j : at + r;
            scales[to] = w->row_scales ? w->row_scales[r] : w->scale;
            bias[to] = w->bias ? w->bias[r] : 0.0f;
        }
        at += w->rows;
    }
}

static setun_status upload_op(setun_cuda_engine *e, const setun_cuda_op *op, const uint32_t *words, engine_op *out)
{
    out->rows = packed_rows(op);
    out->columns = (int)op->matrix[0].columns;
    out->outputs = op->gated ? out->rows / 2 : out->rows;
    out->flags = op->gated ? SETUN_PROMPT_GATED : 0;
    if (op->gated && op->activation == SETUN_CUDA_ACT_SILU) out->flags |= SETUN_PROMPT_SILU;
    if (op->gated && op->activation == SETUN_CUDA_ACT_GELU) out->flags |= SETUN_PROMPT_GELU;
    if (op->residual) out->flags |= SETUN_PROMPT_RESIDUAL;
    for (int j = 0; j < op->matrix_count; j++)
        if (op->matrix[j].bias) out->flags |= SETUN_PROMPT_BIAS;
    SETUN_TRY(upload(e, words, (size_t)setun_prompt_weight_words(out->rows, out->columns) * 4, &out->words));
    if (op->normed && op->norm) SETUN_TRY(upload(e, op->norm, (size_t)out->columns * sizeof(float), &out->norm));
    size_t rows = (size_t)(out->rows + 255) / 256 * 256; /* the products read whole tiles */
    float *numbers = setun_calloc(2 * rows, sizeof *numbers);
    if (!numbers) return setun_fail_memory(2 * rows * sizeof *numbers);
    fill_rows(op, numbers, numbers + rows);
    setun_status status = upload(e, numbers, rows * sizeof *numbers, &out->scales);
    if (status == SETUN_OK && out->flags & SETUN_PROMPT_BIAS) status = upload(e, numbers + rows, rows * sizeof *numbers, &out->bias);
    if (status == SETUN_OK) status = setun_cuda_wait(e->driver);
    setun_free(numbers);
    return status;
}

static setun_status upload_weights(setun_cuda_engine *e, engine_model *model, size_t weight_bytes)
{
    const setun_cuda_model *m = &model->described->model;
    pack_job job = {.model = m, .table = model->table[0]};
    atomic_init(&job.failed, 0);
    setun_status status = SETUN_OK;
    job.weights = setun_alloc(weight_bytes);
    job.words = setun_calloc((size_t)m->op_count, sizeof *job.words);
    if (!job.weights || !job.words) status = setun_fail_memory(weight_bytes);
    for (int i = 0; i < m->op_count && status == SETUN_OK; i++) {
        if (m->ops[i].kind != SETUN_CUDA_LINEAR) continue;
        size_t bytes = (size_t)setun_prompt_weight_words(packed_rows(&m->ops[i]), m->ops[i].matrix[0].columns) * 4;
        job.words[i] = setun_alloc(bytes);
        if (!job.words[i]) status = setun_fail_memory(bytes);
    }
    if (status == SETUN_OK) {
        setun_pool_for(e->context->pool, m->op_count, 1, pack_ops, &job);
        if (atomic_load(&job.failed)) status = setun_fail(SETUN_ERROR_MEMORY, "the model's weights could not be packed for the GPU: out of memory, or a weight could not be read");
    }
    if (status == SETUN_OK) {
        setun_cuda_pack_rest(m, model->table[0], job.weights);
        status = upload(e, job.weights, weight_bytes, &model->weights);
    }
    for (int i = 0; i < m->op_count && status == SETUN_OK; i++)
        if (m->ops[i].kind == SETUN_CUDA_ATTENTION) model->heads = m->ops[i].heads, model->kv_heads = m->ops[i].kv_heads;
        else {
            status = upload_op(e, &m->ops[i], job.words[i], &model->ops[i]);
            if (model->ops[i].outputs > model->widest) model->widest = model->ops[i].outputs;
        }
    if (status == SETUN_OK) status = setun_cuda_wait(e->driver);
    for (int i = 0; i < m->op_count && job.words; i++) setun_free(job.words[i]);
    setun_free(job.words);
    setun_free(job.weights);
    return status;
}

static setun_status upload_dense(setun_cuda_engine *e, const setun_weight *w, setun_cuda_pointer *out)
{
    size_t bytes = setun_cuda_plan_dense_bytes(w);
    const uint8_t *mapped = setun_cuda_plan_dense_mapped(w);
    uint8_t *packed = NULL;
    if (!mapped) {
        packed = setun_alloc(bytes);
        if (!packed) return setun_fail_memory(bytes);
        setun_cuda_plan_dense_pack(w, packed);
    }
    setun_status status = upload(e, mapped ? mapped : packed, bytes, out);
    if (status == SETUN_OK) status = setun_cuda_wait(e->driver);
    setun_free(packed);
    return status;
}

/* ---- models ---- */

static setun_status fill_model(setun_cuda_engine *e, engine_model *model)
{
    const setun_cuda_model *m = &model->described->model;
    const setun_cuda_properties *p = setun_cuda_driver_properties(e->driver);
    setun_cuda_limits limits = {p->multiprocessors, p->shared_bytes};
    size_t weight_bytes = 0;
    for (int i = 0; i < 2; i++) {
        const char *why;
        if (!setun_cuda_layout(m, &limits, i ? SETUN_CUDA_TOKENS : 1, &model->table[i], &weight_bytes, &why))
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "decode kernel: the model has %s", why);
        SETUN_TRY(upload(e, model->table[i], (size_t)model->table[i]->bytes, &model->device_table[i]));
        SETUN_TRY(setun_cuda_allocate(e->driver, (size_t)model->table[i]->state_bytes, &model->state[i]));
        SETUN_TRY(setun_cuda_zero(e->driver, model->state[i], (size_t)model->table[i]->state_bytes));
    }
    model->ops = setun_calloc((size_t)m->op_count, sizeof *model->ops);
    if (!model->ops) return setun_fail_memory((size_t)m->op_count * sizeof *model->ops);
    SETUN_TRY(upload_weights(e, model, weight_bytes));
    SETUN_TRY(upload_dense(e, model->described->head, &model->head));
    if (model->described->embedding == model->described->head) model->embedding = model->head;
    else SETUN_TRY(upload_dense(e, model->described->embedding, &model->embedding));
    if (m->head_norm) SETUN_TRY(upload(e, m->head_norm, (size_t)m->width * sizeof(float), &model->head_norm));
    size_t ints = setun_cuda_run_ints(SETUN_CUDA_TOKENS, 1) * sizeof(int);
    SETUN_TRY(setun_cuda_allocate(e->driver, ints, &model->run));
    SETUN_TRY(setun_cuda_allocate(e->driver, SETUN_CUDA_TOKENS * sizeof(int), &model->chosen));
    SETUN_TRY(setun_cuda_allocate_host(e->driver, ints, (void **)&model->run_host));
    return setun_cuda_wait(e->driver);
}

static void engine_drop_graphs(setun_cuda_engine *e, engine_model *model)
{
    for (int i = 0; i < ENGINE_GRAPHS; i++) setun_cuda_graph_release(e->driver, model->graphs[i].graph);
    memset(model->graphs, 0, sizeof model->graphs);
}

static void free_model(setun_cuda_engine *e, engine_model *model)
{
    setun_cuda_driver *d = e->driver;
    for (int i = 0; model->ops && i < model->described->model.op_count; i++) {
        setun_cuda_release(d, model->ops[i].words);
        setun_cuda_release(d, model->ops[i].scales);
        setun_cuda_release(d, model->ops[i].bias);
        setun_cuda_release(d, model->ops[i].norm);
    }
    if (model->embedding != model->head) setun_cuda_release(d, model->embedding);
    const setun_cuda_pointer all[] = {model->weights, model->head, model->head_norm, model->cosines, model->sines, model->run, model->chosen, model->x[0], model->x[1], model->wide[0], model->wide[1], model->q8,
                                      model->scale, model->sum, model->query, model->numbers, model->normed, model->partial, model->counters, model->logits, model->state[0], model->state[1],
                                      model->device_table[0], model->device_table[1]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) setun_cuda_release(d, all[i]);
    engine_drop_graphs(e, model);
    setun_cuda_release_host(d, model->run_host);
    setun_cuda_release_host(d, model->numbers_host);
    setun_cuda_release_host(d, model->logits_host);
    for (int i = 0; i < 2; i++) setun_cuda_table_free(model->table[i]);
    setun_cuda_plan_free(model->described);
    setun_free(model->ops);
    setun_free(model);
}

setun_status engine_model_get(setun_cuda_engine *e, setun_cuda_plan *described, engine_model **out)
{
    const setun_cuda_model *m = &described->model;
    const void *key[4] = {m->ops[0].matrix[0].source, m->ops[m->op_count - 1].matrix[0].source, described->head, described->embedding};
    for (engine_model *known = e->models; known; known = known->next)
        if (memcmp(known->key, key, sizeof key) == 0 && known->described->model.op_count == m->op_count) {
            known->references++;
            setun_cuda_plan_free(described);
            *out = known;
            return SETUN_OK;
        }
    *out = NULL;
    engine_model *model = setun_calloc(1, sizeof *model);
    if (!model) {
        setun_cuda_plan_free(described);
        return setun_fail_memory(sizeof *model);
    }
    model->described = described;
    memcpy(model->key, key, sizeof key);
    setun_status status = fill_model(e, model);
    if (status != SETUN_OK) {
        free_model(e, model);
        return status;
    }
    model->references = 1;
    model->next = e->models;
    e->models = model;
    *out = model;
    return SETUN_OK;
}

void engine_model_drop(setun_cuda_engine *e, engine_model *model)
{
    if (--model->references > 0) return;
    for (engine_model **at = &e->models; *at; at = &(*at)->next)
        if (*at == model) {
            *at = model->next;
            break;
        }
    free_model(e, model);
}

/* ---- buffers that grow ---- */

static setun_status again(setun_cuda_engine *e, engine_model *model, setun_cuda_pointer *memory, size_t bytes)
{
    engine_drop_graphs(e, model); /* they name what is let go of */
    setun_cuda_release(e->driver, *memory);
    *memory = 0;
    return setun_cuda_allocate(e->driver, bytes, memory);
}

setun_status engine_model_tokens(setun_cuda_engine *e, engine_model *model, int tokens)
{
    if (tokens <= model->tokens) return SETUN_OK;
    const setun_cuda_model *m = &model->described->model;
    size_t n = (size_t)setun_prompt_groups(tokens) * 8, widest = (size_t)model->widest, heads = (size_t)model->heads * (size_t)m->head_size;
    int columns = m->width;
    for (int i = 0; i < m->op_count; i++) {
        if (m->ops[i].kind == SETUN_CUDA_LINEAR && m->ops[i].matrix[0].columns > columns) columns = (int)m->ops[i].matrix[0].columns;
    }
    model->tokens = 0;
    for (int i = 0; i < 2; i++) {
        SETUN_TRY(again(e, model, &model->x[i], n * (size_t)m->width * sizeof(float)));
        SETUN_TRY(again(e, model, &model->wide[i], n * (widest > heads ? widest : heads) * sizeof(float)));
    }
    SETUN_TRY(again(e, model, &model->q8, (size_t)setun_prompt_activation_bytes((int64_t)n, columns)));
    SETUN_TRY(again(e, model, &model->scale, n * sizeof(float)));
    SETUN_TRY(again(e, model, &model->sum, n * sizeof(int32_t)));
    SETUN_TRY(again(e, model, &model->query, n * heads * 2));
    model->tokens = tokens;
    return SETUN_OK;
}

setun_status engine_model_rotations(setun_cuda_engine *e, engine_model *model, int positions)
{
    if (positions <= model->rotations) return SETUN_OK;
    const setun_cuda_model *m = &model->described->model;
    int wanted = model->rotations ? model->rotations : 1024, half = m->head_size / 2;
    while (wanted < positions) wanted *= 2;
    size_t count = (size_t)wanted * (size_t)half;
    float *table = setun_alloc(2 * count * sizeof *table);
    if (!table) return setun_fail_memory(2 * count * sizeof *table);
    for (int t = 0; t < wanted; t++)
        for (int i = 0; i < half; i++) {
            double s, c;
            setun_sincos((double)t * m->rope_frequencies[i], &s, &c);
            table[(size_t)t * (size_t)half + (size_t)i] = (float)c * m->rope_magnitude;
            table[count + (size_t)t * (size_t)half + (size_t)i] = (float)s * m->rope_magnitude;
        }
    model->rotations = 0;
    setun_status status = again(e, model, &model->cosines, count * sizeof *table);
    if (status == SETUN_OK) status = again(e, model, &model->sines, count * sizeof *table);
    if (status == SETUN_OK) status = setun_cuda_to_device(e->driver, model->cosines, table, count * sizeof *table);
    if (status == SETUN_OK) status = setun_cuda_to_device(e->driver, model->sines, table + count, count * sizeof *table);
    if (status == SETUN_OK) status = setun_cuda_wait(e->driver);
    setun_free(table);
    if (status == SETUN_OK) model->rotations = wanted;
    return status;
}

setun_status engine_model_logits(setun_cuda_engine *e, engine_model *model, int rows)
{
    if (rows <= model->logit_rows) return SETUN_OK;
    size_t bytes = (size_t)rows * (size_t)model->described->model.vocabulary * sizeof(float);
    model->logit_rows = 0;
    setun_cuda_release_host(e->driver, model->logits_host);
    model->logits_host = NULL;
    SETUN_TRY(again(e, model, &model->logits, bytes));
    SETUN_TRY(setun_cuda_allocate_host(e->driver, bytes + sizeof(unsigned), (void **)&model->logits_host));
    model->logit_rows = rows;
    return SETUN_OK;
}

setun_status engine_model_numbers(setun_cuda_engine *e, engine_model *model, int ints, int outputs)
{
    if (ints > model->numbers_most) {
        model->numbers_most = 0;
        setun_cuda_release_host(e->driver, model->numbers_host);
        model->numbers_host = NULL;
        SETUN_TRY(again(e, model, &model->numbers, (size_t)ints * sizeof(int)));
        SETUN_TRY(setun_cuda_allocate_host(e->driver, (size_t)ints * sizeof(int), (void **)&model->numbers_host));
        model->numbers_most = ints;
    }
    if (outputs > model->normed_rows) {
        model->normed_rows = 0;
        SETUN_TRY(again(e, model, &model->normed, (size_t)outputs * 4 * (size_t)SETUN_FORWARD_PADDED(model->described->model.width)));
        model->normed_rows = outputs;
    }
    return SETUN_OK;
}

setun_status engine_model_parts(setun_cuda_engine *e, engine_model *model, int singles, int splits)
{
    size_t bytes = splits < 2 ? 16 : (size_t)singles * (size_t)model->heads * (size_t)splits * (size_t)SETUN_FORWARD_PARTIAL(model->described->model.head_size) * sizeof(float);
    if (bytes > model->partial_bytes) {
        model->partial_bytes = 0;
        SETUN_TRY(again(e, model, &model->partial, bytes));
        model->partial_bytes = bytes;
    }
    int words = singles * model->heads; /* more than there are sets of heads */
    if (words > model->counter_words) {
        model->counter_words = 0;
        SETUN_TRY(again(e, model, &model->counters, (size_t)words * 4));
        SETUN_TRY(setun_cuda_zero(e->driver, model->counters, (size_t)words * 4));
        model->counter_words = words;
    }
    return SETUN_OK;
}
