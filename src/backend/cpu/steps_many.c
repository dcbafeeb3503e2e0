/*
 * steps_many.c - a linear step over a prompt: ternary_i8_many takes large tiles of rows x tokens, since putting a tile's codes and x in
 * order costs; workers take the tiles from a counter. What follows the product (scale, bias, gate, factor, residual) is what
 * steps_linear.c does, on the same numbers in the same order, so that no bit depends on which of the two ran.
 * Caller: steps_linear.c, for the numbers of tokens that choose_product.c found this faster for. Knows kernels and prepared weights.
 */
#include "backend/cpu/cpu.h"

/* Sums of a tile, a line of results, x and codes in order; codes of trits as 2-bit rows. */
typedef struct scratch {
    int32_t *sums;              /* [tokens, stride] */
    float *line, *gate;         /* [SETUN_MANY_ROWS] each */
    uint8_t *rows;              /* [SETUN_MANY_ROWS + 2, packed row]: a tile may begin within a triple */
    void *many;
} scratch;

/* Odd multiples of 64 bytes: rows of sums do not share cache sets. */
enum { SUM_STRIDE = SETUN_MANY_ROWS + 16 };

static uint64_t tile_tokens_max(const setun_plan *plan, const setun_step *step)
{
    int64_t tokens = setun_slot_rows(&plan->slots[step->input[0]], plan->tokens_max, plan->outputs_max);
    return tokens < SETUN_MANY_TOKENS ? (uint64_t)tokens : SETUN_MANY_TOKENS;
}

/* Rows come to s->rows first: made of trits, or copied from the file. Weights that are packed later do one of them, or the other. */
static bool has_copies(const setun_step *step, const cpu_step *cpu)
{
    for (int i = 0; i < step->weight_count; i++)
        if (((const setun_prepared *)step->prepared[i])->later || cpu->product[i] == CPU_TRITS_I8) return true;
    return false;
}

uint64_t cpu_many_scratch(const setun_plan *plan, const setun_step *step, const cpu_step *cpu)
{
    if (cpu->many_from < 1) return 0;
    int64_t width = setun_slot_width(&plan->slots[step->input[0]]);
    return cpu_align(setun_many_scratch(width)) + tile_tokens_max(plan, step) * SUM_STRIDE * sizeof(int32_t) + 2 * SETUN_MANY_ROWS * sizeof(float) +
           (has_copies(step, cpu) ? (uint64_t)(SETUN_MANY_ROWS + 2) * (uint64_t)setun_packed_row_bytes(width) : 0);
}

static scratch scratch_of(const cpu_run *run, const setun_step *step, int worker)
{
    int64_t width = setun_slot_width(&run->plan->slots[step->input[0]]);
    uint8_t *base = cpu_worker_scratch(run, worker);
    scratch s = {.many = base};
    s.sums = (int32_t *)(void *)(base + cpu_align(setun_many_scratch(width)));
    s.line = (float *)(s.sums + tile_tokens_max(run->plan, step) * SUM_STRIDE);
    s.gate = s.line + SETUN_MANY_ROWS;
    s.rows = (uint8_t *)(s.gate + SETUN_MANY_ROWS);
    return s;
}

bool cpu_many_possible(const setun_step *step, const cpu_step *cpu)
{
    for (int i = 0; i < step->weight_count; i++)
        if (cpu->product[i] != CPU_TERNARY_I8 && cpu->product[i] != CPU_TRITS_I8) return false;
    return step->weight_count > 0 && !(step->gated && step->residual >= 0); /* a gate waits in the output, where a residual may lie */
}

/* ---- tiles ---- */

typedef struct tile { int64_t row, token; int rows, tokens; } tile;
typedef struct tiling { int rows[SETUN_STEP_WEIGHTS], tokens; int64_t row_tiles[SETUN_STEP_WEIGHTS], token_tiles, total; } tiling;

static int64_t rows_of(const setun_step *step, int i) { return ((const setun_prepared *)step->prepared[i])->rows; }

/* Each weight in as few equal tiles as `rows` allows, a multiple of `align` high. */
static tiling tile_by(const setun_step *step, int products, int64_t tokens, int rows, int tile_tokens, int align)
{
    tiling t = {.tokens = tile_tokens, .token_tiles = (tokens + tile_tokens - 1) / tile_tokens};
    for (int i = 0; i < products; i++) {
        int64_t all = rows_of(step, i), count = (all + rows - 1) / rows;
        t.rows[i] = (int)(((all + count - 1) / count + align - 1) / align * align);
        t.total += t.row_tiles[i] = (all + t.rows[i] - 1) / t.rows[i];
    }
    t.total *= t.token_tiles;
    return t;
}

static tile tile_at(const setun_step *step, const tiling *t, int64_t tokens, int64_t chunk, int *weight)
{
    int64_t n = chunk / t->token_tiles, first = chunk % t->token_tiles * t->tokens;
    int i = 0;
    while (n >= t->row_tiles[i]) n -= t->row_tiles[i++];
    int64_t rows_left = rows_of(step, i) - n * t->rows[i], tokens_left = tokens - first;
    *weight = i;
    return (tile){.row = n * t->rows[i], .token = first, .rows = rows_left < t->rows[i] ? (int)rows_left : t->rows[i], .tokens = tokens_left < t->tokens ? (int)tokens_left : t->tokens};
}

/*
 * When the last worker is done, in multiply-adds of a column: a tile of R rows and T tokens takes R T for the products, R ROW_COST to order
 * the rows and T TOKEN_COST for the tables (measured on Zen 4: 16 and 50 with AVX2, 24 and 110 with AVX-512).
 */
static double finish_of(const setun_step *step, const tiling *t, int64_t tokens, int workers)
{
    enum { ROW_COST = 20, TOKEN_COST = 80, FEW_WORKERS = 16, FEW_TILES = 64 };
    double busy[FEW_WORKERS] = {0}, largest = 0, last = 0;
    bool play = workers <= FEW_WORKERS && t->total <= FEW_TILES;
    int64_t count = play ? t->total : 1; /* the first tile is the largest */
    for (int64_t chunk = 0; chunk < count; chunk++) {
        int i;
        tile at = tile_at(step, t, tokens, chunk, &i);
        double cost = (double)at.rows * at.tokens + (double)at.rows * ROW_COST + (double)at.tokens * TOKEN_COST;
        int next = 0;
        for (int w = 1; play && w < workers; w++)
            if (busy[w] < busy[next]) next = w;
        busy[next] += cost;
        if (cost > largest) largest = cost;
        if (busy[next] > last) last = busy[next];
    }
    if (play) return last + 0.02 * largest; /* smaller tiles where all else is equal: another program may hold a worker up */
    return largest * (double)((t->total + workers - 1) / workers);
}

/* The tiles with which the last worker is done first. */
static tiling choose_tiling(const setun_step *step, int products, int64_t tokens, int workers)
{
    const int align = 64; /* whole blocks of the kernels and lines of the cache */
    tiling best = {0};
    double least = 0;
    for (int tile_tokens = SETUN_MANY_TOKENS; tile_tokens >= 64; tile_tokens /= 2) {
        if (tile_tokens > 64 && tile_tokens / 2 >= tokens) continue;
        for (int rows = SETUN_MANY_ROWS / align * align; rows >= 192; rows -= 64) {
            tiling t = tile_by(step, products, tokens, rows, tile_tokens, align);
            double finish = finish_of(step, &t, tokens, workers);
            if (best.total == 0 || finish < least) {
                best = t;
                least = finish;
            }
        }
    }
    return best;
}

/* ---- one tile ---- */

static void no_sums(const tile *at, int32_t *sums, size_t stride)
{
    for (int t = 0; t < at->tokens; t++) memset(sums + (size_t)t * stride, 0, (size_t)at->rows * sizeof *sums);
}

/* sums[t * stride + r] of weight i */
static void products_of(cpu_run *run, const setun_step *step, const cpu_step *cpu, int i, const cpu_q8 *x, const scratch *s, const tile *at, int32_t *sums, size_t stride)
{
    const setun_prepared *p = step->prepared[i];
    const uint8_t *codes;
    size_t row_bytes;
    if (cpu_product_now(step, cpu, i) == CPU_TRITS_I8) {
        const int before = (int)(at->row % 3);
        row_bytes = (size_t)setun_packed_row_bytes(p->columns);
        const uint8_t *triples = p->data + at->row / 3 * p->row_bytes;
        if (!cpu_triples_are_codes(run, p, triples, before + at->rows)) {
            no_sums(at, sums, stride);
            return;
        }
        run->kernels->trits_rows(triples, (size_t)p->row_bytes, before + at->rows, p->columns, s->rows, row_bytes);
        codes = s->rows + (size_t)before * row_bytes;
    } else {
        row_bytes = (size_t)p->row_bytes;
        codes = p->data + at->row * p->row_bytes;
        if (p->later && p->file) { /* copied: the file's pages stay out of memory, and are passed through once */
            if (p->waiting && setun_file_copy(p->file, codes, (size_t)at->rows * row_bytes, s->rows)) codes = s->rows;
            if (!cpu_rows_are_codes(run, p, codes, at->rows * p->row_bytes)) {
                no_sums(at, sums, stride);
                return;
            }
        }
    }
    run->kernels->ternary_i8_many(codes, row_bytes, at->rows, x->rows + at->token * (int64_t)x->stride, x->stride, at->tokens, p->columns, sums, stride, s->many);
}

/* W x + bias of weight i for token t of the tile; sums: its row of them */
static void line_of(const cpu_run *run, const setun_step *step, int i, const cpu_q8 *x, const tile *at, int t, const int32_t *sums, float *y)
{
    const setun_prepared *p = step->prepared[i], *bias = step->prepared_bias[i];
    run->kernels->scale_sums(sums, at->rows, x->sum[at->token + t], x->scale[at->token + t], p->scale_kind == SETUN_SCALE_ROW ? p->scales + at->row : NULL, p->tensor_scale, y);
    if (bias) run->kernels->add(y, (const float *)(const void *)bias->data + at->row, at->rows, y);
}

static void tile_plain(cpu_run *run, const setun_step *step, const cpu_step *cpu, int i, const cpu_q8 *x, const scratch *s, const tile *at)
{
    int64_t width = setun_slot_width(&run->plan->slots[step->output[i]]);
    float *out = (float *)setun_frame_slot(run->frame, step->output[i]) + at->token * width + at->row;
    const float *residual = step->residual < 0 ? NULL : (const float *)setun_frame_slot(run->frame, step->residual) + at->token * width + at->row;
    products_of(run, step, cpu, i, x, s, at, s->sums, SUM_STRIDE);
    for (int t = 0; t < at->tokens; t++, out += width) {
        float *y = residual ? s->line : out; /* the residual may be the output's own memory: it is read before it is written */
        if (residual && t + 1 < at->tokens) cpu_ask_for(residual + (t + 1) * width, (size_t)at->rows * sizeof(float));
        line_of(run, step, i, x, at, t, s->sums + (size_t)t * SUM_STRIDE, y);
        if (step->factor != 1.0f) run->kernels->scale(y, step->factor, at->rows, y);
        if (residual) run->kernels->add(y, residual + t * width, at->rows, out);
    }
}

static void tile_gated(cpu_run *run, const setun_step *step, const cpu_step *cpu, const cpu_q8 *x, const scratch *s, const tile *at)
{
    int64_t width = setun_slot_width(&run->plan->slots[step->output[0]]);
    float *out = (float *)setun_frame_slot(run->frame, step->output[0]) + at->token * width + at->row;
    /* The gate waits in the output: as sums, which saves a pass over both, unless that would share cache sets (kernels.h). */
    bool as_sums = width % 1024 != 0;
    int32_t *waiting = (int32_t *)(void *)out;
    products_of(run, step, cpu, 0, x, s, at, as_sums ? waiting : s->sums, as_sums ? (size_t)width : SUM_STRIDE);
    for (int t = 0; t < at->tokens && !as_sums; t++) line_of(run, step, 0, x, at, t, s->sums + (size_t)t * SUM_STRIDE, out + t * width);
    products_of(run, step, cpu, 1, x, s, at, s->sums, SUM_STRIDE);
    for (int t = 0; t < at->tokens; t++, out += width, waiting += width) {
        const float *gate = as_sums ? s->gate : out;
        if (as_sums) line_of(run, step, 0, x, at, t, waiting, s->gate);
        line_of(run, step, 1, x, at, t, s->sums + (size_t)t * SUM_STRIDE, s->line);
        if (step->activation == SETUN_OP_SILU) run->kernels->silu_mul(gate, s->line, at->rows, out);
        else if (step->activation == SETUN_OP_RELU2) run->kernels->relu2_mul(gate, s->line, at->rows, out);
        else run->kernels->gelu_mul(gate, s->line, at->rows, out);
        if (step->factor != 1.0f) run->kernels->scale(out, step->factor, at->rows, out);
    }
}

void cpu_step_many(cpu_run *run, int index, int worker)
{
    const setun_step *step = &run->plan->steps[index];
    const cpu_step *cpu = &run->tape->step[index];
    int64_t tokens = setun_slot_rows(&run->plan->slots[step->input[0]], run->tokens, run->outputs);
    cpu_q8 x = cpu_q8_input(run, index, worker);
    scratch s = scratch_of(run, step, worker);
    int products = step->gated ? 1 : step->weight_count;
    tiling tiles = choose_tiling(step, products, tokens, cpu_step_workers(run, index)); /* the same in every worker */
    for (int64_t chunk; (chunk = cpu_take(run, index)) < tiles.total;) {
        int i;
        tile at = tile_at(step, &tiles, tokens, chunk, &i);
        if (step->gated) tile_gated(run, step, cpu, &x, &s, &at);
        else tile_plain(run, step, cpu, i, &x, &s, &at);
    }
}
