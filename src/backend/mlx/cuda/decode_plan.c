/*
 * decode_plan.c - reads a tape from embedding to logits and says it in the decode kernel's terms, or why it cannot.
 * Caller: the MLX lowering. Knows plans and weights; knows no CUDA and no layout of the packed weights.
 */
#include "backend/mlx/cuda/decode_plan.h"
#include "backend/backend.h"
#include <math.h>

typedef struct reader {
    const setun_plan *plan;
    setun_cuda_plan *out;
    int step;                   /* next of the tape */
    int current;                /* slot of the vector that the last op wrote; -1 after q, k, v */
    int stream;                 /* slot of the residual stream */
    int qkv[3];
    int capacity;
    setun_rope_spec rope;
    bool has_rope;
} reader;

static setun_status refuse(const reader *r, const char *what)
{
    const setun_step *s = r->step < r->plan->step_count ? &r->plan->steps[r->step] : NULL;
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "decode kernel: step %d (%s): %s", r->step, s ? setun_step_name(s->kind) : "end", what);
}

static setun_status own(reader *r, size_t count, float **out)
{
    setun_cuda_plan *d = r->out;
    if (d->owned_count == d->owned_capacity) {
        int capacity = d->owned_capacity ? d->owned_capacity * 2 : 64;
        float **grown = setun_realloc(d->owned, (size_t)capacity * sizeof *grown);
        if (!grown) return setun_fail_memory((size_t)capacity * sizeof *grown);
        d->owned = grown, d->owned_capacity = capacity;
    }
    *out = setun_alloc((count + 1) * sizeof(float));
    if (!*out) return setun_fail_memory(count * sizeof(float));
    d->owned[d->owned_count++] = *out;
    return SETUN_OK;
}

static setun_status vector_of(reader *r, const setun_weight *w, float offset, const float **out)
{
    float *v;
    *out = NULL;
    if (!w) return SETUN_OK;
    size_t count = (size_t)(w->rows * w->columns);
    SETUN_TRY(own(r, count, &v));
    SETUN_TRY(setun_weight_to_f32(w, 0, w->rows, v));
    for (size_t i = 0; offset != 0.0f && i < count; i++) v[i] += offset;
    *out = v;
    return SETUN_OK;
}

static bool read_codes(void *source, int64_t row, int64_t rows, uint8_t *codes)
{
    const setun_weight *w = source;
    return setun_ternary_decode(w, &w->info, row, rows, codes, NULL) == SETUN_OK;
}

static setun_status matrix_of(reader *r, const setun_weight *w, const setun_weight *bias, setun_cuda_matrix *out)
{
    if (!w->probed || !w->info.ternary) return refuse(r, "its weight is not ternary");
    if (w->info.scale == SETUN_SCALE_GROUP) return refuse(r, "its weight has a scale per group");
    *out = (setun_cuda_matrix){.rows = w->rows, .columns = w->columns, .scale = w->info.tensor_scale, .source = (void *)(uintptr_t)w};
    if (w->info.scale == SETUN_SCALE_ROW) {
        float *scales;
        uint8_t *codes = setun_alloc((size_t)w->columns);
        if (!codes) return setun_fail_memory((size_t)w->columns);
        setun_status status = own(r, (size_t)w->rows, &scales);
        for (int64_t i = 0; i < w->rows && status == SETUN_OK; i++) status = setun_ternary_decode(w, &w->info, i, 1, codes, scales + i);
        setun_free(codes);
        if (status != SETUN_OK) return status;
        out->row_scales = scales;
    }
    return vector_of(r, bias, 0.0f, &out->bias);
}

static int dense_format(const setun_weight *w) { return w->format == SETUN_FORMAT_BF16 ? SETUN_CUDA_BF16 : w->format == SETUN_FORMAT_F16 ? SETUN_CUDA_F16 : w->format == SETUN_FORMAT_Q8_0 ? SETUN_CUDA_Q8 : -1; }

static setun_cuda_op *add_op(reader *r, int kind)
{
    if (r->out->model.op_count == r->capacity) return NULL; /* as many as the tape has steps: cannot be */
    setun_cuda_op *op = &r->out->ops[r->out->model.op_count++];
    *op = (setun_cuda_op){.kind = kind, .factor = 1.0f};
    return op;
}

/* rms_norm and rounding, or rounding alone, then the product. */
static setun_status read_linear(reader *r)
{
    const setun_step *s = &r->plan->steps[r->step];
    if (r->current < 0 || s->input[0] != r->current) return refuse(r, "it reads something else than the step before wrote");
    setun_cuda_op *op = add_op(r, SETUN_CUDA_LINEAR);
    if (!op) return refuse(r, "too many steps");
    if (s->kind == SETUN_STEP_NORM) {
        op->normed = true, op->epsilon = s->epsilon;
        SETUN_TRY(vector_of(r, s->weight_count > 0 ? s->weight[0] : NULL, s->one_plus && s->weight_count > 0 && s->weight[0] ? 1.0f : 0.0f, &op->norm));
    }
    int rounded = s->output[0];
    r->step++;
    s = r->step < r->plan->step_count ? &r->plan->steps[r->step] : NULL;
    if (!s || s->kind != SETUN_STEP_LINEAR || s->input[0] != rounded) return refuse(r, "what was rounded goes into something else than one linear step");
    if (s->gated && s->activation != SETUN_OP_SILU && s->activation != SETUN_OP_RELU2 && s->activation != SETUN_OP_GELU) return refuse(r, "an activation that is not silu, relu2 or gelu");
    op->matrix_count = s->weight_count, op->gated = s->gated, op->factor = s->factor;
    op->activation = !s->gated ? SETUN_CUDA_ACT_NONE : s->activation == SETUN_OP_SILU ? SETUN_CUDA_ACT_SILU : s->activation == SETUN_OP_RELU2 ? SETUN_CUDA_ACT_RELU2 : SETUN_CUDA_ACT_GELU;
    for (int i = 0; i < s->weight_count; i++) SETUN_TRY(matrix_of(r, s->weight[i], s->bias[i], &op->matrix[i]));
    if (s->residual >= 0) {
        if (s->residual != r->stream) return refuse(r, "a residual sum with another vector than the layer's input");
        op->residual = true;
        r->stream = s->output[0];
    }
    r->current = s->gated || s->weight_count == 1 ? s->output[0] : -1;
    for (int i = 0; i < 3; i++) r->qkv[i] = r->current < 0 && i < s->weight_count ? s->output[i] : -1;
    r->step++;
    return SETUN_OK;
}

/* A slot that a reshape made is another one over the same bytes. */
static bool same_bytes(const setun_plan *plan, int a, int b) { return a >= 0 && b >= 0 && (a == b || plan->slots[a].alias_of == b); }

static setun_status read_attention(reader *r)
{
    const setun_step *s = &r->plan->steps[r->step];
    for (int i = 0; i < 3; i++)
        if (!same_bytes(r->plan, s->input[i], r->qkv[i])) return refuse(r, "q, k and v do not come from one linear step");
    if (s->norm_q || s->norm_k) return refuse(r, "norms of q and k");
    if (!s->has_rope || s->rope.rotary != s->head_size) return refuse(r, "heads that are not rotated as a whole");
    if (s->attention.cache_layer < 1) return refuse(r, "no cache");
    setun_rope_spec a = s->rope, b = r->rope;
    if (r->has_rope && (a.theta != b.theta || a.interleaved != b.interleaved || a.scale != b.scale || a.magnitude != b.magnitude || a.factors != b.factors))
        return refuse(r, "layers that rotate differently");
    r->rope = a, r->has_rope = true;
    setun_cuda_op *op = add_op(r, SETUN_CUDA_ATTENTION);
    if (!op) return refuse(r, "too many steps");
    op->heads = s->heads, op->kv_heads = s->kv_heads, op->layer = s->attention.cache_layer - 1, op->window = s->attention.window;
    op->scale = s->attention.scale != 0.0f ? s->attention.scale : 1.0f / sqrtf((float)s->head_size);
    r->out->model.head_size = s->head_size, r->out->model.kv_heads = s->kv_heads;
    r->current = s->output[0];
    r->step++;
    return SETUN_OK;
}

/* Rows are chosen for the logits, at the end or already inside the last layer. In decoding every row is: each is its sequence's last. */
static setun_status read_select(reader *r)
{
    const setun_step *s = &r->plan->steps[r->step];
    bool known = s->input[0] == r->current || s->input[0] == r->stream;
    if (!known || r->plan->slots[s->input[1]].place != SETUN_PLACE_INPUT) return refuse(r, "rows are chosen from something else than a layer's vectors, or by something else than an input");
    if (s->input[0] == r->current) r->current = s->output[0];
    if (s->input[0] == r->stream) r->stream = s->output[0];
    r->step++;
    return SETUN_OK;
}

static setun_status read_head(reader *r)
{
    const setun_plan *plan = r->plan;
    setun_cuda_model *m = &r->out->model;
    const setun_step *s = &plan->steps[r->step];
    int x = r->stream;
    if (x != r->current) return refuse(r, "a head over something else than the last layer's output");
    if (s->kind == SETUN_STEP_NORM && !s->quantize && s->input[0] == x) {
        m->head_normed = true, m->head_epsilon = s->epsilon;
        SETUN_TRY(vector_of(r, s->weight_count > 0 ? s->weight[0] : NULL, s->one_plus ? 1.0f : 0.0f, &m->head_norm));
        x = s->output[0];
        r->step++;
        s = r->step < plan->step_count ? &plan->steps[r->step] : NULL;
    }
    if (!s || s->kind != SETUN_STEP_LINEAR || s->input[0] != x || s->weight_count != 1 || s->gated || s->residual >= 0 || s->bias[0]) return refuse(r, "neither a rounded product nor the vocabulary projection: the kernel takes int8 activations");
    m->head_format = dense_format(s->weight[0]);
    if (m->head_format < 0) return refuse(r, "a head whose format is not f16, bf16 or q8_0");
    r->out->head = s->weight[0];
    m->vocabulary = (int)s->weight[0]->rows;
    m->head_factor = s->factor;
    if (plan->slots[s->output[0]].place != SETUN_PLACE_OUTPUT) return refuse(r, "logits that another step changes");
    r->out->logits = plan->slots[s->output[0]].name;
    r->step++;
    return r->step == plan->step_count ? SETUN_OK : refuse(r, "a step after the logits");
}

static setun_status read_tape(reader *r)
{
    const setun_plan *plan = r->plan;
    setun_cuda_model *m = &r->out->model;
    if (plan->step_count < 4 || plan->steps[0].kind != SETUN_STEP_EMBEDDING) return refuse(r, "a tape that does not begin with an embedding");
    const setun_step *s = &plan->steps[0];
    m->embedding_format = dense_format(s->weight[0]);
    if (m->embedding_format < 0) return refuse(r, "an embedding whose format is not f16, bf16 or q8_0");
    m->embedding_factor = s->factor;
    m->width = (int)s->weight[0]->columns;
    r->out->embedding = s->weight[0];
    r->out->ids = plan->slots[s->input[0]].name;
    r->stream = r->current = s->output[0];
    r->step = 1;
    while (r->step < plan->step_count) {
        s = &plan->steps[r->step];
        if ((s->kind == SETUN_STEP_NORM && !s->quantize) || s->kind == SETUN_STEP_LINEAR) break;
        if (s->kind == SETUN_STEP_SELECT) SETUN_TRY(read_select(r));
        else if (s->kind == SETUN_STEP_NORM || s->kind == SETUN_STEP_QUANTIZE) SETUN_TRY(read_linear(r));
        else if (s->kind == SETUN_STEP_ATTENTION) SETUN_TRY(read_attention(r));
        else return refuse(r, "the kernel has no such step");
    }
    if (r->step >= plan->step_count) return refuse(r, "no head");
    SETUN_TRY(read_head(r));
    if (r->out->embedding->rows != r->out->head->rows || r->out->head->columns != m->width) return refuse(r, "an embedding and a head of different shapes");
    if (!r->has_rope) return refuse(r, "no attention");
    m->layers = plan->cache_layers;
    m->rope_interleaved = r->rope.interleaved;
    m->rope_magnitude = r->rope.magnitude != 0.0f ? r->rope.magnitude : 1.0f;
    setun_rope_spec spec = r->rope;
    spec.rotary = m->head_size;
    SETUN_TRY(setun_rope_frequencies(&spec, &r->out->frequencies));
    m->rope_frequencies = r->out->frequencies;
    m->ops = r->out->ops;
    m->codes = read_codes;
    return SETUN_OK;
}

setun_status setun_cuda_plan_describe(const setun_plan *plan, setun_cuda_plan **out)
{
    *out = NULL;
    setun_cuda_plan *d = setun_calloc(1, sizeof *d);
    if (!d) return setun_fail_memory(sizeof *d);
    reader r = {.plan = plan, .out = d, .current = -1, .stream = -1, .qkv = {-1, -1, -1}, .capacity = plan->step_count};
    d->ops = setun_calloc((size_t)plan->step_count + 1, sizeof *d->ops);
    setun_status status = d->ops ? read_tape(&r) : setun_fail_memory((size_t)plan->step_count * sizeof *d->ops);
    if (status != SETUN_OK) {
        setun_cuda_plan_free(d);
        return status;
    }
    *out = d;
    return SETUN_OK;
}

void setun_cuda_plan_free(setun_cuda_plan *d)
{
    if (!d) return;
    for (int i = 0; i < d->owned_count; i++) setun_free(d->owned[i]);
    setun_free(d->owned);
    setun_free(d->frequencies);
    setun_free(d->ops);
    setun_free(d);
}

size_t setun_cuda_plan_dense_bytes(const setun_weight *w) { return (size_t)w->rows * (size_t)setun_cuda_dense_row_bytes(dense_format(w), (int)w->columns); }

const uint8_t *setun_cuda_plan_dense_mapped(const setun_weight *w)
{
    int format = dense_format(w);
    return format != SETUN_CUDA_Q8 && w->columns * 2 == setun_cuda_dense_row_bytes(format, (int)w->columns) ? w->data : NULL;
}

void setun_cuda_plan_dense_pack(const setun_weight *w, uint8_t *out)
{
    int format = dense_format(w), columns = (int)w->columns;
    size_t row_bytes = (size_t)setun_cuda_dense_row_bytes(format, columns);
    for (int64_t r = 0; r < w->rows; r++) {
        uint8_t *row = out + (size_t)r * row_bytes;
        if (format == SETUN_CUDA_Q8) setun_cuda_pack_q8(w->data + (size_t)r * (size_t)(columns / 32) * 34, columns, row);
        else {
            memset(row, 0, row_bytes);
            memcpy(row, w->data + (size_t)r * (size_t)columns * 2, (size_t)columns * 2);
        }
    }
}
