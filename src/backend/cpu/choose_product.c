/*
 * choose_product.c - from how many tokens on a linear step goes to ternary_i8_many, by what it costs on this machine beside the kernel that
 * decodes: measured once a process for each table of kernels, packing and class of shapes, in about a millisecond. Results do not
 * depend on the choice. Caller: prepare.c.
 */
#include "backend/cpu/cpu.h"
#include <pthread.h>
#include <time.h>

/* Shapes differ in what they cost by the rows over which tables are made; by the columns hardly. */
enum { CLASSES = 2, COLUMNS = 1024, MOST_TOKENS = 192, NEVER = INT32_MAX, KNOWN = 16 };
static const int class_rows[CLASSES] = {192, 768};

typedef struct trial {
    _Alignas(64) int8_t x[(MOST_TOKENS + 1) * COLUMNS];
    _Alignas(64) uint8_t codes[768 * COLUMNS / 4];    /* 2-bit rows; triples are shorter */
    _Alignas(64) uint8_t rows[768 * COLUMNS / 4];
    _Alignas(64) int32_t sums[MOST_TOKENS * (768 + 16)];
    _Alignas(64) uint8_t scratch[];
} trial;

static void by_many(const setun_kernels *kernels, setun_packing packing, trial *t, int rows, int tokens)
{
    const uint8_t *codes = t->codes;
    if (packing == SETUN_PACKING_TRITS) {
        kernels->trits_rows(t->codes, (size_t)setun_trits_triple_bytes(COLUMNS), rows, COLUMNS, t->rows, COLUMNS / 4);
        codes = t->rows;
    }
    kernels->ternary_i8_many(codes, COLUMNS / 4, rows, t->x, COLUMNS, tokens, COLUMNS, t->sums, (size_t)rows + 16, t->scratch);
}

/* As many products, of half the rows and twice the columns: what a row costs at its end weighs as little as in real shapes. Tokens' x overlap. */
static void by_few(const setun_kernels *kernels, setun_packing packing, trial *t, int rows, int tokens)
{
    enum { LONG = 2 * COLUMNS };
    int tile = packing == SETUN_PACKING_TRITS ? CPU_ROW_TILE / 3 * 3 : CPU_ROW_TILE; /* as in steps_linear.c */
    rows /= 2;
    for (int r = 0; r < rows; r += tile) {
        int count = rows - r < tile ? rows - r : tile;
        if (packing == SETUN_PACKING_TRITS) {
            size_t triple = (size_t)setun_trits_triple_bytes(LONG);
            kernels->trits_i8(t->codes + (size_t)r / 3 * triple, triple, count, t->x, COLUMNS, tokens, LONG, t->sums + r, (size_t)rows + 16);
        } else
            kernels->ternary_i8(t->codes + (size_t)r * (LONG / 4), LONG / 4, count, t->x, COLUMNS, tokens, LONG, t->sums + r, (size_t)rows + 16);
    }
}

/* This thread's own time: on a busy machine the others' share would decide. */
static double seconds_now(void)
{
    struct timespec t;
    return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) ? setun_seconds() : (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The fewest tokens, of those tried, from which on the large tiles are faster by 3 % in the best of a few runs each. */
static int first_faster(const setun_kernels *kernels, setun_packing packing, trial *t, int rows)
{
    static const int counts[] = {16, 24, 32, 48, 64, 96, 128, MOST_TOKENS};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        double many = 1e9, few = 1e9;
        for (int i = c == 0 ? -1 : 0; i < 2; i++) {
            double start = seconds_now();
            by_many(kernels, packing, t, rows, counts[c]);
            double middle = seconds_now();
            by_few(kernels, packing, t, rows, counts[c]);
            double end = seconds_now();
            if (i < 0) continue; /* memory is touched, caches fill */
            if (middle - start < many) many = middle - start;
            if (end - middle < few) few = end - middle;
        }
        if (many < 0.97 * few) return counts[c];
    }
    return NEVER;
}

static setun_status measure(const setun_kernels *kernels, setun_packing packing, int rows, int *from)
{
    size_t bytes = (sizeof(trial) + setun_many_scratch(COLUMNS) + 63) / 64 * 64;
    trial *t = setun_alloc_aligned(bytes, 64);
    if (!t) return setun_fail_memory(bytes);
    memset(t->codes, 0x24, sizeof t->codes); /* codes 0 2 1 0; as fields of trits each below 27 */
    for (size_t i = 0; i < sizeof t->x; i++) t->x[i] = (int8_t)((int)(i * 37 % 61) - 30);
    *from = first_faster(kernels, packing, t, rows);
    setun_free_aligned(t);
    return SETUN_OK;
}

/* 0: never */
static setun_status choose(const setun_kernels *kernels, setun_packing packing, int64_t rows, int *out)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct { const setun_kernels *kernels; setun_packing packing; int class, from; } known[KNOWN];
    static int count;
    setun_status status = SETUN_OK;
    int class = rows < class_rows[1] / 2 ? 0 : 1, from = -1;
    /* A machine whose own kernels have none falls back on ref's, which is for reading. */
    if (!strcmp(kernels->ternary_i8_many_isa, "ref")) {
        *out = 0;
        return SETUN_OK;
    }
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count; i++)
        if (known[i].kernels == kernels && known[i].packing == packing && known[i].class == class) from = known[i].from;
    if (from < 0) {
        status = measure(kernels, packing, class_rows[class], &from);
        if (status == SETUN_OK && count < KNOWN) {
            known[count].kernels = kernels;
            known[count].packing = packing;
            known[count].class = class;
            known[count++].from = from;
        }
    }
    pthread_mutex_unlock(&lock);
    if (status != SETUN_OK) return status;
    *out = from == NEVER ? 0 : from;
    return SETUN_OK;
}

static atomic_int forced;

void cpu_force_many(int tokens) { atomic_store(&forced, tokens); }

/* Prompts may have a kernel of their own. The largest weight decides: it is where the time goes. */
setun_status cpu_plan_many(const setun_plan *plan, const setun_step *step, cpu_step *cpu)
{
    const setun_kernels *kernels = plan->context->kernels;
    int64_t most = 0, tokens = setun_slot_rows(&plan->slots[step->input[0]], plan->tokens_max, plan->outputs_max);
    cpu->many_from = 0;
    if (plan->slots[step->input[0]].dtype != SETUN_Q8 || !cpu_many_possible(step, cpu)) return SETUN_OK;
    setun_packing packing = SETUN_PACKING_2BIT;
    for (int i = 0; i < step->weight_count; i++) {
        const setun_prepared *p = step->prepared[i];
        if (p->rows > most) {
            most = p->rows;
            packing = p->later ? SETUN_PACKING_TRITS : p->packing; /* most likely, and no bit depends on it */
        }
    }
    if (tokens < CPU_MANY_LEAST || most < CPU_MANY_LEAST) return SETUN_OK;
    cpu->many_from = atomic_load(&forced);
    if (cpu->many_from < 1) SETUN_TRY(choose(kernels, packing, most, &cpu->many_from));
    if (cpu->many_from > tokens) cpu->many_from = 0;
    if (cpu->many_from > 0) {
        size_t length = strlen(cpu->kernel);
        snprintf(cpu->kernel + length, sizeof cpu->kernel - length, ", from %d tokens ternary_i8_many[%s]", cpu->many_from, kernels->ternary_i8_many_isa);
    }
    return SETUN_OK;
}
