/*
 * lower_steps.c - one function a kind of step: which kernels it becomes on a device, over which arrays. The kernels say in their text
 * (kernels/NAME.kernel) what sizes and factors mean. Caller: lower.c. Knows steps and kernels; refuses to know what comes before or after.
 */
#include "backend/mlx/lower.h"

/* kernels/common.h: ACTIVATION_* */
static int activation_number(setun_op op)
{
    switch (op) {
    case SETUN_OP_SILU: return 1;
    case SETUN_OP_RELU2: return 2;
    case SETUN_OP_GELU: return 3;
    case SETUN_OP_SCALE: return 4;
    default: return 0;
    }
}

/* Groups of scales need float sums: an int8 product has one scale a row. */
static bool grouped(const setun_weight *w) { return w->probed && w->info.ternary && w->info.scale == SETUN_SCALE_GROUP; }

bool mlx_supports(const setun_backend *backend, const setun_step *step)
{
    (void)backend;
    switch (step->kind) {
    case SETUN_STEP_LINEAR: {
        bool plain = !step->gated && step->residual < 0 && step->weight_count == 1 && step->factor == 1.0f;
        for (int i = 0; i < step->weight_count; i++) {
            const setun_weight *w = step->weight[i];
            if (!setun_weight_is_ternary(w)) {
                if (step->quantized_input || step->gated || step->weight_count > 1) return false;
            } else if (step->quantized_input && (grouped(w) || !w->probed) && !plain) return false;
            /* one kernel for all: the same kind of scales, all with a bias or none */
            if (i > 0 && (!step->bias[i] != !step->bias[0] || !w->probed || !step->weight[0]->probed || w->info.scale != step->weight[0]->info.scale || w->info.group_size != step->weight[0]->info.group_size)) return false;
        }
        return true;
    }
    case SETUN_STEP_ATTENTION: return step->head_size <= 512 && step->head_size % 2 == 0;
    case SETUN_STEP_HADAMARD: return step->block <= 4096;
    default: return true;
    }
}

void mlx_name_step(const mlx_tape *tape, const setun_step *step, mlx_step *lowered)
{
    const char *name = setun_step_name(step->kind);
    switch (step->kind) {
    case SETUN_STEP_NORM: name = step->quantize ? "rms_norm_quantize" : "rms_norm"; break;
    case SETUN_STEP_LINEAR: {
        const mlx_weight *w = step->prepared[0];
        name = !w->host.ternary ? "dense_matvec" : step->quantized_input && w->host.scale_kind != SETUN_SCALE_GROUP ? tape->executor->tuning.matmul_way == 2 ? "ternary_matvec, ternary_matmul_matrix" : "ternary_matvec, ternary_matmul" : "ternary_float";
        break;
    }
    case SETUN_STEP_ATTENTION: name = "kv_append, attention"; break;
    default: break;
    }
    const char *id = tape->executor->mlx->id;
    if (tape->cuda) { /* one launch for a token, prompt.cu's products for more; the kernels above where a run is not theirs */
        snprintf(lowered->kernel, sizeof lowered->kernel, "cuda_decode, %s[%s]", step->kind == SETUN_STEP_LINEAR && ((const mlx_weight *)step->prepared[0])->host.ternary ? "cuda_prompt" : "cuda_forward", id);
        return;
    }
    snprintf(lowered->kernel, sizeof lowered->kernel, "%s[%s]%s", name, id, lowered->scaled_gate ? " scaled" : "");
}

/* ---- parts ---- */

static int64_t rows_of(const mlx_run *run, int slot) { return setun_slot_rows(&run->plan->slots[slot], run->frame->tokens, run->frame->outputs); }
static int64_t width_of(const mlx_run *run, int slot) { return setun_slot_width(&run->plan->slots[slot]); }
static mlx_value *output(mlx_run *run, const setun_step *step, int i) { return &run->tape->value[step->output[i]]; }
static setun_mlx_array *no_floats(const mlx_run *run) { return run->executor->nothing[0]; }
static setun_mlx_array *no_integers(const mlx_run *run) { return run->executor->nothing[1]; }

static setun_status embedding(mlx_run *run, const setun_step *step)
{
    const mlx_weight *w = step->prepared[0];
    int64_t rows = rows_of(run, step->output[0]), width = width_of(run, step->output[0]);
    setun_mlx_array *sizes, *factors;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)width, (int32_t)w->host.rows}, 2, &sizes));
    SETUN_TRY(mlx_reals(run, (const float[]){step->factor}, 1, &factors));
    setun_mlx_array *inputs[] = {w->values, mlx_value_of(run, step->input[0])->values, sizes, factors};
    setun_mlx_spec spec = mlx_spec2(run->tape->type, rows, width);
    return mlx_kernel(run, SETUN_GPU_embedding, (const int32_t[]){w->dtype, run->tape->type}, inputs, &spec, (const int64_t[4]){rows}, run->executor->tuning.row_threads, &output(run, step, 0)->values);
}

static setun_status norm(mlx_run *run, const setun_step *step)
{
    mlx_value *x;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    const mlx_weight *w = step->prepared[0];
    int64_t rows = rows_of(run, step->output[0]), width = width_of(run, step->output[0]);
    setun_mlx_array *sizes, *factors;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)width}, 1, &sizes));
    SETUN_TRY(mlx_reals(run, (const float[]){step->epsilon, step->one_plus ? 1.0f : 0.0f}, 2, &factors));
    setun_mlx_array *inputs[] = {x->values, w ? w->values : no_floats(run), x->row_scale ? x->row_scale : no_floats(run), sizes, factors};
    mlx_value *y = output(run, step, 0);
    int threads = run->executor->tuning.norm_threads;
    if (!step->quantize) {
        setun_mlx_spec spec = mlx_spec2(run->tape->type, rows, width);
        return mlx_kernel(run, SETUN_GPU_rms_norm, (const int32_t[]){run->tape->type, run->tape->type, w != NULL, x->row_scale != NULL}, inputs, &spec, (const int64_t[4]){rows}, threads, &y->values);
    }
    setun_mlx_spec specs[] = {mlx_spec2(SETUN_I8, rows, setun_q8_stride(width)), mlx_spec1(SETUN_F32, mlx_at_least(rows)), mlx_spec1(SETUN_I32, mlx_at_least(rows))};
    setun_mlx_array *out[3] = {NULL};
    SETUN_TRY(mlx_kernel(run, SETUN_GPU_rms_norm_quantize, (const int32_t[]){run->tape->type, w != NULL, x->row_scale != NULL}, inputs, specs, (const int64_t[4]){rows}, threads, out));
    y->values = out[0];
    y->scale = out[1];
    y->sum = out[2];
    return SETUN_OK;
}

static setun_status quantize(mlx_run *run, const setun_step *step)
{
    mlx_value *x;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    int64_t rows = rows_of(run, step->output[0]), width = width_of(run, step->output[0]);
    setun_mlx_array *sizes, *out[3] = {NULL};
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)width}, 1, &sizes));
    setun_mlx_array *inputs[] = {x->values, x->row_scale ? x->row_scale : no_floats(run), sizes};
    setun_mlx_spec specs[] = {mlx_spec2(SETUN_I8, rows, setun_q8_stride(width)), mlx_spec1(SETUN_F32, mlx_at_least(rows)), mlx_spec1(SETUN_I32, mlx_at_least(rows))};
    SETUN_TRY(mlx_kernel(run, SETUN_GPU_quantize, (const int32_t[]){run->tape->type, x->row_scale != NULL}, inputs, specs, (const int64_t[4]){rows}, run->executor->tuning.norm_threads, out));
    mlx_value *y = output(run, step, 0);
    y->values = out[0];
    y->scale = out[1];
    y->sum = out[2];
    return SETUN_OK;
}

/* ---- linear ---- */

/* Weights first .. first+count-1 of the step in one kernel; `act`: they are a gated pair. residual NULL: none. */
static setun_status ternary_call(mlx_run *run, const setun_step *step, const mlx_value *x, int first, int count, int act, float factor, setun_mlx_array *residual, bool as_float, setun_mlx_array *float_x,
                                 setun_dtype type, setun_mlx_array **out)
{
    const setun_tuning *tuning = &run->executor->tuning;
    const mlx_weight *w[3];
    int64_t tokens = rows_of(run, step->input[0]), columns = width_of(run, step->input[0]), rows[3] = {0};
    setun_mlx_array *bias[3];
    for (int i = 0; i < 3; i++) {
        int j = i < count ? first + i : first;
        w[i] = step->prepared[j];
        const mlx_weight *b = step->prepared_bias[j];
        bias[i] = b ? b->values : no_floats(run);
        if (i < count) rows[i] = w[i]->host.rows;
    }
    bool biased = step->prepared_bias[first] != NULL, row_scales = w[0]->host.scale_kind == SETUN_SCALE_ROW;
    int group = w[0]->host.scale_kind == SETUN_SCALE_GROUP ? w[0]->host.group_size : 0;
    int64_t width = act ? rows[0] : rows[0] + rows[1] + rows[2];
    setun_mlx_array *sizes, *factors;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)columns, (int32_t)tokens, (int32_t)rows[0], (int32_t)rows[1], (int32_t)rows[2], group}, 6, &sizes));
    SETUN_TRY(mlx_reals(run, (const float[]){factor}, 1, &factors));
    setun_mlx_spec spec = mlx_spec2(type, tokens, width);
    const int64_t extent[4] = {rows[0], act ? 0 : rows[1], rows[2], tokens};
    const int64_t pair_extent[4] = {rows[0], rows[1], rows[2], tokens};
    setun_mlx_array *res = residual;
    if (as_float) {
        setun_mlx_array *inputs[] = {w[0]->values, w[1]->values, w[2]->values, float_x, w[0]->scales, w[1]->scales, w[2]->scales, bias[0], bias[1], bias[2], res ? res : float_x, sizes, factors};
        const int32_t templates[] = {type, count, tuning->team_rows, tokens < tuning->team_tokens ? (int32_t)tokens : tuning->team_tokens, act, row_scales, biased, res != NULL};
        return mlx_kernel(run, SETUN_GPU_ternary_float, templates, inputs, &spec, act ? extent : pair_extent, tuning->team_threads, out);
    }
    /* An unused residual must have the outputs' dtype; f32 has one at hand, others take x's scales seen as that. */
    setun_mlx_array *dummy = NULL;
    if (!res && type == SETUN_F32) res = no_floats(run);
    if (!res) SETUN_TRY(mlx_op(run, SETUN_MLX_OP_ASTYPE, &run->executor->nothing[0], 1, NULL, 0, type, &dummy));
    setun_mlx_array *inputs[] = {w[0]->values, w[1]->values, w[2]->values, x->values, x->scale, x->sum, w[0]->scales, w[1]->scales, w[2]->scales, bias[0], bias[1], bias[2], dummy ? dummy : res, sizes, factors};
    setun_status status;
    if (tokens < tuning->matmul_from) {
        int most = tuning->matvec_tokens, t = tokens < most ? (int)tokens : most;
        const int32_t templates[] = {type, count, t > 1 ? tuning->matvec_token_rows : tuning->matvec_rows, t, act, row_scales, biased, residual != NULL};
        status = mlx_kernel(run, SETUN_GPU_ternary_matvec, templates, inputs, &spec, act ? extent : pair_extent, tuning->matvec_threads, out);
    } else {
        const int32_t templates[] = {type, count, tuning->matmul_rows, tuning->matmul_tokens, act, row_scales, biased, residual != NULL};
        bool matrix = tuning->matmul_way == 2 && setun_gpu_matrix_fits(tuning->matmul_rows, tuning->matmul_tokens, act != 0);
        status = mlx_kernel(run, matrix ? SETUN_GPU_ternary_matmul_matrix : SETUN_GPU_ternary_matmul, templates, inputs, &spec, act ? extent : pair_extent, 0, out);
    }
    run->table->array_release(dummy);
    return status;
}

/* int8 rows as floats, without their scale, [tokens, columns] */
static setun_status floats_of_q8(mlx_run *run, const mlx_value *x, int64_t tokens, int64_t columns, setun_dtype type, setun_mlx_array **out)
{
    setun_mlx_array *part = NULL, *dense = NULL;
    SETUN_TRY(mlx_op(run, SETUN_MLX_OP_SLICE, &x->values, 1, (const int64_t[]){0, 0, tokens, columns}, 4, 0, &part));
    setun_status status = mlx_op(run, SETUN_MLX_OP_ASTYPE, &part, 1, NULL, 0, type, &dense);
    run->table->array_release(part);
    SETUN_TRY(status);
    status = mlx_op(run, SETUN_MLX_OP_CONTIGUOUS, &dense, 1, NULL, 0, 0, out);
    run->table->array_release(dense);
    return status;
}

/* values [tokens, width] * scale [tokens], of the activations' dtype */
static setun_status times_rows(mlx_run *run, setun_mlx_array *values, setun_mlx_array *scale, int64_t tokens, setun_dtype type, setun_mlx_array **out)
{
    setun_mlx_array *part = NULL, *column = NULL, *wide = NULL;
    setun_status status = mlx_op(run, SETUN_MLX_OP_SLICE, &scale, 1, (const int64_t[]){0, tokens}, 2, 0, &part);
    if (status == SETUN_OK) status = mlx_op(run, SETUN_MLX_OP_RESHAPE, &part, 1, (const int64_t[]){tokens, 1}, 2, 0, &column);
    if (status == SETUN_OK) status = mlx_op(run, SETUN_MLX_OP_MULTIPLY, (setun_mlx_array *[]){values, column}, 2, NULL, 0, 0, &wide);
    if (status == SETUN_OK) status = mlx_op(run, SETUN_MLX_OP_ASTYPE, &wide, 1, NULL, 0, type, out);
    run->table->array_release(part);
    run->table->array_release(column);
    run->table->array_release(wide);
    return status;
}

static setun_status dense(mlx_run *run, const setun_step *step)
{
    const setun_tuning *tuning = &run->executor->tuning;
    mlx_value *x, *residual = NULL;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    const mlx_weight *w = step->prepared[0], *b = step->prepared_bias[0];
    int64_t tokens = rows_of(run, step->input[0]), columns = width_of(run, step->input[0]);
    setun_mlx_array *sizes, *factors, *wide = NULL, *y = NULL;
    setun_dtype type = run->tape->type;
    if (step->residual >= 0) {
        SETUN_TRY(mlx_dense_value(run, step->residual, &residual));
        if (type != SETUN_F32) SETUN_TRY(mlx_op(run, SETUN_MLX_OP_ASTYPE, &residual->values, 1, NULL, 0, SETUN_F32, &wide));
    }
    setun_status status = mlx_integers(run, (const int32_t[]){(int32_t)columns, (int32_t)tokens, (int32_t)w->host.rows}, 3, &sizes);
    if (status == SETUN_OK) status = mlx_reals(run, (const float[]){step->factor}, 1, &factors);
    if (status == SETUN_OK) {
        setun_mlx_array *inputs[] = {w->values, x->values, b ? b->values : no_floats(run), wide ? wide : residual ? residual->values : no_floats(run), sizes, factors};
        setun_mlx_spec spec = mlx_spec2(SETUN_F32, tokens, w->host.rows);
        const int32_t templates[] = {type, w->dtype, tuning->team_rows, tokens < tuning->team_tokens ? (int32_t)tokens : tuning->team_tokens, b != NULL, residual != NULL};
        status = mlx_kernel(run, SETUN_GPU_dense_matvec, templates, inputs, &spec, (const int64_t[4]){w->host.rows, 0, 0, tokens}, tuning->team_threads, &y);
    }
    run->table->array_release(wide);
    SETUN_TRY(status);
    mlx_value *out = output(run, step, 0);
    if (type == SETUN_F32 || run->plan->slots[step->output[0]].place == SETUN_PLACE_OUTPUT) {
        out->values = y; /* logits stay f32 */
        return SETUN_OK;
    }
    status = mlx_op(run, SETUN_MLX_OP_ASTYPE, &y, 1, NULL, 0, type, &out->values);
    run->table->array_release(y);
    return status;
}

static setun_status linear(mlx_run *run, const setun_step *step, const mlx_step *lowered)
{
    const mlx_weight *w = step->prepared[0];
    if (!w->host.ternary) return dense(run, step);
    setun_dtype type = run->tape->type;
    bool q8 = run->plan->slots[run->tape->source[step->input[0]]].dtype == SETUN_Q8, groups = w->host.scale_kind == SETUN_SCALE_GROUP;
    int64_t tokens = rows_of(run, step->input[0]), columns = width_of(run, step->input[0]);
    mlx_value *x, *residual = NULL;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    if (step->residual >= 0) SETUN_TRY(mlx_dense_value(run, step->residual, &residual));
    int act = step->gated ? activation_number(step->activation) : 0;
    setun_mlx_array *res = residual ? residual->values : NULL;
    mlx_value *out = output(run, step, 0);
    if (q8 && groups) {
        setun_mlx_array *floats = NULL, *sums = NULL;
        SETUN_TRY(floats_of_q8(run, x, tokens, columns, SETUN_F32, &floats));
        setun_status status = ternary_call(run, step, x, 0, 1, 0, 1.0f, NULL, true, floats, SETUN_F32, &sums);
        if (status == SETUN_OK) status = times_rows(run, sums, x->scale, tokens, type, &out->values);
        run->table->array_release(floats);
        run->table->array_release(sums);
        return status;
    }
    if (lowered->scaled_gate) {
        /* f16: the pair apart, then act(gate) * up with a power of two a row */
        setun_mlx_array *pair[2] = {NULL}, *sizes, *made[2] = {NULL};
        setun_status status = SETUN_OK;
        for (int i = 0; i < 2 && status == SETUN_OK; i++) status = ternary_call(run, step, x, i, 1, 0, 1.0f, NULL, !q8, x->values, type, &pair[i]);
        if (status == SETUN_OK) status = mlx_integers(run, (const int32_t[]){(int32_t)w->host.rows}, 1, &sizes);
        if (status == SETUN_OK) {
            setun_mlx_array *inputs[] = {pair[0], pair[1], sizes};
            setun_mlx_spec specs[] = {mlx_spec2(type, tokens, w->host.rows), mlx_spec1(SETUN_F32, mlx_at_least(tokens))};
            status = mlx_kernel(run, SETUN_GPU_gate_scaled, (const int32_t[]){type, type, act, 1}, inputs, specs, (const int64_t[4]){tokens}, run->executor->tuning.norm_threads, made);
        }
        run->table->array_release(pair[0]);
        run->table->array_release(pair[1]);
        out->values = made[0];
        out->row_scale = made[1];
        return status;
    }
    setun_mlx_array *y = NULL;
    SETUN_TRY(ternary_call(run, step, x, 0, step->weight_count, act, step->factor, res, !q8, x->values, type, &y));
    if (step->gated || step->weight_count == 1) {
        out->values = y;
        return SETUN_OK;
    }
    /* the outputs are parts of one row */
    int64_t total = 0, at = 0;
    for (int i = 0; i < step->weight_count; i++) total += ((const mlx_weight *)step->prepared[i])->host.rows;
    for (int i = 0; i < step->weight_count; i++) {
        mlx_value *part = output(run, step, i);
        run->table->array_retain(y, &part->values);
        part->offset = at;
        part->stride = total;
        at += ((const mlx_weight *)step->prepared[i])->host.rows;
    }
    run->table->array_release(y);
    return SETUN_OK;
}

/* ---- element by element, row by row ---- */

static setun_status unary(mlx_run *run, const setun_step *step, const mlx_step *lowered)
{
    mlx_value *x;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    int64_t rows = rows_of(run, step->output[0]), width = width_of(run, step->output[0]), count = rows * width;
    setun_mlx_array *sizes, *factors;
    mlx_value *out = output(run, step, 0);
    setun_mlx_spec specs[] = {mlx_spec2(run->tape->type, rows, width), mlx_spec1(SETUN_F32, mlx_at_least(rows))};
    if (lowered->scaled_gate) {
        setun_mlx_array *made[2] = {NULL};
        SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)width}, 1, &sizes));
        setun_mlx_array *inputs[] = {x->values, x->values, sizes};
        SETUN_TRY(mlx_kernel(run, SETUN_GPU_gate_scaled, (const int32_t[]){run->tape->type, run->tape->type, activation_number(step->activation), 0}, inputs, specs, (const int64_t[4]){rows},
                             run->executor->tuning.norm_threads, made));
        out->values = made[0];
        out->row_scale = made[1];
        return SETUN_OK;
    }
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)count}, 1, &sizes));
    SETUN_TRY(mlx_reals(run, (const float[]){step->factor}, 1, &factors));
    setun_mlx_array *inputs[] = {x->values, sizes, factors};
    return mlx_kernel(run, SETUN_GPU_unary, (const int32_t[]){run->tape->type, activation_number(step->activation)}, inputs, specs, (const int64_t[4]){count}, run->executor->tuning.element_threads, &out->values);
}

static setun_status binary(mlx_run *run, const setun_step *step)
{
    mlx_value *a, *b;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &a));
    SETUN_TRY(mlx_dense_value(run, step->input[1], &b));
    int64_t rows = rows_of(run, step->output[0]), width = width_of(run, step->output[0]);
    setun_mlx_array *sizes;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)(rows * width)}, 1, &sizes));
    setun_mlx_array *inputs[] = {a->values, b->values, sizes};
    setun_mlx_spec spec = mlx_spec2(run->tape->type, rows, width);
    return mlx_kernel(run, SETUN_GPU_binary, (const int32_t[]){run->tape->type, step->activation == SETUN_OP_ADD ? 0 : 4}, inputs, &spec, (const int64_t[4]){rows * width},
                      run->executor->tuning.element_threads, &output(run, step, 0)->values);
}

static setun_status row_kernel(mlx_run *run, const setun_step *step, setun_gpu_kernel_id id, int threads)
{
    mlx_value *x;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    int64_t rows = rows_of(run, step->output[0]), width = width_of(run, step->output[0]);
    setun_mlx_array *sizes;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)width}, 1, &sizes));
    setun_mlx_array *inputs[] = {x->values, sizes};
    setun_mlx_spec spec = mlx_spec2(run->tape->type, rows, width);
    return mlx_kernel(run, id, (const int32_t[]){run->tape->type}, inputs, &spec, (const int64_t[4]){rows}, threads, &output(run, step, 0)->values);
}

static setun_status select_rows(mlx_run *run, const setun_step *step)
{
    mlx_value *x;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    const setun_slot *in = &run->plan->slots[step->input[0]];
    int64_t wanted = setun_dim_value(run->plan->slots[step->output[0]].shape.dim[0], run->frame->tokens, run->frame->outputs), given = setun_dim_value(in->shape.dim[0], run->frame->tokens, run->frame->outputs);
    int64_t width = 1;
    for (int i = 1; i < in->shape.rank; i++) width *= in->shape.dim[i];
    setun_mlx_array *sizes;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)width, (int32_t)given}, 2, &sizes));
    setun_mlx_array *inputs[] = {x->values, mlx_value_of(run, step->input[1])->values, sizes};
    setun_mlx_spec spec = mlx_spec2(run->tape->type, wanted, width);
    return mlx_kernel(run, SETUN_GPU_select_rows, (const int32_t[]){run->tape->type}, inputs, &spec, (const int64_t[4]){wanted}, run->executor->tuning.row_threads, &output(run, step, 0)->values);
}

static setun_status hadamard(mlx_run *run, const setun_step *step)
{
    mlx_value *x;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    int64_t rows = rows_of(run, step->output[0]), width = width_of(run, step->output[0]);
    setun_mlx_array *sizes, *signs = NULL;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){(int32_t)width}, 1, &sizes));
    if (step->signs) {
        setun_mlx_spec s = mlx_spec1(SETUN_F32, step->sign_count);
        SETUN_TRY(mlx_run_check(run, run->table->array_from_host(run->stream, &s, step->signs, &signs), "signs"));
    }
    setun_mlx_array *inputs[] = {x->values, signs ? signs : no_floats(run), sizes};
    setun_mlx_spec spec = mlx_spec2(run->tape->type, rows, width);
    setun_status status = mlx_kernel(run, SETUN_GPU_hadamard, (const int32_t[]){run->tape->type, step->block, step->signs != NULL, step->inverse}, inputs, &spec, (const int64_t[4]){rows * (width / step->block)},
                                     run->executor->tuning.row_threads, &output(run, step, 0)->values);
    run->table->array_release(signs);
    return status;
}

/* The largest position of a run, for the table of rotations. */
static int rows_of_table(const mlx_run *run, int slot)
{
    const int32_t *positions = setun_frame_slot(run->frame, slot);
    int most = 0;
    for (int t = 0; t < run->frame->tokens; t++)
        if (positions[t] > most) most = positions[t];
    return most < INT32_MAX ? most + 1 : most;
}

static setun_status rope(mlx_run *run, const setun_step *step, const mlx_step *lowered)
{
    mlx_value *x;
    SETUN_TRY(mlx_dense_value(run, step->input[0], &x));
    mlx_rope *table = &run->tape->ropes[lowered->rope];
    SETUN_TRY(mlx_rope_table(run, table, rows_of_table(run, step->input[1])));
    int64_t tokens = setun_dim_value(run->plan->slots[step->output[0]].shape.dim[0], run->frame->tokens, run->frame->outputs);
    setun_mlx_array *sizes;
    SETUN_TRY(mlx_integers(run, (const int32_t[]){step->heads, step->head_size, table->half, table->rows}, 4, &sizes));
    setun_mlx_array *inputs[] = {x->values, mlx_value_of(run, step->input[1])->values, table->cosines, table->sines, sizes};
    setun_mlx_spec spec = mlx_spec2(run->tape->type, tokens, (int64_t)step->heads * step->head_size);
    return mlx_kernel(run, SETUN_GPU_rope, (const int32_t[]){run->tape->type, step->rope.interleaved}, inputs, &spec, (const int64_t[4]){tokens}, run->executor->tuning.row_threads, &output(run, step, 0)->values);
}

/* ---- attention ---- */

/* Rows first .. first+count-1 of a value that may be a part of wider rows. */
typedef struct rows_part { setun_mlx_array *array; int64_t offset, stride; } rows_part;

static rows_part part_of(const mlx_value *v, int first, int64_t width)
{
    int64_t stride = v->stride ? v->stride : width;
    return (rows_part){v->values, v->offset + first * stride, stride};
}

static setun_status attention_of(mlx_run *run, const setun_step *step, const mlx_step *lowered, int which, setun_mlx_array **out)
{
    const setun_tuning *tuning = &run->executor->tuning;
    const setun_sequence *q = &run->sequences[which];
    const mlx_value *vq = mlx_value_of(run, step->input[0]), *vk = mlx_value_of(run, step->input[1]), *vv = mlx_value_of(run, step->input[2]);
    rows_part pq = part_of(vq, q->first_row, (int64_t)step->heads * step->head_size), pk = part_of(vk, q->first_row, (int64_t)step->kv_heads * step->head_size),
              pv = part_of(vv, q->first_row, (int64_t)step->kv_heads * step->head_size);
    mlx_rope *table = lowered->rope >= 0 ? &run->tape->ropes[lowered->rope] : NULL;
    if (table) SETUN_TRY(mlx_rope_table(run, table, rows_of_table(run, step->input[3])));
    setun_dtype cache_type = SETUN_F32;
    int capacity = q->rows, length = 0;
    setun_mlx_array *k_cache = NULL, *v_cache = NULL, *fresh[2] = {NULL};
    if (step->attention.cache_layer) {
        cache_type = q->cache->dtype;
        capacity = q->cache->capacity;
        length = q->cache->length;
        SETUN_TRY(mlx_cache_arrays(run, q->cache, step->attention.cache_layer, &k_cache, &v_cache));
    } else {
        setun_mlx_op_request request = {.op = SETUN_MLX_OP_FULL, .integers = (const int64_t[]){1, step->kv_heads, capacity, step->head_size}, .integer_count = 4, .reals = (const double[]){0.0}, .real_count = 1,
                                        .dtype = SETUN_F32};
        for (int i = 0; i < 2; i++) {
            setun_mlx_array *full = NULL;
            SETUN_TRY(mlx_run_check(run, run->table->op(run->stream, &request, &full, 1), "keys and values"));
            setun_status status = mlx_op(run, SETUN_MLX_OP_COPY, &full, 1, NULL, 0, 0, &fresh[i]);
            run->table->array_release(full);
            if (status != SETUN_OK) {
                run->table->array_release(fresh[0]);
                return status;
            }
        }
        k_cache = fresh[0];
        v_cache = fresh[1];
    }
    const mlx_weight *wq = step->prepared[0], *wk = step->prepared[1];
    int norm_q = !step->norm_q ? 0 : wq ? 2 : 1, norm_k = !step->norm_k ? 0 : wk ? 2 : 1;
    int half = table ? table->half : 0, table_rows = table ? table->rows : 0;
    setun_mlx_array *cosines = table ? table->cosines : no_floats(run), *sines = table ? table->sines : no_floats(run);
    setun_mlx_array *positions = table ? run->positions[which] : no_integers(run), *sizes, *factors, *done = NULL, *made[2] = {NULL}, *k_weight = wk ? wk->values : no_floats(run);
    bool append = q->rows == 1 && step->attention.cache_layer;
    setun_status status = SETUN_OK;
    if (!append) {
        status = mlx_integers(run, (const int32_t[]){step->kv_heads, capacity, (int32_t)pk.offset, (int32_t)pk.stride, (int32_t)pv.offset, (int32_t)pv.stride, half, table_rows, 1}, 9, &sizes);
        if (status == SETUN_OK) status = mlx_reals(run, (const float[]){step->epsilon_k, step->one_plus_k ? 1.0f : 0.0f}, 2, &factors);
        if (status == SETUN_OK) {
            setun_mlx_array *inputs[] = {pk.array, pv.array, k_weight, positions, cosines, sines, run->slots[which], run->places[which], k_cache, v_cache, sizes, factors};
            const int32_t templates[] = {run->tape->type, cache_type, step->head_size, norm_k, table != NULL, step->rope.interleaved};
            setun_mlx_spec spec = mlx_spec1(SETUN_I32, mlx_at_least(q->rows));
            status = mlx_kernel(run, SETUN_GPU_kv_append, templates, inputs, &spec, (const int64_t[4]){step->kv_heads, q->rows}, tuning->attention_threads, &done);
        }
    }
    /* Few queries over a long context: a group for each range of 256 keys. The bits are the same. */
    int longest = length + q->rows, parts = longest >= tuning->attention_split && q->rows <= 8 ? (longest + 255) / 256 : 1;
    bool split = parts > 1;
    int group = step->heads / step->kv_heads, heads = group < tuning->attention_heads ? group : tuning->attention_heads;
    while (group % heads) heads--;
    if (status == SETUN_OK)
        status = mlx_integers(run, (const int32_t[]){step->heads, step->kv_heads, capacity, step->attention.window, (int32_t)pq.offset, (int32_t)pq.stride, (int32_t)pk.offset, (int32_t)pk.stride, (int32_t)pv.offset,
                                                     (int32_t)pv.stride, half, table_rows, parts, 1}, 14, &sizes);
    if (status == SETUN_OK) status = mlx_reals(run, (const float[]){step->attention.scale, step->epsilon, step->one_plus ? 1.0f : 0.0f, step->epsilon_k, step->one_plus_k ? 1.0f : 0.0f}, 5, &factors);
    if (status == SETUN_OK) {
        setun_mlx_array *inputs[] = {pq.array, pk.array, pv.array, wq ? wq->values : no_floats(run), k_weight, positions, cosines, sines, run->slots[which], run->places[which], k_cache, v_cache,
                                     done ? done : no_integers(run), sizes, factors};
        const int32_t templates[] = {run->tape->type, cache_type, step->head_size, heads, norm_q, norm_k, table != NULL, step->rope.interleaved, append, split};
        setun_mlx_spec specs[] = {mlx_spec2(run->tape->type, split ? 1 : q->rows, split ? MLX_SMALLEST : (int64_t)step->heads * step->head_size),
                                  mlx_spec1(SETUN_F32, split ? (int64_t)q->rows * step->heads * parts * (step->head_size + 2) : MLX_SMALLEST)};
        status = mlx_kernel(run, SETUN_GPU_attention, templates, inputs, specs, (const int64_t[4]){step->heads, q->rows, parts}, tuning->attention_threads, made);
    }
    if (status == SETUN_OK && split) {
        setun_mlx_array *combined = NULL;
        status = mlx_integers(run, (const int32_t[]){parts}, 1, &sizes);
        setun_mlx_array *inputs[] = {made[1], sizes};
        setun_mlx_spec spec = mlx_spec2(run->tape->type, q->rows, (int64_t)step->heads * step->head_size);
        if (status == SETUN_OK)
            status = mlx_kernel(run, SETUN_GPU_attention_combine, (const int32_t[]){run->tape->type, step->head_size}, inputs, &spec, (const int64_t[4]){(int64_t)q->rows * step->heads}, tuning->row_threads, &combined);
        run->table->array_release(made[0]);
        made[0] = combined;
    }
    if (status == SETUN_OK) {
        run->table->array_release(run->last_done);
        run->table->array_retain(made[0], &run->last_done);
        *out = made[0];
    } else run->table->array_release(made[0]);
    run->table->array_release(made[1]);
    run->table->array_release(done);
    run->table->array_release(fresh[0]);
    run->table->array_release(fresh[1]);
    return status;
}

static setun_status attention(mlx_run *run, const setun_step *step, const mlx_step *lowered)
{
    if (step->attention.scale == 0.0f) return setun_fail(SETUN_ERROR_STATE, "attention without a scale");
    setun_mlx_array **parts = setun_calloc((size_t)run->sequence_count, sizeof *parts);
    if (!parts) return setun_fail_memory((size_t)run->sequence_count * sizeof *parts);
    int count = 0;
    setun_status status = SETUN_OK;
    for (int i = 0; i < run->sequence_count && status == SETUN_OK; i++)
        if (run->sequences[i].rows > 0) {
            run->constant = 0; /* sequences differ: their numbers are made anew where there are several */
            status = attention_of(run, step, lowered, i, &parts[count]);
            count += status == SETUN_OK;
        }
    mlx_value *out = output(run, step, 0);
    if (status == SETUN_OK && count == 1) {
        out->values = parts[0];
        parts[0] = NULL;
    } else if (status == SETUN_OK) status = mlx_op(run, SETUN_MLX_OP_CONCATENATE, parts, count, (const int64_t[]){0}, 1, 0, &out->values);
    for (int i = 0; i < count; i++) run->table->array_release(parts[i]);
    setun_free(parts);
    return status;
}

setun_status mlx_lower_step(mlx_run *run, const setun_step *step, mlx_step *lowered)
{
    const setun_tuning *tuning = &run->executor->tuning;
    switch (step->kind) {
    case SETUN_STEP_EMBEDDING: return embedding(run, step);
    case SETUN_STEP_NORM: return norm(run, step);
    case SETUN_STEP_QUANTIZE: return quantize(run, step);
    case SETUN_STEP_LINEAR: return linear(run, step, lowered);
    case SETUN_STEP_UNARY: return unary(run, step, lowered);
    case SETUN_STEP_BINARY: return binary(run, step);
    case SETUN_STEP_SOFTMAX: return row_kernel(run, step, SETUN_GPU_softmax, tuning->row_threads);
    case SETUN_STEP_L2: return row_kernel(run, step, SETUN_GPU_l2_normalize, tuning->norm_threads);
    case SETUN_STEP_SELECT: return select_rows(run, step);
    case SETUN_STEP_HADAMARD: return hadamard(run, step);
    case SETUN_STEP_ROPE: return rope(run, step, lowered);
    case SETUN_STEP_ATTENTION: return attention(run, step, lowered);
    case SETUN_STEP_COUNT: break;
    }
    return setun_fail(SETUN_ERROR_STATE, "step of kind %d", (int)step->kind);
}
