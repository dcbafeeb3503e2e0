/*
 * api.c - contexts and models: handles and argument checks, nothing else. The other public functions live in the room that
 * does the work (sessions and generation in run/, graphs in graph/, tokenizers in text/, files and conversion in model/).
 */
#include "run/run.h"
#include "backend/cpu/kernels.h"
#include "backend/mlx/mlx.h"
#include "tensor/pool.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static setun_status environment_number(const char *name, long low, long high, int *out)
{
    const char *text = getenv(name);
    *out = 0;
    if (!text || !*text) return SETUN_OK;
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || *end || value < low || value > high) return setun_fail(SETUN_ERROR_ARGUMENT, "%s='%s' in the environment: expected a number from %ld to %ld", name, text, low, high);
    *out = (int)value;
    return SETUN_OK;
}

static setun_status environment_text(const char *name, char *out, size_t size)
{
    const char *text = getenv(name);
    out[0] = 0;
    if (!text) return SETUN_OK;
    if (strlen(text) >= size) return setun_fail(SETUN_ERROR_ARGUMENT, "%s in the environment is longer than %zu bytes", name, size - 1);
    memcpy(out, text, strlen(text) + 1);
    return SETUN_OK;
}

static setun_status read_environment(setun_environment *e)
{
    SETUN_TRY(environment_number("SETUN_THREADS", 1, 1024, &e->threads));
    SETUN_TRY(environment_number("SETUN_DEBUG", 0, 4, &e->debug));
    SETUN_TRY(environment_text("SETUN_ISA", e->isa, sizeof e->isa));
    SETUN_TRY(environment_text("SETUN_MODEL", e->model, sizeof e->model));
    SETUN_TRY(environment_text("SETUN_MLX_BRIDGE", e->mlx_bridge, sizeof e->mlx_bridge));
    SETUN_TRY(environment_text("SETUN_CUDA_KERNELS", e->cuda_kernels, sizeof e->cuda_kernels));
    SETUN_TRY(environment_text("SETUN_CUDA_DRIVER", e->cuda_driver, sizeof e->cuda_driver));
    const char *cache = getenv("XDG_CACHE_HOME"), *settings = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    SETUN_TRY(environment_text("SETUN_TUNING", e->tuning, sizeof e->tuning));
    if (!e->tuning[0]) {
        int m = settings && *settings == '/' ? snprintf(e->tuning, sizeof e->tuning, "%s/setun/tuning.json", settings) : home && *home == '/' ? snprintf(e->tuning, sizeof e->tuning, "%s/.config/setun/tuning.json", home) : 0;
        if (m <= 0 || (size_t)m >= sizeof e->tuning) e->tuning[0] = 0;
    }
    int n = cache && *cache == '/' ? snprintf(e->cache, sizeof e->cache, "%s/setun/mlx", cache) : home && *home == '/' ? snprintf(e->cache, sizeof e->cache, "%s/.cache/setun/mlx", home) : 0;
    if (n <= 0 || (size_t)n >= sizeof e->cache) e->cache[0] = 0;
    return SETUN_OK;
}

static setun_status open_context(setun_context *context, const setun_context_options *o)
{
    SETUN_TRY(read_environment(&context->environment));
    context->log = o->log;
    context->log_user = o->log_user;
    context->log_level = o->log_level ? o->log_level : SETUN_LOG_WARNING;
    if (context->environment.debug > 0 && context->log_level < SETUN_LOG_INFO) context->log_level = SETUN_LOG_INFO; /* what SETUN_DEBUG asks for is said at this level */
    const char *cap = o->isa && *o->isa ? o->isa : context->environment.isa[0] ? context->environment.isa : NULL;
    context->kernels = setun_kernels_select(cap);
    if (!context->kernels) return SETUN_ERROR_ARGUMENT; /* the message is select's */
    SETUN_TRY(setun_buffers_create((uint64_t)64 << 20, &context->buffers));
    int threads = o->threads ? o->threads : context->environment.threads ? context->environment.threads : setun_cpu_count();
    return setun_pool_create(threads, o->pin_threads, &context->pool);
}

setun_status setun_context_create(const setun_context_options *options, setun_context **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_context_create: out is NULL");
    *out = NULL;
    SETUN_OPTIONS(setun_context_options, o, options);
    if (o.threads < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_context_create: %d threads", o.threads);
    setun_context *context = setun_calloc(1, sizeof *context);
    if (!context) return setun_fail_memory(sizeof *context);
    setun_status status = open_context(context, &o);
    if (status != SETUN_OK) {
        setun_context_destroy(context);
        return status;
    }
    setun_log(context, SETUN_LOG_INFO, "setun %s: %s, %d threads", setun_version(), context->kernels->isa, setun_pool_size(context->pool));
    *out = context;
    return SETUN_OK;
}

void setun_context_destroy(setun_context *context)
{
    if (!context) return;
    setun_devices_close(context);
    setun_buffers_destroy(context->buffers);
    setun_pool_destroy(context->pool);
    setun_free(context);
}

int setun_context_threads(const setun_context *context) { return context ? setun_pool_size(context->pool) : 0; }
const char *setun_context_isa(const setun_context *context) { return context ? context->kernels->isa : ""; }

setun_status setun_context_describe(setun_context *context, char **out_json)
{
    if (!context || !out_json) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_context_describe: %s is NULL", context ? "out_json" : "context");
    *out_json = NULL;
    setun_cpu_features f;
    setun_cpu_detect(&f);
    setun_string s = {0};
    setun_string_puts(&s, "{\"version\": ");
    setun_string_json(&s, setun_version(), strlen(setun_version()));
    setun_string_puts(&s, ", \"cpu\": ");
    setun_string_json(&s, f.name, strnlen(f.name, sizeof f.name));
    const struct { const char *name; bool has; } features[] = {
        {"avx2", f.avx2}, {"fma", f.fma}, {"f16c", f.f16c}, {"avx512f", f.avx512f}, {"avx512bw", f.avx512bw}, {"avx512vl", f.avx512vl}, {"avx512dq", f.avx512dq},
        {"avx512vnni", f.avx512vnni}, {"avx512vbmi", f.avx512vbmi}, {"gfni", f.gfni}, {"avxvnni", f.avxvnni}, {"neon", f.neon}, {"dotprod", f.dotprod}, {"i8mm", f.i8mm}, {"fp16", f.fp16},
    };
    setun_string_puts(&s, ", \"features\": [");
    bool first = true;
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++)
        if (features[i].has) {
            setun_string_printf(&s, "%s\"%s\"", first ? "" : ", ", features[i].name);
            first = false;
        }
    setun_string_printf(&s, "], \"isa\": \"%s\", \"isas\": [", context->kernels->isa);
    for (int i = 0; i < setun_isa_count(); i++) setun_string_printf(&s, "%s{\"name\": \"%s\", \"available\": %s}", i ? ", " : "", setun_isa_name(i), setun_isa_available(i) ? "true" : "false");
    setun_string_puts(&s, "], \"kernels\": {");
    first = true;
#define SETUN_KERNEL(name, ret, params, exactness) \
    setun_string_printf(&s, "%s\"" #name "\": \"%s\"", first ? "" : ", ", context->kernels->name##_isa); \
    first = false;
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL
    setun_string_printf(&s, "}, \"threads\": %d, \"cpus\": %d, \"page_size\": %ld, \"environment\": {\"SETUN_THREADS\": %d, \"SETUN_ISA\": ", setun_pool_size(context->pool), setun_cpu_count(),
                        sysconf(_SC_PAGESIZE), context->environment.threads);
    setun_string_json(&s, context->environment.isa, strlen(context->environment.isa));
    setun_string_printf(&s, ", \"SETUN_DEBUG\": %d, \"SETUN_MODEL\": ", context->environment.debug);
    setun_string_json(&s, context->environment.model, strlen(context->environment.model));
    setun_string_puts(&s, ", \"SETUN_MLX_BRIDGE\": ");
    setun_string_json(&s, context->environment.mlx_bridge, strlen(context->environment.mlx_bridge));
    setun_string_puts(&s, ", \"SETUN_TUNING\": ");
    setun_string_json(&s, context->environment.tuning, strlen(context->environment.tuning));
    setun_string_puts(&s, "}, \"buffers\": ");
    setun_buffers_describe(context, &s);
    setun_string_puts(&s, ", \"mlx\": ");
    setun_mlx_describe(context, &s);
    setun_string_puts(&s, "}");
    return setun_string_take(&s, out_json, NULL);
}

setun_status setun_model_open(setun_context *context, const char *path, const setun_model_options *options, setun_model **out)
{
    if (!out) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_open: out is NULL");
    *out = NULL;
    if (!context || !path) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_model_open: %s is NULL", context ? "path" : "context");
    SETUN_OPTIONS(setun_model_options, o, options);
    const setun_backend *backend;
    setun_mlx *mlx;
    SETUN_TRY(setun_device_backend(context, o.device, &backend, &mlx)); /* asked early: a model takes seconds to load */
    SETUN_TRY(mlx ? setun_model_load(context, path, &o, out) : setun_model_load_late(context, path, &o, out));
    (*out)->backend = backend;
    return SETUN_OK;
}

void setun_model_close(setun_model *model) { setun_model_destroy(model); }

const setun_tokenizer *setun_model_tokenizer(const setun_model *model) { return model ? model->tokenizer : NULL; }
