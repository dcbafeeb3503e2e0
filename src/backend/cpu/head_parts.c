/*
 * head_parts.c - a large vocabulary projection is copied (shortlist.h) while it is used: opening a model copies nothing, and each run that picks a token
 * computes the rows that have no copy yet exactly, from where they lie, and copies a part of them in passing, as they are in the cache then.
 * Results don't change: an exact row is what the copy would have led to. Callers: execute.c around a run, steps_head.c and prepare_head.c for rows.
 * Knows rows and planes; knows no scores and no bounds.
 */
#include "backend/cpu/cpu.h"
#include "backend/cpu/shortlist.h"
#include <sched.h>

static atomic_int forced_parts;
void cpu_force_head_parts(int parts) { atomic_store(&forced_parts, parts); }

/* ---- rows ---- */

const uint8_t *cpu_head_rows(const cpu_shortlist *s, const setun_weight *weight, int64_t row, int count, size_t row_bytes, bool copy, uint8_t *buffer)
{
    const uint8_t *at = weight->data + row * (int64_t)row_bytes;
    return copy && setun_file_copy(s->file, at, (size_t)count * row_bytes, buffer) ? buffer : at;
}

bool cpu_head_row_f32(const setun_kernels *kernels, const cpu_shortlist *s, const setun_weight *weight, const uint8_t *rows, int64_t row, int index, float *values)
{
    memset(values + s->columns, 0, (size_t)(s->padded - s->columns) * sizeof *values);
    if (weight->format == SETUN_FORMAT_F16 && (uintptr_t)rows % sizeof(uint16_t) == 0) {
        kernels->f16_to_f32((const uint16_t *)(const void *)rows + index * s->columns, s->columns, values);
        return true;
    }
    uint64_t row_bytes;
    if (weight->format == SETUN_FORMAT_MLX_2BIT || setun_format_size(weight->format, 1, weight->columns, &row_bytes) != SETUN_OK)
        return setun_weight_to_f32(weight, row + index, 1, values) == SETUN_OK; /* more than one tensor */
    setun_weight piece = *weight;
    piece.data = rows + (uint64_t)index * row_bytes;
    piece.rows = 1;
    piece.bytes = row_bytes;
    return setun_weight_to_f32(&piece, 0, 1, values) == SETUN_OK;
}

void cpu_shortlist_put(const setun_kernels *kernels, cpu_shortlist *s, int64_t row, const float *values, bool high, bool low, uint8_t *spare)
{
    float numbers[7];
    /* One kernel makes everything; what is there already may be read by others now, and is the same. */
    const int64_t plane = s->padded / 4;
    uint8_t *first = high ? s->first + row * plane : spare, *second = high ? s->second + row * plane : spare + plane, *spare_bits = spare + s->padded / 2;
    uint8_t *fifth = low ? s->low + (size_t)row * s->bit_bytes : spare_bits, *sixth = low ? fifth + (size_t)s->rows * s->bit_bytes : spare_bits + s->bit_bytes;
    kernels->shortlist_pack(values, s->columns, s->padded, first, second, fifth, sixth, high ? s->scales + (size_t)row * s->scale_stride : spare_bits + 2 * s->bit_bytes, numbers);
    if (!high) return;
    s->unit[row] = numbers[0];
    s->error4[row] = numbers[1];
    s->error5[row] = numbers[2];
    s->error6[row] = numbers[3];
    s->norm[row] = numbers[4];
    s->unit2[row] = numbers[5];
    s->error2[row] = numbers[6];
}

/* ---- part by part ---- */

static int64_t rows_there(const cpu_shortlist *s, bool coarse) { return (int64_t)atomic_load_explicit(coarse ? &s->high_rows : &s->low_rows, memory_order_acquire); }

/* Rows below `end` are there now; who makes them is the only one who moves these. */
static void advance(cpu_shortlist *s, bool coarse, int64_t end)
{
    if (end > atomic_load(&s->high_rows)) atomic_store(&s->high_rows, end);
    if (!coarse) atomic_store(&s->low_rows, end);
}

static cpu_shortlist *shortlist_of(const setun_plan *plan) { return ((const setun_prepared *)plan->steps[plan->head.step].prepared[0])->shortlist; }

void cpu_head_begin(cpu_run *run)
{
    const setun_plan *plan = run->plan;
    run->head_rows = run->head_end = run->head_high_rows = 0;
    run->head_makes = false;
    atomic_init(&run->head_done, false);
    const setun_head_request *r = &run->frame->head;
    if (plan->head.bits == 0 || r->top < 1 || r->top > CPU_HEAD_TOP_MAX || r->row_count > CPU_HEAD_EXTRA_MAX || run->outputs < 1) return;
    cpu_shortlist *s = shortlist_of(plan);
    const bool coarse = plan->head.bits == 4;
    run->head_rows = run->head_end = rows_there(s, coarse);
    if (run->head_rows == s->rows || atomic_exchange(&s->making, true)) return;
    run->head_rows = rows_there(s, coarse); /* another run may have ended meanwhile */
    const int forced = atomic_load(&forced_parts), parts = forced > 0 ? forced : CPU_HEAD_PARTS;
    const int64_t part = ((s->rows + parts - 1) / parts + CPU_HEAD_CHUNK - 1) / CPU_HEAD_CHUNK * CPU_HEAD_CHUNK, end = run->head_rows + (s->asked ? part : 0);
    run->head_end = end < s->rows ? end : s->rows;
    run->head_high_rows = rows_there(s, true);
    run->head_makes = true;
}

void cpu_head_end(cpu_run *run)
{
    if (!run->head_makes) return;
    cpu_shortlist *s = shortlist_of(run->plan);
    if (atomic_load(&run->head_done)) { /* else it was stopped, or the exact product was made */
        s->asked = true;
        advance(s, run->plan->head.bits == 4, run->head_end);
    }
    atomic_store(&s->making, false);
}

/* ---- all at once ---- */

typedef struct job {
    const setun_kernels *kernels;
    const setun_weight *weight;
    cpu_shortlist *s;
    bool coarse, copy;
    size_t row_bytes;           /* 0: not one run of bytes a row */
    int64_t first, high_rows;   /* where to begin; rows below have everything but the low plane */
    uint8_t *memory;            /* [workers] rows, values, spare */
    size_t worker_bytes;
    atomic_bool failed;
} job;

static size_t buffer_bytes(size_t row_bytes) { return (size_t)cpu_align(CPU_HEAD_READ_ROWS * (uint64_t)row_bytes); }

static void make_rows(void *argument, int64_t first, int64_t last, int worker)
{
    job *j = argument;
    const cpu_shortlist *s = j->s;
    uint8_t *buffer = j->memory + (size_t)worker * j->worker_bytes, *spare = buffer + buffer_bytes(j->row_bytes) + (size_t)s->padded * sizeof(float);
    float *values = (float *)(void *)(buffer + buffer_bytes(j->row_bytes));
    for (int64_t row = j->first + first; row < j->first + last; row += CPU_HEAD_READ_ROWS) {
        const int count = j->first + last - row < CPU_HEAD_READ_ROWS ? (int)(j->first + last - row) : CPU_HEAD_READ_ROWS;
        const uint8_t *rows = cpu_head_rows(s, j->weight, row, count, j->row_bytes, j->copy, buffer);
        for (int i = 0; i < count; i++) {
            if (!cpu_head_row_f32(j->kernels, s, j->weight, rows, row, i, values)) {
                atomic_store(&j->failed, true);
                return;
            }
            cpu_shortlist_put(j->kernels, j->s, row + i, values, row + i >= j->high_rows, !j->coarse, spare);
        }
    }
}

setun_status cpu_shortlist_finish(const setun_context *context, const setun_weight *weight, bool coarse, cpu_shortlist *s)
{
    if (rows_there(s, coarse) == s->rows) return SETUN_OK;
    const int workers = setun_pool_size(context->pool);
    uint64_t row_bytes = 0;
    if (weight->format == SETUN_FORMAT_MLX_2BIT || setun_format_size(weight->format, 1, weight->columns, &row_bytes) != SETUN_OK) row_bytes = 0;
    job j = {.kernels = context->kernels, .weight = weight, .s = s, .coarse = coarse, .copy = s->file && row_bytes > 0, .row_bytes = (size_t)row_bytes};
    j.worker_bytes = (size_t)cpu_align(buffer_bytes(j.row_bytes) + (uint64_t)s->padded / 2 * 9 + 9 * s->scale_stride);
    j.memory = setun_alloc_aligned((size_t)workers * j.worker_bytes, 64);
    if (!j.memory) return setun_fail_memory((size_t)workers * j.worker_bytes);
    while (atomic_exchange(&s->making, true)) sched_yield(); /* a run's worth of time */
    j.first = rows_there(s, coarse);
    j.high_rows = rows_there(s, true);
    atomic_init(&j.failed, false);
    setun_pool_for(context->pool, s->rows - j.first, 4 * CPU_HEAD_READ_ROWS, make_rows, &j);
    if (!atomic_load(&j.failed)) advance(s, coarse, s->rows);
    atomic_store(&s->making, false);
    setun_free_aligned(j.memory);
    /* The message of a worker stays in its thread, so it is said again here. */
    return atomic_load(&j.failed) ? setun_fail(SETUN_ERROR_FORMAT, "tensor '%s' (%s): its rows could not be read", weight->name, setun_format_name(weight->format)) : SETUN_OK;
}

bool cpu_head_is_large(const setun_weight *weight) { return weight->bytes > CPU_HEAD_RESIDENT_BYTES || atomic_load(&forced_parts) > 0; }

setun_status setun_head_finish(const setun_plan *plan)
{
    if (plan->backend != setun_backend_cpu() || plan->head.bits == 0) return SETUN_OK;
    return cpu_shortlist_finish(plan->context, plan->steps[plan->head.step].weight[0], plan->head.bits == 4, shortlist_of(plan));
}

int64_t setun_head_rows_copied(const setun_plan *plan)
{
    return plan->backend != setun_backend_cpu() || plan->head.bits == 0 ? 0 : rows_there(shortlist_of(plan), plan->head.bits == 4);
}
