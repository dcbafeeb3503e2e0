/*
 * host_engine.c - see host_engine.h. A kernel thread is a fiber: a stack, and the registers that a function must keep. Engines (stacks of a
 * group's threads, threadgroup memory) are kept in a list between runs, one for each run that is going on.
 */
#include "backend/mlx/kernels/host_engine.h"

#include <pthread.h>

#if defined(__SANITIZE_ADDRESS__)
#define HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOST_ASAN 1
#endif
#endif
#ifdef HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { THREADS_MAX = 1024, SIMD = 32, SHARED_LIMIT = 32768, SHARED_ROOM = 2 * SHARED_LIMIT, SHARED_BLOCKS = 16, CANARY = 32 };
#ifdef HOST_ASAN
enum { STACK_BYTES = 256 * 1024 };
#else
enum { STACK_BYTES = 64 * 1024 };
#endif

typedef enum state { READY, AT_BARRIER, AT_SIMD, DONE } state;

typedef struct fiber {
    void *stack_pointer;
    uint8_t *stack;
    void *fake_stack;           /* ASan's */
    state state;
    int line;
    int shared_count;           /* threadgroup arrays it has asked for */
    unsigned operations;        /* simdgroup operations done: they use two sets of places in turn */
    setun_host_view view;
} fiber;

typedef struct engine {
    struct engine *next;        /* in the list of idle ones */
    int capacity;               /* fibers with stacks */
    fiber *fibers;
    uint8_t *stacks;
    uint8_t *shared;            /* SHARED_ROOM */
    struct { uint8_t *at; size_t bytes; } blocks[SHARED_BLOCKS];
    int block_count;
    size_t shared_used, shared_asked;
    int threads, done, waiting, waiting_line;
    int simd_waiting[THREADS_MAX / SIMD], simd_line[THREADS_MAX / SIMD];
    union { int i; float f; } values[2][THREADS_MAX];
    int order[THREADS_MAX];
    uint64_t seed, random;
    fiber *running;
    void *main_pointer, *main_fake;
    const void *main_bottom;
    size_t main_size;
    setun_host_body body;
    const void *const *inputs;
    void *const *outputs;
    const int32_t *parameters;
    char error[160];            /* "" : none */
} engine;

_Thread_local const setun_host_view *setun_host_here;
static _Thread_local engine *current;
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static engine *idle;

/* ---- changing stacks ---- */

#define HOST_TEXT_(x) #x
#define HOST_TEXT(x) HOST_TEXT_(x)
#define HOST_SYMBOL(name) HOST_TEXT(__USER_LABEL_PREFIX__) name
/* Global to the assembler, hidden outside: as local symbols they would be reached through the GOT by their section's address. */
#ifdef __APPLE__
#define HOST_LABEL(name) ".globl " HOST_SYMBOL(name) "\n.private_extern " HOST_SYMBOL(name) "\n.p2align 4\n" HOST_SYMBOL(name) ":\n"
#else
#define HOST_LABEL(name) ".globl " HOST_SYMBOL(name) "\n.hidden " HOST_SYMBOL(name) "\n.type " HOST_SYMBOL(name) ", %function\n.p2align 4\n" HOST_SYMBOL(name) ":\n"
#endif

/* Saves the registers a callee must keep and the stack pointer in *from, takes those of `to`. */
__attribute__((visibility("hidden"))) void setun_host_switch(void **from, void *to);
__attribute__((visibility("hidden"))) void setun_host_entry(void);
#if defined(__x86_64__)
__asm__(".text\n"
        HOST_LABEL("setun_host_switch")
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n"
        HOST_LABEL("setun_host_entry")
        "  movq %r12, %rdi\n"
        "  callq *%r13\n"
        "  ud2\n");
static void *first_frame(uint8_t *top, void (*function)(void *), void *argument)
{
    void **at = (void **)(void *)top - 7; /* r15 r14 r13 r12 rbx rbp, return address; the stack is 16-byte aligned after the return */
    memset(at, 0, 6 * sizeof *at);
    memcpy(&at[2], &function, sizeof function);
    at[3] = argument;
    void (*entry)(void) = setun_host_entry;
    memcpy(&at[6], &entry, sizeof entry);
    return at;
}
#elif defined(__aarch64__)
__asm__(".text\n"
        HOST_LABEL("setun_host_switch")
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
        "  mov x2, sp\n  str x2, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n"
        "  ret\n"
        HOST_LABEL("setun_host_entry")
        "  mov x0, x19\n"
        "  blr x20\n"
        "  brk #1\n");
static void *first_frame(uint8_t *top, void (*function)(void *), void *argument)
{
    void **at = (void **)(void *)(top - 160);
    memset(at, 0, 160);
    at[0] = argument;
    memcpy(&at[1], &function, sizeof function);
    void (*entry)(void) = setun_host_entry;
    memcpy(&at[11], &entry, sizeof entry);
    return at;
}
#else
#error "host_engine.c: write setun_host_switch for this processor (registers a callee must keep, and the stack pointer)"
#endif

/* Gives control back to the scheduler; returns when it is this fiber's turn again. */
static void leave(engine *e, fiber *f, bool forever)
{
    (void)forever;
#ifdef HOST_ASAN
    __sanitizer_start_switch_fiber(forever ? NULL : &f->fake_stack, e->main_bottom, e->main_size);
#endif
    setun_host_switch(&f->stack_pointer, e->main_pointer);
#ifdef HOST_ASAN
    __sanitizer_finish_switch_fiber(f->fake_stack, &e->main_bottom, &e->main_size);
#endif
}

static void enter(engine *e, fiber *f)
{
    e->running = f;
    setun_host_here = &f->view;
#ifdef HOST_ASAN
    __sanitizer_start_switch_fiber(&e->main_fake, f->stack, STACK_BYTES);
#endif
    setun_host_switch(&e->main_pointer, f->stack_pointer);
#ifdef HOST_ASAN
    __sanitizer_finish_switch_fiber(e->main_fake, NULL, NULL);
#endif
}

static void fiber_main(void *argument)
{
    engine *e = argument;
    fiber *f = e->running;
#ifdef HOST_ASAN
    __sanitizer_finish_switch_fiber(NULL, &e->main_bottom, &e->main_size);
#endif
    e->body(e->inputs, e->outputs, e->parameters);
    f->state = DONE;
    e->done++;
    leave(e, f, true);
}

/* ---- engines ---- */

static void engine_free(engine *e)
{
    if (!e) return;
    setun_free_aligned(e->stacks);
    setun_free_aligned(e->shared);
    setun_free(e->fibers);
    setun_free(e);
}

static engine *engine_take(int threads)
{
    pthread_mutex_lock(&idle_lock);
    engine *e = idle;
    if (e) idle = e->next;
    pthread_mutex_unlock(&idle_lock);
    if (!e) {
        e = setun_calloc(1, sizeof *e);
        if (!e) return NULL;
        e->shared = setun_alloc_aligned(SHARED_ROOM, 64);
        if (!e->shared) {
            engine_free(e);
            return NULL;
        }
    }
    if (e->capacity < threads) {
        setun_free_aligned(e->stacks);
        setun_free(e->fibers);
        e->capacity = 0;
        e->stacks = setun_alloc_aligned((size_t)threads * STACK_BYTES, 4096);
        e->fibers = setun_calloc((size_t)threads, sizeof *e->fibers);
        if (!e->stacks || !e->fibers) {
            engine_free(e);
            return NULL;
        }
        e->capacity = threads;
        for (int i = 0; i < threads; i++) e->fibers[i].stack = e->stacks + (size_t)i * STACK_BYTES;
    }
    return e;
}

static void engine_give(engine *e)
{
#ifdef HOST_ASAN
    ASAN_UNPOISON_MEMORY_REGION(e->shared, SHARED_ROOM);
    if (e->error[0]) ASAN_UNPOISON_MEMORY_REGION(e->stacks, (size_t)e->capacity * STACK_BYTES); /* frames that never returned */
#endif
    pthread_mutex_lock(&idle_lock);
    e->next = idle;
    idle = e;
    pthread_mutex_unlock(&idle_lock);
}

void setun_gpu_host_trim(void);
void setun_gpu_host_trim(void)
{
    pthread_mutex_lock(&idle_lock);
    engine *e = idle;
    idle = NULL;
    pthread_mutex_unlock(&idle_lock);
    while (e) {
        engine *next = e->next;
        engine_free(e);
        e = next;
    }
}

static uint64_t next_random(engine *e) /* xorshift64*, Vigna 2014 */
{
    e->random ^= e->random >> 12;
    e->random ^= e->random << 25;
    e->random ^= e->random >> 27;
    return (e->random * 2685821657736338717ull) >> 32;
}

static void shuffle(engine *e)
{
    for (int i = e->threads - 1; i > 0; i--) {
        int j = (int)(next_random(e) % (uint64_t)(i + 1)), t = e->order[i];
        e->order[i] = e->order[j];
        e->order[j] = t;
    }
}

/* The run is lost: control goes to the scheduler for good. */
static void broken(engine *e, const char *what, int line, int other)
{
    if (!e->error[0]) snprintf(e->error, sizeof e->error, what, line, other);
    leave(e, e->running, true);
}

/* ---- what kernels call ---- */

void *setun_host_shared(size_t bytes, size_t alignment)
{
    engine *e = current;
    fiber *f = e->running;
    int index = f->shared_count++;
    (void)alignment; /* blocks begin at multiples of 32 */
    if (index < e->block_count) {
        if (e->blocks[index].bytes != bytes) broken(e, "threads ask for different threadgroup memory (%d and %d bytes)", (int)bytes, (int)e->blocks[index].bytes);
        return e->blocks[index].at;
    }
    size_t room = (bytes + 31) / 32 * 32;
    if (index >= SHARED_BLOCKS || e->shared_asked + bytes > SHARED_LIMIT || e->shared_used + room + CANARY > SHARED_ROOM)
        broken(e, "threadgroup memory over 32 KiB (%d bytes more than the %d before)", (int)bytes, (int)e->shared_asked);
    uint8_t *at = e->shared + e->shared_used;
#ifdef HOST_ASAN
    ASAN_UNPOISON_MEMORY_REGION(at, room + CANARY);
#endif
    memset(at, 0xa5 ^ (int)(e->seed & 0x5a), room + CANARY);
#ifdef HOST_ASAN
    ASAN_POISON_MEMORY_REGION(at + bytes, room + CANARY - bytes);
#endif
    e->blocks[index].at = at;
    e->blocks[index].bytes = bytes;
    e->block_count++;
    e->shared_used += room + CANARY;
    e->shared_asked += bytes;
    return at;
}

/* All have come: they may go on. With a seed the one that came last does not go first. */
static void release(engine *e, fiber *f, int first, int count, state from)
{
    for (int i = first; i < first + count; i++)
        if (e->fibers[i].state == from) e->fibers[i].state = READY;
    if (e->seed) {
        f->state = READY;
        leave(e, f, false);
    }
}

void setun_host_barrier(int line)
{
    engine *e = current;
    fiber *f = e->running;
    if (e->waiting && e->waiting_line != line) broken(e, "threads of a group wait at barriers of lines %d and %d", e->waiting_line, line);
    e->waiting_line = line;
    if (++e->waiting == e->threads) {
        e->waiting = 0;
        release(e, f, 0, e->threads, AT_BARRIER);
        return;
    }
    f->state = AT_BARRIER;
    f->line = line;
    leave(e, f, false);
}

void setun_host_simd_barrier(int line)
{
    engine *e = current;
    fiber *f = e->running;
    int simd = (int)f->view.thread / SIMD;
    if (e->simd_waiting[simd] && e->simd_line[simd] != line) broken(e, "lanes of a simdgroup wait at lines %d and %d", e->simd_line[simd], line);
    e->simd_line[simd] = line;
    if (++e->simd_waiting[simd] == SIMD) {
        e->simd_waiting[simd] = 0;
        release(e, f, simd * SIMD, SIMD, AT_SIMD);
        return;
    }
    f->state = AT_SIMD;
    f->line = line;
    leave(e, f, false);
}

int setun_host_simd_sum_int(int x, int line)
{
    engine *e = current;
    fiber *f = e->running;
    unsigned set = f->operations++ & 1, first = f->view.thread / SIMD * SIMD, sum = 0;
    e->values[set][f->view.thread].i = x;
    setun_host_simd_barrier(line);
    for (unsigned i = 0; i < SIMD; i++) sum += (unsigned)e->values[set][first + i].i;
    return (int)sum;
}

float setun_host_simd_sum_float(float x, int line)
{
    engine *e = current;
    fiber *f = e->running;
    unsigned set = f->operations++ & 1, first = f->view.thread / SIMD * SIMD, turn = (unsigned)(e->seed % SIMD);
    e->values[set][f->view.thread].f = x;
    setun_host_simd_barrier(line);
    float sum = 0.0f;
    for (unsigned i = 0; i < SIMD; i++) sum += e->values[set][first + (i + turn) % SIMD].f;
    return sum;
}

float setun_host_simd_max(float x, int line)
{
    engine *e = current;
    fiber *f = e->running;
    unsigned set = f->operations++ & 1, first = f->view.thread / SIMD * SIMD;
    e->values[set][f->view.thread].f = x;
    setun_host_simd_barrier(line);
    float most = e->values[set][first].f;
    for (unsigned i = 1; i < SIMD; i++) most = e->values[set][first + i].f > most ? e->values[set][first + i].f : most;
    return most;
}

float setun_host_simd_xor(float x, int mask, int line)
{
    engine *e = current;
    fiber *f = e->running;
    unsigned set = f->operations++ & 1;
    e->values[set][f->view.thread].f = x;
    setun_host_simd_barrier(line);
    return e->values[set][f->view.thread ^ (unsigned)mask].f;
}

/* ---- running ---- */

/* Did the group write past its threadgroup arrays? */
static bool overrun(const engine *e)
{
#ifdef HOST_ASAN
    (void)e; /* ASan said so */
    return false;
#else
    uint8_t garbage = (uint8_t)(0xa5 ^ (int)(e->seed & 0x5a));
    for (int b = 0; b < e->block_count; b++) {
        size_t room = (e->blocks[b].bytes + 31) / 32 * 32 + CANARY;
        for (size_t i = e->blocks[b].bytes; i < room; i++)
            if (e->blocks[b].at[i] != garbage) return true;
    }
    return false;
#endif
}

static void run_group(engine *e, const int group[3], setun_host_uint3 position)
{
    e->done = e->waiting = e->block_count = 0;
    e->shared_used = e->shared_asked = 0;
    memset(e->simd_waiting, 0, sizeof e->simd_waiting);
    for (int i = 0; i < e->threads; i++) {
        fiber *f = &e->fibers[i];
        f->state = READY;
        f->fake_stack = NULL;
        f->shared_count = 0;
        f->operations = 0;
        f->view = (setun_host_view){(uint32_t)i, {(uint32_t)group[0], 1, 1}, position};
        f->stack_pointer = first_frame(f->stack + STACK_BYTES, fiber_main, e);
    }
    /* With a seed, half of the groups let one simdgroup run as far ahead of the others as barriers allow. */
    bool ahead = e->seed && next_random(e) % 2;
    while (e->done < e->threads) {
        bool moved = false;
        if (e->seed) shuffle(e);
        int first_simd = ahead ? e->order[0] / SIMD : 0, simds = ahead ? e->threads / SIMD : 1;
        for (int s = 0; s < simds; s++) {
            bool again;
            do {
                again = false;
                for (int i = 0; i < e->threads && !e->error[0]; i++) {
                    fiber *f = &e->fibers[e->order[i]];
                    if (f->state != READY || (ahead && e->order[i] / SIMD != (first_simd + s) % simds)) continue;
                    moved = again = true;
                    enter(e, f);
                }
            } while (ahead && again && !e->error[0]);
        }
        if (e->error[0]) return;
        if (!moved) {
            int line = 0;
            for (int i = 0; i < e->threads; i++)
                if (e->fibers[i].state != DONE) line = e->fibers[i].line;
            snprintf(e->error, sizeof e->error, "some threads wait at line %d and the others never come there", line);
            return;
        }
    }
    if (overrun(e)) snprintf(e->error, sizeof e->error, "wrote outside its threadgroup memory");
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

setun_status setun_host_run(const char *name, setun_host_body body, const void *const *inputs, void *const *outputs, const int32_t *values, const int grid[3], const int group[3], uint64_t seed)
{
    for (int i = 0; i < 3; i++)
        if (grid[i] < 0 || group[i] < 1 || grid[i] % group[i]) return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a grid of %d threads is not whole groups of %d", name, grid[i], group[i]);
    if (group[1] != 1 || group[2] != 1 || group[0] % SIMD || group[0] > THREADS_MAX)
        return setun_fail(SETUN_ERROR_ARGUMENT, "kernel %s: a group of %d x %d x %d threads; one dimension, a multiple of %d up to %d", name, group[0], group[1], group[2], SIMD, THREADS_MAX);
    engine *e = engine_take(group[0]);
    if (!e) return setun_fail_memory((size_t)group[0] * STACK_BYTES);
    engine *outer = current; /* NULL: kernels start no kernels */
    current = e;
    e->threads = group[0];
    e->seed = seed;
    e->random = seed * 0x9e3779b97f4a7c15ull | 1;
    e->body = body;
    e->inputs = inputs;
    e->outputs = outputs;
    e->parameters = values;
    e->error[0] = 0;
    for (int i = 0; i < e->threads; i++) e->order[i] = i;
    uint64_t groups[3] = {(uint64_t)(grid[0] / group[0]), (uint64_t)grid[1], (uint64_t)grid[2]};
    uint64_t count = groups[0] * groups[1] * groups[2], step = 1, first = 0;
    if (seed && count > 1) {
        first = next_random(e) % count;
        step = next_random(e) % count;
        while (step == 0 || common_divisor(step, count) != 1) step = (step + 1) % count;
    }
    for (uint64_t i = 0; i < count && !e->error[0]; i++) {
        uint64_t at = (first + i * step) % count;
        run_group(e, group, (setun_host_uint3){(uint32_t)(at % groups[0]), (uint32_t)(at / groups[0] % groups[1]), (uint32_t)(at / groups[0] / groups[1])});
    }
    current = outer;
    setun_host_here = NULL;
    setun_status status = e->error[0] ? setun_fail(SETUN_ERROR_STATE, "kernel %s: %s", name, e->error) : SETUN_OK;
    engine_give(e);
    return status;
}
