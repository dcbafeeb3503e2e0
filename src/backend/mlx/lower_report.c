/*
 * lower_report.c - what a run on a device is made of, for explain: kernels, operations of MLX beside them, waits, fallbacks. The run is built as
 * any other, with arrays that nobody evaluates. And what is said of fallbacks when a plan is made. Caller: setun_model_explain through the vtable, lower.c.
 */
#include "backend/mlx/lower.h"

void mlx_count_operation(mlx_tape *tape, setun_mlx_op op)
{
    tape->operations++;
    switch (op) {
    case SETUN_MLX_OP_SLICE: case SETUN_MLX_OP_RESHAPE: case SETUN_MLX_OP_FULL: case SETUN_MLX_OP_DEPENDS: break; /* no memory is moved */
    case SETUN_MLX_OP_CONTIGUOUS: case SETUN_MLX_OP_COPY: case SETUN_MLX_OP_CONCATENATE: case SETUN_MLX_OP_ASTYPE: tape->copies++; break;
    default: tape->without_kernel++; break;
    }
}

void mlx_say_fallbacks(mlx_executor *e, const setun_plan *plan)
{
    int steps = 0;
    for (int i = 0; i < plan->step_count; i++) {
        const setun_step *s = &plan->steps[i];
        if (s->kind != SETUN_STEP_LINEAR || !s->quantized_input) continue;
        const mlx_weight *w = s->prepared[0];
        steps += w->host.ternary && w->host.scale_kind == SETUN_SCALE_GROUP;
    }
    if (steps == 0 || atomic_flag_test_and_set(&e->said)) return;
    setun_log(e->mlx->context, SETUN_LOG_WARNING, "%s: %d products of int8 values with scales for groups of weights have no kernel of their own: operations of MLX run beside the float one (`setun explain` counts them)",
              e->mlx->id, steps);
}

setun_status mlx_report(const setun_backend *backend, setun_frame *frame, setun_device_report *out)
{
    mlx_executor *e = (mlx_executor *)(uintptr_t)backend;
    memset(out, 0, sizeof *out);
    out->device = e->mlx->id;
    out->name = e->mlx->device.name;
    out->tuning = e->tuning_note;
    out->compiles = e->table->compile_get(e->stream);
    SETUN_TRY(mlx_run_frame(e, frame, true)); /* makes the cache's arrays and tables, which later runs find there */
    SETUN_TRY(mlx_run_frame(e, frame, true));
    const mlx_tape *tape = mlx_tape_of(frame->plan);
    if (!tape) return SETUN_OK;
    out->kernels = tape->kernel_calls;
    out->operations = tape->operations;
    out->synchronisations = tape->synchronisations;
    out->without_kernel = tape->without_kernel;
    out->copies = tape->copies;
    out->uncompiled_steps = out->compiles && frame->tokens == 1 ? 0 : tape->step_count; /* lower_compile.c */
    return SETUN_OK;
}
