/*
 * slab.c - memory of prepared weights: side by side in blocks of huge pages, so that a stream of them meets few page boundaries and a
 * tensor wastes no rest of a page. A block lives as long as one weight in it. Callers: the prepare_*.c files, under the model's lock.
 */
#include "backend/cpu/cpu.h"

struct cpu_slab {
    uint8_t *memory;
    size_t size, used;
    size_t placed;              /* of weights that are packed later: what has its place */
    atomic_int users;           /* weights in it, and who still fills it */
};

void cpu_slab_release(cpu_slab *slab)
{
    if (!slab || atomic_fetch_sub(&slab->users, 1) > 1) return;
    setun_free_huge(slab->memory, slab->size);
    setun_free(slab);
}

static setun_status start_slab(cpu_slab **current, size_t bytes)
{
    cpu_slab *slab = setun_calloc(1, sizeof *slab);
    if (!slab) return setun_fail_memory(sizeof *slab);
    slab->memory = setun_alloc_huge(bytes);
    if (!slab->memory) {
        setun_free(slab);
        return setun_fail_memory(bytes);
    }
    slab->size = bytes;
    atomic_init(&slab->users, 1);
    cpu_slab_release(*current);
    *current = slab;
    return SETUN_OK;
}

static setun_status take(cpu_slab **current, uint64_t slab_bytes, size_t need, setun_prepared *p)
{
    if (!*current || (*current)->size - (*current)->used < need) SETUN_TRY(start_slab(current, slab_bytes > need ? (size_t)slab_bytes : need));
    p->slab = *current;
    atomic_fetch_add(&p->slab->users, 1);
    p->in_slab = p->slab->memory + p->slab->used;
    p->slab->used += need;
    return SETUN_OK;
}

static size_t need_of(uint64_t bytes) { return (size_t)cpu_align(bytes) + 64; } /* kernels may read up to 64 bytes past the last weight */

setun_status cpu_later_memory(cpu_tape *tape, uint64_t bytes, setun_prepared *p)
{
    if (bytes > SIZE_MAX / 4) return setun_fail_memory(SIZE_MAX);
    return take(&tape->later_slab, tape->slab_bytes, need_of(bytes), p);
}

void cpu_later_place(setun_prepared *p, uint64_t bytes)
{
    p->in_slab = p->slab->memory + p->slab->placed;
    p->slab->placed += need_of(bytes);
}

uint8_t *cpu_slab_untouched(const cpu_slab *slab, size_t *out_bytes)
{
    *out_bytes = (slab->size + SETUN_HUGE_PAGE - 1) / SETUN_HUGE_PAGE * SETUN_HUGE_PAGE; /* whole pages are its own */
    return slab->placed ? NULL : slab->memory;
}

setun_status cpu_weight_memory(cpu_tape *tape, uint64_t bytes, setun_prepared *p)
{
    if (bytes > SIZE_MAX / 4) return setun_fail_memory(SIZE_MAX);
    size_t need = need_of(bytes);
    if (tape->slab_bytes == 0) {
        p->owned = setun_alloc_aligned(need, 64);
        return p->owned ? SETUN_OK : setun_fail_memory(need);
    }
    return take(&tape->slab, tape->slab_bytes, need, p);
}
