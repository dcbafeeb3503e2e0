/*
 * steps_linear.c - y = x W^T with its epilogue: the step where nearly all time goes.
 * A step is cut into tiles (rows of one weight x tokens), a range of them for each worker. A tile's products go to a small
 * buffer in L1, and bias, gate, factor and residual are applied there, so that y is written once.
 * Every output is one dot product by one kernel call, so the cut changes no bit of the result.
 * Caller: execute.c. Knows kernels and prepared weights, and nothing of layers.
 */
#include "backend/cpu/cpu.h"

/* Scratch of a worker: sums or group sums, then two result tiles, then rows or tokens made f32. */
typedef struct scratch {
    int32_t *sums;              /* [CPU_TOKEN_TILE, CPU_ROW_TILE] */
    float *first, *second;      /* [CPU_TOKEN_TILE, CPU_ROW_TILE] */
    float *unpacked;            /* CPU_DENSE_DEQUANTISED: [CPU_DEQUANTISED_ROWS, columns]; CPU_TERNARY_I8_AS_F32: [CPU_DEQUANTISED_TOKENS, columns] */
} scratch;

enum { TILE_BYTES = CPU_TOKEN_TILE * CPU_ROW_TILE * 4 };

uint64_t cpu_linear_scratch(const setun_plan *plan, const setun_step *step, const cpu_step *cpu)
{
    uint64_t bytes = 3 * TILE_BYTES, width = (uint64_t)setun_slot_width(&plan->slots[step->input[0]]), unpacked = 0;
    for (int i = 0; i < step->weight_count; i++) {
        uint64_t rows = cpu->product[i] == CPU_DENSE_DEQUANTISED ? CPU_DEQUANTISED_ROWS : cpu->product[i] == CPU_TERNARY_I8_AS_F32 ? CPU_DEQUANTISED_TOKENS : 0;
        if (rows > unpacked) unpacked = rows;
    }
    return bytes + cpu_align(unpacked * cpu_align(width * sizeof(float)));
}

static scratch scratch_of(const cpu_run *run, int worker)
{
    uint8_t *base = cpu_worker_scratch(run, worker);
    scratch s = {(int32_t *)base, (float *)(base + TILE_BYTES), (float *)(base + 2 * TILE_BYTES), (float *)(base + 3 * TILE_BYTES)};
    return s;
}

/* The step's input as the products want it. */
typedef struct input {
    const float *x;             /* f32 [rows, width] */
    cpu_q8 q8;
    int64_t width;
} input;

/* A scale per group of a multiple of 128 columns: each group is an int8 product of its own.
 * y[t][r] = x_scale[t] * sum over g of scale[r][g] * (sums - x_sum)[g], groups in order. */
static void product_groups(const cpu_run *run, const setun_prepared *p, const input *in, int64_t row, int rows, int64_t token, int tokens, int32_t *sums, float *y, size_t stride)
{
    int64_t groups = (p->columns + p->group_size - 1) / p->group_size;
    for (int64_t g = 0; g < groups; g++) {
        int64_t column = g * p->group_size, k = p->columns - column < p->group_size ? p->columns - column : p->group_size;
        run->kernels->ternary_i8(p->data + row * p->row_bytes + column / 4, (size_t)p->row_bytes, rows, in->q8.rows + token * (int64_t)in->q8.stride + column, in->q8.stride,
                                 tokens, k, sums, (size_t)rows);
        for (int t = 0; t < tokens; t++) {
            const int8_t *x = in->q8.rows + (token + t) * (int64_t)in->q8.stride + column;
            int32_t x_sum = 0;
            for (int64_t i = 0; i < k; i++) x_sum += x[i];
            const float *scales = p->scales + row * groups + g;
            float *out = y + (size_t)t * stride;
            for (int r = 0; r < rows; r++) {
                float term = (float)(sums[t * rows + r] - x_sum) * scales[r * groups];
                out[r] = g ? out[r] + term : term;
            }
        }
    }
    for (int t = 0; t < tokens; t++) run->kernels->scale(y + (size_t)t * stride, in->q8.scale[token + t], rows, y + (size_t)t * stride);
}

static void ternary_f32(const cpu_run *run, const setun_prepared *p, const float *x, size_t x_stride, int64_t row, int rows, int tokens, float *y, size_t stride)
{
    bool grouped = p->scale_kind == SETUN_SCALE_GROUP;
    size_t groups = grouped ? (size_t)((p->columns + p->group_size - 1) / p->group_size) : 0;
    run->kernels->ternary_f32(p->data + row * p->row_bytes, (size_t)p->row_bytes, rows, x, x_stride, tokens, p->columns,
                              grouped ? p->scales + (size_t)row * groups : NULL, groups, grouped ? p->group_size : 0, y, stride);
    for (int t = 0; t < tokens && !grouped; t++) {
        float *out = y + (size_t)t * stride;
        if (p->scale_kind == SETUN_SCALE_ROW) run->kernels->multiply(out, p->scales + row, rows, out);
        else run->kernels->scale(out, p->tensor_scale, rows, out);
    }
}

/* y[t][r] for rows of one weight and tokens; y's rows are `stride` floats apart. */
static void product(cpu_run *run, const setun_step *step, const cpu_step *cpu, int i, const input *in, const scratch *s, int64_t row, int rows, int64_t token, int tokens, float *y, size_t stride)
{
    const setun_prepared *p = step->prepared[i];
    const setun_kernels *kernels = run->kernels;
    switch (cpu_product_now(step, cpu, i)) {
    case CPU_TERNARY_I8:
        if (p->later && !cpu_rows_are_codes(run, p, p->data + row * p->row_bytes, rows * p->row_bytes)) {
            for (int t = 0; t < tokens; t++) memset(y + (size_t)t * stride, 0, (size_t)rows * sizeof *y);
            break;
        }
        kernels->ternary_i8(p->data + row * p->row_bytes, (size_t)p->row_bytes, rows, in->q8.rows + token * (int64_t)in->q8.stride, in->q8.stride, tokens, p->columns, s->sums, (size_t)rows);
        for (int t = 0; t < tokens; t++)
            kernels->scale_sums(s->sums + (size_t)t * (size_t)rows, rows, in->q8.sum[token + t], in->q8.scale[token + t], p->scale_kind == SETUN_SCALE_ROW ? p->scales + row : NULL,
                                p->tensor_scale, y + (size_t)t * stride);
        break;
    case CPU_TRITS_I8: /* row is a multiple of 3: cpu_step_linear sees to it */
        if (!cpu_triples_are_codes(run, p, p->data + row / 3 * p->row_bytes, rows)) {
            for (int t = 0; t < tokens; t++) memset(y + (size_t)t * stride, 0, (size_t)rows * sizeof *y);
            break;
        }
        kernels->trits_i8(p->data + row / 3 * p->row_bytes, (size_t)p->row_bytes, rows, in->q8.rows + token * (int64_t)in->q8.stride, in->q8.stride, tokens, p->columns, s->sums, (size_t)rows);
        for (int t = 0; t < tokens; t++)
            kernels->scale_sums(s->sums + (size_t)t * (size_t)rows, rows, in->q8.sum[token + t], in->q8.scale[token + t], p->scale_kind == SETUN_SCALE_ROW ? p->scales + row : NULL,
                                p->tensor_scale, y + (size_t)t * stride);
        break;
    case CPU_TERNARY_I8_GROUP:
        product_groups(run, p, in, row, rows, token, tokens, s->sums, y, stride);
        break;
    case CPU_TERNARY_I8_AS_F32: {
        size_t x_stride = (size_t)(cpu_align((uint64_t)p->columns * sizeof(float)) / sizeof(float));
        for (int first = 0; first < tokens; first += CPU_DEQUANTISED_TOKENS) {
            int count = tokens - first < CPU_DEQUANTISED_TOKENS ? tokens - first : CPU_DEQUANTISED_TOKENS;
            for (int t = 0; t < count; t++) {
                const int8_t *q = in->q8.rows + (token + first + t) * (int64_t)in->q8.stride;
                for (int64_t k = 0; k < p->columns; k++) s->unpacked[(size_t)t * x_stride + (size_t)k] = (float)q[k];
            }
            ternary_f32(run, p, s->unpacked, x_stride, row, rows, count, y + (size_t)first * stride, stride);
        }
        for (int t = 0; t < tokens; t++) kernels->scale(y + (size_t)t * stride, in->q8.scale[token + t], rows, y + (size_t)t * stride);
        break;
    }
    case CPU_TERNARY_F32:
        ternary_f32(run, p, in->x + token * in->width, (size_t)in->width, row, rows, tokens, y, stride);
        break;
    case CPU_DENSE:
        cpu->dense[i](p->data + row * p->row_bytes, (size_t)p->row_bytes, rows, in->x + token * in->width, (size_t)in->width, tokens, p->columns, y, stride);
        break;
    case CPU_DENSE_DEQUANTISED:
        /* The caller unpacked these rows. */
        cpu->dense[i]((const uint8_t *)s->unpacked, (size_t)p->columns * sizeof(float), rows, in->x + token * in->width, (size_t)in->width, tokens, p->columns, y, stride);
        break;
    }
}

static void add_bias(const cpu_run *run, const setun_step *step, int i, int64_t row, int rows, int tokens, float *y, size_t stride)
{
    const setun_prepared *bias = step->prepared_bias[i];
    if (!bias) return;
    for (int t = 0; t < tokens; t++) run->kernels->add(y + (size_t)t * stride, (const float *)(const void *)bias->data + row, rows, y + (size_t)t * stride);
}

static void unpack(const setun_step *step, const cpu_step *cpu, int i, const scratch *s, int64_t row, int rows)
{
    /* Prepared weights were read once while loading, so this cannot fail; were it to, the rows are what was there before. */
    if (cpu->product[i] == CPU_DENSE_DEQUANTISED) (void)setun_weight_to_f32(step->weight[i], row, rows, s->unpacked);
}

/* One tile of an ungated step: weight i, its rows, tokens. */
static void tile_plain(cpu_run *run, const setun_step *step, const cpu_step *cpu, int i, const input *in, const scratch *s, int64_t row, int rows, int64_t token, int tokens)
{
    int64_t width = setun_slot_width(&run->plan->slots[step->output[i]]);
    float *out = (float *)setun_frame_slot(run->frame, step->output[i]) + token * width + row;
    if (step->residual < 0) {
        product(run, step, cpu, i, in, s, row, rows, token, tokens, out, (size_t)width);
        add_bias(run, step, i, row, rows, tokens, out, (size_t)width);
        if (step->factor != 1.0f)
            for (int t = 0; t < tokens; t++) run->kernels->scale(out + t * width, step->factor, rows, out + t * width);
        return;
    }
    /* The residual may be the output's own memory: it is read before it is written. */
    const float *residual = (const float *)setun_frame_slot(run->frame, step->residual) + token * width + row;
    float *y = s->first;
    product(run, step, cpu, i, in, s, row, rows, token, tokens, y, CPU_ROW_TILE);
    add_bias(run, step, i, row, rows, tokens, y, CPU_ROW_TILE);
    for (int t = 0; t < tokens; t++) {
        float *row_y = y + (size_t)t * CPU_ROW_TILE;
        if (step->factor != 1.0f) run->kernels->scale(row_y, step->factor, rows, row_y);
        run->kernels->add(row_y, residual + t * width, rows, out + t * width);
    }
}

/* One tile of a gated step: the same rows of both weights, act(y0) * y1. */
static void tile_gated(cpu_run *run, const setun_step *step, const cpu_step *cpu, const input *in, const scratch *s, int64_t row, int rows, int64_t token, int tokens)
{
    int64_t width = setun_slot_width(&run->plan->slots[step->output[0]]);
    float *out = (float *)setun_frame_slot(run->frame, step->output[0]) + token * width + row;
    unpack(step, cpu, 0, s, row, rows);
    product(run, step, cpu, 0, in, s, row, rows, token, tokens, s->first, CPU_ROW_TILE);
    add_bias(run, step, 0, row, rows, tokens, s->first, CPU_ROW_TILE);
    unpack(step, cpu, 1, s, row, rows);
    product(run, step, cpu, 1, in, s, row, rows, token, tokens, s->second, CPU_ROW_TILE);
    add_bias(run, step, 1, row, rows, tokens, s->second, CPU_ROW_TILE);
    for (int t = 0; t < tokens; t++) {
        const float *gate = s->first + (size_t)t * CPU_ROW_TILE, *up = s->second + (size_t)t * CPU_ROW_TILE;
        float *y = step->residual < 0 ? out + t * width : s->first + (size_t)t * CPU_ROW_TILE;
        if (step->activation == SETUN_OP_SILU) run->kernels->silu_mul(gate, up, rows, y);
        else if (step->activation == SETUN_OP_RELU2) run->kernels->relu2_mul(gate, up, rows, y);
        else run->kernels->gelu_mul(gate, up, rows, y);
        if (step->factor != 1.0f) run->kernels->scale(y, step->factor, rows, y);
        if (step->residual >= 0)
            run->kernels->add(y, (const float *)setun_frame_slot(run->frame, step->residual) + (token + t) * width + row, rows, out + t * width);
    }
}

static bool waits(const setun_step *step)
{
    for (int i = 0; i < step->weight_count; i++)
        if (((const setun_prepared *)step->prepared[i])->waiting) return true;
    return false;
}

void cpu_step_linear(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    const cpu_step *cpu = &run->tape->step[index];
    const setun_slot *x = &run->plan->slots[step->input[0]];
    int64_t tokens = setun_slot_rows(x, run->tokens, run->outputs);
    if (tokens < 1) return;
    /* Rows that lie in the file are copied by the one, and mapped by the other: then as soon as may be. */
    if (cpu->many_from > 0 && tokens >= (waits(step) ? CPU_MANY_LEAST : cpu->many_from)) {
        cpu_step_many(run, index, worker);
        return;
    }
    input in = {.width = setun_slot_width(x)};
    if (x->dtype == SETUN_Q8) in.q8 = cpu_q8_input(run, index, worker);
    else in.x = setun_frame_slot(run->frame, step->input[0]);
    scratch s = scratch_of(run, worker);

    int products = step->gated ? 1 : step->weight_count;
    int64_t all_rows = 0;
    for (int i = 0; i < products; i++) all_rows += ((const setun_prepared *)step->prepared[i])->rows;
    int token_tile = tokens < CPU_TOKEN_TILE ? (int)tokens : CPU_TOKEN_TILE;
    int64_t token_tiles = cpu->whole_tokens ? 1 : (tokens + token_tile - 1) / token_tile;
    /* Tiles small enough that each worker gets about eight: the last one to finish then wastes little. With one token weights are only streamed, and a gated step goes
     * from one matrix to the other and back: the longer the pieces the faster (of 504 rows instead of 63: a tenth). */
    int row_tile = tokens == 1 ? 8 * CPU_ROW_TILE : CPU_ROW_TILE; /* the buffers have room for CPU_ROW_TILE * CPU_TOKEN_TILE results */
    if (cpu->whole_tokens) row_tile = CPU_DEQUANTISED_ROWS;
    else
        while (row_tile > 16 && all_rows * token_tiles < (int64_t)row_tile * 8 * run->workers) row_tile /= 2;
    for (int i = 0; i < step->weight_count; i++)
        if (cpu_product_now(step, cpu, i) == CPU_TRITS_I8) row_tile = row_tile / 3 * 3;
    int64_t row_tiles[SETUN_STEP_WEIGHTS], total = 0;
    for (int i = 0; i < products; i++) {
        row_tiles[i] = (((const setun_prepared *)step->prepared[i])->rows + row_tile - 1) / row_tile;
        total += row_tiles[i];
    }
    total *= token_tiles;
    if (total > INT32_MAX / 2) total = 0; /* cannot be: prepare bounds rows x tokens through the arena */

    for (int64_t chunk; (chunk = cpu_take_near(run, index, worker, total)) >= 0;) {
        int64_t tile = chunk / token_tiles, first = chunk % token_tiles * token_tile, last = cpu->whole_tokens ? tokens : first + token_tile;
        if (last > tokens) last = tokens;
        int i = 0;
        while (tile >= row_tiles[i]) tile -= row_tiles[i++];
        int64_t row = tile * row_tile, left = ((const setun_prepared *)step->prepared[i])->rows - row;
        int rows = left < row_tile ? (int)left : row_tile;
        if (!step->gated) unpack(step, cpu, i, &s, row, rows);
        for (int64_t token = first; token < last; token += token_tile) {
            int count = last - token < token_tile ? (int)(last - token) : token_tile;
            if (step->gated) tile_gated(run, step, cpu, &in, &s, row, rows, token, count);
            else tile_plain(run, step, cpu, i, &in, &s, row, rows, token, count);
        }
    }
}
