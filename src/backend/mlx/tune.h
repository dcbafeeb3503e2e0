/*
 * tune.h - finding group sizes and tile shapes by measuring: the search, apart from what it measures, and which values a device runs with.
 * Callers: setun_device_tune, lower.c and setun_mlx_describe (which values), tests of the search with invented times.
 */
#ifndef SETUN_MLX_TUNE_H
#define SETUN_MLX_TUNE_H

#include "backend/mlx/mlx.h"
#include "backend/mlx/tuning.h"

/* Fields that are measured together, in this order: later ones build on earlier ones. */
int setun_tune_group_count(void);
const char *setun_tune_group_name(int group); /* what is measured, for people */
/* Seconds that the group's work takes with these values. */
typedef setun_status (*setun_tune_measure_fn)(void *user, int group, const setun_tuning *values, double *out_seconds);
typedef struct setun_tune_gain { double before, after; int tried; } setun_tune_gain; /* seconds with the first values and with the best */
/* Starts from *values and leaves the best in it. Others must be better by 3 % to be taken: a table that jumps with the noise serves nobody.
 * gains: [group count]. progress false: CANCELLED. */
setun_status setun_tune_search(setun_tuning *values, setun_tune_measure_fn measure, void *user, setun_progress_fn progress, void *progress_user, setun_tune_gain *gains);

/* What the kernels reach on a device with these values. */
typedef struct setun_tune_rates {
    double ternary_bytes_per_second;    /* of packed codes, one token's product */
    double prompt_operations_per_second;/* a prompt's product, 2 a multiply-add */
    double call_seconds;                /* of a kernel that computes next to nothing */
} setun_tune_rates;
setun_status setun_tune_rates_of(const setun_mlx *mlx, const setun_tuning *values, setun_tune_rates *out);

/* The values that a device runs with: measured ones of the user's file (setun_environment.tuning), else its family's. note: which, for people and
 * in JSON. A file that cannot be read is a warning, and the family's values are used. */
typedef struct setun_tuned { setun_tuning values; setun_gpu_family family; bool measured; char note[256]; } setun_tuned;
void setun_mlx_tuned(setun_context *context, const setun_mlx_device *device, setun_tuned *out);

#endif
