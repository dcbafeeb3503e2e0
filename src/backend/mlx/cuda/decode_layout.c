/*
 * decode_layout.c - makes the table of decode.h and packs the weights in the order in which the kernel's blocks read them.
 * Caller: decode_plan.c, bench/cuda_decode.cu. Needs no CUDA; knows no plan and no file.
 */
#include "base/base.h"
#include "backend/mlx/cuda/decode.h"

enum { ROTATION = 10, ALIGN = 256 }; /* a vector's memory is used again ten steps later: every reader is long done */

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static int64_t over(int64_t n, int64_t by) { return (n + by - 1) / by; }

static int tiles_of(const setun_cuda_op *op)
{
    int64_t tiles = 0;
    if (op->gated) return (int)over(op->matrix[0].rows, SETUN_CUDA_TILE_ROWS / 2);
    for (int i = 0; i < op->matrix_count; i++) tiles += over(op->matrix[i].rows, SETUN_CUDA_TILE_ROWS);
    return (int)tiles;
}

static int blocks_of(const setun_cuda_op *op) { return (int)over(op->matrix[0].columns, SETUN_CUDA_UNIT_COLUMNS); }

/* Outputs of a linear step; each weight but the last padded to whole tiles, as consumers count. */
static int64_t outputs_of(const setun_cuda_op *op)
{
    if (op->gated) return op->matrix[0].rows;
    int64_t rows = 0;
    for (int i = 0; i < op->matrix_count; i++) rows = up(rows, SETUN_CUDA_TILE_ROWS) + op->matrix[i].rows;
    return rows;
}

int setun_cuda_dense_row_bytes(int format, int columns)
{
    return (int)up(format == SETUN_CUDA_Q8 ? columns + over(columns, 32) * 2 : columns * 2, 16);
}

void setun_cuda_pack_q8(const uint8_t *blocks, int columns, uint8_t *row)
{
    memset(row, 0, (size_t)setun_cuda_dense_row_bytes(SETUN_CUDA_Q8, columns));
    for (int b = 0; b < columns / 32; b++) {
        memcpy(row + b * 32, blocks + b * 34 + 2, 32);
        memcpy(row + columns + b * 2, blocks + b * 34, 2);
    }
}

/* ---- what the kernel can do ---- */

static const char *refusal(const setun_cuda_model *m, const setun_cuda_limits *limits, int tokens_max)
{
    if (tokens_max < 1 || tokens_max > SETUN_CUDA_TOKENS) return "at most 32 sequences";
    if (limits->multiprocessors < 1 || limits->multiprocessors > 1024) return "the number of multiprocessors";
    if (m->head_size != 64 && m->head_size != 128) return "heads of 64 or 128 only";
    if (m->width % 32 || m->width < 32 || m->width > 16384) return "a width that is a multiple of 32, at most 16384";
    if (m->vocabulary < 1 || m->vocabulary >= 1 << 24) return "a vocabulary of less than 2^24";
    if (m->op_count < 2) return "a tape without layers";
    int64_t have = 0; /* outputs of the step before */
    for (int i = 0; i < m->op_count; i++) {
        const setun_cuda_op *op = &m->ops[i];
        if (op->kind == SETUN_CUDA_ATTENTION) {
            if (op->heads < 1 || op->kv_heads != m->kv_heads || op->heads % op->kv_heads) return "query heads that are no multiple of the kv heads";
            if (i == 0 || m->ops[i - 1].kind != SETUN_CUDA_LINEAR || m->ops[i - 1].gated || m->ops[i - 1].matrix_count != 3) return "an attention that does not follow its q, k and v";
            const setun_cuda_matrix *w = m->ops[i - 1].matrix;
            if (w[0].rows != (int64_t)op->heads * m->head_size || w[1].rows != (int64_t)op->kv_heads * m->head_size || w[2].rows != w[1].rows) return "q, k and v of other shapes";
            have = w[0].rows;
            continue;
        }
        if (op->kind != SETUN_CUDA_LINEAR || op->matrix_count < 1 || op->matrix_count > 3 || (op->gated && op->matrix_count != 2)) return "a step that is neither linear nor attention";
        for (int j = 0; j < op->matrix_count; j++)
            if (op->matrix[j].columns != op->matrix[0].columns || op->matrix[j].rows < 1) return "weights of one step with inputs of different widths";
        if (op->gated && op->matrix[0].rows != op->matrix[1].rows) return "a gate and an up projection of different sizes";
        if (op->matrix[0].columns % 4 || op->matrix[0].columns > 65536) return "rows that are no multiple of 4, or longer than 65536";
        if (op->residual && (op->gated || op->matrix_count != 1 || op->matrix[0].rows != m->width)) return "a residual sum of another width";
        if (i == 0 ? op->matrix[0].columns != m->width : op->matrix[0].columns != have) return "a step that reads something else than the step before wrote";
        have = outputs_of(op);
    }
    const setun_cuda_op *last = &m->ops[m->op_count - 1];
    if (last->kind != SETUN_CUDA_LINEAR || !last->residual) return "a last layer that does not end in the residual sum";
    if (setun_cuda_dense_row_bytes(m->head_format, m->width) > SETUN_CUDA_STAGE_BYTES) return "vocabulary rows of more than 20480 bytes";
    return NULL;
}

/* ---- who computes what ---- */

/* How many warps share the columns of a block's tiles, so that the warp with most to do has little. */
static int split_of(int tiles, int blocks) /* its log2 */
{
    int best = 0;
    int64_t least = INT64_MAX;
    for (int log = 2; log >= 0; log--) {
        int split = 1 << log;
        int64_t across = over(tiles, SETUN_CUDA_WARPS / split), along = over(blocks, split);
        if (across > SETUN_CUDA_WARP_TILES) continue;
        int64_t cost = along * (across * 4 + 1) + split / 4; /* a product of a tile and a quarter of it to load its columns; sums of parts */
        if (cost < least) least = cost, best = log;
    }
    return best;
}

/* The same for setun_cuda_decode_one: a product of a tile takes twice as long as loading its columns, a part a tenth to be summed. */
static int split_of_one(int tiles, int blocks)
{
    int best = 0;
    int64_t least = INT64_MAX;
    for (int log = 0; 1 << log <= SETUN_CUDA_ONE_WARPS; log++) {
        int64_t ways = 1 << log, along = over(blocks, ways), across = over(tiles, SETUN_CUDA_ONE_WARPS / ways);
        int64_t cost = along * (across * 20 + over(across, 2) * 10) + ways * 2;
        if (cost < least) least = cost, best = log;
    }
    return best;
}

/* counts[b]: tiles of block b. Residual steps are cut alike, as their rows stay with the block; the others even out the streams. */
static void share(const setun_cuda_op *op, int grid, int64_t *load, int *counts)
{
    int tiles = tiles_of(op), blocks = blocks_of(op), most = (int)over(tiles, grid);
    for (int b = 0; b < grid; b++) counts[b] = op->residual ? tiles / grid + (b < tiles % grid) : 0;
    if (!op->residual)
        for (int t = 0; t < tiles; t++) {
            int least = -1;
            for (int b = 0; b < grid; b++)
                if (counts[b] < most && (least < 0 || load[b] + (int64_t)counts[b] * blocks < load[least] + (int64_t)counts[least] * blocks)) least = b;
            counts[least]++;
        }
    for (int b = 0; b < grid; b++) load[b] += (int64_t)counts[b] * blocks;
}

static int work_offset(const setun_cuda_header *h, int block, int step) { return h->first_work + (block * h->steps + step) * SETUN_CUDA_WORK_INTS; }

/* Scratch that any step needs; the kernel lays it out the same way. */
static int64_t scratch_of(const setun_cuda_model *m, bool many)
{
    int64_t columns = many ? SETUN_CUDA_GROUP : 1, need = columns * m->width * 4, warps = many ? SETUN_CUDA_WARPS : SETUN_CUDA_ONE_WARPS;
    for (int i = 0; i < m->op_count; i++) {
        const setun_cuda_op *op = &m->ops[i];
        int64_t bytes;
        if (op->kind == SETUN_CUDA_LINEAR)
            bytes = many ? up(columns * setun_cuda_x_stride(blocks_of(op)), 16) + 4 * SETUN_CUDA_TILES * SETUN_CUDA_TILE_ROWS * columns * 4 : 0;
        else
            bytes = SETUN_CUDA_HEADS * (m->head_size + SETUN_CUDA_CHUNK) * 4 + warps * SETUN_CUDA_HEADS * m->head_size * 4;
        if (bytes > need) need = bytes;
    }
    return up(need, 128);
}

static int64_t add_floats(int64_t *floats, int64_t count)
{
    int64_t at = *floats;
    *floats += up(count, 4);
    return at;
}

/* Sums beside an attention's output: of each 32 rows. */
static int64_t attention_sums(const setun_cuda_model *m, const setun_cuda_op *op) { return (int64_t)op->heads * m->head_size / 32; }

static int64_t sums_of(const setun_cuda_model *m, const setun_cuda_header *h, int step)
{
    if (m->ops[step].kind == SETUN_CUDA_ATTENTION) return attention_sums(m, &m->ops[step]);
    int blocks = 0;
    for (int b = 0; b < h->grid; b++) blocks += ((const setun_cuda_work *)((const int *)h + work_offset(h, b, step)))->tiles > 0;
    return blocks;
}

static bool fill_steps(const setun_cuda_model *m, setun_cuda_header *h, int64_t *load, int *counts, int64_t *out_floats, int64_t *out_words)
{
    setun_cuda_step *steps = (setun_cuda_step *)((int *)h + h->first_step);
    int64_t size[ROTATION] = {0}, begin[ROTATION], sums[ROTATION], floats = 0, words = 0, partial = 0, most_sums = h->grid;
    int uses[ROTATION] = {0};
    for (int i = 0; i < m->op_count; i++) {
        const setun_cuda_op *op = &m->ops[i];
        int64_t out = op->kind == SETUN_CUDA_LINEAR ? up(outputs_of(op), 4) : (int64_t)op->heads * m->head_size;
        if (out > size[i % ROTATION]) size[i % ROTATION] = out;
        uses[i % ROTATION]++;
        int64_t parts = op->kind == SETUN_CUDA_ATTENTION ? (int64_t)h->tokens_max * op->heads * SETUN_CUDA_SPLITS * (m->head_size + 2) * 2 : 0;
        if (parts > partial) partial = parts;
        if (op->kind == SETUN_CUDA_ATTENTION && attention_sums(m, op) > most_sums) most_sums = attention_sums(m, op);
    }
    for (int r = 0; r < ROTATION; r++) begin[r] = words, words += up(size[r] * h->tokens_max, 32);
    int64_t parts[2] = {words, words + up(partial, 32)};
    words += 2 * up(partial, 32);
    h->embedded = (int)words;
    words += up((int64_t)h->tokens_max * m->width, 32);
    h->sums_stride = (int)up(most_sums, 32);
    for (int r = 0; r < ROTATION; r++) sums[r] = words, words += 2 * h->sums_stride;
    h->embedded_sums = (int)words;
    words += 2 * h->sums_stride;
    int attentions = 0;
    for (int i = 0; i < m->op_count; i++) {
        const setun_cuda_op *op = &m->ops[i];
        setun_cuda_step *s = &steps[i];
        memset(s, 0, sizeof *s);
        s->kind = op->kind;
        s->in = i ? (int)begin[(i - 1) % ROTATION] : h->embedded;
        s->in_stride = i ? (int)size[(i - 1) % ROTATION] : m->width;
        s->in_uses = i ? uses[(i - 1) % ROTATION] : 1;
        s->in_use = i ? (i - 1) / ROTATION : 0;
        s->out = (int)begin[i % ROTATION];
        s->out_stride = (int)size[i % ROTATION];
        s->out_uses = uses[i % ROTATION];
        s->out_use = i / ROTATION;
        s->norm = s->bias = -1;
        s->epsilon = -1.0f;
        s->in_sums = i ? (int)sums[(i - 1) % ROTATION] : h->embedded_sums;
        s->out_sums = i + 1 < m->op_count && m->ops[i + 1].kind == SETUN_CUDA_ATTENTION ? -1 : (int)sums[i % ROTATION];
        if (op->kind == SETUN_CUDA_ATTENTION) {
            s->heads = op->heads, s->kv_heads = op->kv_heads;
            s->q = 0;
            s->k = (int)up(m->ops[i - 1].matrix[0].rows, SETUN_CUDA_TILE_ROWS);
            s->v = s->k + (int)up(m->ops[i - 1].matrix[1].rows, SETUN_CUDA_TILE_ROWS);
            s->layer = op->layer, s->window = op->window, s->scale = op->scale;
            s->partial = (int)parts[attentions++ % 2];
            for (int b = 0; b < h->grid; b++) memset((int *)h + work_offset(h, b, i), 0, SETUN_CUDA_WORK_INTS * sizeof(int));
            continue;
        }
        int tiles = tiles_of(op);
        s->columns = (int)op->matrix[0].columns;
        s->blocks = blocks_of(op);
        s->rows = (int)outputs_of(op);
        if (s->blocks * SETUN_CUDA_UNIT_COLUMNS > h->rounded_bytes) h->rounded_bytes = s->blocks * SETUN_CUDA_UNIT_COLUMNS;
        if (op->normed) {
            s->epsilon = op->epsilon;
            if (op->norm) s->norm = (int)add_floats(&floats, s->columns);
        }
        s->scales = (int)add_floats(&floats, (int64_t)tiles * SETUN_CUDA_TILE_ROWS);
        for (int j = 0; j < op->matrix_count; j++)
            if (op->matrix[j].bias && s->bias < 0) s->bias = (int)add_floats(&floats, (int64_t)tiles * SETUN_CUDA_TILE_ROWS);
        s->gated = op->gated, s->activation = op->gated ? op->activation : SETUN_CUDA_ACT_NONE, s->residual = op->residual, s->factor = op->factor;
        setun_cuda_stream *streams = (setun_cuda_stream *)((int *)h + h->first_streams);
        share(op, h->grid, load, counts);
        for (int b = 0, tile = 0, part = 0; b < h->grid; b++) {
            setun_cuda_work *w = (setun_cuda_work *)((int *)h + work_offset(h, b, i));
            int most = h->many || op->gated ? SETUN_CUDA_TILES : SETUN_CUDA_TILES / 2, batch = counts[b] < most ? counts[b] : most, split = h->many ? split_of(batch, s->blocks) : split_of_one(batch, s->blocks);
            *w = (setun_cuda_work){tile, counts[b], streams[b].units, split, part, 0};
            part += counts[b] > 0;
            tile += counts[b];
            int bytes = (batch << split) * SETUN_CUDA_TILE_ROWS * (int)sizeof(int);
            if (!h->many && bytes > h->parts_bytes) h->parts_bytes = bytes;
            streams[b].units += counts[b] * s->blocks;
            if (op->residual && counts[b] * SETUN_CUDA_TILE_ROWS > h->owned) h->owned = counts[b] * SETUN_CUDA_TILE_ROWS;
        }
        if (op->residual) h->residual_step = i;
    }
    for (int i = 0; i <= m->op_count; i++) { /* who reads what step i - 1 wrote */
        int count = (int)(i ? sums_of(m, h, i - 1) : sums_of(m, h, h->residual_step));
        if (i < m->op_count) steps[i].in_sum_count = count;
        else h->head_sum_count = count;
    }
    h->head_norm = m->head_normed && m->head_norm ? (int)add_floats(&floats, m->width) : -1;
    h->head_epsilon = m->head_normed ? m->head_epsilon : -1.0f;
    h->rope_frequencies = (int)add_floats(&floats, m->head_size);
    int last = m->op_count - 1;
    for (int i = 0; i < m->op_count; i++) steps[i].out_norm = i < last ? steps[i + 1].norm : h->head_norm; /* an attention has none */
    h->first_norm = steps[0].norm;
    h->head_sums = steps[last].out_sums;
    h->head_in = steps[last].out, h->head_stride = steps[last].out_stride, h->head_uses = steps[last].out_uses, h->head_use = steps[last].out_use;
    *out_floats = floats;
    *out_words = words;
    return words < INT32_MAX && floats < INT32_MAX;
}

static bool fill_head(const setun_cuda_model *m, setun_cuda_header *h)
{
    setun_cuda_stream *streams = (setun_cuda_stream *)((int *)h + h->first_streams);
    h->embedding_format = m->embedding_format, h->embedding_row_bytes = setun_cuda_dense_row_bytes(m->embedding_format, m->width), h->embedding_factor = m->embedding_factor;
    h->head_format = m->head_format, h->head_row_bytes = setun_cuda_dense_row_bytes(m->head_format, m->width), h->head_factor = m->head_factor;
    int fit = SETUN_CUDA_STAGE_BYTES / h->head_row_bytes, rows = 1;
    while (rows * 2 <= fit && rows < 4 * SETUN_CUDA_WARPS) rows *= 2; /* a stage has at most one batch a warp */
    h->head_rows_per_stage = rows;
    h->head_batch = rows < 4 ? rows : 4;
    int64_t each = up(over(m->vocabulary, h->grid), h->head_batch);
    for (int b = 0; b < h->grid; b++) {
        int64_t first = each * b < m->vocabulary ? each * b : m->vocabulary, left = m->vocabulary - first;
        streams[b].head_row = (int)first;
        streams[b].head_rows = (int)(left < each ? left : each);
    }
    return true;
}

static bool try_layout(const setun_cuda_model *m, const setun_cuda_limits *limits, int tokens_max, bool many, setun_cuda_header **table, size_t *weight_bytes, const char **why)
{
    int grid = limits->multiprocessors;
    int64_t ints = (int64_t)sizeof(setun_cuda_header) / 4 + (int64_t)m->op_count * SETUN_CUDA_STEP_INTS + (int64_t)grid * 4 + (int64_t)grid * m->op_count * SETUN_CUDA_WORK_INTS;
    if (ints > INT32_MAX / 8) return *why = "a tape of so many steps", false;
    setun_cuda_header *h = setun_calloc((size_t)ints, sizeof(int));
    int64_t *load = setun_calloc((size_t)grid, sizeof *load);
    int *counts = setun_calloc((size_t)grid, sizeof *counts);
    if (!h || !load || !counts) {
        *why = "out of memory";
        goto failed;
    }
    h->magic = 0x53544443;
    h->bytes = (int)(ints * 4);
    h->grid = grid, h->tokens_max = tokens_max, h->steps = m->op_count, h->width = m->width, h->vocabulary = m->vocabulary;
    h->many = many;
    h->threads = h->many ? SETUN_CUDA_THREADS : SETUN_CUDA_ONE_THREADS;
    h->head_size = m->head_size, h->kv_heads = m->kv_heads, h->cache_layers = m->layers;
    h->rope_magnitude = m->rope_magnitude, h->rope_interleaved = m->rope_interleaved;
    h->first_step = (int)sizeof(setun_cuda_header) / 4;
    h->first_streams = h->first_step + m->op_count * SETUN_CUDA_STEP_INTS;
    h->first_work = h->first_streams + grid * 4;
    int64_t floats, words;
    if (!fill_steps(m, h, load, counts, &floats, &words) || !fill_head(m, h)) {
        *why = "a tape of such size";
        goto failed;
    }
    setun_cuda_stream *streams = (setun_cuda_stream *)((int *)h + h->first_streams);
    int64_t units = 0;
    for (int b = 0; b < grid; b++) streams[b].unit = (int)units, units += streams[b].units;
    if (units > INT32_MAX / 2) {
        *why = "weights of such size";
        goto failed;
    }
    h->floats = (int)(units * SETUN_CUDA_UNIT_BYTES / 16);
    *weight_bytes = (size_t)units * SETUN_CUDA_UNIT_BYTES + (size_t)floats * 4;
    h->best = (int)sizeof(setun_cuda_state);
    h->vectors = (int)up(h->best + (int64_t)tokens_max * grid * 8, ALIGN);
    h->state_bytes = (int)(h->vectors + words * 4);

    h->scratch_bytes = (int)scratch_of(m, h->many);
    h->stages = 1;
    int room = limits->shared_bytes - SETUN_CUDA_STATIC_SHARED, stages = (room - setun_cuda_shared_of(h).end) / (SETUN_CUDA_STAGE_BYTES + 16) + 1;
    h->stages = stages;
    h->shared_bytes = stages > 0 ? setun_cuda_shared_of(h).end : 0;
    for (int i = 0; i < m->op_count; i++)
        if (m->ops[i].kind == SETUN_CUDA_LINEAR) {
            setun_cuda_step *s = (setun_cuda_step *)((int *)h + h->first_step) + i;
            int fit = stages < 1 ? 0 : (stages - 1) * SETUN_CUDA_STAGE_UNITS / s->blocks;
            int tiles = h->many || s->gated ? SETUN_CUDA_TILES : SETUN_CUDA_TILES / 2; /* decode_one: at most 64 outputs at once */
            s->most = fit < tiles ? fit : tiles;
            if (s->most < 1) stages = 0;
        }
    if (stages < 3 || h->shared_bytes > room) {
        *why = "so little shared memory";
        goto failed;
    }
    setun_free(load);
    setun_free(counts);
    *table = h;
    return true;
failed:
    setun_free(h);
    setun_free(load);
    setun_free(counts);
    return false;
}

bool setun_cuda_layout(const setun_cuda_model *m, const setun_cuda_limits *limits, int tokens_max, setun_cuda_header **table, size_t *weight_bytes, const char **why)
{
    *table = NULL;
    *why = refusal(m, limits, tokens_max);
    if (*why) return false;
    bool many = tokens_max > 1;
    for (int i = 0; i < m->op_count; i++)
        if (m->ops[i].kind == SETUN_CUDA_LINEAR && m->ops[i].matrix[0].columns > SETUN_CUDA_ONE_COLUMNS) many = true;
    /* all steps of a very deep model may not fit in a block's shared memory */
    return (!many && try_layout(m, limits, tokens_max, false, table, weight_bytes, why)) || try_layout(m, limits, tokens_max, true, table, weight_bytes, why);
}

void setun_cuda_table_free(setun_cuda_header *table) { setun_free(table); }

/* ---- weights ---- */

/* Which row of which matrix is row r of tile t; false: padding. */
static bool tile_row(const setun_cuda_op *op, int tile, int r, int *matrix, int64_t *row)
{
    if (op->gated) {
        *matrix = r / (SETUN_CUDA_TILE_ROWS / 2);
        *row = (int64_t)tile * (SETUN_CUDA_TILE_ROWS / 2) + r % (SETUN_CUDA_TILE_ROWS / 2);
        return *row < op->matrix[*matrix].rows;
    }
    for (*matrix = 0; *matrix < op->matrix_count; ++*matrix) {
        int tiles = (int)over(op->matrix[*matrix].rows, SETUN_CUDA_TILE_ROWS);
        if (tile < tiles) break;
        tile -= tiles;
    }
    *row = (int64_t)tile * SETUN_CUDA_TILE_ROWS + r;
    return *row < op->matrix[*matrix].rows;
}

/* A unit, 16 rows x 128 columns: lane 4g + t of a warp has 16 bytes, words {row g, row g + 8} x {its columns' first half, second}.
 * Byte p = 8t + 0..3 (first half) or 8t + 4..7 (second) of a row holds columns p, 32 + p, 64 + p, 96 + p:
 *   bit   7 6   5 4   3 2   1 0
 *        c[p] c[32+p] c[64+p] c[96+p] */
static void pack_unit(const uint8_t *codes, size_t stride, uint8_t *unit)
{
    for (int g = 0; g < 16; g++)
        for (int p = 0; p < 32; p++) {
            const uint8_t *c = codes + (size_t)g * stride + p;
            int lane = g % 8 * 4 + p / 8, word = g / 8 + (p % 8 / 4) * 2;
            unit[lane * 16 + word * 4 + p % 4] = (uint8_t)(c[0] << 6 | c[32] << 4 | c[64] << 2 | c[96]);
        }
}

static bool pack_tile(const setun_cuda_model *m, const setun_cuda_op *op, int tile, uint8_t *codes, size_t stride, uint8_t *out)
{
    memset(codes, 1, stride * SETUN_CUDA_TILE_ROWS); /* padding is 0 */
    for (int r = 0; r < SETUN_CUDA_TILE_ROWS;) {
        int matrix, next, count = 1;
        int64_t row, next_row;
        if (!tile_row(op, tile, r, &matrix, &row)) {
            r++;
            continue;
        }
        while (r + count < SETUN_CUDA_TILE_ROWS && tile_row(op, tile, r + count, &next, &next_row) && next == matrix) count++;
        /* rows come dense, [count, columns]; they are spread from the last, as the padded stride is longer */
        int64_t columns = op->matrix[matrix].columns;
        uint8_t *first = codes + (size_t)r * stride;
        if (!m->codes(op->matrix[matrix].source, row, count, first)) return false;
        for (int i = count - 1; i >= 0; i--) {
            memmove(first + (size_t)i * stride, first + (size_t)i * (size_t)columns, (size_t)columns);
            memset(first + (size_t)i * stride + columns, 1, stride - (size_t)columns);
        }
        r += count;
    }
    for (int b = 0; b < blocks_of(op); b++) pack_unit(codes + b * SETUN_CUDA_UNIT_COLUMNS, stride, out + (size_t)b * SETUN_CUDA_UNIT_BYTES);
    return true;
}

bool setun_cuda_pack_op(const setun_cuda_model *m, const setun_cuda_header *h, int i, uint8_t *weights)
{
    const setun_cuda_step *s = (const setun_cuda_step *)((const int *)h + h->first_step) + i;
    const setun_cuda_stream *streams = (const setun_cuda_stream *)((const int *)h + h->first_streams);
    float *floats = (float *)(void *)(weights + (size_t)h->floats * 16);
    const setun_cuda_op *op = &m->ops[i];
    if (op->kind != SETUN_CUDA_LINEAR) return true;
    size_t stride = (size_t)s->blocks * SETUN_CUDA_UNIT_COLUMNS;
    uint8_t *codes = setun_alloc(stride * SETUN_CUDA_TILE_ROWS);
    if (!codes) return false;
    bool ok = true;
    for (int b = 0; b < h->grid && ok; b++) {
        const setun_cuda_work *w = (const setun_cuda_work *)((const int *)h + work_offset(h, b, i));
        uint8_t *out = weights + ((size_t)streams[b].unit + (size_t)w->unit) * SETUN_CUDA_UNIT_BYTES;
        for (int t = 0; t < w->tiles && ok; t++) ok = pack_tile(m, op, w->tile + t, codes, stride, out + (size_t)t * (size_t)s->blocks * SETUN_CUDA_UNIT_BYTES);
    }
    setun_free(codes);
    if (!ok) return false;
    if (s->norm >= 0) memcpy(floats + s->norm, op->norm, (size_t)s->columns * sizeof(float));
    for (int t = 0; t < tiles_of(op); t++)
        for (int r = 0; r < SETUN_CUDA_TILE_ROWS; r++) {
            int matrix;
            int64_t row;
            bool inside = tile_row(op, t, r, &matrix, &row);
            const setun_cuda_matrix *w = inside ? &op->matrix[matrix] : NULL;
            floats[s->scales + t * SETUN_CUDA_TILE_ROWS + r] = !w ? 0.0f : w->row_scales ? w->row_scales[row] : w->scale;
            if (s->bias >= 0) floats[s->bias + t * SETUN_CUDA_TILE_ROWS + r] = w && w->bias ? w->bias[row] : 0.0f;
        }
    return true;
}

void setun_cuda_pack_rest(const setun_cuda_model *m, const setun_cuda_header *h, uint8_t *weights)
{
    float *floats = (float *)(void *)(weights + (size_t)h->floats * 16);
    if (h->head_norm >= 0) memcpy(floats + h->head_norm, m->head_norm, (size_t)m->width * sizeof(float));
    memcpy(floats + h->rope_frequencies, m->rope_frequencies, (size_t)m->head_size / 2 * sizeof(double));
}

bool setun_cuda_pack(const setun_cuda_model *m, const setun_cuda_header *h, uint8_t *weights)
{
    for (int i = 0; i < m->op_count; i++)
        if (!setun_cuda_pack_op(m, h, i, weights)) return false;
    setun_cuda_pack_rest(m, h, weights);
    return true;
}
