/*
 * tuning.h - group sizes and tile shapes of the GPU kernels for each family of devices: a table in the source (kernels/tuning.def),
 * measured values in a file over it. Callers: the lowering of plans (lookup), `setun tune` (measures and saves). Knows no MLX.
 */
#ifndef SETUN_MLX_TUNING_H
#define SETUN_MLX_TUNING_H

#include "base/base.h"

typedef enum setun_gpu_family { SETUN_GPU_GENERIC, SETUN_GPU_M1, SETUN_GPU_M2, SETUN_GPU_M3, SETUN_GPU_M4, SETUN_GPU_HOPPER, SETUN_GPU_FAMILY_COUNT } setun_gpu_family;
/* From a device's architecture and name as bridge.h gives them: "applegpu_g15s" and "Apple M3 Max", "sm_90" and "NVIDIA H200". GENERIC for what is not known. */
setun_gpu_family setun_gpu_family_of(const char *architecture, const char *name);
const char *setun_gpu_family_name(setun_gpu_family family);

typedef struct setun_tuning {
#define SETUN_TUNING_FIELD(name, lowest, highest, generic, m1, m2, m3, m4, hopper) int name;
#include "backend/mlx/kernels/tuning.def"
#undef SETUN_TUNING_FIELD
} setun_tuning;
int setun_tuning_field_count(void);
const char *setun_tuning_field_name(int field);
void setun_tuning_field_range(int field, int *out_lowest, int *out_highest);
int setun_tuning_get(const setun_tuning *tuning, int field);
setun_status setun_tuning_set(setun_tuning *tuning, int field, int value); /* refuses what is out of range or breaks a rule of tuning.def */

/* Measured values, for devices by name. The file is JSON:
 * {"setun_tuning": 1, "devices": [{"device": "Apple M3 Max", "family": "m3", "measured": "text", "values": {"norm_threads": 256, ..}}]}
 * Values that a file leaves out are the family's. */
typedef struct setun_tuning_store setun_tuning_store;
setun_status setun_tuning_create(setun_tuning_store **out);               /* empty */
setun_status setun_tuning_load(const char *path, setun_tuning_store **out); /* no such file: an empty store; a bad one: an error that names what */
setun_status setun_tuning_save(const setun_tuning_store *store, const char *path); /* whole or not at all */
void setun_tuning_destroy(setun_tuning_store *store);                     /* NULL is fine */
setun_status setun_tuning_put(setun_tuning_store *store, const char *device, setun_gpu_family family, const char *measured, const setun_tuning *values);
/* The device's measured values, else the family's table. store may be NULL. Returns whether they were measured. */
bool setun_tuning_lookup(const setun_tuning_store *store, const char *device, setun_gpu_family family, setun_tuning *out);
/* What the file says of when and how; "" if it says nothing. Borrowed from the store. */
const char *setun_tuning_measured(const setun_tuning_store *store, const char *device);

#endif
