/*
 * steps_rows.c - the steps that work on one row or one element at a time: lookups, norms, rounding, elementwise.
 * Rows are taken from the step's counter in chunks; small steps are done by worker 0 alone (execute.c decides).
 * Caller: execute.c.
 */
#include "backend/cpu/cpu.h"

/* Chunks of about this many elements: a few microseconds of work. */
enum { CHUNK_ELEMENTS = 8192 };

static int64_t chunk_rows(int64_t width) { return width >= CHUNK_ELEMENTS ? 1 : CHUNK_ELEMENTS / (width > 0 ? width : 1); }

/* The next rows of this step: false when there are none left. *last: 0 at first. */
static bool take_rows(const cpu_run *run, int index, int64_t rows, int64_t chunk, int64_t *first, int64_t *last)
{
    if (run->how[index] == CPU_APART) { /* all of them, once, in every worker */
        *first = *last;
        *last = rows;
        return *first < rows;
    }
    *first = (int64_t)cpu_take(run, index) * chunk;
    if (*first >= rows) return false;
    *last = *first + chunk < rows ? *first + chunk : rows;
    return true;
}

/* An id or row number out of range ends the run before anything is computed from it. Worker 0 says so: it is the caller's thread. */
static void check_indices(cpu_run *run, int index, int worker, const int32_t *ids, int64_t count, int64_t limit, const char *what)
{
    if (worker != 0) return;
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= limit) {
            run->status = setun_fail(SETUN_ERROR_ARGUMENT, "%s %d at index %lld is out of range: there are %lld", what, (int)ids[i], (long long)i, (long long)limit);
            atomic_store(&run->stop_at, index + 1);
            return;
        }
}

/* ids i32 [..] -> rows of the weight, f32 [.., columns], times factor */
/* Rows of a large mapped table are copied from the file: a fault would make the pages around each of them resident, and a prompt touches hundreds. */
enum { COPIED_ROW_BYTES = 16384, COPIED_TABLE_BYTES = 64 << 20 };

static setun_status embedding_row(const setun_step *step, const setun_weight *w, int64_t id, float *row)
{
    uint8_t bytes[COPIED_ROW_BYTES];
    uint64_t row_bytes;
    if (step->model && step->model->file && w->mapped && w->bytes > COPIED_TABLE_BYTES && w->format != SETUN_FORMAT_MLX_2BIT && !w->absmean && setun_format_get_kind(w->format) != SETUN_KIND_TERNARY &&
        setun_format_size(w->format, 1, w->columns, &row_bytes) == SETUN_OK && row_bytes <= sizeof bytes && row_bytes * ((uint64_t)id + 1) <= w->bytes &&
        setun_file_copy(step->model->file, w->data + (uint64_t)id * row_bytes, (size_t)row_bytes, bytes)) {
        setun_weight one = *w;
        one.rows = 1;
        one.data = bytes;
        one.bytes = row_bytes;
        return setun_weight_to_f32(&one, 0, 1, row);
    }
    return setun_weight_to_f32(w, id, 1, row);
}

void cpu_step_embedding(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    const setun_weight *w = step->weight[0];
    const int32_t *ids = setun_frame_slot(run->frame, step->input[0]);
    float *out = setun_frame_slot(run->frame, step->output[0]);
    int64_t count = cpu_elements(&run->plan->slots[step->input[0]], run->tokens, run->outputs), first, last = 0;
    check_indices(run, index, worker, ids, count, w->rows, "token id");
    while (take_rows(run, index, count, chunk_rows(w->columns), &first, &last))
        for (int64_t i = first; i < last; i++) {
            float *row = out + i * w->columns;
            bool valid = ids[i] >= 0 && ids[i] < w->rows;
            if (!valid || embedding_row(step, w, ids[i], row) != SETUN_OK) memset(row, 0, (size_t)w->columns * sizeof(float));
            if (step->factor != 1.0f) run->kernels->scale(row, step->factor, w->columns, row);
        }
}

static void quantize_row(const cpu_run *run, const cpu_q8 *q8, int64_t row, const float *x, int64_t width)
{
    run->kernels->quantize_i8(x, width, (int64_t)q8->stride, q8->rows + row * (int64_t)q8->stride, &q8->scale[row], &q8->sum[row]);
}

void cpu_step_norm(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    const setun_slot *slot = &run->plan->slots[step->input[0]];
    int64_t width = setun_slot_width(slot), rows = setun_slot_rows(slot, run->tokens, run->outputs), first, last = 0;
    const float *x = setun_frame_slot(run->frame, step->input[0]);
    const setun_prepared *p = step->prepared[0];
    const float *weight = p ? (const float *)(const void *)p->data : NULL;
    float offset = step->one_plus && weight ? 1.0f : 0.0f;
    cpu_q8 q8 = {0};
    float *out = NULL;
    if (step->quantize) q8 = cpu_q8_made(run, index, worker);
    else out = setun_frame_slot(run->frame, step->output[0]);
    float *row = (float *)(void *)cpu_worker_scratch(run, worker);
    while (take_rows(run, index, rows, chunk_rows(width), &first, &last))
        for (int64_t i = first; i < last; i++) {
            run->kernels->rms_norm(x + i * width, weight, offset, width, step->epsilon, step->quantize ? row : out + i * width);
            if (step->quantize) quantize_row(run, &q8, i, row, width);
        }
}

void cpu_step_quantize(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    const setun_slot *slot = &run->plan->slots[step->input[0]];
    int64_t width = setun_slot_width(slot), rows = setun_slot_rows(slot, run->tokens, run->outputs), first, last = 0;
    const float *x = setun_frame_slot(run->frame, step->input[0]);
    cpu_q8 q8 = cpu_q8_made(run, index, worker);
    while (take_rows(run, index, rows, chunk_rows(width), &first, &last))
        for (int64_t i = first; i < last; i++) quantize_row(run, &q8, i, x + i * width, width);
}

void cpu_step_unary(cpu_run *run, int index, int worker)
{
    (void)worker;
    const setun_step *step = &run->plan->steps[index];
    const float *x = setun_frame_slot(run->frame, step->input[0]);
    float *out = setun_frame_slot(run->frame, step->output[0]);
    int64_t count = cpu_elements(&run->plan->slots[step->output[0]], run->tokens, run->outputs), first, last = 0;
    while (take_rows(run, index, count, CHUNK_ELEMENTS, &first, &last)) {
        int64_t n = last - first;
        switch (step->activation) {
        case SETUN_OP_SILU: run->kernels->silu(x + first, n, out + first); break;
        case SETUN_OP_RELU2: run->kernels->relu2(x + first, n, out + first); break;
        case SETUN_OP_GELU: run->kernels->gelu(x + first, n, out + first); break;
        default: run->kernels->scale(x + first, step->factor, n, out + first); break;
        }
    }
}

void cpu_step_binary(cpu_run *run, int index, int worker)
{
    (void)worker;
    const setun_step *step = &run->plan->steps[index];
    const float *a = setun_frame_slot(run->frame, step->input[0]), *b = setun_frame_slot(run->frame, step->input[1]);
    float *out = setun_frame_slot(run->frame, step->output[0]);
    int64_t count = cpu_elements(&run->plan->slots[step->output[0]], run->tokens, run->outputs), first, last = 0;
    while (take_rows(run, index, count, CHUNK_ELEMENTS, &first, &last)) {
        if (step->activation == SETUN_OP_ADD) run->kernels->add(a + first, b + first, last - first, out + first);
        else run->kernels->multiply(a + first, b + first, last - first, out + first);
    }
}

/* One row at a time: what softmax, l2_normalize and hadamard share. */
typedef void (*row_fn)(const cpu_run *run, const setun_step *step, const float *x, int64_t width, float *out);

static void each_row(const cpu_run *run, int index, row_fn fn)
{
    const setun_step *step = &run->plan->steps[index];
    const setun_slot *slot = &run->plan->slots[step->input[0]];
    /* A [T] vector is one row of T: the symbolic dimension is then the width. */
    int64_t width = setun_dim_value(setun_slot_width(slot), run->tokens, run->outputs), rows = setun_slot_rows(slot, run->tokens, run->outputs), first, last = 0;
    if (width < 1) return;
    const float *x = setun_frame_slot(run->frame, step->input[0]);
    float *out = setun_frame_slot(run->frame, step->output[0]);
    while (take_rows(run, index, rows, chunk_rows(width), &first, &last))
        for (int64_t i = first; i < last; i++) fn(run, step, x + i * width, width, out + i * width);
}

static void softmax_row(const cpu_run *run, const setun_step *step, const float *x, int64_t width, float *out)
{
    (void)step;
    run->kernels->softmax(x, width, out);
}

static void l2_row(const cpu_run *run, const setun_step *step, const float *x, int64_t width, float *out)
{
    (void)step;
    run->kernels->l2_normalize(x, width, out);
}

/* y = H (s * x) per block; inverse: y = s * (H x). H is its own inverse, and s is +1 or -1. */
static void hadamard_row(const cpu_run *run, const setun_step *step, const float *x, int64_t width, float *out)
{
    bool signs = step->signs && step->sign_count == width;
    if (signs && !step->inverse) run->kernels->multiply(x, step->signs, width, out);
    else memcpy(out, x, (size_t)width * sizeof(float));
    for (int64_t i = 0; i + step->block <= width; i += step->block) run->kernels->hadamard(out + i, step->block);
    if (signs && step->inverse) run->kernels->multiply(out, step->signs, width, out);
}

void cpu_step_softmax(cpu_run *run, int index, int worker)
{
    (void)worker;
    each_row(run, index, softmax_row);
}

void cpu_step_l2(cpu_run *run, int index, int worker)
{
    (void)worker;
    each_row(run, index, l2_row);
}

void cpu_step_hadamard(cpu_run *run, int index, int worker)
{
    (void)worker;
    each_row(run, index, hadamard_row);
}

/* x [N, ..], rows i32 [O] -> [O, ..] */
void cpu_step_select(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    const setun_slot *slot = &run->plan->slots[step->input[0]];
    int64_t limit = setun_dim_value(slot->shape.dim[0], run->tokens, run->outputs), width = cpu_row_elements(slot), first, last = 0;
    int64_t count = cpu_elements(&run->plan->slots[step->input[1]], run->tokens, run->outputs);
    size_t bytes = (size_t)width * setun_dtype_bytes(slot->dtype);
    const uint8_t *x = setun_frame_slot(run->frame, step->input[0]);
    const int32_t *rows = setun_frame_slot(run->frame, step->input[1]);
    uint8_t *out = setun_frame_slot(run->frame, step->output[0]);
    check_indices(run, index, worker, rows, count, limit, "row");
    while (take_rows(run, index, count, chunk_rows(width), &first, &last))
        for (int64_t i = first; i < last; i++) {
            if (rows[i] >= 0 && rows[i] < limit) memcpy(out + (size_t)i * bytes, x + (size_t)rows[i] * bytes, bytes);
            else memset(out + (size_t)i * bytes, 0, bytes);
        }
}
