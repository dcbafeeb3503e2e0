/*
 * devices.c - devices, limits, streams and events of the public API: argument checks, then the bridge or, on "cpu", what the CPU
 * does by itself. Callers: users, the program's doctor. Knows no arrays.
 */
#include "backend/mlx/mlx.h"
#include "base/thread.h"
#include "backend/cpu/kernels.h"
#include "tensor/pool.h"
#include <unistd.h>

struct setun_event { setun_mlx *mlx; setun_mlx_array *mark; }; /* mark NULL: reached */

static setun_status need(const void *pointer, const char *function, const char *what) { return pointer ? SETUN_OK : setun_fail(SETUN_ERROR_ARGUMENT, "%s: %s is NULL", function, what); }
#define NEED(pointer) SETUN_TRY(need(pointer, __func__, #pointer))

/* ---- which there are ---- */
setun_status setun_context_device_count(setun_context *context, int *out_count) {
    NEED(out_count);
    *out_count = 0;
    NEED(context);
    const setun_mlx_table *table;
    *out_count = 1;
    if (setun_mlx_library(context, &table) == SETUN_OK) *out_count += 1 + table->device_count(true);
    return SETUN_OK;
}

setun_status setun_context_device_name(setun_context *context, int index, const char **out_name) {
    NEED(out_name);
    *out_name = NULL;
    int count;
    SETUN_TRY(setun_context_device_count(context, &count));
    if (index < 0 || index >= count) return setun_fail(SETUN_ERROR_ARGUMENT, "device %d: there are %d", index, count);
    if (index == 0) {
        *out_name = "cpu";
        return SETUN_OK;
    }
    char name[24];
    setun_mlx *mlx;
    if (index == count - 1) snprintf(name, sizeof name, "mlx:cpu"); /* GPUs first */
    else snprintf(name, sizeof name, "mlx:gpu:%d", index - 1);
    SETUN_TRY(setun_mlx_open(context, name, &mlx));
    *out_name = mlx->id;
    return SETUN_OK;
}

setun_status setun_context_set_device(setun_context *context, const char *device) {
    NEED(context);
    setun_devices *devices;
    setun_mlx *mlx = NULL;
    SETUN_TRY(setun_devices_get(context, &devices));
    bool automatic = !device || !strcmp(device, "auto");
    if (!automatic) SETUN_TRY(setun_device_choose(context, device, &mlx));
    pthread_mutex_lock(&devices->lock);
    snprintf(devices->chosen, sizeof devices->chosen, "%s", automatic ? "" : setun_mlx_id(mlx));
    pthread_mutex_unlock(&devices->lock);
    return SETUN_OK;
}

setun_status setun_context_get_device(setun_context *context, const char **out_name) {
    NEED(out_name);
    *out_name = NULL;
    NEED(context);
    setun_mlx *mlx;
    SETUN_TRY(setun_device_choose(context, NULL, &mlx));
    *out_name = setun_mlx_id(mlx);
    return SETUN_OK;
}

setun_status setun_device_get_info(setun_context *context, const char *device, setun_device_info *out) {
    NEED(out);
    size_t size = out->size && out->size < sizeof *out ? out->size : sizeof *out;
    memset(out, 0, size);
    NEED(context);
    setun_mlx *mlx;
    setun_device_info info = {.size = size};
    SETUN_TRY(setun_device_choose(context, device, &mlx));
    if (mlx) {
        static const char *const backends[] = {"", "cpu", "metal", "cuda"};
        const setun_mlx_device *d = &mlx->device;
        info = (setun_device_info){size, mlx->id, backends[d->backend], d->name, d->architecture, d->memory_bytes, d->free_bytes, d->working_set_bytes, d->buffer_bytes, mlx->optimal_bytes, d->cores, d->shares_memory,
                                   mlx->table->compile_get(mlx->stream)};
    } else {
        setun_devices *devices;
        SETUN_TRY(setun_devices_get(context, &devices));
        pthread_mutex_lock(&devices->lock);
        if (!devices->cpu_name[0]) {
            setun_cpu_features f;
            setun_cpu_detect(&f);
            snprintf(devices->cpu_name, sizeof devices->cpu_name, "%.*s", (int)sizeof f.name, f.name);
        }
        pthread_mutex_unlock(&devices->lock);
        uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
        info = (setun_device_info){.size = size, .id = "cpu", .backend = "cpu", .name = devices->cpu_name, .architecture = context->kernels->isa, .memory_bytes = memory, .optimal_limit_bytes = memory / 5 * 4, .cores = setun_cpu_count(), .shares_memory = true};
    }
    memcpy(out, &info, size);
    return SETUN_OK;
}

/* ---- memory ---- */
setun_status setun_device_set_limit(setun_context *context, const char *device, setun_limit limit, uint64_t bytes, uint64_t *out_previous) {
    if (out_previous) *out_previous = 0;
    NEED(context);
    setun_mlx *mlx;
    SETUN_TRY(setun_device_choose(context, device, &mlx));
    if (limit != SETUN_LIMIT_MEMORY && limit != SETUN_LIMIT_CACHE && limit != SETUN_LIMIT_WIRED) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_device_set_limit: limit %d is unknown", (int)limit);
    if (bytes == SETUN_LIMIT_OPTIMAL && limit == SETUN_LIMIT_CACHE) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_device_set_limit: the cache has no optimal limit; give bytes");
    if (!mlx) {
        if (limit != SETUN_LIMIT_CACHE) return setun_fail(SETUN_ERROR_UNSUPPORTED, "setun_device_set_limit: \"cpu\" has a limit for the cache only");
        uint64_t before = setun_buffers_limit(context->buffers, bytes);
        if (out_previous) *out_previous = before;
        return SETUN_OK;
    }
    if (bytes == SETUN_LIMIT_OPTIMAL) bytes = mlx->optimal_bytes;
    static const setun_mlx_limit limits[] = {0, SETUN_MLX_LIMIT_MEMORY, SETUN_MLX_LIMIT_CACHE, SETUN_MLX_LIMIT_WIRED};
    return setun_mlx_check(mlx->table, mlx->table->limit_set(limits[limit], bytes, out_previous), mlx->id);
}

setun_status setun_device_get_memory(setun_context *context, const char *device, setun_device_memory *out) {
    NEED(out);
    size_t size = out->size && out->size < sizeof *out ? out->size : sizeof *out;
    memset(out, 0, size);
    NEED(context);
    setun_mlx *mlx;
    setun_device_memory m = {.size = size};
    SETUN_TRY(setun_device_choose(context, device, &mlx));
    if (mlx) {
        setun_mlx_memory memory;
        setun_mlx_counters counters;
        mlx->table->memory_get(&memory);
        mlx->table->counters(&counters);
        m = (setun_device_memory){.size = size, .active_bytes = memory.active_bytes, .peak_bytes = memory.peak_bytes, .cache_bytes = memory.cache_bytes, .limit_bytes = memory.memory_limit_bytes,
                                  .shared_bytes = counters.bytes_shared, .copied_bytes = counters.bytes_copied, .synchronisations = counters.synchronisations};
    } else {
        setun_buffers_stats s;
        setun_buffers_get(context->buffers, &s);
        m = (setun_device_memory){.size = size, .active_bytes = s.used_bytes, .peak_bytes = s.peak_bytes, .cache_bytes = s.idle_bytes, .limit_bytes = s.limit_bytes, .buffers_made = s.made, .buffers_reused = s.reused};
    }
    memcpy(out, &m, size);
    return SETUN_OK;
}

void setun_buffers_describe(const setun_context *context, setun_string *s) {
    setun_buffers_stats b;
    setun_buffers_get(context->buffers, &b);
    setun_string_printf(s, "{\"made\": %llu, \"reused\": %llu, \"used_bytes\": %llu, \"idle_bytes\": %llu, \"limit_bytes\": %llu}", (unsigned long long)b.made, (unsigned long long)b.reused, (unsigned long long)b.used_bytes,
                        (unsigned long long)b.idle_bytes, (unsigned long long)b.limit_bytes);
}

setun_status setun_device_clear_cache(setun_context *context, const char *device) {
    NEED(context);
    setun_mlx *mlx;
    SETUN_TRY(setun_device_choose(context, device, &mlx));
    if (mlx) return setun_mlx_check(mlx->table, mlx->table->cache_clear(), mlx->id);
    setun_buffers_clear(context->buffers);
    return SETUN_OK;
}

setun_status setun_device_set_compile(setun_context *context, const char *device, bool on) {
    NEED(context);
    setun_mlx *mlx;
    SETUN_TRY(setun_device_choose(context, device, &mlx));
    if (!mlx) return setun_fail(SETUN_ERROR_UNSUPPORTED, "setun_device_set_compile: \"cpu\" has nothing to compile: its kernels are");
    if (on && mlx->device.backend == SETUN_MLX_CPU) setun_log(context, SETUN_LOG_WARNING, "MLX compiles graphs on the CPU by starting g++ while it runs, in a folder under /tmp that others can name");
    return setun_mlx_check(mlx->table, mlx->table->compile_set(on), mlx->id);
}

/* ---- streams and events ---- */
setun_status setun_stream_create(setun_context *context, const char *device, setun_stream **out) {
    NEED(out);
    *out = NULL;
    NEED(context);
    setun_mlx *mlx;
    SETUN_TRY(setun_device_choose(context, device, &mlx));
    setun_stream *stream = setun_calloc(1, sizeof *stream);
    if (!stream) return SETUN_ERROR_MEMORY;
    stream->context = context;
    stream->mlx = mlx;
    setun_status status = mlx ? setun_mlx_check(mlx->table, mlx->table->stream_open(mlx->gpu, mlx->device.index, &stream->stream), mlx->id) : SETUN_OK;
    if (status != SETUN_OK) setun_free(stream);
    else *out = stream;
    return status;
}

void setun_stream_destroy(setun_stream *stream) {
    if (!stream) return;
    if (stream->mlx) stream->mlx->table->stream_close(stream->stream);
    setun_free(stream);
}

const char *setun_stream_device(const setun_stream *stream) { return stream ? setun_mlx_id(stream->mlx) : ""; }

setun_status setun_stream_synchronize(setun_stream *stream) {
    NEED(stream);
    return stream->mlx ? setun_mlx_check(stream->mlx->table, stream->mlx->table->stream_synchronize(stream->stream), stream->mlx->id) : SETUN_OK;
}

setun_status setun_stream_record(setun_stream *stream, setun_event **out) {
    NEED(out);
    *out = NULL;
    NEED(stream);
    setun_event *event = setun_calloc(1, sizeof *event);
    if (!event) return SETUN_ERROR_MEMORY;
    event->mlx = stream->mlx;
    setun_status status = event->mlx ? setun_mlx_check(event->mlx->table, event->mlx->table->event_record(stream->stream, &event->mark), event->mlx->id) : SETUN_OK;
    if (status != SETUN_OK) setun_free(event);
    else *out = event;
    return status;
}

setun_status setun_event_wait(setun_event *event) {
    NEED(event);
    return event->mlx ? setun_mlx_check(event->mlx->table, event->mlx->table->wait(event->mark), event->mlx->id) : SETUN_OK;
}

setun_status setun_stream_wait(setun_stream *stream, setun_event *event) {
    NEED(stream);
    NEED(event);
    if (!event->mlx) return SETUN_OK;
    if (!stream->mlx) return setun_event_wait(event); /* what is given to the CPU is done at once, so it must wait now */
    return setun_mlx_check(stream->mlx->table, stream->mlx->table->event_wait(stream->stream, event->mark), stream->mlx->id);
}

setun_status setun_event_reached(setun_event *event, bool *out) {
    NEED(out);
    *out = false;
    NEED(event);
    if (!event->mlx) {
        *out = true;
        return SETUN_OK;
    }
    setun_mlx_array_info info;
    setun_status status = setun_mlx_check(event->mlx->table, event->mlx->table->array_get(event->mark, &info), event->mlx->id);
    *out = info.available;
    return status;
}

void setun_event_destroy(setun_event *event) {
    if (!event) return;
    if (event->mlx) event->mlx->table->array_release(event->mark);
    setun_free(event);
}
