/*
 * lower_weights.c - weights as arrays of a device: views of the mapped file where its layout is the kernels', else of rows packed or
 * converted once in memory; and the arrays of a KV cache. A weight is prepared once for its model (setun_weight.prepared).
 * Caller: lower.c in prepare, lower_steps.c for caches. Knows formats and layouts; refuses to know steps.
 */
#include "backend/mlx/lower.h"

enum { PAGE = 16384, PACK_ROWS = 16 }; /* the largest page of the machines that share memory with their GPU */

void mlx_release_weight(void *prepared)
{
    mlx_weight *w = prepared;
    if (!w) return;
    w->table->array_release(w->values);
    w->table->array_release(w->scales);
    setun_free_aligned(w->host.owned);
    setun_free_aligned(w->host.owned_scales);
    setun_free(w);
}

/* Memory as an array: a view of it where the device shares memory, else a copy on the device. */
static setun_status array_of(mlx_executor *e, const void *memory, uint64_t bytes, const setun_mlx_spec *spec, const char *name, setun_mlx_array **out, bool *shared)
{
    uintptr_t first = (uintptr_t)memory, begin = first, end = first + bytes;
    *shared = false;
    bool aligned = first % setun_dtype_bytes(spec->dtype) == 0;
    if (e->mlx->device.shares_memory && aligned) {
        if (e->mlx->device.backend == SETUN_MLX_METAL) { /* whole pages, which a map and our own blocks are made of */
            begin = first / PAGE * PAGE;
            end = (end + PAGE - 1) / PAGE * PAGE;
        }
        setun_mlx_region *region = NULL;
        setun_status status = e->table->region_create(e->stream, (void *)begin, end - begin, NULL, NULL, &region);
        if (status == SETUN_OK) {
            status = e->table->array_wrap(region, first - begin, spec, NULL, out, shared);
            e->table->region_release(region);
            if (status == SETUN_OK) return SETUN_OK;
        }
        setun_log(e->mlx->context, SETUN_LOG_WARNING, "%s: '%s' is copied, because its memory could not be shared: %s", e->mlx->id, name, e->table->error());
    }
    return setun_mlx_check(e->table, e->table->array_from_host(e->stream, spec, memory, out), name);
}

static setun_status fail_shape(const setun_weight *w)
{
    return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s': shape [%lld, %lld] is impossible", w->name, (long long)w->rows, (long long)w->columns);
}

/* Own memory in whole pages. */
static setun_status own(void **out, uint64_t bytes)
{
    uint64_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
    *out = setun_alloc_aligned((size_t)whole, PAGE);
    return *out ? SETUN_OK : setun_fail_memory((size_t)whole);
}

typedef struct pack_job {
    const setun_weight *weight;
    const setun_ternary_info *info;
    uint8_t *packed, *codes;    /* codes: [workers][PACK_ROWS * columns] */
    float *scales;
    int64_t row_bytes, scales_per_row;
    atomic_int status;
} pack_job;

static void pack_rows(void *argument, int64_t first, int64_t last, int worker)
{
    pack_job *job = argument;
    int64_t columns = job->weight->columns;
    uint8_t *codes = job->codes + (size_t)worker * PACK_ROWS * (size_t)columns;
    for (int64_t row = first; row < last; row += PACK_ROWS) {
        int64_t rows = last - row < PACK_ROWS ? last - row : PACK_ROWS;
        setun_status status = setun_ternary_decode(job->weight, job->info, row, rows, codes, job->scales ? job->scales + row * job->scales_per_row : NULL);
        if (status != SETUN_OK) {
            atomic_store(&job->status, (int)status);
            return;
        }
        for (int64_t r = 0; r < rows; r++) setun_pack_row(codes + r * columns, columns, job->packed + (row + r) * job->row_bytes);
    }
}

static setun_status prepare_ternary(mlx_executor *e, const setun_weight *w, mlx_weight *m)
{
    setun_ternary_info probed;
    const setun_ternary_info *info = &w->info;
    if (!w->probed) {
        SETUN_TRY(setun_ternary_probe(w, &probed));
        info = &probed;
    } else if (w->unchecked) SETUN_TRY(setun_ternary_probe_quick(w, &probed));
    if (!info->ternary) return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s' (%s) holds values that are not scale x {-1, 0, +1}", w->name, setun_format_name(w->format));
    setun_prepared *p = &m->host;
    p->ternary = true;
    p->packing = SETUN_PACKING_2BIT;
    p->scale_kind = info->scale;
    p->group_size = info->scale == SETUN_SCALE_GROUP ? info->group_size : 0;
    p->tensor_scale = info->scale == SETUN_SCALE_TENSOR ? info->tensor_scale : 1.0f;
    p->row_bytes = setun_packed_row_bytes(w->columns);
    m->layout = "packed-2bit";
    uint64_t bytes, codes, scale_bytes = MLX_SMALLEST * sizeof(float);
    int64_t per_row = info->scale == SETUN_SCALE_ROW ? 1 : info->scale == SETUN_SCALE_GROUP ? (w->columns + info->group_size - 1) / info->group_size : 0;
    setun_pool *pool = e->mlx->context->pool;
    if (!setun_mul_ok((uint64_t)w->rows, (uint64_t)p->row_bytes, &bytes) || !setun_mul_ok((uint64_t)setun_pool_size(pool) * PACK_ROWS, (uint64_t)w->columns, &codes) || bytes > SIZE_MAX / 8 ||
        codes > SIZE_MAX / 2)
        return fail_shape(w);
    if (per_row) scale_bytes = (uint64_t)mlx_at_least(w->rows * per_row) * sizeof(float);
    SETUN_TRY(own(&p->owned_scales, scale_bytes));
    memset(p->owned_scales, 0, (size_t)scale_bytes);
    float *scales = p->owned_scales;
    p->scales = scales;
    p->bytes = scale_bytes;
    /* Kernels load words of codes: rows of the file must lie on a word. */
    bool in_place = w->format == SETUN_FORMAT_I2_S && !w->absmean && w->columns % 128 == 0 && info->scale == SETUN_SCALE_TENSOR && (uintptr_t)w->data % 16 == 0;
    if (!per_row) scales[0] = p->tensor_scale;
    if (in_place) {
        p->data = w->data;
        p->origin = SETUN_ORIGIN_MAPPED;
        p->reason = "rows as the kernels read them";
    } else {
        p->reason = w->format != SETUN_FORMAT_I2_S ? "kernels here read I2_S rows in place: setun convert --to i2_s"
                    : w->columns % 128         ? "rows of the file are no whole blocks of 128"
                    : info->scale != SETUN_SCALE_TENSOR ? "scales lie among the codes" : "rows do not lie on a border of 16 bytes";
        SETUN_TRY(own(&p->owned, bytes));
        p->data = p->owned;
        p->bytes += bytes;
        p->origin = SETUN_ORIGIN_PACKED;
        pack_job job = {.weight = w, .info = info, .packed = p->owned, .row_bytes = p->row_bytes, .scales = per_row ? scales : NULL, .scales_per_row = per_row};
        atomic_init(&job.status, SETUN_OK);
        job.codes = setun_alloc((size_t)codes);
        if (!job.codes) return setun_fail_memory((size_t)codes);
        setun_pool_for(pool, w->rows, PACK_ROWS * 4, pack_rows, &job);
        setun_free(job.codes);
        setun_status status = (setun_status)atomic_load(&job.status);
        if (status != SETUN_OK) return setun_fail(status, "tensor '%s' (%s): its ternary codes could not be read", w->name, setun_format_name(w->format));
    }
    setun_mlx_spec spec = mlx_spec2(SETUN_U8, w->rows, p->row_bytes), scale_spec = mlx_spec1(SETUN_F32, (int64_t)(scale_bytes / sizeof(float)));
    bool shared;
    SETUN_TRY(array_of(e, p->data, bytes, &spec, w->name, &m->values, &m->shared));
    return array_of(e, p->owned_scales, scale_bytes, &scale_spec, w->name, &m->scales, &shared);
}

static setun_status prepare_dense(mlx_executor *e, const setun_weight *w, mlx_weight *m)
{
    setun_prepared *p = &m->host;
    m->dtype = w->format == SETUN_FORMAT_F16 ? SETUN_F16 : w->format == SETUN_FORMAT_BF16 ? SETUN_BF16 : SETUN_F32;
    bool plain = !w->absmean && (w->format == SETUN_FORMAT_F32 || w->format == SETUN_FORMAT_F16 || w->format == SETUN_FORMAT_BF16);
    uint64_t count, bytes;
    if (!setun_mul_ok((uint64_t)w->rows, (uint64_t)w->columns, &count) || !setun_mul_ok(count, setun_dtype_bytes(m->dtype), &bytes) || bytes > SIZE_MAX / 8) return fail_shape(w);
    p->row_bytes = w->columns * (int64_t)setun_dtype_bytes(m->dtype);
    p->format = m->dtype == SETUN_F16 ? SETUN_FORMAT_F16 : m->dtype == SETUN_BF16 ? SETUN_FORMAT_BF16 : SETUN_FORMAT_F32;
    m->layout = setun_format_name(p->format);
    bool in_place = plain && (uintptr_t)w->data % setun_dtype_bytes(m->dtype) == 0 && count >= MLX_SMALLEST;
    if (in_place) {
        if (bytes > w->bytes) return setun_fail(SETUN_ERROR_FORMAT, "tensor '%s': %llu bytes are too few for its shape", w->name, (unsigned long long)w->bytes);
        p->data = w->data;
        p->origin = SETUN_ORIGIN_MAPPED;
        p->reason = "rows as the kernels read them";
    } else {
        p->reason = plain ? "too short, or not aligned" : "no kernel reads this format in place: f32 (setun convert --embedding f16)";
        /* what no kernel reads becomes f32, once; small vectors are padded */
        uint64_t room = (uint64_t)mlx_at_least((int64_t)count) * setun_dtype_bytes(SETUN_F32);
        m->dtype = SETUN_F32;
        p->format = SETUN_FORMAT_F32;
        m->layout = "f32";
        p->row_bytes = w->columns * 4;
        bytes = count * 4;
        SETUN_TRY(own(&p->owned, room));
        memset(p->owned, 0, (size_t)(room < MLX_SMALLEST * 4 ? room : MLX_SMALLEST * 4));
        SETUN_TRY(setun_weight_to_f32(w, 0, w->rows, p->owned));
        p->data = p->owned;
        p->bytes = room;
        p->origin = SETUN_ORIGIN_COPIED;
    }
    setun_mlx_spec spec = w->rows == 1 ? mlx_spec1(m->dtype, mlx_at_least(w->columns)) : mlx_spec2(m->dtype, w->rows, w->columns);
    return array_of(e, p->data, w->rows == 1 ? (uint64_t)mlx_at_least(w->columns) * setun_dtype_bytes(m->dtype) : bytes, &spec, w->name, &m->values, &m->shared);
}

/* A vector is f32 whatever the file has. */
static setun_status prepare_vector(mlx_executor *e, const setun_weight *w, mlx_weight *m)
{
    if (w->format == SETUN_FORMAT_F32) return prepare_dense(e, w, m);
    setun_prepared *p = &m->host;
    uint64_t room = (uint64_t)mlx_at_least(w->columns) * 4;
    SETUN_TRY(own(&p->owned, room));
    memset(p->owned, 0, (size_t)room);
    SETUN_TRY(setun_weight_to_f32(w, 0, 1, p->owned));
    m->dtype = SETUN_F32;
    m->layout = "f32";
    p->format = SETUN_FORMAT_F32;
    p->data = p->owned;
    p->row_bytes = w->columns * 4;
    p->bytes = room;
    p->origin = SETUN_ORIGIN_COPIED;
    setun_mlx_spec spec = mlx_spec1(SETUN_F32, mlx_at_least(w->columns));
    return array_of(e, p->data, room, &spec, w->name, &m->values, &m->shared);
}

static setun_status get_weight(mlx_executor *e, setun_plan *plan, setun_model *model, const setun_weight *weight, bool vector, bool rows_only, void **out, setun_weight_report *report)
{
    setun_weight *w = (setun_weight *)(uintptr_t)weight; /* `prepared` is the one mutable member; the lock guards it */
    if (model) pthread_mutex_lock(&model->lock);
    mlx_weight *m = w->prepared;
    setun_status status = SETUN_OK;
    if (m && m->mlx != e->mlx) status = setun_fail(SETUN_ERROR_STATE, "tensor '%s' is on another device; open the model once for each device", w->name);
    if (!m) {
        m = setun_calloc(1, sizeof *m);
        if (!m) status = setun_fail_memory(sizeof *m);
        else {
            m->table = e->table;
            m->mlx = e->mlx;
            m->host.rows = w->rows;
            m->host.columns = w->columns;
            status = vector ? prepare_vector(e, w, m) : setun_weight_is_ternary(w) && !rows_only ? prepare_ternary(e, w, m) : prepare_dense(e, w, m);
            if (status == SETUN_OK) {
                w->prepared = m;
                e->own_bytes += m->host.bytes;
                if (model) model->free_prepared = mlx_release_weight;
                if (plan->storage) setun_graph_storage_set_free(plan->storage, mlx_release_weight);
            } else mlx_release_weight(m);
        }
    }
    if (model) pthread_mutex_unlock(&model->lock);
    if (status != SETUN_OK) return status;
    *out = m;
    report->origin = m->host.origin == SETUN_ORIGIN_MAPPED && m->shared ? SETUN_WEIGHT_MAPPED : m->host.origin == SETUN_ORIGIN_PACKED ? SETUN_WEIGHT_PACKED : SETUN_WEIGHT_COPIED;
    report->bytes = (uint64_t)m->host.rows * (uint64_t)m->host.row_bytes;
    report->layout = m->layout;
    report->reason = m->host.origin == SETUN_ORIGIN_MAPPED && !m->shared ? "this device has memory of its own" : m->host.reason;
    return SETUN_OK;
}

/* Said once a model: later plans find its weights made. */
static void say_packed(const mlx_executor *e, uint64_t bytes)
{
    enum { WORTH_SAYING = 64 << 20 };
    if (bytes < WORTH_SAYING || !e->mlx->device.shares_memory) return;
    setun_log(e->mlx->context, SETUN_LOG_WARNING, "%s: %.0f MiB of weights are copied into memory in a layout that its kernels read: `setun explain` says which and why; a file written by `setun convert --to i2_s --embedding f16` is used where it is mapped",
              e->mlx->id, (double)bytes / (1024.0 * 1024.0));
}

setun_status mlx_prepare_weights(mlx_executor *e, setun_plan *plan)
{
    uint64_t made = e->own_bytes;
    for (int i = 0; i < plan->step_count; i++) {
        setun_step *s = &plan->steps[i];
        for (int j = 0; j < SETUN_STEP_WEIGHTS; j++) {
            bool matrix = s->kind == SETUN_STEP_LINEAR || s->kind == SETUN_STEP_EMBEDDING;
            if (s->weight[j]) SETUN_TRY(get_weight(e, plan, s->model, s->weight[j], !matrix, s->kind == SETUN_STEP_EMBEDDING, &s->prepared[j], &s->report[j]));
            if (s->bias[j]) SETUN_TRY(get_weight(e, plan, s->model, s->bias[j], true, false, &s->prepared_bias[j], &s->bias_report[j]));
        }
    }
    say_packed(e, e->own_bytes - made);
    return SETUN_OK;
}

/* ---- caches ---- */

typedef struct cache_arrays {
    const setun_mlx_table *table;
    const setun_mlx *mlx;
    int layers;
    setun_mlx_array *array[]; /* [2 * layers]: keys, values */
} cache_arrays;

static void free_cache_arrays(void *device)
{
    cache_arrays *c = device;
    for (int i = 0; i < 2 * c->layers; i++) c->table->array_release(c->array[i]);
    setun_free(c);
}

setun_status mlx_cache_arrays(mlx_run *run, setun_kv_cache *cache, int layer, setun_mlx_array **out_k, setun_mlx_array **out_v)
{
    if (run->traced_caches) { /* MLX's stand-ins for them */
        int at = 0;
        for (int i = 0; i < run->index; i++) at += run->plan->steps[i].kind == SETUN_STEP_ATTENTION && run->plan->steps[i].attention.cache_layer ? 2 : 0;
        if (at + 1 >= run->traced_count) return setun_fail(SETUN_ERROR_STATE, "step %d: a trace without its cache", run->index);
        *out_k = run->traced_caches[at];
        *out_v = run->traced_caches[at + 1];
        return SETUN_OK;
    }
    if (cache->device && cache->device_free != free_cache_arrays)
        return setun_fail(SETUN_ERROR_STATE, "the KV cache was filled by the CUDA kernels, which do not take this run (positions that are not places, or a cache of another type beside it); begin the text again");
    cache_arrays *c = cache->device;
    if (c && c->mlx != run->executor->mlx) return setun_fail(SETUN_ERROR_STATE, "the KV cache is on another device");
    if (!c) {
        c = setun_calloc(1, sizeof *c + 2 * (size_t)cache->layers * sizeof c->array[0]);
        if (!c) return setun_fail_memory(sizeof *c);
        c->table = run->table;
        c->mlx = run->executor->mlx;
        c->layers = cache->layers;
        cache->device = c;
        cache->device_free = free_cache_arrays;
    }
    for (int which = 0; which < 2; which++) {
        setun_mlx_array **array = &c->array[2 * (layer - 1) + which];
        if (*array) continue;
        /* memory of the device's own, written in place by the kernels */
        setun_mlx_op_request request = {.op = SETUN_MLX_OP_FULL, .integers = (const int64_t[]){1, cache->kv_heads, cache->capacity, cache->head_size}, .integer_count = 4,
                                        .reals = (const double[]){0.0}, .real_count = 1, .dtype = cache->dtype};
        setun_mlx_array *full = NULL;
        SETUN_TRY(mlx_run_check(run, run->table->op(run->stream, &request, &full, 1), "KV cache"));
        setun_status status = mlx_op(run, SETUN_MLX_OP_COPY, &full, 1, NULL, 0, 0, array);
        run->table->array_release(full);
        SETUN_TRY(status);
        SETUN_TRY(mlx_run_check(run, run->table->eval(run->stream, array, 1, true), "KV cache"));
    }
    *out_k = c->array[2 * (layer - 1)];
    *out_v = c->array[2 * (layer - 1) + 1];
    return SETUN_OK;
}
