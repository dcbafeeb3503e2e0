/*
 * backend.h - floor 5: what runs a tape. One vtable for `cpu` and (later) `mlx`.
 */
#ifndef SETUN_BACKEND_H
#define SETUN_BACKEND_H

#include "plan/plan.h"
#include "base/thread.h"

/*
 * Keys and values of one sequence, in ranges of 256 tokens (the last may reach beyond the capacity; a capacity below 256 is one range of its size,
 * rounded up to 64), so that memory is taken range by range as the context fills up, huge pages or not:
 *     [ranges][layers][kv_heads]{ keys [places / 64][head_size][64], values [places][head_size], I8: key factors [places], value factors [places] }
 * 64 keys lie side by side for the scores' sake. I8: a vector is its integers times a factor of its own, max|x| / 127.
 */
enum { SETUN_KV_BLOCK = 64, SETUN_KV_RANGE = 256 };
typedef struct setun_kv_cache {
    int layers, kv_heads, head_size, capacity;
    setun_dtype dtype;          /* F16, F32, I8 */
    int places;                 /* of a range */
    uint64_t element;           /* bytes */
    uint64_t head_bytes, range_bytes; /* of one head in a range; of all */
    uint8_t *data;              /* 64-byte aligned */
    uint64_t bytes;
    int length;                 /* tokens stored; the next run appends after it */
    bool huge;                  /* data is setun_alloc_huge's */
    void *device;               /* the backend's own form, where keys and values lie on a device; NULL: in data */
    void (*device_free)(void *device);
} setun_kv_cache;
static inline uint8_t *setun_kv_keys(const setun_kv_cache *c, int layer, int kv_head) { return c->data + ((uint64_t)layer * (uint64_t)c->kv_heads + (uint64_t)kv_head) * c->head_bytes; }
/* Within what setun_kv_keys gives: values, then (I8) factors of keys and of values. */
static inline uint64_t setun_kv_values_offset(const setun_kv_cache *c) { return (uint64_t)c->places * (uint64_t)c->head_size * c->element; }
static inline uint64_t setun_kv_scales_offset(const setun_kv_cache *c, bool values) { return 2 * setun_kv_values_offset(c) + (values ? (uint64_t)c->places * sizeof(float) : 0); }
setun_status setun_kv_cache_create(int layers, int kv_heads, int head_size, int capacity, setun_dtype dtype, setun_kv_cache *out);
void setun_kv_cache_destroy(setun_kv_cache *cache);

/* Some rows of a run belong to one sequence with a cache of its own (several sequences in one step, ragged positions). */
typedef struct setun_sequence {
    setun_kv_cache *cache;      /* the run appends `rows` after cache->length; the caller moves the length */
    int first_row, rows;        /* of the run's tokens; sequences lie one after another and cover them all */
} setun_sequence;

/* Which logits the caller wants of the vocabulary projection (the tape's last LINEAR, where its weight has a shortlist). */
typedef struct setun_head_request {
    int top;                    /* 0: all rows. n: per output row at least the n highest logits (ties: the lower id) of the rows not named below, exactly;
                                   all others are -INFINITY. -1: none, the step isn't run and its output stays as it was */
    const int32_t *rows; int row_count; /* with top > 0: these rows of the vocabulary too (of every output row); rising, no row twice */
    float margin;               /* with top > 0: every logit that is at most this much below the n-th highest, too */
} setun_head_request;

/* One run's state: all that changes. The plan itself is frozen and may be shared. */
typedef struct setun_frame {
    const setun_plan *plan;
    void *memory;               /* of the arena */
    uint8_t *arena;             /* plan->arena_bytes + plan->scratch_bytes, 64-byte aligned */
    int tokens, outputs;        /* of this run */
    int first_step;             /* steps before it are not run: their outputs lie in the arena from the run before */
    setun_kv_cache *cache;      /* NULL without cached attention; run appends `tokens` rows after cache->length but leaves length to the caller */
    const setun_sequence *sequences; int sequence_count; /* 0: all rows belong to `cache` */
    setun_head_request head;    /* zero: every logit */
    int64_t head_scored, head_rescored; /* counters, added to by run: rows scored by the small copy, rows computed exactly after it */
    uint64_t device_runs, device_kernels, device_operations, device_synchronisations; /* counters, added to by run on a device: see setun_device_report */
    atomic_bool *cancel;        /* looked at between steps; NULL: never */
    double *step_seconds;       /* [step_count], added to; NULL: not timed */
    atomic_int *counters;       /* [step_count] chunk counters; zeroed by run */
    uint64_t *step_checksums;   /* [step_count] FNV-1a of the step's outputs (SETUN_DEBUG=4); NULL: not computed */
} setun_frame;
setun_status setun_frame_create(const setun_plan *plan, setun_frame *out); /* allocates arena and counters */
void setun_frame_destroy(setun_frame *frame);
static inline void *setun_frame_slot(const setun_frame *f, int slot) { return f->arena + f->plan->slots[slot].offset; }

/* What a run on a device is made of; counts of one run. */
typedef struct setun_device_report {
    const char *device, *name, *tuning; /* "mlx:gpu", "Apple M3 Max", where group sizes come from; borrowed */
    uint64_t kernels, operations, synchronisations; /* kernels of ours, operations of MLX, waits of the host */
    uint64_t without_kernel, copies;    /* of the operations: those that do what a kernel should; those that move values about */
    int uncompiled_steps;               /* not part of a graph that MLX compiled */
    bool compiles;                      /* MLX compiles graphs on this device */
} setun_device_report;

struct setun_backend {
    const char *name;
    /* May this (fused) step be run? The plan asks before it commits a fusion. */
    bool (*supports)(const setun_backend *backend, const setun_step *step);
    /* Packs weights (once per weight, shared by plans), builds tables, picks kernels, sizes the scratch. */
    setun_status (*prepare)(const setun_backend *backend, setun_plan *plan);
    /* Runs the tape: allocates nothing, parses nothing, reads no environment. SETUN_ERROR_CANCELLED when asked to stop. */
    setun_status (*run)(const setun_backend *backend, setun_frame *frame);
    setun_status (*sync)(const setun_backend *backend, setun_frame *frame);
    void (*release)(const setun_backend *backend, setun_plan *plan); /* frees backend_data of the steps */
    void (*release_weight)(void *prepared);
    /* Builds the run and computes nothing of it. NULL: there is nothing to tell (cpu). */
    setun_status (*report)(const setun_backend *backend, setun_frame *frame, setun_device_report *out);
};
const setun_backend *setun_backend_cpu(void);

/* The parts of the small copy of the model's head as a packed file keeps them: bytes [rows, columns]. count 0: the head suits none. (cpu/prepare_head.c) */
typedef struct setun_head_planes {
    int count;
    const char *name[3];        /* SETUN_SHORTLIST_* */
    int64_t rows[3], columns[3];
    const void *data[3];
    struct cpu_shortlist *owner;
} setun_head_planes;
setun_status setun_head_planes_make(setun_model *model, setun_head_planes *out);
void setun_head_planes_free(setun_head_planes *planes);
/* Where the small copy is made with the first picks (cpu/head_parts.c): makes what is left of it now; how many rows it has. */
setun_status setun_head_finish(const setun_plan *plan);
int64_t setun_head_rows_copied(const setun_plan *plan);

/* Weights that the next run would pack first (cpu/pack_later.c) are packed now. The steps' reports say how weights lie now. */
setun_status setun_weights_finish(const setun_plan *plan);
void setun_weights_report(setun_plan *plan);

/* rope.c: rotations, with spec.rotary filled in. */
bool setun_rope_same(const setun_rope_spec *a, const setun_rope_spec *b);
setun_status setun_rope_frequencies(const setun_rope_spec *spec, double **out); /* [rotary/2], radians a position; the caller's */
void setun_sincos(double angle, double *sine, double *cosine); /* the same bits on every machine for |angle| < 1e6 */

/* Is this matrix one of codes and scales? */
static inline bool setun_weight_is_ternary(const setun_weight *w) { return w->absmean || setun_format_get_kind(w->format) == SETUN_KIND_TERNARY || (w->probed && w->info.ternary); }

/* How a prepared weight's bytes came to be, for explain. */
typedef enum setun_origin { SETUN_ORIGIN_MAPPED, SETUN_ORIGIN_PACKED, SETUN_ORIGIN_COPIED } setun_origin;

/* How ternary codes lie in memory. */
typedef enum setun_packing {
    SETUN_PACKING_2BIT,         /* SETUN_PACKED_2BIT rows */
    SETUN_PACKING_TRITS         /* three rows x 64 columns in 40 bytes: 5-bit fields c0 + 3 c1 + 9 c2; see kernels.def */
} setun_packing;

/* A weight made ready for the CPU kernels (weight->prepared). */
typedef struct setun_prepared {
    bool ternary;
    setun_format format;        /* dense: the format of data */
    setun_packing packing;      /* ternary */
    const uint8_t *data;        /* ternary: packing; dense: rows in `format`, or f32 (vectors) */
    int64_t rows, columns, row_bytes;
    setun_scale_kind scale_kind; int group_size;
    float tensor_scale;
    const float *scales;        /* ROW: [rows]; GROUP: [rows, columns/group_size rounded up] */
    setun_origin origin;
    uint64_t bytes;             /* owned memory, 0 when mapped */
    void *owned, *owned_scales;
    struct cpu_slab *slab;      /* data lies in this block of several weights (backend/cpu/slab.c); NULL: in `owned`, or mapped */
    uint8_t *in_slab;
    /* ternary: 2-bit rows that the first run reads in the file; the second packs them first (cpu/pack_later.c), into in_slab. The model's lock is held for that, and no run of the context goes on. */
    bool later, waiting;        /* later is for good; waiting: not packed yet */
    atomic_bool unchecked;      /* the first run looks whether its codes are codes */
    const setun_weight *weight; /* where it lies in a file: whose it is */
    const setun_file *file;     /* later: where its rows lie */
    const char *reason;         /* why it is mapped, packed or copied; static text, for explain */
    struct cpu_shortlist *shortlist; /* the small copy of a vocabulary projection (backend/cpu/shortlist.h), owned; NULL: none */
} setun_prepared;

#endif
