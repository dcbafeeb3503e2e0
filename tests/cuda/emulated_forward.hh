/*
 * emulated_forward.hh - forward_device.h's instructions on emulated.hh's fibers. Copies in the background are made when they are waited for, and what lies
 * there before is spoilt, so that a wait or a barrier too few is seen. Launches do not overlap here: what after_previous() is for is not modelled.
 */
#ifndef SETUN_CUDA_EMULATED_FORWARD_HH
#define SETUN_CUDA_EMULATED_FORWARD_HH
#include "emulated.hh"
#include <deque>
#include <map>

namespace emulated {
struct late_copy { uint32_t to; const void *from; bool there; };
struct late_copies { std::deque<std::vector<late_copy>> groups; std::vector<late_copy> open; };
static std::map<std::pair<int, int>, late_copies> late; /* of a thread of a block */
static inline late_copies &my_copies() { return late[{m.self->block->index, m.self->thread}]; }
/* After a launch: copies that nobody waited for would write into what is another's by then. */
static inline bool copies_are_done()
{
    bool done = true;
    for (auto &l : late) {
        done = done && l.second.open.empty();
        for (auto &g : l.second.groups) done = done && g.empty();
    }
    late.clear();
    return done;
}
} // namespace emulated

static inline void after_previous() {}
static inline void next_may_begin() {}
static inline void copy_16(uint32_t to, const void *from, bool there)
{
    if (to % 16 || (uintptr_t)from % 16) emulated::broken("a copy of odd address");
    memset(emulated::m.self->block->memory + to, 0xff, 16);
    emulated::my_copies().open.push_back({to, from, there});
}
static inline void copies_end_group()
{
    emulated::late_copies &c = emulated::my_copies();
    c.groups.push_back(std::move(c.open));
    c.open.clear();
}
template <int PENDING> static inline void copies_wait()
{
    emulated::late_copies &c = emulated::my_copies();
    while ((int)c.groups.size() > PENDING) {
        for (auto &one : c.groups.front()) {
            if (one.there) memcpy(emulated::m.self->block->memory + one.to, one.from, 16);
            else memset(emulated::m.self->block->memory + one.to, 0, 16);
        }
        c.groups.pop_front();
    }
}
static inline uint16_t shared_half(uint64_t address, int column) { uint16_t h; memcpy(&h, emulated::m.self->block->memory + address + 2 * column, 2); return h; }
static inline void load_matrices(uint32_t *r, uint32_t address)
{
    if (address % 16) emulated::broken("a matrix of odd address");
    uint64_t rows[32];
    memcpy(rows, emulated::warp_values(address), sizeof rows);
    const int g = emulated::m.self->lane / 4, t = emulated::m.self->lane % 4;
    for (int i = 0; i < 4; i++) r[i] = shared_half(rows[8 * i + g], 2 * t) | (uint32_t)shared_half(rows[8 * i + g], 2 * t + 1) << 16;
}
static inline void load_matrices_transposed(uint32_t *r, uint32_t address)
{
    if (address % 16) emulated::broken("a matrix of odd address");
    uint64_t rows[32];
    memcpy(rows, emulated::warp_values(address), sizeof rows);
    const int g = emulated::m.self->lane / 4, t = emulated::m.self->lane % 4;
    for (int i = 0; i < 4; i++) r[i] = shared_half(rows[8 * i + 2 * t], g) | (uint32_t)shared_half(rows[8 * i + 2 * t + 1], g) << 16;
}
static inline uint4 load_shared(uint32_t address) { uint4 v; memcpy(&v, emulated::m.self->block->memory + address, 16); return v; }
static inline uint4 stream_16(const void *p)
{
    if ((uintptr_t)p % 16) emulated::broken("a load of odd address");
    uint4 v;
    memcpy(&v, p, 16);
    return v;
}
static inline uint2 stream_8(const void *p)
{
    if ((uintptr_t)p % 8) emulated::broken("a load of odd address");
    uint2 v;
    memcpy(&v, p, 8);
    return v;
}
/* All f16 numbers: millions are multiplied, and a conversion is a call. */
static const float *all_halves()
{
    static const std::vector<float> table = [] {
        std::vector<float> t(65536);
        for (uint32_t i = 0; i < 65536; i++) t[i] = f16_float(i);
        return t;
    }();
    return table.data();
}
template <bool F16> static inline float one_half(const float *table, uint32_t word) { return F16 ? table[word & 0xffff] : __uint_as_float(word << 16); }
/* mma.m16n8k16, as multiply_f16 in emulated.hh */
template <bool F16> static inline void tensor_product(float *acc, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    uint64_t first[32], second[32], x[32];
    memcpy(first, emulated::warp_values((uint64_t)a1 << 32 | a0), sizeof first);
    memcpy(second, emulated::warp_values((uint64_t)a3 << 32 | a2), sizeof second);
    memcpy(x, emulated::warp_values((uint64_t)b1 << 32 | b0), sizeof x);
    const int g = emulated::m.self->lane / 4, t = emulated::m.self->lane % 4;
    const float *table = all_halves();
    for (int i = 0; i < 4; i++) {
        int row = i / 2, column = 2 * t + i % 2;
        float sum = 0;
        for (int q = 0; q < 4; q++) {
            uint32_t low = (uint32_t)(first[4 * g + q] >> 32 * row), high = (uint32_t)(second[4 * g + q] >> 32 * row);
            uint32_t b_low = (uint32_t)x[4 * column + q], b_high = (uint32_t)(x[4 * column + q] >> 32);
            for (int e = 0; e < 2; e++) sum += one_half<F16>(table, low >> 16 * e) * one_half<F16>(table, b_low >> 16 * e) + one_half<F16>(table, high >> 16 * e) * one_half<F16>(table, b_high >> 16 * e);
        }
        acc[i] += sum;
    }
}
static inline float power_of_two(float x) { return exp2f(x); }
static inline uint32_t halves(float low, float high) { return f16_pair(low, high); }
static inline uint32_t bf16_halves(float low, float high)
{
    uint32_t r = 0;
    const float y[2] = {low, high};
    for (int i = 0; i < 2; i++) {
        uint32_t u = __float_as_uint(y[i]);
        r |= ((u + 0x7fff + (u >> 16 & 1)) >> 16) << 16 * i;
    }
    return r;
}
static inline float2 floats_of(uint32_t pair) { return {all_halves()[pair & 0xffff], all_halves()[pair >> 16]}; }
static inline void halves_of_bytes(uint32_t bytes, uint32_t *first, uint32_t *second)
{
    *first = f16_pair((int8_t)bytes, (int8_t)(bytes >> 8));
    *second = f16_pair((int8_t)(bytes >> 16), (int8_t)(bytes >> 24));
}
static inline uint32_t count_up(uint32_t *counter) { emulated::m.progress++; return (*counter)++; }

#endif
