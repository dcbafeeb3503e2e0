/*
 * driver.c - libcuda.so.1 by dlopen: the primary context that MLX computes in too, one stream, errors in the driver's words.
 * Caller: engine.c. Knows no kernel and no model.
 */
#include "backend/mlx/cuda/driver.h"
#include <dlfcn.h>
#include <stdio.h>

/* The driver's own types: CUresult and CUdevice are ints, everything else pointers, device memory u64. */
#define CUDA_ENTRIES(X) \
    X(init, "cuInit", (unsigned)) \
    X(device_get, "cuDeviceGet", (int *, int)) \
    X(device_attribute, "cuDeviceGetAttribute", (int *, int, int)) \
    X(primary_retain, "cuDevicePrimaryCtxRetain", (void **, int)) \
    X(primary_release, "cuDevicePrimaryCtxRelease_v2", (int)) \
    X(push, "cuCtxPushCurrent_v2", (void *)) \
    X(pop, "cuCtxPopCurrent_v2", (void **)) \
    X(module_load, "cuModuleLoadData", (void **, const void *)) \
    X(module_unload, "cuModuleUnload", (void *)) \
    X(module_function, "cuModuleGetFunction", (void **, void *, const char *)) \
    X(function_set, "cuFuncSetAttribute", (void *, int, int)) \
    X(launch, "cuLaunchKernel", (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)) \
    X(stream_create, "cuStreamCreate", (void **, unsigned)) \
    X(stream_destroy, "cuStreamDestroy_v2", (void *)) \
    X(stream_wait, "cuStreamSynchronize", (void *)) \
    X(allocate, "cuMemAlloc_v2", (setun_cuda_pointer *, size_t)) \
    X(release, "cuMemFree_v2", (setun_cuda_pointer)) \
    X(allocate_host, "cuMemHostAlloc", (void **, size_t, unsigned)) \
    X(release_host, "cuMemFreeHost", (void *)) \
    X(to_device, "cuMemcpyHtoDAsync_v2", (setun_cuda_pointer, const void *, size_t, void *)) \
    X(to_host, "cuMemcpyDtoHAsync_v2", (void *, setun_cuda_pointer, size_t, void *)) \
    X(set_bytes, "cuMemsetD8Async", (setun_cuda_pointer, unsigned char, size_t, void *)) \
    X(error_text, "cuGetErrorString", (int, const char **))

/* Since CUDA 12; without them launches are made one by one, each after the other. */
#define CUDA_LATER_ENTRIES(X) \
    X(launch_with, "cuLaunchKernelEx", (const launch_configuration *, void *, void **, void **)) \
    X(capture_begin, "cuStreamBeginCapture_v2", (void *, int)) \
    X(capture_end, "cuStreamEndCapture", (void *, void **)) \
    X(graph_make, "cuGraphInstantiateWithFlags", (void **, void *, unsigned long long)) \
    X(graph_launch, "cuGraphLaunch", (void *, void *)) \
    X(graph_release, "cuGraphExecDestroy", (void *)) \
    X(graph_text_release, "cuGraphDestroy", (void *))

/* CUlaunchConfig and its attribute, as cuda.h lays them out. */
typedef struct launch_attribute { int name; char reserved[4]; union { int value; uint64_t words[8]; } of; } launch_attribute;
typedef struct launch_configuration { unsigned grid[3], block[3], shared_bytes; void *stream; launch_attribute *attributes; unsigned count; } launch_configuration;
enum { LAUNCH_PROGRAMMATIC = 6, CAPTURE_RELAXED = 2 };

enum { ATTRIBUTE_MULTIPROCESSORS = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76, ATTRIBUTE_SHARED_OPTIN = 97, FUNCTION_SHARED = 8, OUT_OF_MEMORY = 2, NOT_FOUND = 500, STREAM_NON_BLOCKING = 1, MODULES = 4, KNOWN = 64 };

/* A function that was asked for: names are compared as text. */
typedef struct known_function { char name[48]; int shared_bytes; setun_cuda_function function; } known_function;

struct setun_cuda_driver {
    void *library, *context, *stream;
    void *modules[MODULES];
    int module_count, device;
    known_function known[KNOWN]; int known_count;
    setun_cuda_properties properties;
#define X(member, name, arguments) int (*member) arguments;
    CUDA_ENTRIES(X)
    CUDA_LATER_ENTRIES(X)
#undef X
};

static setun_status check(const setun_cuda_driver *d, int result, const char *what)
{
    if (result == 0) return SETUN_OK;
    const char *text = NULL;
    if (d->error_text(result, &text) != 0 || !text) text = "unknown error";
    return setun_fail(result == OUT_OF_MEMORY ? SETUN_ERROR_MEMORY : SETUN_ERROR_DEVICE, "CUDA driver: %s: %s (%d)", what, text, result);
}

static setun_status open_device(setun_cuda_driver *d, int ordinal)
{
    SETUN_TRY(check(d, d->init(0), "cuInit"));
    SETUN_TRY(check(d, d->device_get(&d->device, ordinal), "the device"));
    setun_cuda_properties *p = &d->properties;
    const struct { int *to, attribute; } asked[] = {{&p->multiprocessors, ATTRIBUTE_MULTIPROCESSORS}, {&p->shared_bytes, ATTRIBUTE_SHARED_OPTIN}, {&p->major, ATTRIBUTE_MAJOR}, {&p->minor, ATTRIBUTE_MINOR}};
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) SETUN_TRY(check(d, d->device_attribute(asked[i].to, asked[i].attribute, d->device), "an attribute of the device"));
    void *context;
    SETUN_TRY(check(d, d->primary_retain(&context, d->device), "the device's context"));
    d->context = context;
    SETUN_TRY(setun_cuda_enter(d));
    setun_status status = check(d, d->stream_create(&d->stream, STREAM_NON_BLOCKING), "a stream");
    setun_cuda_leave(d);
    return status;
}

setun_status setun_cuda_driver_open(const char *path, int device, setun_cuda_driver **out)
{
    *out = NULL;
    setun_cuda_driver *d = setun_calloc(1, sizeof *d);
    if (!d) return setun_fail_memory(sizeof *d);
    if (!path) path = "libcuda.so.1";
    d->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!d->library) {
        const char *why = dlerror();
        setun_free(d);
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA driver: %s does not load: %s", path, why ? why : "no reason given");
    }
    const struct { const char *name; void **to; } entries[] = {
#define X(member, name, arguments) {name, (void **)(void *)&d->member},
        CUDA_ENTRIES(X)
#undef X
    };
    setun_status status = SETUN_OK;
    for (size_t i = 0; i < sizeof entries / sizeof entries[0] && status == SETUN_OK; i++) {
        *entries[i].to = dlsym(d->library, entries[i].name);
        if (!*entries[i].to) status = setun_fail(SETUN_ERROR_UNSUPPORTED, "CUDA driver: %s has no %s: it is too old", path, entries[i].name);
    }
#define X(member, name, arguments) *(void **)(void *)&d->member = dlsym(d->library, name);
    CUDA_LATER_ENTRIES(X)
#undef X
    if (!d->capture_begin || !d->capture_end || !d->graph_make || !d->graph_launch || !d->graph_release || !d->graph_text_release) d->capture_begin = NULL;
    if (status == SETUN_OK) status = open_device(d, device);
    if (status != SETUN_OK) {
        setun_cuda_driver_close(d);
        return status;
    }
    *out = d;
    return SETUN_OK;
}

void setun_cuda_driver_close(setun_cuda_driver *d)
{
    if (!d) return;
    if (d->context && setun_cuda_enter(d) == SETUN_OK) {
        if (d->stream) d->stream_destroy(d->stream);
        for (int i = 0; i < d->module_count; i++) d->module_unload(d->modules[i]);
        setun_cuda_leave(d);
    }
    if (d->context) d->primary_release(d->device);
    if (d->library) dlclose(d->library);
    setun_free(d);
}

const setun_cuda_properties *setun_cuda_driver_properties(const setun_cuda_driver *d) { return &d->properties; }
setun_status setun_cuda_enter(setun_cuda_driver *d) { return check(d, d->push(d->context), "the device's context"); }
void setun_cuda_leave(setun_cuda_driver *d)
{
    void *context;
    d->pop(&context);
}

setun_status setun_cuda_load(setun_cuda_driver *d, const void *binary, const char *name)
{
    if (d->module_count == MODULES) return setun_fail(SETUN_ERROR_STATE, "CUDA driver: more than %d binaries", MODULES);
    SETUN_TRY(check(d, d->module_load(&d->modules[d->module_count], binary), name));
    d->module_count++;
    return SETUN_OK;
}

setun_status setun_cuda_function_get(setun_cuda_driver *d, const char *name, int shared_bytes, setun_cuda_function *out)
{
    *out = NULL;
    known_function *k = NULL;
    for (int i = 0; i < d->known_count && !k; i++)
        if (strcmp(d->known[i].name, name) == 0) k = &d->known[i];
    if (k && (shared_bytes == 0 || shared_bytes == k->shared_bytes)) {
        *out = k->function;
        return SETUN_OK;
    }
    for (int i = 0; i < d->module_count && !*out; i++) {
        int result = d->module_function(out, d->modules[i], name);
        if (result != 0) *out = NULL;
        if (result != 0 && result != NOT_FOUND) return check(d, result, name);
    }
    if (*out && shared_bytes > 0) SETUN_TRY(check(d, d->function_set(*out, FUNCTION_SHARED, shared_bytes), name));
    if (*out && !k && d->known_count < KNOWN && strlen(name) < sizeof d->known[0].name) {
        k = &d->known[d->known_count++];
        snprintf(k->name, sizeof k->name, "%s", name);
        k->function = *out;
    }
    if (k && shared_bytes > 0) k->shared_bytes = shared_bytes;
    return SETUN_OK;
}

setun_status setun_cuda_launch(setun_cuda_driver *d, setun_cuda_function function, int blocks, int threads, int shared_bytes, void **arguments)
{
    return check(d, d->launch(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1, (unsigned)shared_bytes, d->stream, arguments, NULL), "a launch");
}

setun_status setun_cuda_launch_early(setun_cuda_driver *d, setun_cuda_function function, int blocks, int threads, int shared_bytes, void **arguments)
{
    if (!d->launch_with || d->properties.major < 9) return setun_cuda_launch(d, function, blocks, threads, shared_bytes, arguments);
    launch_attribute early = {.name = LAUNCH_PROGRAMMATIC, .of.value = 1};
    launch_configuration c = {{(unsigned)blocks, 1, 1}, {(unsigned)threads, 1, 1}, (unsigned)shared_bytes, d->stream, &early, 1};
    return check(d, d->launch_with(&c, function, arguments, NULL), "a launch");
}

bool setun_cuda_graph_begin(setun_cuda_driver *d)
{
    if (!d->capture_begin) return false;
    if (d->capture_begin(d->stream, CAPTURE_RELAXED) == 0) return true;
    d->capture_begin = NULL; /* it will not be better the next time */
    return false;
}
setun_cuda_graph setun_cuda_graph_end(setun_cuda_driver *d)
{
    void *text = NULL, *graph = NULL;
    int result = d->capture_end(d->stream, &text);
    if (result == 0 && text) result = d->graph_make(&graph, text, 0);
    if (text) d->graph_text_release(text);
    if (result == 0) return graph;
    d->capture_begin = NULL;
    return NULL;
}
setun_status setun_cuda_graph_launch(setun_cuda_driver *d, setun_cuda_graph graph) { return check(d, d->graph_launch(graph, d->stream), "a graph's launch"); }
void setun_cuda_graph_release(setun_cuda_driver *d, setun_cuda_graph graph)
{
    if (graph) d->graph_release(graph);
}

setun_status setun_cuda_allocate(setun_cuda_driver *d, size_t bytes, setun_cuda_pointer *out)
{
    *out = 0;
    int result = d->allocate(out, bytes ? bytes : 16);
    if (result == OUT_OF_MEMORY) return setun_fail(SETUN_ERROR_MEMORY, "the GPU has no %llu bytes free", (unsigned long long)bytes);
    return check(d, result, "memory");
}
void setun_cuda_release(setun_cuda_driver *d, setun_cuda_pointer memory)
{
    if (memory) d->release(memory);
}
setun_status setun_cuda_allocate_host(setun_cuda_driver *d, size_t bytes, void **out)
{
    *out = NULL;
    return check(d, d->allocate_host(out, bytes ? bytes : 16, 0), "pinned memory");
}
void setun_cuda_release_host(setun_cuda_driver *d, void *memory)
{
    if (memory) d->release_host(memory);
}
setun_status setun_cuda_to_device(setun_cuda_driver *d, setun_cuda_pointer to, const void *from, size_t bytes)
{
    return bytes ? check(d, d->to_device(to, from, bytes, d->stream), "a copy to the device") : SETUN_OK;
}
setun_status setun_cuda_to_host(setun_cuda_driver *d, void *to, setun_cuda_pointer from, size_t bytes)
{
    return bytes ? check(d, d->to_host(to, from, bytes, d->stream), "a copy from the device") : SETUN_OK;
}
setun_status setun_cuda_zero(setun_cuda_driver *d, setun_cuda_pointer memory, size_t bytes) { return check(d, d->set_bytes(memory, 0, bytes, d->stream), "clearing memory"); }
setun_status setun_cuda_wait(setun_cuda_driver *d) { return check(d, d->stream_wait(d->stream), "the device's work"); }
