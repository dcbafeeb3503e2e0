/*
 * select.c - lays the tables of the ISAs this CPU has over the reference table, once per cap. Called when a context is
 * made, by doctor and by tests. Does not read the environment: the cap is an argument.
 */
#include "backend/cpu/isa.h"

#include <pthread.h>

typedef struct isa_row {
    const char *name;
    const setun_kernels *table;
    bool (*available)(const setun_cpu_features *features);
} isa_row;

static bool always(const setun_cpu_features *features) {
    (void)features;
    return true;
}
#if defined(__x86_64__)
static bool has_avx2(const setun_cpu_features *f) { return f->avx2 && f->fma && f->f16c; }
static bool has_avx512(const setun_cpu_features *f) {
    return has_avx2(f) && f->avx512f && f->avx512bw && f->avx512vl && f->avx512dq && f->avx512vnni && f->avx512vbmi && f->avx512vbmi2 && f->gfni;
}
#elif defined(__aarch64__)
static bool has_neon(const setun_cpu_features *f) { return f->neon; }
static bool has_neon_dotprod(const setun_cpu_features *f) { return f->neon && f->dotprod; }
#endif

/* In rising order: a later row overlays the earlier ones. */
static const isa_row isas[] = {
    {"ref", &setun_kernels_ref, always},
#if defined(__x86_64__)
    {"avx2", &setun_kernels_avx2, has_avx2},
    {"avx512", &setun_kernels_avx512, has_avx512},
#elif defined(__aarch64__)
    {"neon", &setun_kernels_neon, has_neon},
    {"neon_dotprod", &setun_kernels_neon_dotprod, has_neon_dotprod},
#endif
};
enum { ISA_COUNT = (int)(sizeof isas / sizeof isas[0]) };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool available[ISA_COUNT];
static setun_kernels selected[ISA_COUNT]; /* selected[i]: rows 0..i overlaid, those that are available */

static void build_tables(void) {
    setun_cpu_features features;
    setun_cpu_detect(&features);
    setun_kernels table = {0};
    for (int i = 0; i < ISA_COUNT; i++) {
        available[i] = isas[i].available(&features);
        if (available[i]) {
            const setun_kernels *overlay = isas[i].table;
            table.isa = isas[i].name;
#define SETUN_KERNEL(name, ret, params, exactness) \
            if (overlay->name) { table.name = overlay->name; table.name##_isa = table.isa; }
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL
        }
        selected[i] = table;
    }
}

const setun_kernels *setun_kernels_select(const char *cap) {
    pthread_once(&once, build_tables);
    if (!cap || !cap[0]) return &selected[ISA_COUNT - 1];
    char names[96] = "";
    for (int i = 0; i < ISA_COUNT; i++) {
        if (!strcmp(cap, isas[i].name)) {
            if (available[i]) return &selected[i];
            setun_fail(SETUN_ERROR_UNSUPPORTED, "instruction set '%s' (SETUN_ISA or options.isa): this CPU does not have it; leave it out to get '%s'", cap, selected[ISA_COUNT - 1].isa);
            return NULL;
        }
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "", isas[i].name);
    }
    setun_fail(SETUN_ERROR_ARGUMENT, "instruction set '%s' (SETUN_ISA or options.isa): unknown here; one of: %s", cap, names);
    return NULL;
}

int setun_isa_count(void) { return ISA_COUNT; }

const char *setun_isa_name(int index) { return index >= 0 && index < ISA_COUNT ? isas[index].name : NULL; }

bool setun_isa_available(int index) {
    pthread_once(&once, build_tables);
    return index >= 0 && index < ISA_COUNT && available[index];
}

const setun_kernels *setun_isa_table(int index) { return index >= 0 && index < ISA_COUNT ? isas[index].table : NULL; }
