/*
 * prepare_ternary.c - brings a ternary weight into the form the kernels read: used where it lies, or packed in memory at two bits or as
 * trits, by all threads. Caller: prepare.c, once a weight, under the model's lock. Knows formats and packings, and nothing of steps.
 */
#include "backend/cpu/cpu.h"

/* Rows decoded at once by a worker: whole triples. */
enum { PACK_ROWS = 12, PACK_GRAIN = 4 * PACK_ROWS };

typedef struct pack_job {
    const setun_kernels *kernels;
    const setun_weight *weight;
    const setun_ternary_info *info;
    setun_packing packing;
    bool rows_2bit;             /* the weight's own rows are SETUN_PACKED_2BIT */
    bool triples;               /* the weight itself is SETUN_PACKED_TRITS */
    uint8_t *packed;
    int64_t unit_bytes;         /* of a row, of a triple */
    float *scales;              /* NULL: one scale for the tensor */
    int64_t scales_per_row;
    uint8_t *buffer;            /* [workers][PACK_ROWS] rows of codes, then of 2 bits */
    size_t buffer_bytes;        /* of one worker */
    atomic_int status;
} pack_job;

/* 2-bit rows (whole triples but at the weight's end) become what is wanted. False: a code 3. */
static bool put_rows(const pack_job *job, const uint8_t *rows_2bit, int64_t row_bytes, int64_t row, int64_t rows)
{
    if (job->packing == SETUN_PACKING_2BIT) {
        memcpy(job->packed + row * job->unit_bytes, rows_2bit, (size_t)(rows * row_bytes));
        return !job->weight->unchecked || !setun_has_code3(rows_2bit, (size_t)(rows * row_bytes));
    }
    return job->kernels->trits_pack(rows_2bit, (size_t)row_bytes, (int)rows, job->weight->columns, job->packed + row / 3 * job->unit_bytes, (size_t)job->unit_bytes);
}

/* Triples of a file: as they are, or as 2-bit rows. Their fields have been checked. */
static void put_triples(const pack_job *job, int64_t first, int64_t last)
{
    const setun_weight *w = job->weight;
    const int64_t triple_bytes = setun_trits_triple_bytes(w->columns);
    for (int64_t row = first; row < last; row += 3) {
        const uint8_t *triple = w->data + row / 3 * triple_bytes;
        uint8_t *to = job->packed + (job->packing == SETUN_PACKING_TRITS ? row / 3 : row) * job->unit_bytes;
        if (job->packing == SETUN_PACKING_TRITS) memcpy(to, triple, (size_t)triple_bytes);
        else
            (void)setun_unpack_trits(triple, w->columns, 0, setun_trits_blocks(w->columns), to, row + 1 < w->rows ? to + job->unit_bytes : NULL, row + 2 < w->rows ? to + 2 * job->unit_bytes : NULL);
    }
    for (int64_t row = first; row < last && job->scales; row++) job->scales[row] = setun_load_f32(w->data + setun_trits_triples(w->rows) * triple_bytes + 4 * row);
}

static void pack_rows(void *argument, int64_t first, int64_t last, int worker)
{
    pack_job *job = argument;
    const setun_weight *w = job->weight;
    const int64_t columns = w->columns, row_bytes = setun_packed_row_bytes(columns);
    if (job->rows_2bit) {
        if (!put_rows(job, w->data + first * row_bytes, row_bytes, first, last - first)) atomic_store(&job->status, (int)SETUN_ERROR_FORMAT);
        return;
    }
    if (job->triples) {
        put_triples(job, first, last);
        return;
    }
    uint8_t *codes = job->buffer + (size_t)worker * job->buffer_bytes, *packed = codes + PACK_ROWS * columns;
    for (int64_t row = first; row < last; row += PACK_ROWS) {
        const int64_t rows = last - row < PACK_ROWS ? last - row : PACK_ROWS;
        setun_status status = setun_ternary_decode(w, job->info, row, rows, codes, job->scales ? job->scales + row * job->scales_per_row : NULL);
        if (status == SETUN_OK) {
            uint8_t *to = job->packing == SETUN_PACKING_2BIT ? job->packed + row * job->unit_bytes : packed;
            for (int64_t r = 0; r < rows; r++) setun_pack_row(codes + r * columns, columns, to + r * row_bytes);
            if (to == packed && !put_rows(job, packed, row_bytes, row, rows)) status = SETUN_ERROR_FORMAT;
        }
        if (status != SETUN_OK) {
            atomic_store(&job->status, (int)status);
            return;
        }
    }
}

/* Where the weight's bytes come to lie and how; `*in_place`: they stay where they are. */
static setun_status decide(setun_plan *plan, cpu_tape *tape, setun_model *model, const setun_weight *w, const setun_ternary_info *info, bool quantized, setun_prepared *p, bool *in_place)
{
    const setun_weights_policy policy = model ? model->weights_policy : SETUN_WEIGHTS_AUTO;
    const bool rows_2bit = w->format == SETUN_FORMAT_I2_S && !w->absmean && w->columns % 128 == 0 && info->scale == SETUN_SCALE_TENSOR;
    p->packing = SETUN_PACKING_2BIT;
    *in_place = false;
    if (w->format == SETUN_FORMAT_TRITS && quantized) {
        SETUN_TRY(cpu_choose_packing(plan->context, CPU_PACKED_ALREADY, NULL, 0, &p->packing));
        *in_place = p->packing == SETUN_PACKING_TRITS && policy != SETUN_WEIGHTS_PACK && (uintptr_t)w->data % 4 == 0;
        p->reason = *in_place ? "packed in the file" : p->packing == SETUN_PACKING_TRITS ? "packed in the file, into huge pages" : "measured: two bits are read much faster here";
        return SETUN_OK;
    }
    if (rows_2bit && policy == SETUN_WEIGHTS_AUTO && quantized && cpu_may_wait(tape, model, w)) {
        *in_place = p->later = p->waiting = tape->later = true;
        p->reason = "the first run reads the file's rows, the second packs them";
    } else if (rows_2bit && policy == SETUN_WEIGHTS_MAP) {
        *in_place = true;
        p->reason = "as asked for";
    } else if (rows_2bit && policy == SETUN_WEIGHTS_AUTO && !(w->mapped && setun_huge_pages_available())) {
        *in_place = true;
        p->reason = w->mapped ? "no huge pages here to read faster from" : "kernels read the file's layout";
    } else if (!quantized) p->reason = "float inputs";
    else if (info->scale == SETUN_SCALE_GROUP) p->reason = "a scale a group";
    else {
        SETUN_TRY(cpu_choose_packing(plan->context, tape->ternary_bytes, NULL, 0, &p->packing));
        p->reason = p->packing == SETUN_PACKING_TRITS ? "measured: trits are read faster here" : "measured: two bits are read faster here";
    }
    return SETUN_OK;
}

setun_status cpu_pack_rows(setun_context *context, const setun_weight *w, setun_packing packing, uint8_t *to)
{
    pack_job job = {.kernels = context->kernels, .weight = w, .packing = packing, .packed = to, .rows_2bit = true, .unit_bytes = packing == SETUN_PACKING_TRITS ? setun_trits_triple_bytes(w->columns) : setun_packed_row_bytes(w->columns)};
    atomic_init(&job.status, SETUN_OK);
    setun_pool_for(context->pool, w->rows, PACK_GRAIN, pack_rows, &job);
    return (setun_status)atomic_load(&job.status);
}

static setun_status pack(setun_plan *plan, cpu_tape *tape, const setun_weight *w, const setun_ternary_info *info, setun_prepared *p)
{
    uint64_t bytes, buffer;
    const int64_t units = p->packing == SETUN_PACKING_TRITS ? setun_trits_triples(w->rows) : w->rows;
    const int64_t per_row = info->scale == SETUN_SCALE_ROW ? 1 : info->scale == SETUN_SCALE_GROUP ? (w->columns + info->group_size - 1) / info->group_size : 0;
    const uint64_t workers = (uint64_t)setun_pool_size(plan->context->pool), row_buffer = (uint64_t)w->columns + (uint64_t)setun_packed_row_bytes(w->columns);
    if (!setun_mul_ok((uint64_t)units, (uint64_t)p->row_bytes, &bytes) || !setun_mul_ok(workers * PACK_ROWS, row_buffer, &buffer) || bytes > SIZE_MAX / 8 || buffer > SIZE_MAX / 2)
        return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s': shape [%lld, %lld] is impossible", w->name, (long long)w->rows, (long long)w->columns);
    SETUN_TRY(cpu_weight_memory(tape, bytes, p));
    p->bytes = bytes;
    if (per_row) {
        uint64_t scale_bytes = (uint64_t)w->rows * (uint64_t)per_row * sizeof(float); /* fewer than the weights, which fit */
        p->owned_scales = setun_alloc_aligned((size_t)scale_bytes + 64, 64);
        if (!p->owned_scales) return setun_fail_memory((size_t)scale_bytes);
        p->scales = p->owned_scales;
        p->bytes += scale_bytes;
    }
    pack_job job = {.kernels = plan->context->kernels, .weight = w, .info = info, .packing = p->packing, .packed = p->slab ? p->in_slab : p->owned, .unit_bytes = p->row_bytes, .scales = p->owned_scales, .scales_per_row = per_row,
                    .triples = w->format == SETUN_FORMAT_TRITS, .rows_2bit = w->format == SETUN_FORMAT_I2_S && !w->absmean && w->columns % 128 == 0, .buffer_bytes = (size_t)(PACK_ROWS * row_buffer)};
    atomic_init(&job.status, SETUN_OK);
    if (!job.rows_2bit && !job.triples) {
        job.buffer = setun_alloc((size_t)buffer);
        if (!job.buffer) return setun_fail_memory((size_t)buffer);
    }
    setun_pool_for(plan->context->pool, w->rows, PACK_GRAIN, pack_rows, &job);
    setun_free(job.buffer);
    setun_status status = (setun_status)atomic_load(&job.status);
    /* The message of a worker stays in its thread, so it is said again here. */
    if (status != SETUN_OK) return setun_fail(status, "tensor '%s' (%s): its ternary codes could not be read; the file may have changed", w->name, setun_format_name(w->format));
    p->data = job.packed;
    p->origin = (job.rows_2bit && p->packing == SETUN_PACKING_2BIT) || (job.triples && p->packing == SETUN_PACKING_TRITS) ? SETUN_ORIGIN_COPIED : SETUN_ORIGIN_PACKED;
    return SETUN_OK;
}

/* Weights that were to be checked by the first run, and are used otherwise. */
typedef struct check_job { const setun_kernels *kernels; const setun_weight *weight; atomic_bool broken; } check_job;

static void check_rows(void *argument, int64_t first, int64_t last, int worker)
{
    check_job *job = argument;
    (void)worker;
    const setun_weight *w = job->weight;
    const int64_t row_bytes = setun_packed_row_bytes(w->columns), triple_bytes = setun_trits_triple_bytes(w->columns);
    const bool right = w->format == SETUN_FORMAT_TRITS ? job->kernels->trits_valid(w->data + first / 3 * triple_bytes, (size_t)triple_bytes, (int)(last - first), w->columns)
                                                       : !setun_has_code3(w->data + first * row_bytes, (size_t)((last - first) * row_bytes));
    if (!right) atomic_store(&job->broken, true);
}

setun_status cpu_check_codes(setun_context *context, const setun_weight *w)
{
    setun_ternary_info info;
    check_job job = {.kernels = context->kernels, .weight = w};
    atomic_init(&job.broken, w->format != SETUN_FORMAT_TRITS && w->columns % 128 != 0);
    if (!atomic_load(&job.broken)) setun_pool_for(context->pool, w->rows, 480, check_rows, &job); /* whole triples */
    return atomic_load(&job.broken) ? setun_ternary_probe_quick(w, &info) : SETUN_OK; /* which says where */
}

setun_status cpu_prepare_ternary(setun_plan *plan, cpu_tape *tape, setun_model *model, const setun_weight *w, bool quantized, setun_prepared *p)
{
    setun_ternary_info probed;
    const setun_ternary_info *info = &w->info;
    if (!w->probed) {
        SETUN_TRY(setun_ternary_probe(w, &probed));
        info = &probed;
    }
    if (!info->ternary) return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s' (%s) holds values that are not scale x {-1, 0, +1}", w->name, setun_format_name(w->format));
    bool in_place;
    SETUN_TRY(decide(plan, tape, model, w, info, quantized, p, &in_place));
    const bool by_run = p->later || (in_place && p->packing == SETUN_PACKING_TRITS);
    if (w->unchecked && !by_run) SETUN_TRY(cpu_check_codes(plan->context, w));
    p->ternary = true;
    p->format = w->format;
    p->rows = w->rows;
    p->columns = w->columns;
    p->scale_kind = info->scale;
    p->group_size = info->scale == SETUN_SCALE_GROUP ? info->group_size : 0;
    p->tensor_scale = info->scale == SETUN_SCALE_TENSOR ? info->tensor_scale : 1.0f;
    p->row_bytes = p->packing == SETUN_PACKING_TRITS ? setun_trits_triple_bytes(w->columns) : setun_packed_row_bytes(w->columns);
    if (in_place) {
        p->data = w->data;
        p->origin = SETUN_ORIGIN_MAPPED;
        p->weight = w;
        atomic_init(&p->unchecked, w->unchecked && by_run);
        if (p->later) {
            p->file = model->file;
            return cpu_later_memory(tape, (uint64_t)w->rows * (uint64_t)p->row_bytes, p); /* of bytes that the file has */
        }
        if (p->packing == SETUN_PACKING_TRITS && info->scale == SETUN_SCALE_ROW)
            p->scales = (const float *)(const void *)(w->data + setun_trits_triples(w->rows) * p->row_bytes); /* 4-byte aligned, as the data is */
        return SETUN_OK;
    }
    SETUN_TRY(pack(plan, tape, w, info, p));
    if (model && w->mapped) setun_file_drop(model->file, w->data, w->bytes); /* read once, wanted no more */
    return SETUN_OK;
}
