/* memory.c - the one allocator door, with injected failures and counts for the tests. */
#define _GNU_SOURCE /* madvise, MADV_HUGEPAGE */
#include "base/base.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

static atomic_uint_fast64_t count;   /* allocations ever made */
static atomic_int_fast64_t live;     /* not freed yet */
static atomic_uint_fast64_t fail_at; /* fail when count reaches this; 0: never */
static atomic_uint_fast64_t fail_only; /* fail when count is this; 0: never */

void setun_alloc_fail_at(uint64_t n) { atomic_store(&fail_at, n ? atomic_load(&count) + n : 0); }
void setun_alloc_fail_once(uint64_t n) { atomic_store(&fail_only, n ? atomic_load(&count) + n : 0); }
uint64_t setun_alloc_count(void) { return atomic_load(&count); }
int64_t setun_alloc_live(void) { return atomic_load(&live); }

/* One more allocation: may it succeed? */
static bool admit(void) {
    uint64_t n = atomic_fetch_add(&count, 1) + 1;
    uint64_t limit = atomic_load(&fail_at);
    return (!limit || n < limit) && n != atomic_load(&fail_only);
}

static void *counted(void *memory, size_t bytes) {
    if (memory) atomic_fetch_add(&live, 1);
    else setun_fail_memory(bytes);
    return memory;
}

void *setun_alloc(size_t bytes) { return counted(admit() ? malloc(bytes ? bytes : 1) : NULL, bytes); }

void *setun_calloc(size_t n, size_t bytes) {
    if (!n || !bytes) n = bytes = 1;
    if (n > SIZE_MAX / bytes) return counted(NULL, SIZE_MAX); /* calloc checks too, but a sanitizer's calloc stops the program */
    return counted(admit() ? calloc(n, bytes) : NULL, n * bytes);
}

void *setun_realloc(void *old, size_t bytes) {
    if (!old) return setun_alloc(bytes);
    void *memory = admit() ? realloc(old, bytes ? bytes : 1) : NULL;
    if (!memory) setun_fail_memory(bytes);
    return memory;
}

void setun_free(void *memory) {
    if (!memory) return;
    atomic_fetch_sub(&live, 1);
    free(memory);
}

void *setun_alloc_aligned(size_t bytes, size_t alignment) {
    void *memory = NULL;
    if (alignment < sizeof(void *)) alignment = sizeof(void *);
    if (!admit() || posix_memalign(&memory, alignment, bytes ? bytes : 1)) memory = NULL;
    return counted(memory, bytes);
}

void setun_free_aligned(void *memory) { setun_free(memory); }

/* Mapped, not malloc'ed: the memory goes back to the system at once, and untouched pages cost nothing. */
static size_t huge_bytes(size_t bytes) { return (bytes ? bytes - 1 : 0) / SETUN_HUGE_PAGE * SETUN_HUGE_PAGE + SETUN_HUGE_PAGE; }

void *setun_alloc_huge(size_t bytes) {
    if (!admit() || bytes > SIZE_MAX / 2) return counted(NULL, bytes);
    size_t whole = huge_bytes(bytes);
    uint8_t *map = mmap(NULL, whole + SETUN_HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (map == MAP_FAILED) return counted(NULL, bytes);
    size_t before = (SETUN_HUGE_PAGE - (uintptr_t)map % SETUN_HUGE_PAGE) % SETUN_HUGE_PAGE;
    if (before) munmap(map, before);
    munmap(map + before + whole, SETUN_HUGE_PAGE - before); /* never empty: before < SETUN_HUGE_PAGE */
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    (void)madvise(map + before, whole, MADV_HUGEPAGE); /* advice: a refusal leaves small pages */
#endif
    return counted(map + before, bytes);
}

void setun_free_huge(void *memory, size_t bytes) {
    if (!memory) return;
    atomic_fetch_sub(&live, 1);
    munmap(memory, huge_bytes(bytes));
}

bool setun_huge_pages_available(void) {
#ifdef __linux__
    char text[64] = "";
    FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (!f) return false;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    return strstr(text, "[madvise]") || strstr(text, "[always]");
#else
    return false;
#endif
}

char *setun_strndup(const char *text, size_t length) {
    char *copy = setun_alloc(length + 1);
    if (!copy) return NULL;
    if (length) memcpy(copy, text, length); /* an empty text may be NULL */
    copy[length] = 0;
    return copy;
}

char *setun_strdup(const char *text) { return setun_strndup(text, strlen(text)); }
