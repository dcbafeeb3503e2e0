/*
 * slab.c - memory of prepared weights: side by side in blocks of huge pages, so that a stream of them meets few page boundaries and a
 * tensor wastes no rest of a page. A block lives as long as one weight in it. Callers: the prepare_*.c files, under the model's lock.
 */
#include "backend/cpu/cpu.h"

struct cpu_slab {
    uint8_t *memory;
    size_t size, used;
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

setun_status cpu_weight_memory(cpu_tape *tape, uint64_t bytes, setun_prepared *p)
{
    if (bytes > SIZE_MAX / 4) return setun_fail_memory(SIZE_MAX);
    size_t need = (size_t)cpu_align(bytes) + 64; /* kernels may read up to 64 bytes past the last weight */
    if (tape->slab_bytes == 0) {
        p->owned = setun_alloc_aligned(need, 64);
        return p->owned ? SETUN_OK : setun_fail_memory(need);
    }
    if (!tape->slab || tape->slab->size - tape->slab->used < need) {
        SETUN_TRY(start_slab(&tape->slab, tape->slab_bytes > need ? (size_t)tape->slab_bytes : need));
    }
    p->slab = tape->slab;
    atomic_fetch_add(&p->slab->users, 1);
    p->in_slab = p->slab->memory + p->slab->used;
    p->slab->used += need;
    return SETUN_OK;
}
