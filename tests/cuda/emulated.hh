/*
 * emulated.hh - decode.cu on the host: every thread of every block is a fiber, warps meet at their collective instructions, blocks at
 * their barriers, bulk copies arrive late, and the order of all of it is drawn from a seed. Found this way: waits that never end, words and ring
 * places that are written too early. Not modelled: memory that other blocks see late (each store is seen at once).
 * With it comes as much of the CUDA runtime's interface as bench/cuda_decode.cu uses, so that the bench's checks run as they are.
 * Caller: tests/cuda/test_decode.cc. C++17; x86-64 and aarch64.
 */
#ifndef SETUN_CUDA_EMULATED_HH
#define SETUN_CUDA_EMULATED_HH
#define SETUN_CUDA_EMULATED 1
#define SETUN_CUDA_BULK 1

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <sys/mman.h>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __noinline__

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }

namespace emulated {

enum wait_kind { RUNS, AT_WARP, AT_BLOCK, AT_NAMED, SPINS, ENDED };
struct block_state;
struct fiber {
    void *stack_pointer;
    block_state *block;
    int thread, lane, warp;
    wait_kind wait;
    unsigned rounds;            /* collective instructions of the warp that it took part in */
    unsigned barrier;           /* turn of the barrier that it waits for */
    int named;                  /* which of the named ones */
};
struct warp_state {
    int arrived = 0, alive = 32;
    unsigned round = 0;         /* finished collectives */
    uint64_t value[2][32];      /* of even and odd collectives */
    unsigned frozen = 0;        /* turns of the scheduler left without it */
};
struct copy { int turns; uint32_t to, bytes, barrier; const uint8_t *from; };
struct block_state {
    int index;
    uint8_t *memory;            /* dynamic shared memory */
    std::vector<uint8_t *> statics; size_t static_used;
    int at_block, at_named[8], alive;
    unsigned block_round, named_round[8];
    std::vector<warp_state> warps;
    std::vector<copy> copies;
    fiber *fibers;
};
struct machine {
    int blocks = 132, shared_bytes = 232448;
    uint64_t seed = 1;
    bool quiet = true;
    void *scheduler;
    fiber *self;
    int grid, threads;
    uint64_t progress;          /* changes whenever something happens that another fiber may wait for */
    uint64_t turns;
    std::function<void()> body;
};
static machine m;

static inline uint32_t draw() { m.seed ^= m.seed << 13; m.seed ^= m.seed >> 7; m.seed ^= m.seed << 17; return (uint32_t)(m.seed >> 32); }

extern "C" void setun_emulated_switch(void **from, void *to);
extern "C" void setun_emulated_entry(void);
#if defined(__x86_64__)
__asm__(".text\n.globl setun_emulated_switch\nsetun_emulated_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
        ".globl setun_emulated_entry\nsetun_emulated_entry:\n  callq *%r13\n  ud2\n");
static inline void *first_frame(uint8_t *top, void (*f)())
{
    void **at = (void **)top - 7;
    memset(at, 0, 6 * sizeof *at);
    at[2] = (void *)f;
    at[6] = (void *)setun_emulated_entry;
    return at;
}
#elif defined(__aarch64__)
__asm__(".text\n.globl setun_emulated_switch\nsetun_emulated_switch:\n"
        "  sub sp, sp, #160\n  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n  mov x2, sp\n  str x2, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n  add sp, sp, #160\n  ret\n"
        ".globl setun_emulated_entry\nsetun_emulated_entry:\n  blr x20\n  brk #1\n");
static inline void *first_frame(uint8_t *top, void (*f)())
{
    void **at = (void **)(top - 160);
    memset(at, 0, 160);
    at[1] = (void *)f;
    at[11] = (void *)setun_emulated_entry;
    return at;
}
#endif

static inline void leave(wait_kind why)
{
    fiber *f = m.self;
    f->wait = why;
    setun_emulated_switch(&f->stack_pointer, m.scheduler);
}
static inline void pause() { leave(SPINS); }

static void fiber_main()
{
    m.body();
    fiber *f = m.self;
    f->block->alive--;
    f->block->warps[f->warp].alive--;
    m.progress++;
    leave(ENDED);
    abort();
}

[[noreturn]] static void broken(const char *what)
{
    printf("emulated: block %d thread %d: %s\n", m.self ? m.self->block->index : -1, m.self ? m.self->thread : -1, what);
    exit(3);
}

/* Every lane of the warp comes here before any goes on. Returns which of the two sets of values this one used. */
static inline int warp_meets(uint64_t value)
{
    fiber *f = m.self;
    warp_state &w = f->block->warps[f->warp];
    const unsigned mine = f->rounds++;
    w.value[mine & 1][f->lane] = value;
    if (++w.arrived == w.alive) {
        w.arrived = 0;
        w.round++;
        m.progress++;
        return mine & 1;
    }
    while (w.round == mine) leave(AT_WARP);
    return mine & 1;
}
static inline uint64_t *warp_values(uint64_t value) { int set = warp_meets(value); return m.self->block->warps[m.self->warp].value[set]; }

/* ---- a launch ---- */

static void run(int grid, int threads, size_t shared_bytes, std::function<void()> body)
{
    const size_t stack = 64 << 10;
    const int count = grid * threads, warps = threads / 32;
    uint8_t *stacks = (uint8_t *)mmap(nullptr, stack * (size_t)count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) { printf("emulated: no memory for stacks\n"); exit(3); }
    std::vector<block_state> blocks((size_t)grid);
    std::vector<fiber> fibers((size_t)count);
    m.grid = grid, m.threads = threads, m.body = body;
    for (int b = 0; b < grid; b++) {
        block_state &s = blocks[b];
        s.index = b, s.alive = threads, s.at_block = 0, s.block_round = 0, s.static_used = 0;
        memset(s.at_named, 0, sizeof s.at_named), memset(s.named_round, 0, sizeof s.named_round);
        s.memory = (uint8_t *)aligned_alloc(1024, (shared_bytes + 1023) / 1024 * 1024);
        memset(s.memory, 0xa5, shared_bytes);
        s.warps.resize((size_t)warps);
        s.fibers = &fibers[(size_t)b * threads];
        for (int t = 0; t < threads; t++) {
            fiber &f = s.fibers[t];
            f.block = &s, f.thread = t, f.lane = t % 32, f.warp = t / 32, f.wait = RUNS, f.rounds = 0;
            f.stack_pointer = first_frame(stacks + stack * ((size_t)b * threads + t + 1), fiber_main);
        }
    }
    std::vector<int> order((size_t)grid * warps);
    for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
    int alive = grid, idle = 0;
    for (m.turns = 0; alive > 0; m.turns++) {
        const uint64_t before = m.progress;
        for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[draw() % (i + 1)]);
        if (draw() % 4 == 0) blocks[draw() % grid].warps[draw() % warps].frozen = draw() % 64;
        if (draw() % 16 == 0) { block_state &s = blocks[draw() % grid]; unsigned n = draw() % 64; for (auto &w : s.warps) w.frozen = n; }
        for (int at : order) {
            block_state &s = blocks[at / warps];
            warp_state &w = s.warps[at % warps];
            if (!w.alive) continue;
            if (w.frozen) { w.frozen--; m.progress++; continue; }
            bool again = true;
            while (again) { /* until every lane waits for others than the warp's */
                again = false;
                for (int lane = 0; lane < 32; lane++) {
                    fiber &f = s.fibers[at % warps * 32 + lane];
                    if (f.wait == ENDED) continue;
                    if (f.wait == AT_WARP && w.round == f.rounds - 1) continue;
                    if (f.wait == AT_BLOCK && s.block_round == f.barrier) continue;
                    if (f.wait == AT_NAMED && s.named_round[f.named] == f.barrier) continue;
                    m.self = &f;
                    setun_emulated_switch(&m.scheduler, f.stack_pointer);
                    if (f.wait == AT_WARP) again = true;
                }
            }
        }
        for (auto &s : blocks) {
            for (size_t i = 0; i < s.copies.size();) {
                copy c = s.copies[i];
                if (s.copies[i].turns-- > 0) { i++; continue; }
                memcpy(s.memory + c.to, c.from, c.bytes);
                uint32_t *barrier = (uint32_t *)(s.memory + c.barrier);
                barrier[1] -= c.bytes;
                if ((barrier[0] & 0xffff) == 0 && (barrier[1] & 0x7fffffffu) == 0) barrier[0] |= barrier[0] >> 16, barrier[1] ^= 0x80000000u;
                s.copies.erase(s.copies.begin() + (long)i);
                m.progress++;
            }
            if (!s.copies.empty()) m.progress++;
        }
        alive = 0;
        for (auto &s : blocks) alive += s.alive > 0;
        idle = m.progress == before ? idle + 1 : 0;
        if (idle == 300) {
            printf("emulated: nothing moves any more after %llu turns; the first of each block that waits:\n", (unsigned long long)m.turns);
            for (auto &s : blocks)
                if (s.alive) {
                    int n[6] = {0};
                    for (int t = 0; t < threads; t++) n[s.fibers[t].wait]++;
                    if (s.index < 4 || s.index == grid - 1) printf("  block %d: %d at the warp, %d at the block, %d at bar 1, %d spin, %d ended\n", s.index, n[AT_WARP], n[AT_BLOCK], n[AT_NAMED], n[SPINS], n[ENDED]);
                }
        }
        if (idle > 200000) exit(3);
    }
    for (auto &s : blocks) {
        free(s.memory);
        for (auto p : s.statics) free(p);
    }
    munmap(stacks, stack * (size_t)count);
    m.self = nullptr;
}

/* A block's static shared variables in the order in which its threads come to them. */
template <typename T> static inline T &shared_variable(int number)
{
    block_state *s = m.self->block;
    while ((int)s->statics.size() <= number) s->statics.push_back(nullptr);
    if (!s->statics[number]) {
        s->statics[number] = (uint8_t *)aligned_alloc(64, (sizeof(T) + 63) / 64 * 64);
        memset(s->statics[number], 0xa5, sizeof(T));
    }
    return *(T *)s->statics[number];
}

struct index_x { int x; };
static inline index_x thread_index() { return {m.self->thread}; }
static inline index_x block_index() { return {m.self->block->index}; }
static inline index_x grid_size() { return {m.grid}; }

} // namespace emulated

#define threadIdx (emulated::thread_index())
#define blockIdx (emulated::block_index())
#define gridDim (emulated::grid_size())
#define SETUN_CUDA_SHARED(type, name) type &name = emulated::shared_variable<type>(__COUNTER__)
#define SETUN_CUDA_DYNAMIC_SHARED(name) u8 *name = emulated::m.self->block->memory
#define SETUN_CUDA_PAUSE() emulated::pause()
#ifndef SETUN_CUDA_SPIN_LIMIT
#define SETUN_CUDA_SPIN_LIMIT (1u << 16)
#endif

/* ---- decode_device.h's instructions ---- */

static inline uint32_t shared_address(const void *p) { return (uint32_t)((const uint8_t *)p - emulated::m.self->block->memory); }
static inline void __syncwarp() { emulated::warp_meets(0); }
static inline void __syncthreads()
{
    emulated::fiber *f = emulated::m.self;
    emulated::block_state *s = f->block;
    unsigned mine = s->block_round;
    emulated::m.progress++;
    if (++s->at_block == emulated::m.threads) { s->at_block = 0; s->block_round++; return; }
    f->barrier = mine;
    while (s->block_round == mine) emulated::leave(emulated::AT_BLOCK);
}
/* True: the last that it wanted. */
static inline bool named_count(int id, int threads)
{
    __syncwarp();
    emulated::block_state *s = emulated::m.self->block;
    emulated::m.progress++;
    if (++s->at_named[id] > threads) emulated::broken("more arrive at a named barrier than it counts");
    if (s->at_named[id] < threads) return false;
    s->at_named[id] = 0;
    s->named_round[id]++;
    return true;
}
template <int ID, int THREADS> static inline void named_arrive() { named_count(ID, THREADS); }
template <int ID, int THREADS> static inline void named_wait()
{
    const int id = ID, threads = THREADS;
    emulated::fiber *f = emulated::m.self;
    const unsigned mine = f->block->named_round[id];
    f->named = id;
    f->barrier = mine;
    if (named_count(id, threads)) return;
    while (f->block->named_round[id] == mine) emulated::leave(emulated::AT_NAMED);
}
static inline uint32_t shared_word(uint32_t address) { uint32_t v; memcpy(&v, emulated::m.self->block->memory + address, 4); return v; }
static inline uint2 shared_pair(uint32_t address) { uint2 v; memcpy(&v, emulated::m.self->block->memory + address, 8); return v; }
static inline uint4 shared_quad(uint32_t address) { uint4 v; memcpy(&v, emulated::m.self->block->memory + address, 16); return v; }
static inline void shared_store(uint32_t address, uint32_t v) { memcpy(emulated::m.self->block->memory + address, &v, 4); }
/* A barrier is two words: count << 16 | still missing; parity << 31 | bytes still missing. */
static inline uint32_t *barrier_at(uint32_t address) { return (uint32_t *)(emulated::m.self->block->memory + address); }
static inline void barrier_init(uint32_t address, uint32_t count) { barrier_at(address)[0] = count << 16 | count, barrier_at(address)[1] = 0; }
static inline void barrier_arrive(uint32_t address, uint32_t count)
{
    uint32_t *b = barrier_at(address);
    if ((b[0] & 0xffff) < count) emulated::broken("more arrive at a barrier than it counts");
    b[0] -= count;
    emulated::m.progress++;
    if ((b[0] & 0xffff) == 0 && (b[1] & 0x7fffffffu) == 0) b[0] |= b[0] >> 16, b[1] ^= 0x80000000u;
}
static inline void barrier_wait(uint32_t address, uint32_t parity)
{
    while (barrier_at(address)[1] >> 31 == parity) emulated::pause();
}
static inline void copy_to_shared(uint32_t to, const uint8_t *from, uint32_t bytes, uint32_t full)
{
    emulated::fiber *f = emulated::m.self;
    if (f->lane == 0) {
        if (bytes % 16 || to % 16 || (uintptr_t)from % 16) emulated::broken("a copy of odd address or size");
        memset(f->block->memory + to, 0x5a, bytes);
        uint32_t *b = barrier_at(full);
        b[1] += bytes;
        f->block->copies.push_back({(int)(emulated::draw() % 24), to, bytes, full, from});
        barrier_arrive(full, 1);
    }
    __syncwarp();
}
static inline void copies_see_barriers() {}
static inline void prefetch_to_l2(const void *p) { (void)p; }
static inline uint4 load_words(const uint32_t *p) { uint4 v; memcpy(&v, p, 16); return v; }
static inline uint32_t load_word(const uint32_t *p) { return *p; }
static inline void store_word(uint32_t *p, uint32_t v) { *p = v; emulated::m.progress++; }
static inline unsigned long long load_long(const unsigned long long *p) { return *p; }
static inline void store_long(unsigned long long *p, unsigned long long v) { *p = v; emulated::m.progress++; }
static inline float f16_float(uint32_t bits) { _Float16 h; uint16_t u = (uint16_t)bits; memcpy(&h, &u, 2); return (float)h; }
static inline uint32_t f16_pair(float low, float high)
{
    _Float16 l = (_Float16)low, h = (_Float16)high;
    uint16_t a, b;
    memcpy(&a, &l, 2), memcpy(&b, &h, 2);
    return (uint32_t)b << 16 | a;
}
static inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float low_half(uint32_t w, bool f16) { return f16 ? f16_float(w) : __uint_as_float(w << 16); }
static inline float high_half(uint32_t w, bool f16) { return f16 ? f16_float(w >> 16) : __uint_as_float(w & 0xffff0000u); }

/* mma.m16n8k32: lane 4g + t has A rows g (a0, a2) and g + 8 (a1, a3), columns 4t.. (a0, a1) and 16 + 4t.. (a2, a3); B column g, rows 4t.. and 16 + 4t..; C rows g, g + 8, columns 2t, 2t + 1 */
static inline void multiply(int *acc, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    uint64_t *v = emulated::warp_values((uint64_t)a1 << 32 | a0);
    uint64_t first[32], second[32], x[32];
    memcpy(first, v, sizeof first);
    v = emulated::warp_values((uint64_t)a3 << 32 | a2);
    memcpy(second, v, sizeof second);
    v = emulated::warp_values((uint64_t)b1 << 32 | b0);
    memcpy(x, v, sizeof x);
    const int g = emulated::m.self->lane / 4, t = emulated::m.self->lane % 4;
    for (int i = 0; i < 4; i++) {
        int row = i / 2, column = 2 * t + i % 2, sum = 0;
        for (int q = 0; q < 4; q++) {
            uint32_t low = (uint32_t)(first[4 * g + q] >> 32 * row), high = (uint32_t)(second[4 * g + q] >> 32 * row);
            uint32_t b_low = (uint32_t)x[4 * column + q], b_high = (uint32_t)(x[4 * column + q] >> 32);
            for (int e = 0; e < 4; e++) sum += (int)(low >> 8 * e & 0xff) * (int8_t)(b_low >> 8 * e) + (int)(high >> 8 * e & 0xff) * (int8_t)(b_high >> 8 * e);
        }
        acc[i] += sum;
    }
}
/* mma.m16n8k16: lane 4g + t has A rows g (a0, a2) and g + 8 (a1, a3), columns 2t.. (a0, a1) and 8 + 2t.. (a2, a3); B column g, rows 2t.. and 8 + 2t.. */
static inline void multiply_f16(float *acc, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    uint64_t first[32], second[32], x[32];
    memcpy(first, emulated::warp_values((uint64_t)a1 << 32 | a0), sizeof first);
    memcpy(second, emulated::warp_values((uint64_t)a3 << 32 | a2), sizeof second);
    memcpy(x, emulated::warp_values((uint64_t)b1 << 32 | b0), sizeof x);
    const int g = emulated::m.self->lane / 4, t = emulated::m.self->lane % 4;
    for (int i = 0; i < 4; i++) {
        int row = i / 2, column = 2 * t + i % 2;
        float sum = 0;
        for (int q = 0; q < 4; q++) {
            uint32_t low = (uint32_t)(first[4 * g + q] >> 32 * row), high = (uint32_t)(second[4 * g + q] >> 32 * row);
            uint32_t b_low = (uint32_t)x[4 * column + q], b_high = (uint32_t)(x[4 * column + q] >> 32);
            for (int e = 0; e < 2; e++) sum += f16_float(low >> 16 * e) * f16_float(b_low >> 16 * e) + f16_float(high >> 16 * e) * f16_float(b_high >> 16 * e);
        }
        acc[i] += sum;
    }
}
template <typename T> static inline uint64_t bits_of(T v) { uint64_t u = 0; memcpy(&u, &v, sizeof v); return u; }
template <typename T> static inline T of_bits(uint64_t u) { T v; memcpy(&v, &u, sizeof v); return v; }
template <typename T> static inline T __shfl_xor_sync(unsigned, T v, int mask) { return of_bits<T>(emulated::warp_values(bits_of(v))[emulated::m.self->lane ^ mask]); }
template <typename T> static inline T __shfl_sync(unsigned, T v, int lane) { return of_bits<T>(emulated::warp_values(bits_of(v))[lane & 31]); }
static inline unsigned __reduce_max_sync(unsigned, unsigned v)
{
    uint64_t *all = emulated::warp_values(v);
    unsigned top = 0;
    for (int i = 0; i < 32; i++) top = (unsigned)all[i] > top ? (unsigned)all[i] : top;
    return top;
}
static inline int __reduce_add_sync(unsigned, int v)
{
    uint64_t *all = emulated::warp_values((uint32_t)v);
    int sum = 0;
    for (int i = 0; i < 32; i++) sum += (int)(uint32_t)all[i];
    return sum;
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float x, float y) { return x / y; }
template <typename T> static inline T __ldg(const T *p) { T v; memcpy(&v, p, sizeof v); return v; }
template <typename T> static inline T __ldcg(const T *p) { return __ldg(p); }
static inline void __threadfence() {}
static inline int __float2int_rn(float f) { return (int)rintf(f); }
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
static inline int dot(uint32_t a, uint32_t b, int c)
{
    for (int i = 0; i < 4; i++) c += (int)(a >> 8 * i & 0xff) * (int8_t)(b >> 8 * i);
    return c;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return r;
}
static inline void sincospif(float x, float *s, float *c) { *s = (float)sin(M_PI * (double)x), *c = (float)cos(M_PI * (double)x); }

/* ---- the runtime, as far as the bench calls it ---- */

typedef int cudaError_t;
typedef double cudaEvent_t;
enum { cudaSuccess = 0, cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaDeviceProp { char name[64]; int multiProcessorCount; size_t sharedMemPerBlockOptin; };
static inline const char *cudaGetErrorString(int) { return "no error"; }
static inline int cudaGetDeviceProperties(cudaDeviceProp *p, int) { snprintf(p->name, sizeof p->name, "emulated"); p->multiProcessorCount = emulated::m.blocks; p->sharedMemPerBlockOptin = (size_t)emulated::m.shared_bytes; return 0; }
template <typename T> static inline int cudaMalloc(T **p, size_t bytes) { *p = (T *)aligned_alloc(256, (bytes + 511) / 256 * 256); memset((void *)*p, 0xa5, (bytes + 511) / 256 * 256); return 0; }
template <typename T> static inline int cudaFree(T *p) { free((void *)p); return 0; }
static inline int cudaMemcpy(void *to, const void *from, size_t bytes, int) { memcpy(to, from, bytes); return 0; }
static inline int cudaMemset(void *to, int value, size_t bytes) { memset(to, value, bytes); return 0; }
static inline int cudaDeviceSynchronize() { return 0; }
static inline int cudaGetLastError() { return 0; }
template <typename F> static inline int cudaFuncSetAttribute(F *, int, int) { return 0; }
#define SETUN_LAUNCH(kernel, grid, threads, shared, ...) emulated::run(grid, threads, (size_t)(shared), [=]() { kernel(__VA_ARGS__); })

#endif
