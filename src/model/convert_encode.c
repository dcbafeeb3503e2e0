/*
 * convert_encode.c - one tensor from any format to any other, in slabs of rows, on all threads. Caller: convert.c.
 * Knows rows and formats; which format a tensor gets, and what it is called, was decided before.
 */
#include "model/convert.h"
#include "base/thread.h"
#include <math.h>

#define SLAB_BYTES (16 << 20)  /* of f32 values: what is in memory at once, apart from formats that are one block */
#define CHUNK_WEIGHTS (1 << 16) /* a piece of work for a thread */

/* Where row (or element) r of the output lies in the input. */
static int64_t source_row(const setun_convert_item *item, int64_t r) {
    if (!item->rotary) return r;
    const int64_t head = r / item->head_size * item->head_size, j = r % item->head_size, half = item->rotary / 2;
    if (j >= item->rotary) return r;
    return head + (item->interleave ? j / 2 + j % 2 * half : j % half * 2 + j / half);
}

typedef struct work {
    setun_convert_item *item;
    int64_t row0, rows, chunk;  /* the slab, rows a chunk */
    uint8_t *out;               /* the slab's bytes; or all codes where whole */
    uint64_t row_bytes;
    float *scales;              /* whole: of all rows, per_row each */
    int64_t per_row;
    bool whole;
    pthread_mutex_t lock;
    setun_status status;
    char message[512];
    bool exact;
    double max_error;
} work;

static int64_t scales_per_row(const setun_convert_item *item) {
    return item->info.scale == SETUN_SCALE_GROUP ? item->weight.columns / item->info.group_size : 1;
}

/* Codes and scales of output rows row .. row+rows-1. */
static setun_status read_codes(const setun_convert_item *item, int64_t row, int64_t rows, uint8_t *codes, float *scales, int64_t per_row) {
    if (!item->rotary) return setun_ternary_decode(&item->weight, &item->info, row, rows, codes, scales);
    for (int64_t r = 0; r < rows; r++)
        SETUN_TRY(setun_ternary_decode(&item->weight, &item->info, source_row(item, row + r), 1, codes + r * item->weight.columns, scales ? scales + r * per_row : NULL));
    return SETUN_OK;
}

static setun_status read_values(const setun_convert_item *item, int64_t row, int64_t rows, float *values) {
    const int64_t columns = item->weight.columns;
    if (item->weight.rows == 1 && item->rotary) { /* a vector: its elements are the rows of the matrix it goes with */
        float *plain = setun_alloc((size_t)columns * sizeof *plain);
        if (!plain) return setun_fail_memory((size_t)columns * sizeof *plain);
        setun_status status = setun_weight_to_f32(&item->weight, 0, 1, plain);
        for (int64_t i = 0; i < columns && status == SETUN_OK; i++) values[i] = plain[source_row(item, i)];
        setun_free(plain);
        SETUN_TRY(status);
    } else if (item->rotary) {
        for (int64_t r = 0; r < rows; r++) SETUN_TRY(setun_weight_to_f32(&item->weight, source_row(item, row + r), 1, values + r * columns));
    } else {
        SETUN_TRY(setun_weight_to_f32(&item->weight, row, rows, values));
    }
    if (item->add != 0)
        for (int64_t i = 0; i < rows * columns; i++) values[i] += item->add;
    return SETUN_OK;
}

/* Masters as the values that they are at load (setun_absmean's rule); returns how far one moved. */
static double make_ternary(float *values, int64_t count, float scale) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const float q = rintf(values[i] / scale), v = q > 0 ? scale : q < 0 ? -scale : 0;
        const double e = fabs((double)values[i] - (double)v);
        largest = e > largest ? e : largest;
        values[i] = v;
    }
    return largest;
}

/* A master that was made ternary: the difference to what it was. */
static double master_error(const float *values, const uint8_t *codes, int64_t count, float scale) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const double e = fabs((double)values[i] - (double)scale * (codes[i] - 1));
        largest = e > largest ? e : largest;
    }
    return largest;
}

static setun_status encode_chunk(work *k, int64_t first, int64_t rows, uint8_t *codes, float *scales, float *values, bool *exact, double *error) {
    setun_convert_item *item = k->item;
    const int64_t columns = item->weight.columns;
    double quantised = 0;
    *exact = true;
    *error = 0;
    if (item->how == SETUN_ITEM_VALUES) {
        SETUN_TRY(read_values(item, first, rows, values));
        if (item->weight.absmean) quantised = make_ternary(values, rows * columns, item->info.tensor_scale);
        SETUN_TRY(setun_format_encode_dense(item->to, item->source, rows, columns, values, k->out + (uint64_t)(first - k->row0) * k->row_bytes, exact, error));
        for (int64_t i = 0; item->add < 0 && i < columns; i++) { /* a norm stored as 1 + w: does w give it back? */
            const float stored = setun_load_f32(item->weight.data + 4 * i), back = values[i] - item->add;
            if (item->weight.format == SETUN_FORMAT_F32 && back != stored) *exact = false, *error = fmax(*error, fabs((double)back - (double)stored));
        }
        if (item->quantised && quantised > 0) *exact = false, *error = fmax(*error, quantised);
        return SETUN_OK;
    }
    uint8_t *into = k->whole ? k->out + first * columns : codes;
    float *scales_into = k->whole ? k->scales + first * k->per_row : scales;
    SETUN_TRY(read_codes(item, first, rows, into, scales_into, k->per_row));
    if (item->quantised) {
        SETUN_TRY(read_values(item, first, rows, values));
        quantised = master_error(values, into, rows * columns, item->info.tensor_scale);
    }
    if (!k->whole)
        SETUN_TRY(setun_format_encode_ternary(item->to, item->source, &item->info, rows, columns, codes, scales, k->out + (uint64_t)(first - k->row0) * k->row_bytes, exact, error));
    if (quantised > 0) *exact = false;
    if (quantised > *error) *error = quantised;
    return SETUN_OK;
}

static void encode_range(void *argument, int64_t first, int64_t last, int worker) {
    work *k = argument;
    const int64_t columns = k->item->weight.columns;
    (void)worker;
    const bool codes = k->item->how == SETUN_ITEM_CODES, values = !codes || k->item->quantised;
    uint8_t *code_memory = codes && !k->whole ? setun_alloc((size_t)(k->chunk * columns)) : NULL;
    float *scale_memory = codes && !k->whole ? setun_alloc((size_t)(k->chunk * k->per_row) * sizeof(float)) : NULL;
    float *value_memory = values ? setun_alloc((size_t)(k->chunk * columns) * sizeof(float)) : NULL;
    setun_status status = SETUN_OK;
    if ((codes && !k->whole && (!code_memory || !scale_memory)) || (values && !value_memory)) status = setun_fail_memory((size_t)(k->chunk * columns));
    bool all_exact = true;
    double largest = 0;
    for (int64_t c = first; c < last && status == SETUN_OK; c++) {
        const int64_t row = k->row0 + c * k->chunk, left = k->row0 + k->rows - row;
        bool exact;
        double error;
        status = encode_chunk(k, row, left < k->chunk ? left : k->chunk, code_memory, scale_memory, value_memory, &exact, &error);
        all_exact = all_exact && exact;
        largest = error > largest ? error : largest;
    }
    setun_free(code_memory);
    setun_free(scale_memory);
    setun_free(value_memory);
    pthread_mutex_lock(&k->lock); /* messages belong to threads; the caller needs this one */
    if (status != SETUN_OK && k->status == SETUN_OK) {
        k->status = status;
        snprintf(k->message, sizeof k->message, "%s", setun_error());
    }
    k->exact = k->exact && all_exact;
    k->max_error = largest > k->max_error ? largest : k->max_error;
    pthread_mutex_unlock(&k->lock);
}

static setun_status run(setun_context *context, work *k) {
    setun_pool_for(context->pool, (k->rows + k->chunk - 1) / k->chunk, 1, encode_range, k);
    return k->status == SETUN_OK ? SETUN_OK : setun_fail(k->status, "%s", k->message);
}

static bool one_block(setun_format format) { return setun_format_gguf_id(format) == 36 || format == SETUN_FORMAT_HF_2BIT || format == SETUN_FORMAT_TRITS; }

static setun_status write_whole(setun_context *context, work *k, setun_convert_sink sink, void *user) {
    setun_convert_item *item = k->item;
    const int64_t columns = item->weight.columns;
    uint8_t *bytes = setun_alloc((size_t)item->bytes);
    k->whole = true;
    k->row0 = 0;
    k->rows = item->weight.rows;
    k->out = setun_alloc((size_t)(k->rows * columns));
    k->scales = setun_alloc((size_t)(k->rows * k->per_row) * sizeof(float));
    setun_status status = bytes && k->out && k->scales ? run(context, k) : setun_fail_memory((size_t)(k->rows * columns));
    bool exact = true;
    double error = 0;
    if (status == SETUN_OK) status = setun_format_encode_ternary(item->to, item->source, &item->info, k->rows, columns, k->out, k->scales, bytes, &exact, &error);
    k->exact = k->exact && exact;
    k->max_error = error > k->max_error ? error : k->max_error;
    if (status == SETUN_OK) status = sink(user, bytes, item->bytes);
    setun_free(bytes);
    setun_free(k->out);
    setun_free(k->scales);
    return status;
}

static setun_status write_slabs(setun_context *context, work *k, setun_convert_sink sink, void *user) {
    setun_convert_item *item = k->item;
    const int64_t rows = item->weight.rows, columns = item->weight.columns;
    int64_t slab = SLAB_BYTES / ((int64_t)sizeof(float) * columns) / k->chunk * k->chunk;
    if (slab < k->chunk) slab = k->chunk;
    if (slab > rows) slab = rows;
    k->row_bytes = item->bytes / (uint64_t)rows;
    k->out = setun_alloc((size_t)((uint64_t)slab * k->row_bytes));
    if (!k->out) return setun_fail_memory((size_t)((uint64_t)slab * k->row_bytes));
    setun_status status = SETUN_OK;
    for (k->row0 = 0; k->row0 < rows && status == SETUN_OK; k->row0 += slab) {
        k->rows = rows - k->row0 < slab ? rows - k->row0 : slab;
        status = run(context, k);
        if (status == SETUN_OK) status = sink(user, k->out, (uint64_t)k->rows * k->row_bytes);
    }
    setun_free(k->out);
    return status;
}

setun_status setun_convert_item_write(setun_context *context, setun_convert_item *item, setun_convert_sink sink, void *user) {
    item->exact = true;
    item->max_error = 0;
    if (item->how == SETUN_ITEM_COPY) {
        if (!item->rotary) return sink(user, item->weight.data, item->bytes);
        const uint64_t row_bytes = item->bytes / (uint64_t)item->weight.rows;
        for (int64_t r = 0; r < item->weight.rows; r++) SETUN_TRY(sink(user, item->weight.data + (uint64_t)source_row(item, r) * row_bytes, row_bytes));
        return SETUN_OK;
    }
    work k = {.item = item, .exact = true, .per_row = item->how == SETUN_ITEM_CODES ? scales_per_row(item) : 0};
    k.chunk = CHUNK_WEIGHTS / item->weight.columns;
    if (k.chunk < 1) k.chunk = 1;
    if (pthread_mutex_init(&k.lock, NULL)) return setun_fail(SETUN_ERROR_MEMORY, "a lock could not be made");
    setun_status status = item->how == SETUN_ITEM_CODES && one_block(item->to) ? write_whole(context, &k, sink, user) : write_slabs(context, &k, sink, user);
    pthread_mutex_destroy(&k.lock);
    item->exact = k.exact;
    item->max_error = k.max_error;
    return status;
}

static void narrow(float scale, bool *f16, bool *bf16) {
    *f16 = *f16 && setun_f16_to_f32(setun_f32_to_f16(scale)) == scale;
    *bf16 = *bf16 && setun_bf16_to_f32(setun_f32_to_bf16(scale)) == scale;
}

setun_status setun_convert_scales_fit(const setun_weight *w, const setun_ternary_info *info, bool *out_f16, bool *out_bf16) {
    *out_f16 = *out_bf16 = true;
    if (info->scale == SETUN_SCALE_TENSOR) {
        narrow(info->tensor_scale, out_f16, out_bf16);
        return SETUN_OK;
    }
    const int64_t per_row = info->scale == SETUN_SCALE_GROUP ? w->columns / info->group_size : 1;
    uint8_t *codes = setun_alloc((size_t)w->columns);
    float *scales = setun_alloc((size_t)per_row * sizeof *scales);
    setun_status status = codes && scales ? SETUN_OK : setun_fail_memory((size_t)w->columns);
    for (int64_t row = 0; row < w->rows && status == SETUN_OK && (*out_f16 || *out_bf16); row++) {
        status = setun_ternary_decode(w, info, row, 1, codes, scales);
        for (int64_t i = 0; i < per_row && status == SETUN_OK; i++) narrow(scales[i], out_f16, out_bf16);
    }
    setun_free(codes);
    setun_free(scales);
    return status;
}
