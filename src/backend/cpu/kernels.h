/*
 * kernels.h - the table of CPU kernels and the rules they keep. kernels.def lists them, ref.c says what they compute,
 * one file an ISA makes them fast, select.c picks.
 */
#ifndef SETUN_KERNELS_H
#define SETUN_KERNELS_H

#include "base/base.h"

/*
 * The 16-lane rule. A reduction over k floats keeps 16 partial sums; lane l takes elements l, l+16, l+32, .. in order, by
 *     sum[l] = fma(a[i], b[i], sum[l])         (one rounding: fmaf in ref_float.c, vfmadd in the others)
 * starting from +0; a tail shorter than 16 is filled with +0 in both a and b. Where one chain would wait on itself a kernel keeps four
 * sets of 16 (set j takes blocks j, j+4, .. of 16), added as (s0+s1)+(s2+s3) before the lanes are: the sums of squares of rms_norm
 * and l2_normalize do, nothing else. Lanes are then added as a tree: l and l+8, l and l+4, l and l+2, l and l+1. No other
 * contraction or reassociation: files are compiled with -ffp-contract=off and without -ffast-math; denormals are kept.
 * exp is one fixed polynomial (float_ref.h), the same on every ISA, within 1 ulp; below 2^-126 it is 0. Division and square
 * root are IEEE. A maximum is x > running ? x : running from -inf, so NaN elements don't take part and order can't be seen.
 * NaN: a kernel's NaN results are all 0x7fc00000 (f16: 0x7e00), whatever operand they came from.
 */

typedef struct setun_attention_args {
    const float *q;         /* query i, head g at q + i*q_stride + g*head_size */
    size_t q_stride;        /* floats */
    int queries, group;     /* group: query heads that share this kv head */
    int head_size;          /* multiple of 1; fast paths for multiples of 16 */
    setun_dtype type;       /* of k and v: F16, F32, or I8, whose rows have factors */
    /* Of this kv head, at key 0. Keys come in ranges of 256, range_stride bytes apart, and there in blocks of 64: element d of key n of a range is at
     * (n / 64 * head_size + d) * 64 + n % 64. Blocks are whole: places of keys that no query sees may be read, and can't be felt. */
    const void *k;
    const void *v;          /* ranges as far apart; element d of key n of a range at n * head_size + d */
    const float *k_scales, *v_scales; /* I8: ranges as far apart, [n]: a vector is its integers times this; whole blocks of 64 too */
    size_t range_stride;    /* bytes, multiple of 4 */
    int first;              /* absolute position of query 0; query i sees keys lo(i) .. first+i, where lo(i) = window ? max(0, first+i-window+1) : 0 */
    int window;
    float scale;
    float *out;             /* as q, with out_stride */
    size_t out_stride;
    /* NULL: all of the above. Else only the keys of range `range` are attended to, out is not touched, and record i*group+g of
     * setun_attention_partial_floats(head_size) floats gets what the range gave for query i and head g: out [head_size rounded up
     * to 16], the maximum (+0 for either zero), the sum; NaN there may be any NaN. A query that doesn't see the range gets zeros, -infinity and 0, which are not to be combined. */
    float *partials;
    int range;
    const void *next;       /* keys that this worker will read after this call, to be fetched towards its end; NULL: not known */
    float *scratch;         /* setun_attention_scratch_floats(group, head_size) floats, 64-byte aligned; queries may be any number */
} setun_attention_args;
/*
 * Order, for each (query, head), whatever else is in the call: keys in ranges of SETUN_ATTENTION_RANGE and in these blocks of
 * SETUN_ATTENTION_BLOCK, both starting at multiples of their size (absolute positions). Each range starts anew with maximum -inf, sum 0, out 0;
 * per block, over the keys the query sees: score = s * scale, where s = fma(key[d], q[d], s) from +0 in rising d (I8: s * (k_scales[key] * scale),
 * key[d] the integer); the maximum of scores and the maximum so far; correction = exp(old max - new max) if it grew, else 1;
 * p = exp(score - max); lane l of 16 adds the p of keys l, l+16, .. of the block from +0, the tree gives the block's sum;
 * sum = fma(sum, correction, block sum); out[d] is multiplied by correction, then out[d] = fma(p, v[d], out[d]) in key order (I8: p * v_scales[key]
 * instead of p). The first range with a key that the query sees is the total; each later one joins it, in rising order: M = the greater
 * maximum; a = exp(total maximum - M) if that is less than M, else 1; b likewise for the range; total sum = fma(total sum, a, sum * b),
 * total[d] = fma(total[d], a, out[d] * b). At the end total * (1 / sum). f16 values are converted exactly. So different threads may take
 * different ranges. out may be q. Keys a query doesn't see can't be felt by it.
 */
#define SETUN_ATTENTION_BLOCK 64  /* SETUN_KV_BLOCK */
#define SETUN_ATTENTION_RANGE 256 /* SETUN_KV_RANGE */
#define SETUN_ATTENTION_PAIRS 36 /* (query, head) pairs the fast kernels take at once; sizes the scratch, can't be seen in results */
size_t setun_attention_scratch_floats(int group, int head_size);
size_t setun_attention_partial_floats(int head_size); /* multiple of 16 */

/*
 * ternary_i8_many puts the codes of SETUN_MANY_ROWS rows into an order of its own and x of SETUN_MANY_TOKENS tokens into another; more of
 * either are done in parts. Sums whose rows lie a multiple of 4096 bytes apart share cache sets: out_stride should be an odd multiple of 16.
 */
enum { SETUN_MANY_ROWS = 1728, SETUN_MANY_TOKENS = 512, SETUN_MANY_TILE = 8, SETUN_MANY_FIXED = 344 << 10, SETUN_MANY_COLUMN = 640 /* bytes of scratch */ };
static inline size_t setun_many_scratch(int64_t k) { return SETUN_MANY_FIXED + (size_t)SETUN_MANY_COLUMN * (size_t)((k + 127) / 128 * 128 + 256); }

typedef struct setun_kernels {
    const char *isa;        /* "ref", "avx2", ... of the best overlay in use */
#define SETUN_KERNEL(name, ret, params, exactness) ret (*name) params;
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL
    /* which ISA each entry came from, for doctor, explain and tests */
#define SETUN_KERNEL(name, ret, params, exactness) const char *name##_isa;
#include "backend/cpu/kernels.def"
#undef SETUN_KERNEL
} setun_kernels;

typedef struct setun_cpu_features {
    bool avx2, fma, f16c, avx512f, avx512bw, avx512vl, avx512dq, avx512vnni, avx512vbmi, avx512vbmi2, gfni, avxvnni, neon, dotprod, i8mm, fp16;
    char name[64];          /* brand string */
} setun_cpu_features;
void setun_cpu_detect(setun_cpu_features *out);

/* ISA names in rising order; the overlays a machine can run. cap NULL: all of them. NULL and a message if cap is unknown or not available here. */
const setun_kernels *setun_kernels_select(const char *cap);
int setun_isa_count(void);                  /* ISAs this build has, ref included */
const char *setun_isa_name(int index);
bool setun_isa_available(int index);        /* on this CPU */
/* Tables of one ISA without inheritance: NULL entries where it has none. For tests. */
const setun_kernels *setun_isa_table(int index);

#endif
