/*
 * cpu.h - inside the CPU backend: what prepare.c leaves for execute.c and the steps_*.c files.
 * Nobody outside src/backend/cpu includes this.
 */
#ifndef SETUN_CPU_H
#define SETUN_CPU_H

#include "backend/backend.h"
#include "backend/cpu/kernels.h"

/* A linear step is cut into tiles of this many rows and tokens. 64 rows of 2560 columns are 40 KiB packed and 64 tokens 160 KiB of
 * int8: both stay in L2, and the sums and the results (16 KiB each) in L1. */
enum { CPU_ROW_TILE = 64, CPU_TOKEN_TILE = 64, CPU_ATTENTION_TILE = 16, CPU_DEQUANTISED_ROWS = 16, CPU_DEQUANTISED_TOKENS = 8,
       CPU_ATTENTION_RECORDS = 256 /* (token, range of keys) pairs that a step may compute apart, by different workers */ };

/* Fewer tokens or rows than this: tables cost more than they save on any machine. */
enum { CPU_MANY_LEAST = 16 };

/* cos and sin of one rotation for the tokens of a run. Layers with the same rotation share it: the first step that needs it
 * fills it, from the positions of that run (they are an input and may be anything). */
typedef struct cpu_rope {
    setun_rope_spec spec;
    int positions;              /* slot */
    int half;                   /* rotary / 2 */
    int first_step;             /* who fills it */
    double *frequencies;        /* [half], radians a position */
    uint64_t cos_offset, sin_offset; /* in the scratch: f32 [tokens_max, half] */
} cpu_rope;

/* Who does a step of a run. TOGETHER: all workers, each a part. SOLO: worker 0, because waking the others costs more. APART: a small step before a product that
 * all do together: each worker does all of it, into memory of its own, and begins with the product without waiting for the others. */
enum { CPU_TOGETHER, CPU_SOLO, CPU_APART };
/* Steps of fewer elements are done by one worker: about 10 microseconds of elementwise work, of which handing half to another core saves less than two
 * barriers cost. */
enum { CPU_SOLO_ELEMENTS = 16384 };

/* How a weight of a LINEAR step is multiplied. */
typedef enum cpu_product {
    CPU_TERNARY_I8,             /* int8 x; a scale per tensor or row */
    CPU_TRITS_I8,               /* the same, three rows in 5 bits */
    CPU_TERNARY_I8_GROUP,       /* int8 x; a scale per group of a multiple of 128 columns */
    CPU_TERNARY_I8_AS_F32,      /* int8 x; smaller groups, which no block of 128 codes ends with: x as f32 */
    CPU_TERNARY_F32,
    CPU_DENSE,                  /* a kernel for this format */
    CPU_DENSE_DEQUANTISED       /* row tiles to f32, then the f32 kernel */
} cpu_product;

typedef void (*cpu_dense_fn)(const uint8_t *w, size_t row_bytes, int rows, const float *x, size_t x_stride, int tokens, int64_t k, float *out, size_t out_stride);

typedef struct cpu_step {
    int rope;                   /* index in cpu_tape.ropes; -1: none */
    cpu_product product[SETUN_STEP_WEIGHTS];
    cpu_dense_fn dense[SETUN_STEP_WEIGHTS];
    bool whole_tokens;          /* LINEAR: a chunk is a row tile times all tokens, because making the row tile costs */
    int many_from;              /* LINEAR: runs of at least this many rows of x go to steps_many.c; 0: none does */
    uint64_t kv_offset, kv_half; /* ATTENTION without a cache: f32 k, then v, as in a cache of tokens_max tokens, in the shared scratch */
    bool apart;                 /* NORM, QUANTIZE to q8: may be CPU_APART; the next step is the LINEAR that reads it */
    char kernel[96];
} cpu_step;

/* Everything the backend keeps for one plan. */
typedef struct cpu_tape {
    int rope_count;
    cpu_rope *ropes;
    double *frequencies;        /* of all ropes */
    uint64_t shared_bytes;      /* scratch that all workers share, before the workers' own */
    uint64_t worker_bytes;      /* scratch of one worker, multiple of 64 */
    uint64_t own_q8_offset;     /* in a worker's scratch: the q8 rows of the last CPU_APART step */
    uint64_t how_offset;        /* in the shared scratch: cpu_run.how */
    uint64_t cursor_bytes;      /* of it, at its end: how far the worker's range of each step is taken */
    uint64_t attention_offset;  /* in the shared scratch, used by one attention step after another: counters, then partials */
    uint64_t attention_bytes, attention_counters; /* of it; of the counters, which are zero between steps */
    setun_prepared **own;       /* prepared weights that belong to this plan alone */
    int own_count, own_capacity;
    struct cpu_slab *slab;      /* while preparing: the block being filled */
    struct cpu_slab *later_slab; /* the same for weights that are packed later */
    bool later;                 /* weights of it are packed later */
    bool checks;                /* weights of it were unchecked: runs say which they read */
    atomic_bool ran, packed;    /* a run was made: the next packs what waits; nothing waits */
    uint64_t slab_bytes;        /* of a block; 0: the weights are too small for one */
    uint64_t ternary_bytes;     /* all ternary weights of the plan, at two bits */
    int step_count;
    cpu_step step[];
} cpu_tape;

/* step 0 carries it; NULL for an empty plan */
static inline cpu_tape *cpu_tape_of(const setun_plan *plan) { return plan->step_count > 0 ? plan->steps[0].backend_data : NULL; }

/* One run, shared by its workers. */
typedef struct cpu_run {
    setun_frame *frame;
    const setun_plan *plan;
    const setun_kernels *kernels;
    setun_pool *pool;
    cpu_tape *tape;
    uint8_t *scratch;           /* shared part; worker w's part at scratch + shared_bytes + w * worker_bytes */
    uint8_t *how;               /* [step_count] CPU_TOGETHER and so on */
    int workers;
    int tokens, outputs;
    int64_t head_rows;          /* rows of the vocabulary projection that its small copy has, and where the part ends that this run adds */
    int64_t head_end, head_high_rows; /* rows below the latter have all but the low plane */
    bool head_makes;
    atomic_bool head_done;      /* the head's step was run by the copy */
    _Atomic(const setun_weight *) broken; /* a weight was found to hold what are no codes; its sums are 0 */
    atomic_int stop_at;         /* the run ends before this step. Set by worker 0 before the barrier that precedes that step. */
    setun_status status;        /* written by worker 0, which is the caller: its thread's message goes with it */
} cpu_run;

static inline uint8_t *cpu_worker_scratch(const cpu_run *run, int worker) { return run->scratch + run->tape->shared_bytes + (uint64_t)worker * run->tape->worker_bytes; }
/* How weight i of a linear step is multiplied now: one that is packed later changes between two runs. */
static inline cpu_product cpu_product_now(const setun_step *step, const cpu_step *cpu, int i)
{
    const setun_prepared *p = step->prepared[i];
    return !p->later ? cpu->product[i] : p->packing == SETUN_PACKING_TRITS ? CPU_TRITS_I8 : CPU_TERNARY_I8;
}
static inline uint64_t cpu_align(uint64_t bytes) { return (bytes + 63) / 64 * 64; }
static inline int64_t cpu_elements(const setun_slot *s, int tokens, int outputs)
{
    int64_t n = 1;
    for (int i = 0; i < s->shape.rank; i++) n *= setun_dim_value(s->shape.dim[i], tokens, outputs);
    return n;
}
/* Elements of one index of the first dimension. */
static inline int64_t cpu_row_elements(const setun_slot *s)
{
    int64_t n = 1;
    for (int i = 1; i < s->shape.rank; i++) n *= s->shape.dim[i];
    return n;
}

/* Asks for memory that is read next: pieces of rows, at whose start the CPU's own prefetching would begin anew. Any address does. */
static inline void cpu_ask_for(const void *at, size_t bytes)
{
    for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch((const void *)((uintptr_t)at + b), 0, 2);
}

/* A q8 slot taken apart. */
typedef struct cpu_q8 { int8_t *rows; float *scale; int32_t *sum; size_t stride; } cpu_q8;
static inline cpu_q8 cpu_q8_at(uint8_t *base, int64_t rows_max, int64_t width)
{
    cpu_q8 q = {(int8_t *)base, (float *)(void *)(base + setun_q8_scale_offset(rows_max, width)), (int32_t *)(void *)(base + setun_q8_sum_offset(rows_max, width)), (size_t)setun_q8_stride(width)};
    return q;
}
static inline cpu_q8 cpu_q8_of(const cpu_run *run, int slot)
{
    const setun_slot *s = &run->plan->slots[slot];
    return cpu_q8_at(setun_frame_slot(run->frame, slot), setun_slot_rows(s, run->plan->tokens_max, run->plan->outputs_max), setun_slot_width(s));
}
/* Rows of the slot that a CPU_APART step has at most. */
static inline int64_t cpu_own_rows(const setun_plan *plan, int slot)
{
    int64_t all = setun_slot_rows(&plan->slots[slot], plan->tokens_max, plan->outputs_max), width = setun_slot_width(&plan->slots[slot]), most = width > 0 ? (CPU_SOLO_ELEMENTS - 1) / width : 0;
    return all < most ? all : most;
}
/* What NORM or QUANTIZE step `maker` writes in this worker: worker 0 always the slot, as others may read that later. */
static inline cpu_q8 cpu_q8_made(const cpu_run *run, int maker, int worker)
{
    int slot = run->plan->steps[maker].output[0];
    if (worker == 0 || run->how[maker] != CPU_APART) return cpu_q8_of(run, slot);
    return cpu_q8_at(cpu_worker_scratch(run, worker) + run->tape->own_q8_offset, cpu_own_rows(run->plan, slot), setun_slot_width(&run->plan->slots[slot]));
}
/* The q8 input of LINEAR step `index` in this worker. */
static inline cpu_q8 cpu_q8_input(const cpu_run *run, int index, int worker)
{
    if (index > run->frame->first_step && run->how[index - 1] == CPU_APART) return cpu_q8_made(run, index - 1, worker);
    return cpu_q8_of(run, run->plan->steps[index].input[0]);
}

/* How many workers share this step. */
static inline int cpu_step_workers(const cpu_run *run, int index) { return run->how[index] == CPU_TOGETHER ? run->workers : 1; }
/*
 * The next of `total` chunks, or -1. Each worker has a range of them, so that it reads one piece of memory from end to end: two workers that take turns
 * reach four fifths of that speed. A range whose worker is late is taken on by the others.
 */
static inline int64_t cpu_take_near(const cpu_run *run, int index, int worker, int64_t total)
{
    const int workers = cpu_step_workers(run, index);
    for (int i = 0; i < workers; i++) {
        const int owner = worker + i < workers ? worker + i : worker + i - workers;
        const int64_t first = total * owner / workers, count = total * (owner + 1) / workers - first;
        atomic_int *taken = (atomic_int *)(void *)(cpu_worker_scratch(run, owner) + run->tape->worker_bytes - run->tape->cursor_bytes) + index;
        if (atomic_load_explicit(taken, memory_order_relaxed) >= count) continue;
        const int64_t at = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
        if (at < count) return first + at;
    }
    return -1;
}
static inline int cpu_take(const cpu_run *run, int index) { return atomic_fetch_add_explicit(&run->frame->counters[index], 1, memory_order_relaxed); }

/* Steps. Every worker inside the step calls it with the same arguments but its own number. */
void cpu_step_embedding(cpu_run *run, int index, int worker);
void cpu_step_norm(cpu_run *run, int index, int worker);
void cpu_step_quantize(cpu_run *run, int index, int worker);
void cpu_step_linear(cpu_run *run, int index, int worker);
void cpu_step_product(cpu_run *run, int index, int worker); /* steps_head.c: a linear step, or the vocabulary projection by its small copy */
void cpu_step_unary(cpu_run *run, int index, int worker);
void cpu_step_binary(cpu_run *run, int index, int worker);
void cpu_step_softmax(cpu_run *run, int index, int worker);
void cpu_step_l2(cpu_run *run, int index, int worker);
void cpu_step_select(cpu_run *run, int index, int worker);
void cpu_step_hadamard(cpu_run *run, int index, int worker);
void cpu_step_rope(cpu_run *run, int index, int worker);
void cpu_step_attention(cpu_run *run, int index, int worker);

/* Scratch of one worker that these steps need; used by prepare. */
uint64_t cpu_linear_scratch(const setun_plan *plan, const setun_step *step, const cpu_step *cpu);
uint64_t cpu_attention_scratch(const setun_plan *plan, const setun_step *step);
/* Scratch that workers share while they take ranges of keys; *counters: bytes of it at the front that must be zero. */
uint64_t cpu_attention_shared(const setun_step *step, uint64_t *counters);

/* steps_many.c: a linear step over many tokens; scratch of one worker, 0 where it is not used; can it be used at all? */
void cpu_step_many(cpu_run *run, int index, int worker);
uint64_t cpu_many_scratch(const setun_plan *plan, const setun_step *step, const cpu_step *cpu);
bool cpu_many_possible(const setun_step *step, const cpu_step *cpu);
/* choose_product.c: sets cpu->many_from by what was measured here, and names it in cpu->kernel. */
setun_status cpu_plan_many(const setun_plan *plan, const setun_step *step, cpu_step *cpu);
void cpu_force_many(int tokens); /* tests: plans prepared from now on use it from so many tokens on, measured or not; 0: as measured */


/* slab.c: memory for a weight's data, 64-byte aligned, 64 bytes of room behind it; p keeps it alive (p->owned, or p->in_slab and p->slab). */
typedef struct cpu_slab cpu_slab;
setun_status cpu_weight_memory(cpu_tape *tape, uint64_t bytes, setun_prepared *p);
void cpu_slab_release(cpu_slab *slab); /* NULL is fine */
/* For a weight that is packed later, at most `bytes` of it: memory that is not touched before. Then its place, tightly, by what it takes after all. */
setun_status cpu_later_memory(cpu_tape *tape, uint64_t bytes, setun_prepared *p);
void cpu_later_place(setun_prepared *p, uint64_t bytes);
uint8_t *cpu_slab_untouched(const cpu_slab *slab, size_t *out_bytes); /* all of a slab where nothing has its place yet, or NULL */

/* prepare_ternary.c. quantized: the input is int8. */
setun_status cpu_prepare_ternary(setun_plan *plan, cpu_tape *tape, setun_model *model, const setun_weight *w, bool quantized, setun_prepared *p);
/* choose_packing.c: what decoding reads fastest here. ternary_bytes: of the whole model, at two bits; CPU_PACKED_ALREADY: the weights are
 * trits, and stay so unless two bits are much faster. */
#define CPU_PACKED_ALREADY UINT64_MAX
/* memory, if not NULL, of `bytes`: measured there, where it is enough; its bytes are lost. */
setun_status cpu_choose_packing(setun_context *context, uint64_t ternary_bytes, void *memory, size_t bytes, setun_packing *out);
bool cpu_is_streamed(uint64_t ternary_bytes); /* do models of this size stream their weights? */
#define CPU_AS_PACKED ", then as packed" /* ends the kernel's name of a step whose weights wait */
/* pack_later.c: before a run; may one be read in the file first; what a worker does with rows it reads there: false, and the run knows, where they are no codes. */
setun_status cpu_pack_waiting(const setun_plan *plan);
bool cpu_may_wait(const cpu_tape *tape, const setun_model *model, const setun_weight *w);
bool cpu_triples_are_codes(cpu_run *run, const setun_prepared *p, const uint8_t *triples, int rows);
bool cpu_rows_are_codes(cpu_run *run, const setun_prepared *p, const uint8_t *rows, int64_t bytes);
void cpu_note_read(cpu_run *run);
setun_status cpu_say_broken(const cpu_run *run);
void cpu_force_later(bool on); /* tests: weights of any size, whatever pages the system has */
/* prepare_ternary.c: I2_S rows as what kernels read, by all threads; FORMAT without a message where they are no codes. */
setun_status cpu_check_codes(setun_context *context, const setun_weight *w);
setun_status cpu_pack_rows(setun_context *context, const setun_weight *w, setun_packing packing, uint8_t *to);

/* prepare.c */
void cpu_report(const setun_prepared *p, const setun_weight *w, setun_weight_report *report);
setun_status cpu_prepare(const setun_backend *backend, setun_plan *plan);
void cpu_release(const setun_backend *backend, setun_plan *plan);
void cpu_release_weight(void *prepared);
bool cpu_supports(const setun_backend *backend, const setun_step *step);

#endif
