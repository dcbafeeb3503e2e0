/*
 * common.h - functions that the kernels' text shares: the scalar definitions of backend/cpu/float_ref.h once more, and dot products of
 * packed ternary codes. Read after metal.h, cuda.h or host.h; in the common subset of C11, CUDA C++ and Metal: no pointers in
 * parameters (Metal would ask for their address space), no templates, no references.
 */
#define SIMD_WIDTH 32

/* One NaN only, as the CPU kernels write. */
FUNCTION float setun_canonical(float x) { return x != x ? BITS_FLOAT(0x7fc00000u) : x; }

/* exp by one fixed polynomial; the constants are float_ref.h's, written as bits. */
FUNCTION float setun_exp(float x) {
    const float magic = BITS_FLOAT(0x4b400000u);
    float t = FMA(x, BITS_FLOAT(0x3fb8aa3bu), magic);
    float n = SUB(t, magic);
    float r = FMA(n, BITS_FLOAT(0xbf317218u), x);
    r = FMA(n, BITS_FLOAT(0x3102e308u), r);
    float p = FMA(BITS_FLOAT(0x3ab5112bu), r, BITS_FLOAT(0x3c091d81u));
    p = FMA(p, r, BITS_FLOAT(0x3d2aac7cu));
    p = FMA(p, r, BITS_FLOAT(0x3e2aaa48u));
    p = FMA(p, r, BITS_FLOAT(0x3efffffeu));
    p = FMA(p, r, 1.0f);
    p = FMA(p, r, 1.0f);
    float y = BITS_FLOAT(FLOAT_BITS(p) + (FLOAT_BITS(t) << 23));
    if (!(x >= BITS_FLOAT(0xc2aeac4fu))) y = 0.0f;
    return x <= BITS_FLOAT(0x42b17217u) ? y : MUL(x, BITS_FLOAT(0x7f800000u));
}

/* The activations of setun_op, as kernels number them. */
#define ACTIVATION_NONE 0
#define ACTIVATION_SILU 1
#define ACTIVATION_RELU2 2
#define ACTIVATION_GELU 3
#define ACTIVATION_SCALE 4
FUNCTION float setun_activate(int kind, float x) {
    if (kind == ACTIVATION_SILU) return DIV(x, ADD(1.0f, setun_exp(-x)));
    if (kind == ACTIVATION_GELU) {
        float u = MUL(FMA(MUL(x, x), BITS_FLOAT(0xbd922279u), BITS_FLOAT(0xbfcc422au)), x);
        return DIV(x, ADD(1.0f, setun_exp(u)));
    }
    if (kind == ACTIVATION_RELU2) {
        float r = x < 0.0f ? 0.0f : x;
        return MUL(r, r);
    }
    return x;
}

/* The tree that ends the 16-lane rule, over an array in any address space. */
#define TREE16(a) \
    ADD(ADD(ADD(ADD((a)[0], (a)[8]), ADD((a)[4], (a)[12])), ADD(ADD((a)[2], (a)[10]), ADD((a)[6], (a)[14]))), \
        ADD(ADD(ADD((a)[1], (a)[9]), ADD((a)[5], (a)[13])), ADD(ADD((a)[3], (a)[11]), ADD((a)[7], (a)[15]))))
/* The same tree over 16 neighbouring lanes of a simdgroup: every lane gets the sum. All lanes must come here. */
FUNCTION float setun_lanes16(float x) {
    x = ADD(x, SIMD_XOR(x, 8));
    x = ADD(x, SIMD_XOR(x, 4));
    x = ADD(x, SIMD_XOR(x, 2));
    return ADD(x, SIMD_XOR(x, 1));
}

/* to int8 as the CPU's quantize_i8: NaN becomes -128 */
FUNCTION int setun_quantize(float x, float factor) {
    float v = MUL(x, factor);
    v = v > -128.0f ? v : -128.0f;
    v = v < 127.0f ? v : 127.0f;
    return (int)RINT(v);
}

/*
 * A word of four packed bytes holds 16 codes. Byte q, bits 7-6, 5-4, 3-2, 1-0: columns p+q, 32+p+q, 64+p+q, 96+p+q of the block of 128,
 * where p is the word's first byte within the block's 32.
 * ternary_x: the 16 activations that a word meets. As bytes: four words of four neighbours, at columns p, 32+p, 64+p, 96+p.
 * As floats: each divided by what its code is multiplied with where it stands in the word, so that codes need no shift; every product
 * and every partial sum is an integer below 2^24 for up to 65536 columns (2 * 128 * k), so nothing is rounded.
 */
#if DOT_FLOAT
typedef struct ternary_x { float v[16]; } ternary_x;
#define TERNARY_SUM float
FUNCTION float ternary_byte(int x, int q) { return (float)((int)((uint32_t)x << (24 - 8 * q)) >> 24); }
FUNCTION ternary_x ternary_x_make(int x0, int x1, int x2, int x3) {
    ternary_x r;
    float unit = 1.0f; /* 2^-8q */
    UNROLL
    for (int q = 0; q < 4; q++) {
        r.v[q] = ternary_byte(x0, q) * (unit * 0.015625f);
        r.v[4 + q] = ternary_byte(x1, q) * (unit * 0.0625f);
        r.v[8 + q] = ternary_byte(x2, q) * (unit * 0.25f);
        r.v[12 + q] = ternary_byte(x3, q) * unit;
        unit *= 0.00390625f;
    }
    return r;
}
FUNCTION float ternary_dot(uint32_t codes, ternary_x x, float sum) {
    UNROLL
    for (int q = 0; q < 4; q++) {
        sum = FMA((float)(codes & (0xc0u << (8 * q))), x.v[q], sum);
        sum = FMA((float)(codes & (0x30u << (8 * q))), x.v[4 + q], sum);
        sum = FMA((float)(codes & (0x0cu << (8 * q))), x.v[8 + q], sum);
        sum = FMA((float)(codes & (0x03u << (8 * q))), x.v[12 + q], sum);
    }
    return sum;
}
#define TERNARY_TOTAL(sum) ((int)SIMD_SUM_FLOAT(sum))
#else
typedef struct ternary_x { int v[4]; } ternary_x;
#define TERNARY_SUM int
FUNCTION ternary_x ternary_x_make(int x0, int x1, int x2, int x3) {
    ternary_x r;
    r.v[0] = x0;
    r.v[1] = x1;
    r.v[2] = x2;
    r.v[3] = x3;
    return r;
}
FUNCTION int ternary_dot(uint32_t codes, ternary_x x, int sum) {
    sum = dot4((int)(codes >> 6 & 0x03030303u), x.v[0], sum);
    sum = dot4((int)(codes >> 4 & 0x03030303u), x.v[1], sum);
    sum = dot4((int)(codes >> 2 & 0x03030303u), x.v[2], sum);
    return dot4((int)(codes & 0x03030303u), x.v[3], sum);
}
#define TERNARY_TOTAL(sum) SIMD_SUM_INT(sum)
#endif

/* y = (sum of code * x - sum of x) * (x_scale * w_scale), as the CPU's scale_sums */
FUNCTION float ternary_scaled(int sum, int x_sum, float x_scale, float w_scale) {
    return setun_canonical(MUL((float)(int)((uint32_t)sum - (uint32_t)x_sum), MUL(x_scale, w_scale)));
}

/* Matrices where the device has no unit for them: every lane holds all of them. */
#ifndef MATRIX_INPUT
typedef struct setun_matrix { float v[64]; } setun_matrix;
#define MATRIX_INPUT setun_matrix
#define MATRIX_SUM setun_matrix
FUNCTION setun_matrix setun_matrix_zero(void) {
    setun_matrix m;
    for (int i = 0; i < 64; i++) m.v[i] = 0.0f;
    return m;
}
FUNCTION setun_matrix setun_matrix_add(setun_matrix sum, setun_matrix a, setun_matrix b) {
    for (int i = 0; i < 64; i++)
        for (int k = 0; k < 8; k++) sum.v[i] = FMA(a.v[i / 8 * 8 + k], b.v[k * 8 + i % 8], sum.v[i]);
    return sum;
}
#define MATRIX_ZERO setun_matrix_zero()
#define MATRIX_LOAD(m, array, at, stride) for (int m_ = 0; m_ < 64; m_++) (m).v[m_] = TO_FLOAT((array)[(at) + m_ / 8 * (stride) + m_ % 8])
#define MATRIX_LOAD_TRANSPOSED(m, array, at, stride) for (int m_ = 0; m_ < 64; m_++) (m).v[m_] = TO_FLOAT((array)[(at) + m_ % 8 * (stride) + m_ / 8])
#define MATRIX_MULTIPLY_ADD(sum, a, b) sum = setun_matrix_add(sum, a, b)
#define MATRIX_STORE(m, array, at, stride) \
    if (thread_index_in_simdgroup == 0) \
        for (int m_ = 0; m_ < 64; m_++) (array)[(at) + m_ / 8 * (stride) + m_ % 8] = (m).v[m_]
#endif
