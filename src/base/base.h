/*
 * base.h - floor 0: status and messages, the allocator door, logging, small numeric helpers.
 * Every room includes this. It knows nothing of models, files or tensors.
 */
#ifndef SETUN_BASE_H
#define SETUN_BASE_H

#include "setun/setun.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- status: `return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor %s: ...", path, name);` ---- */
setun_status setun_fail(setun_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Puts "prefix: " before the thread's message; returns status unchanged. */
setun_status setun_fail_prefix(setun_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define SETUN_TRY(call) do { setun_status try_status_ = (call); if (try_status_ != SETUN_OK) return try_status_; } while (0)
setun_status setun_fail_memory(size_t bytes); /* "out of memory: N bytes" */

/* ---- the allocator door: nothing in the library calls malloc elsewhere. NULL on failure. ---- */
void *setun_alloc(size_t bytes);
void *setun_calloc(size_t count, size_t bytes); /* checks the product */
void *setun_realloc(void *old, size_t bytes);   /* on failure old stays */
void *setun_alloc_aligned(size_t bytes, size_t alignment); /* alignment: power of two; freed by setun_free_aligned */
void setun_free_aligned(void *memory);
/* Large blocks that are read in streams: zeroed, whole pages of their own, aligned to SETUN_HUGE_PAGE and backed by huge pages where
 * the system gives them (Linux: madvise). Pages become resident when touched. `bytes` must be what was asked for. */
#define SETUN_HUGE_PAGE ((size_t)2 << 20)
void *setun_alloc_huge(size_t bytes);
void setun_free_huge(void *memory, size_t bytes);
bool setun_huge_pages_available(void); /* does the system back such blocks by huge pages? */
char *setun_strdup(const char *text);
char *setun_strndup(const char *text, size_t length);
/* Tests: fail the n-th allocation from now (1-based) and all after it; 0: never. Counts are process-wide. */
void setun_alloc_fail_at(uint64_t n);
void setun_alloc_fail_once(uint64_t n); /* the n-th alone: what fails and is then forgotten shows in the result */
uint64_t setun_alloc_count(void);   /* allocations made since the start */
int64_t setun_alloc_live(void);     /* allocations not freed yet */

/* ---- growing byte string; sticky failure, checked once at the end ---- */
typedef struct setun_string { char *data; size_t length, capacity; bool failed; } setun_string; /* {0} is empty */
void setun_string_append(setun_string *s, const char *bytes, size_t length);
void setun_string_puts(setun_string *s, const char *text);
void setun_string_printf(setun_string *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void setun_string_json(setun_string *s, const char *text, size_t length); /* "quoted"; invalid UTF-8 -> U+FFFD */
setun_status setun_string_take(setun_string *s, char **out, size_t *out_length); /* 0-terminated; MEMORY error if it failed */
void setun_string_clear(setun_string *s);

/* ---- checked arithmetic on sizes from files: false on overflow ---- */
static inline bool setun_mul_ok(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool setun_add_ok(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }

/* ---- 16-bit floats, exact, round to nearest even ---- */
float setun_f16_to_f32(uint16_t h);
uint16_t setun_f32_to_f16(float f);
static inline float setun_bf16_to_f32(uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }
uint16_t setun_f32_to_bf16(float f);

/* ---- unaligned little-endian loads ---- */
static inline uint16_t setun_load_u16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t setun_load_u32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t setun_load_u64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline float setun_load_f32(const void *p) { float v; memcpy(&v, p, 4); return v; }

/* ---- logging ---- */
void setun_log(const setun_context *context, setun_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- the environment, read once when a context is made (docs/library.md has the table) ---- */
typedef struct setun_environment {
    int threads;        /* SETUN_THREADS */
    char isa[24];       /* SETUN_ISA */
    int debug;          /* SETUN_DEBUG 0..4 */
    char model[1024];   /* SETUN_MODEL: the program's default model */
    char mlx_bridge[1024]; /* SETUN_MLX_BRIDGE: the bridge's file */
    char cuda_kernels[1024]; /* SETUN_CUDA_KERNELS: folder of the CUDA binaries; "": the bridge's; "off": none */
    char cuda_driver[1024]; /* SETUN_CUDA_DRIVER: another library than the system's libcuda; then MLX's CPU takes the CUDA kernels too, for tests */
    char tuning[1024];  /* SETUN_TUNING: measured group sizes of GPU kernels; else tuning.json in the user's folder of settings; "" if there is none */
    char cache[1024];   /* a folder of the user's own for what MLX compiles: XDG_CACHE_HOME or HOME; "" if there is none */
} setun_environment;

struct setun_pool;
struct setun_kernels;
struct setun_context {
    struct setun_pool *pool;
    const struct setun_kernels *kernels; /* backend/cpu/kernels.h */
    struct setun_devices *devices; /* backend/mlx/mlx.h; NULL until one is asked for */
    struct setun_buffers *buffers; /* tensor/pool.h */
    setun_environment environment;
    setun_log_fn log;
    void *log_user;
    setun_log_level log_level;
};

double setun_seconds(void); /* monotonic */

/* Copies an options struct that may be smaller (older caller) or larger (newer caller) than ours. */
#define SETUN_OPTIONS(type, local, given) \
    type local; memset(&local, 0, sizeof local); \
    if (given) memcpy(&local, given, (given)->size && (given)->size < sizeof local ? (given)->size : sizeof local); \
    local.size = sizeof local

/* ---- writing a file whole: temporary name beside it, fsync, rename ---- */
typedef struct setun_writer setun_writer;
setun_status setun_writer_open(const char *path, bool overwrite, setun_writer **out); /* exists and !overwrite: error */
setun_status setun_writer_write(setun_writer *w, const void *bytes, size_t count);
setun_status setun_writer_pad(setun_writer *w, size_t alignment); /* zeros up to a multiple */
uint64_t setun_writer_position(const setun_writer *w);
setun_status setun_writer_commit(setun_writer *w); /* closes; on error the old file is untouched */
void setun_writer_abort(setun_writer *w);          /* removes the temporary; NULL is fine */

#endif
