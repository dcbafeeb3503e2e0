/*
 * mlx.h - MLX for the rest of the library: the bridge opened at run time, devices by name, one default stream for each.
 * Callers: device, stream and tensor API beside it, the lowering of plans, setun_context_describe. Without MLX everything here
 * says exactly why, and the CPU backend is all there is.
 */
#ifndef SETUN_MLX_H
#define SETUN_MLX_H

#include "backend/backend.h"
#include "backend/mlx/bridge.h"
#include <pthread.h>

/* A device of MLX that a context has opened. Lives as long as the context. */
typedef struct setun_mlx {
    setun_context *context;
    const setun_mlx_table *table;
    bool gpu;
    setun_mlx_device device;    /* what the bridge says of it */
    char id[24];                /* "mlx:cpu", "mlx:gpu", "mlx:gpu:1" */
    setun_mlx_stream *stream;   /* for whoever needs no stream of his own */
    uint64_t optimal_bytes;     /* memory limit that this device should have; see setun_mlx_optimal_limit */
    const setun_backend *backend; /* runs plans on it; made when first asked for */
    struct setun_mlx *next;
} setun_mlx;

/* The bridge's table; the first call in the process opens it. Errors say where it was looked for and what to do. */
setun_status setun_mlx_library(const setun_context *context, const setun_mlx_table **out);
/* device: "mlx" (the GPU where there is one, else MLX's CPU), "mlx:gpu", "mlx:gpu:1", "mlx:cpu". *out is the context's. */
setun_status setun_mlx_open(setun_context *context, const char *device, setun_mlx **out);
/* Passes a status of the bridge on, its message (after "what: ") as the thread's. Use: setun_mlx_check(t, t->eval(..), "the step"). */
setun_status setun_mlx_check(const setun_mlx_table *table, setun_status status, const char *what);
/* Bytes to leave to MLX: the working set the maker recommends (Metal); what is free now less a twentieth (CUDA); four fifths of the
 * machine's memory (CPU). */
uint64_t setun_mlx_optimal_limit(const setun_mlx_device *device);

/* Devices by the names that users give: "auto", "cpu", "mlx..". NULL is the context's default. *out NULL: the CPU backend, "auto"
 * took it where no GPU of MLX is there. Logs at level info what "auto" chose. */
setun_status setun_device_choose(setun_context *context, const char *name, setun_mlx **out);
/* The backend that plans for this device run on. */
setun_status setun_device_backend(setun_context *context, const char *name, const setun_backend **out, setun_mlx **out_mlx);

/* What a context keeps: devices opened, the default one. Made on first use; setun_devices_close ends it. */
typedef struct setun_devices {
    pthread_mutex_t lock;
    setun_mlx *opened;
    char chosen[24];            /* default device; "": auto */
    char cpu_name[128];         /* for setun_device_get_info; "" until asked for */
} setun_devices;
setun_status setun_devices_get(setun_context *context, setun_devices **out);
void setun_devices_close(setun_context *context);
/* A stream of the public API. */
struct setun_stream {
    setun_context *context;
    setun_mlx *mlx;             /* NULL: "cpu", where work is done at once */
    setun_mlx_stream *stream;
};
/* Names the device of a stream or a choice: "cpu" for NULL. */
static inline const char *setun_mlx_id(const setun_mlx *mlx) { return mlx ? mlx->id : "cpu"; }
/* {"found": .., "version": .., "bridge": .., "devices": [..], "problem": ..} */
void setun_mlx_describe(setun_context *context, setun_string *s);
void setun_buffers_describe(const setun_context *context, setun_string *s); /* {"made": .., "reused": ..} */
const char *setun_mlx_path(void); /* of the bridge that was opened; "" if none */

#endif
