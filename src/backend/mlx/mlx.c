/*
 * mlx.c - finds and opens the bridge to MLX, checks that it fits, opens devices by name. Callers: see mlx.h.
 * Knows where files lie and which versions go together; knows nothing of arrays.
 */
#define _GNU_SOURCE
#include "backend/mlx/mlx.h"
#include "backend/mlx/lower.h"
#include "backend/mlx/tune.h"
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __APPLE__
#define BRIDGE "libsetun_mlx.dylib"
#else
#define BRIDGE "libsetun_mlx.so"
#endif
#ifndef SETUN_LIBRARY_FOLDER
#define SETUN_LIBRARY_FOLDER "lib"
#endif
#define OLDEST "0.32.4"
#define WAY_OUT "run ./demo --mlx, or configure with -DSETUN_MLX_ROOT=FOLDER of a Python package `mlx`; --device cpu needs none"

static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;
static const setun_mlx_table *library;  /* never closed: MLX's threads live in it */
static char library_path[1100];

/* Folder of the object that this code lies in (program or libsetun.so), without the last slash; "" if the system does not say. */
static void own_folder(char *out, size_t size) {
    Dl_info info;
    char real[PATH_MAX];
    out[0] = 0;
    if (!dladdr((void *)own_folder, &info) || !info.dli_fname) return;
    const char *file = info.dli_fname;
#ifndef __APPLE__
    if (!strchr(file, '/')) file = "/proc/self/exe"; /* a program found by PATH */
#endif
    if (!realpath(file, real)) return;
    char *slash = strrchr(real, '/');
    if (!slash) return;
    *slash = 0;
    snprintf(out, size, "%s", real);
}

/* "0.32.4" and its later patches; NULL where a and b need no order. */
static int compare_versions(const char *a, const char *b) {
    for (int i = 0; i < 3; i++) {
        char *end_a, *end_b;
        long x = strtol(a, &end_a, 10), y = strtol(b, &end_b, 10);
        if (x != y) return x < y ? -1 : 1;
        a = *end_a == '.' ? end_a + 1 : end_a;
        b = *end_b == '.' ? end_b + 1 : end_b;
    }
    return 0;
}

static setun_status open_at(const char *path, const setun_mlx_table **out) {
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!object) {
        const char *why = dlerror();
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "MLX: %s does not load: %s; " WAY_OUT, path, why ? why : "no reason given");
    }
    setun_mlx_bridge_fn bridge;
    *(void **)&bridge = dlsym(object, "setun_mlx_bridge");
    const setun_mlx_table *table = bridge ? bridge(SETUN_MLX_ABI) : NULL;
    if (!table || table->abi != SETUN_MLX_ABI || table->size != sizeof *table) {
        dlclose(object);
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "MLX: %s is not a bridge of this Setun (%s, interface %d): build both from one tree", path, setun_version(), SETUN_MLX_ABI);
    }
    const char *version = table->version();
    if (strcmp(version, table->built_for)) return setun_fail(SETUN_ERROR_UNSUPPORTED, "MLX: %s was built for MLX %s, but %s is installed, and its interface changes with every release: build the bridge again", path, table->built_for, version);
    if (compare_versions(version, OLDEST) < 0) return setun_fail(SETUN_ERROR_UNSUPPORTED, "MLX: version %s is installed; Setun needs " OLDEST " or later, older ones write into mapped weights", version);
    *out = table;
    return SETUN_OK;
}

/* MLX keeps compiled CUDA code in a folder with a known name under /tmp, which others may write to: give it one of the user's own. */
static void private_cache(const setun_context *context) {
    const char *folder = context->environment.cache;
    if (!*folder) return;
    char path[sizeof context->environment.cache + 8];
    snprintf(path, sizeof path, "%s", folder);
    for (char *p = path + 1; *p; p++)
        if (*p == '/') {
            *p = 0;
            mkdir(path, 0700);
            *p = '/';
        }
    mkdir(path, 0700);
    struct stat st;
    if (!lstat(path, &st) && S_ISDIR(st.st_mode) && st.st_uid == getuid() && !(st.st_mode & 022)) setenv("MLX_PTX_CACHE_DIR", path, 0);
}

/* Is a GPU that MLX could use in this machine? Without opening MLX, which takes tens of milliseconds. */
static bool gpu_likely(void) {
#ifdef __APPLE__
    return sizeof(void *) == 8;
#else
    return !access("/dev/nvidiactl", F_OK) || !access("/dev/nvidia0", F_OK) || !access("/dev/dxg", F_OK);
#endif
}

static setun_status search(const setun_context *context, const setun_mlx_table **out) {
    if (context->environment.mlx_bridge[0]) {
        snprintf(library_path, sizeof library_path, "%s", context->environment.mlx_bridge);
        if (access(library_path, R_OK)) return setun_fail(SETUN_ERROR_UNSUPPORTED, "MLX: SETUN_MLX_BRIDGE=%s: %s", library_path, strerror(errno));
        return open_at(library_path, out);
    }
    char folder[PATH_MAX];
    own_folder(folder, sizeof folder);
    static const char *const places[] = {"", ("/../" SETUN_LIBRARY_FOLDER), "/../lib"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        int n = snprintf(library_path, sizeof library_path, "%s%s/" BRIDGE, folder, places[i]);
        if (*folder && n > 0 && (size_t)n < sizeof library_path && !access(library_path, R_OK)) return open_at(library_path, out);
    }
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "MLX: there is no " BRIDGE " in %s nor in ../" SETUN_LIBRARY_FOLDER " beside it: " WAY_OUT, *folder ? folder : "the program's folder");
}

setun_status setun_mlx_library(const setun_context *context, const setun_mlx_table **out) {
    *out = NULL;
    pthread_mutex_lock(&library_lock);
    setun_status status = SETUN_OK;
    if (!library) {
        if (gpu_likely()) private_cache(context);
        status = search(context, &library);
        if (status != SETUN_OK) library_path[0] = 0;
        else setun_log(context, SETUN_LOG_INFO, "MLX %s through %s", library->version(), library_path);
    }
    *out = library;
    pthread_mutex_unlock(&library_lock);
    return status;
}

const char *setun_mlx_path(void) { return library_path; }

setun_status setun_mlx_check(const setun_mlx_table *table, setun_status status, const char *what) {
    if (status == SETUN_OK) return status;
    const char *why = table->error();
    return setun_fail(status, "%s: %s", what, *why ? why : setun_status_name(status));
}

uint64_t setun_mlx_optimal_limit(const setun_mlx_device *d) {
    if (d->backend == SETUN_MLX_METAL) return d->working_set_bytes ? d->working_set_bytes : d->memory_bytes / 4 * 3;
    if (d->backend == SETUN_MLX_CUDA) {
        uint64_t there = d->free_bytes ? d->free_bytes : d->memory_bytes;
        return there - there / 20;
    }
    return d->memory_bytes / 5 * 4;
}

setun_status setun_devices_get(setun_context *context, setun_devices **out) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    setun_status status = SETUN_OK;
    if (!context->devices) {
        setun_devices *devices = setun_calloc(1, sizeof *devices);
        if (!devices) status = SETUN_ERROR_MEMORY;
        else {
            pthread_mutex_init(&devices->lock, NULL);
            context->devices = devices;
        }
    }
    *out = context->devices;
    pthread_mutex_unlock(&lock);
    return status;
}

void setun_devices_close(setun_context *context) {
    setun_devices *devices = context->devices;
    if (!devices) return;
    while (devices->opened) {
        setun_mlx *mlx = devices->opened;
        devices->opened = mlx->next;
        setun_mlx_backend_close(mlx->backend);
        mlx->table->stream_close(mlx->stream);
        setun_free(mlx);
    }
    pthread_mutex_destroy(&devices->lock);
    setun_free(devices);
    context->devices = NULL;
}

/* "mlx", "mlx:gpu", "mlx:gpu:N", "mlx:cpu" */
static setun_status parse(const char *name, bool *any, bool *gpu, int *index) {
    *any = !strcmp(name, "mlx");
    *gpu = !strncmp(name, "mlx:gpu", 7);
    *index = 0;
    if (*any || !strcmp(name, "mlx:cpu") || !strcmp(name, "mlx:gpu")) return SETUN_OK;
    if (*gpu && name[7] == ':' && name[8] >= '0' && name[8] <= '9') {
        char *end;
        long n = strtol(name + 8, &end, 10);
        if (!*end && n >= 0 && n < 1024) {
            *index = (int)n;
            return SETUN_OK;
        }
    }
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "device '%s' is unknown; choose auto, cpu, mlx, mlx:gpu, mlx:gpu:N or mlx:cpu", name);
}

static setun_status open_device(setun_context *context, setun_devices *devices, const setun_mlx_table *table, bool gpu, int index, setun_mlx **out) {
    for (setun_mlx *mlx = devices->opened; mlx; mlx = mlx->next)
        if (mlx->gpu == gpu && mlx->device.index == index) {
            *out = mlx;
            return SETUN_OK;
        }
    setun_mlx *mlx = setun_calloc(1, sizeof *mlx);
    if (!mlx) return SETUN_ERROR_MEMORY;
    mlx->context = context;
    mlx->table = table;
    mlx->gpu = gpu;
    setun_status status = table->device_get(gpu, index, &mlx->device);
    if (status == SETUN_OK) status = table->stream_open(gpu, index, &mlx->stream);
    if (status != SETUN_OK) {
        setun_free(mlx);
        char what[48];
        snprintf(what, sizeof what, gpu ? "MLX, GPU %d" : "MLX, CPU", index);
        return setun_mlx_check(table, status, what);
    }
    if (index) snprintf(mlx->id, sizeof mlx->id, "mlx:gpu:%d", index);
    else snprintf(mlx->id, sizeof mlx->id, gpu ? "mlx:gpu" : "mlx:cpu");
    mlx->optimal_bytes = setun_mlx_optimal_limit(&mlx->device);
    mlx->next = devices->opened;
    devices->opened = mlx;
    if (!gpu && !mlx->device.shares_memory) setun_log(context, SETUN_LOG_WARNING, "MLX %s: memory can no longer be shared with it on the CPU: weights will be copied", table->version());
    *out = mlx;
    return SETUN_OK;
}

setun_status setun_mlx_open(setun_context *context, const char *device, setun_mlx **out) {
    *out = NULL;
    bool any, gpu;
    int index;
    SETUN_TRY(parse(device, &any, &gpu, &index));
    const setun_mlx_table *table;
    setun_devices *devices;
    SETUN_TRY(setun_mlx_library(context, &table));
    SETUN_TRY(setun_devices_get(context, &devices));
    pthread_mutex_lock(&devices->lock);
    setun_status status = SETUN_ERROR_UNSUPPORTED;
    if (any) {
        if (table->device_count(true) > 0) status = open_device(context, devices, table, true, 0, out);
        if (status != SETUN_OK) status = open_device(context, devices, table, false, 0, out);
    } else status = open_device(context, devices, table, gpu, index, out);
    pthread_mutex_unlock(&devices->lock);
    return status;
}

/* The name itself, or the context's default, or "auto". */
static setun_status resolve(setun_context *context, const char *name, char out[24]) {
    setun_devices *devices;
    if (name && strlen(name) >= 24) return setun_fail(SETUN_ERROR_UNSUPPORTED, "device '%.40s..' is unknown; choose auto, cpu, mlx, mlx:gpu, mlx:gpu:N or mlx:cpu", name);
    SETUN_TRY(setun_devices_get(context, &devices));
    pthread_mutex_lock(&devices->lock);
    snprintf(out, 24, "%s", name && *name ? name : *devices->chosen ? devices->chosen : "auto");
    pthread_mutex_unlock(&devices->lock);
    return SETUN_OK;
}

setun_status setun_device_choose(setun_context *context, const char *given, setun_mlx **out) {
    *out = NULL;
    char name[24];
    SETUN_TRY(resolve(context, given, name));
    if (!strcmp(name, "cpu")) return SETUN_OK;
    if (strcmp(name, "auto")) return setun_mlx_open(context, name, out);
    if (gpu_likely() && setun_mlx_open(context, "mlx:gpu", out) == SETUN_OK) setun_log(context, SETUN_LOG_INFO, "device auto: %s, %s", (*out)->id, (*out)->device.name);
    else setun_log(context, SETUN_LOG_INFO, "device auto: cpu (%s)", gpu_likely() ? setun_error() : "no GPU that MLX could use");
    return SETUN_OK;
}

setun_status setun_device_backend(setun_context *context, const char *given, const setun_backend **out, setun_mlx **out_mlx) {
    *out = setun_backend_cpu();
    *out_mlx = NULL;
    char name[24];
    SETUN_TRY(resolve(context, given, name));
    /* A GPU is asked for by name: its kernels are compiled at every start, and its steps are not faster than a CPU's on small models yet. */
    if (!strcmp(name, "auto")) return SETUN_OK;
    setun_mlx *mlx;
    SETUN_TRY(setun_device_choose(context, name, &mlx));
    if (!mlx) return SETUN_OK;
    setun_devices *devices;
    SETUN_TRY(setun_devices_get(context, &devices));
    pthread_mutex_lock(&devices->lock);
    setun_status status = mlx->backend ? SETUN_OK : setun_mlx_backend(mlx, &mlx->backend);
    pthread_mutex_unlock(&devices->lock);
    if (status != SETUN_OK) return status;
    *out = mlx->backend;
    *out_mlx = mlx;
    return SETUN_OK;
}

static void describe_device(setun_string *s, const setun_mlx *mlx) {
    static const char *const backends[] = {"", "cpu", "metal", "cuda"};
    const setun_mlx_device *d = &mlx->device;
    setun_string_printf(s, "{\"id\": \"%s\", \"backend\": \"%s\", \"name\": ", mlx->id, backends[d->backend]);
    setun_string_json(s, d->name, strnlen(d->name, sizeof d->name));
    setun_string_puts(s, ", \"architecture\": ");
    setun_string_json(s, d->architecture, strnlen(d->architecture, sizeof d->architecture));
    setun_string_printf(s, ", \"memory_bytes\": %llu", (unsigned long long)d->memory_bytes);
    if (d->free_bytes) setun_string_printf(s, ", \"free_bytes\": %llu", (unsigned long long)d->free_bytes);
    if (d->working_set_bytes) setun_string_printf(s, ", \"working_set_bytes\": %llu", (unsigned long long)d->working_set_bytes);
    if (d->buffer_bytes) setun_string_printf(s, ", \"largest_buffer_bytes\": %llu", (unsigned long long)d->buffer_bytes);
    if (d->cores) setun_string_printf(s, ", \"cores\": %d", d->cores);
    setun_tuned tuned;
    setun_mlx_tuned(mlx->context, d, &tuned);
    setun_string_printf(s, ", \"family\": \"%s\", \"tuned\": %s, \"tuning\": ", setun_gpu_family_name(tuned.family), tuned.measured ? "true" : "false");
    setun_string_json(s, tuned.note, strlen(tuned.note));
    setun_string_printf(s, ", \"optimal_limit_bytes\": %llu, \"shares_memory\": %s, \"compiles\": %s}", (unsigned long long)mlx->optimal_bytes, d->shares_memory ? "true" : "false",
                        mlx->table->compile_get(mlx->stream) ? "true" : "false");
}

void setun_mlx_describe(setun_context *context, setun_string *s) {
    const setun_mlx_table *table;
    if (setun_mlx_library(context, &table) != SETUN_OK) {
        setun_string_puts(s, "{\"found\": false, \"problem\": ");
        setun_string_json(s, setun_error(), strlen(setun_error()));
        setun_string_puts(s, "}");
        return;
    }
    setun_string_puts(s, "{\"found\": true, \"version\": ");
    setun_string_json(s, table->version(), strlen(table->version()));
    setun_string_puts(s, ", \"bridge\": ");
    setun_string_json(s, library_path, strlen(library_path));
    setun_string_puts(s, ", \"devices\": [");
    char problems[512] = "";
    bool first = true;
    int gpus = table->device_count(true);
    for (int i = -1; i < gpus; i++) {
        char id[24];
        setun_mlx *mlx;
        if (i < 0) snprintf(id, sizeof id, "mlx:cpu");
        else snprintf(id, sizeof id, "mlx:gpu:%d", i);
        if (setun_mlx_open(context, id, &mlx) == SETUN_OK) {
            if (!first) setun_string_puts(s, ", ");
            first = false;
            describe_device(s, mlx);
        } else {
            size_t used = strlen(problems);
            snprintf(problems + used, sizeof problems - used, "%s%s", used ? "; " : "", setun_error());
        }
    }
    setun_string_puts(s, "], \"problem\": ");
    if (*problems) setun_string_json(s, problems, strlen(problems));
    else setun_string_puts(s, gpus ? "null" : "\"this MLX has no GPU backend\"");
    setun_string_puts(s, "}");
}
