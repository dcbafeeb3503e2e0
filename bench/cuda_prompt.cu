/*
 * cuda_prompt.cu - the CUDA kernels for prompts, checked against plain host code on random shapes, then timed on the 2B-4T shape.
 *   nvcc -O3 -std=c++17 -Xcompiler -ffp-contract=off -gencode=arch=compute_90a,code=sm_90a -Isrc/backend/mlx/cuda -o cuda_prompt bench/cuda_prompt.cu
 *   ./cuda_prompt check [seed] [shapes]   every kernel, every kind of output; exits 1 at a difference
 *   ./cuda_prompt time             all kernels on each shape, then all layers' products in one graph
 *   ./cuda_prompt profile          a few launches of each shape, for ncu
 */
#include "prompt.cu"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#define CHECK(call) do { cudaError_t error = (call); if (error != cudaSuccess) { fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error)); exit(2); } } while (0)

typedef void (*product_function)(PRODUCT_ARGUMENTS);
struct product_kernel { const char *name; product_function function; int shared, n, rows, threads; };
static const product_kernel kernels[] = {
#define ROW(N) {"setun_prompt_wgmma_" #N, setun_prompt_wgmma_##N, SETUN_PROMPT_WGMMA_SHARED(N), N, 256, SETUN_PROMPT_WGMMA_THREADS},
    SETUN_PROMPT_WGMMA_LIST(ROW)
#undef ROW
#define ROW(S, N) {"setun_prompt_mma_" #S "x" #N, setun_prompt_mma_##S##x##N, (16 * S + 4) * N * 4, N, 16 * S, SETUN_PROMPT_MMA_THREADS},
    SETUN_PROMPT_MMA_LIST(ROW)
#undef ROW
};
static int multiprocessors;

typedef void (*quantize_function)(const void *, const float *, int8_t *, float *, int32_t *, int, int, int, float);
static quantize_function quantize_for(int columns)
{
    static const struct { const char *name; quantize_function function; } all[] = {{"setun_prompt_quantize_2", setun_prompt_quantize_2}, {"setun_prompt_quantize_5", setun_prompt_quantize_5},
        {"setun_prompt_quantize_8", setun_prompt_quantize_8}, {"setun_prompt_quantize_14", setun_prompt_quantize_14}};
    for (auto &one : all)
        if (!strcmp(one.name, setun_prompt_quantize_kernel(columns))) return one.function;
    return setun_prompt_quantize;
}

static const product_kernel *find(const char *name)
{
    for (const product_kernel &k : kernels)
        if (!strcmp(k.name, name)) return &k;
    fprintf(stderr, "no kernel %s\n", name);
    exit(2);
}

static uint64_t state = 1;
static uint32_t next_random() { state ^= state << 13; state ^= state >> 7; state ^= state << 17; return (uint32_t)(state >> 32); }
static int below(int n) { return (int)(next_random() % (uint32_t)n); }
static float normal() { float s = 0; for (int i = 0; i < 4; i++) s += (float)next_random() / 4294967296.0f - 0.5f; return s * 1.732f; }

template <typename T> static T *on_device(size_t count, const T *from = nullptr)
{
    T *p;
    CHECK(cudaMalloc(&p, count * sizeof(T) + 256));
    CHECK(cudaMemset(p, 0xa5, count * sizeof(T) + 256)); /* poison, and a guard behind the end */
    if (from) CHECK(cudaMemcpy(p, from, count * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <typename T> static std::vector<T> from_device(const T *p, size_t count)
{
    std::vector<T> v(count);
    CHECK(cudaMemcpy(v.data(), p, count * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}
template <typename T> static bool guard_holds(const T *p, size_t count)
{
    std::vector<uint8_t> g(256);
    CHECK(cudaMemcpy(g.data(), p + count, 256, cudaMemcpyDeviceToHost));
    return std::all_of(g.begin(), g.end(), [](uint8_t b) { return b == 0xa5; });
}
static void parallel(int count, const std::function<void(int)> &f)
{
    int n = std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> threads;
    for (int i = 0; i < n; i++) threads.emplace_back([=, &f] { for (int j = i; j < count; j += n) f(j); });
    for (std::thread &t : threads) t.join();
}

/* ---- checking ---- */

static int differences;
static void report(bool same, const char *what, const std::string &where)
{
    if (same) return;
    differences++;
    printf("DIFFERS %s: %s\n", what, where.c_str());
}

static float host_exp(float x)
{
    float t = fmaf(x, 0x1.715476p+0f, 0x1.8p+23f), n = t - 0x1.8p+23f, r = fmaf(n, 0x1.05c610p-29f, fmaf(n, -0x1.62e430p-1f, x));
    const float c[] = {0x1.123b02p-7f, 0x1.5558f8p-5f, 0x1.555490p-3f, 0x1.fffffcp-2f, 1.0f, 1.0f};
    float p = 0x1.6a2256p-10f, y;
    for (float a : c) p = fmaf(p, r, a);
    uint32_t bits, shift;
    memcpy(&bits, &p, 4);
    memcpy(&shift, &t, 4);
    bits += shift << 23;
    memcpy(&y, &bits, 4);
    if (!(x >= -0x1.5d589ep+6f)) y = 0;
    return x <= 0x1.62e42ep+6f ? y : x * INFINITY;
}
static float host_activate(float x, int flags)
{
    if (flags & SETUN_PROMPT_SILU) return x / (1.0f + host_exp(-x));
    if (flags & SETUN_PROMPT_GELU) return x / (1.0f + host_exp(fmaf(x * x, -0.07135481627159825f, -1.5957691216057308f) * x));
    float r = x < 0 ? 0 : x;
    return r * r;
}
static uint16_t host_bf16(float x) { uint32_t u; memcpy(&u, &x, 4); u += 0x7fff + (u >> 16 & 1); return (uint16_t)(u >> 16); }
static float host_from_bf16(uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }

struct sample {
    int rows, columns, tokens, blocks;
    std::vector<uint8_t> packed;   /* [rows][blocks * 32] */
    std::vector<uint32_t> words;
    std::vector<float> weight_scale, bias, residual, x_scale;
    std::vector<int8_t> x, plain;  /* tiled; [tokens][columns] */
    std::vector<int> x_sum, sums;  /* sums minus x_sum: [tokens][rows] */
};

static sample make_sample(int rows, int columns, int tokens, bool sums)
{
    sample s;
    s.rows = rows, s.columns = columns, s.tokens = tokens, s.blocks = (int)setun_prompt_blocks(columns);
    std::vector<uint8_t> codes((size_t)rows * s.blocks * 128, 1);
    s.packed.assign((size_t)rows * s.blocks * 32, 0);
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < s.blocks * 128; k++) {
            uint8_t c = k < columns ? (uint8_t)below(3) : 1;
            codes[(size_t)r * s.blocks * 128 + k] = c;
            s.packed[(size_t)r * s.blocks * 32 + k / 128 * 32 + k % 32] |= (uint8_t)(c << (6 - 2 * (k % 128 / 32)));
        }
    s.words.resize(setun_prompt_weight_words(rows, columns));
    setun_prompt_pack_begin(s.words.data(), rows, columns);
    setun_prompt_pack(s.packed.data(), (size_t)s.blocks * 32, rows, columns, 0, 1, s.words.data());
    int groups = (int)setun_prompt_groups(tokens);
    s.x.assign(setun_prompt_activation_bytes(tokens, columns), 0);
    s.plain.resize((size_t)tokens * columns);
    s.x_sum.assign((size_t)groups * 8, 0);
    for (int t = 0; t < tokens; t++)
        for (int k = 0; k < columns; k++) {
            int v = below(256) - 128; /* all of int8 */
            s.plain[(size_t)t * columns + k] = s.x[setun_prompt_activation_index(t, groups, k)] = (int8_t)v;
            s.x_sum[t] += v;
        }
    for (int r = 0; r < rows; r++) s.weight_scale.push_back(0.5f + 0.001f * below(1000)), s.bias.push_back(normal());
    for (int t = 0; t < groups * 8; t++) s.x_scale.push_back(0.01f + 0.0001f * below(1000));
    for (size_t i = 0; i < (size_t)rows * tokens; i++) s.residual.push_back(normal() * 100);
    if (!sums) return s;
    s.sums.resize((size_t)rows * tokens);
    parallel(tokens, [&](int t) {
        for (int r = 0; r < rows; r++) {
            int sum = 0;
            const uint8_t *c = &codes[(size_t)r * s.blocks * 128];
            const int8_t *x = &s.plain[(size_t)t * columns];
            for (int k = 0; k < columns; k++) sum += (c[k] - 1) * x[k];
            s.sums[(size_t)t * rows + r] = sum;
        }
    });
    return s;
}

struct device_sample { uint32_t *words; float *weight_scale, *bias, *x_scale; int8_t *x; int *x_sum; void *residual; };
static device_sample upload(const sample &s, bool bf16)
{
    device_sample d = {on_device(s.words.size(), s.words.data()), on_device(s.weight_scale.size(), s.weight_scale.data()), on_device(s.bias.size(), s.bias.data()),
        on_device(s.x_scale.size(), s.x_scale.data()), on_device(s.x.size(), s.x.data()), on_device(s.x_sum.size(), s.x_sum.data()), nullptr};
    if (bf16) {
        std::vector<uint16_t> h;
        for (float f : s.residual) h.push_back(host_bf16(f));
        d.residual = on_device(h.size(), h.data());
    } else d.residual = on_device(s.residual.size(), s.residual.data());
    return d;
}
static void release(device_sample &d)
{
    void *all[] = {d.words, d.weight_scale, d.bias, d.x_scale, d.x, d.x_sum, d.residual};
    for (void *p : all) CHECK(cudaFree(p));
}

static void launch(const product_kernel *k, int grid, const uint32_t *words, const float *scale, const int8_t *x, const float *x_scale, const int *x_sum, const float *bias, const void *residual, void *out, int rows, int blocks, int tokens, int flags, float factor, cudaStream_t stream = 0)
{
    int tiles = (rows + k->rows - 1) / k->rows * ((tokens + k->n - 1) / k->n);
    if (!grid) grid = k->threads == SETUN_PROMPT_WGMMA_THREADS ? std::min(tiles, multiprocessors) : tiles;
    k->function<<<grid, k->threads, k->shared, stream>>>(words, scale, x, x_scale, x_sum, bias, residual, out, rows, blocks, tokens, flags, factor);
    CHECK(cudaGetLastError());
}

static void check_product(const product_kernel *k, const sample &s, int flags, float factor)
{
    int columns = flags & SETUN_PROMPT_GATED ? s.rows / 2 : s.rows;
    size_t count = (size_t)s.tokens * columns, bytes = count * (flags & SETUN_PROMPT_BF16 ? 2 : 4);
    device_sample d = upload(s, flags & SETUN_PROMPT_BF16);
    uint8_t *out = on_device<uint8_t>(bytes);
    /* few thread blocks: each must walk several tiles */
    launch(k, k->threads == SETUN_PROMPT_WGMMA_THREADS && below(2) ? 1 + below(4) : 0, d.words, d.weight_scale, d.x, d.x_scale, d.x_sum, d.bias, d.residual, out, s.rows, s.blocks, s.tokens, flags, factor);
    CHECK(cudaDeviceSynchronize());
    std::vector<uint8_t> got = from_device(out, bytes), want(bytes);
    parallel(s.tokens, [&](int t) {
        for (int c = 0; c < columns; c++) {
            size_t at = (size_t)t * columns + c;
            auto value = [&](int r) {
                float y = (float)s.sums[(size_t)t * s.rows + r] * (s.x_scale[t] * s.weight_scale[r]);
                return flags & SETUN_PROMPT_BIAS ? y + s.bias[r] : y;
            };
            if (flags & SETUN_PROMPT_SUMS) {
                memcpy(&want[at * 4], &s.sums[at], 4);
                continue;
            }
            float y = flags & SETUN_PROMPT_GATED ? host_activate(value(2 * c), flags) * value(2 * c + 1) : value(c);
            y *= factor;
            if (flags & SETUN_PROMPT_RESIDUAL) y += flags & SETUN_PROMPT_BF16 ? host_from_bf16(host_bf16(s.residual[at])) : s.residual[at];
            uint16_t h = host_bf16(y);
            if (flags & SETUN_PROMPT_BF16) memcpy(&want[at * 2], &h, 2);
            else memcpy(&want[at * 4], &y, 4);
        }
    });
    std::string where = std::string(k->name) + " rows " + std::to_string(s.rows) + " columns " + std::to_string(s.columns) + " tokens " + std::to_string(s.tokens) + " flags " + std::to_string(flags);
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < bytes; i++)
        if (got[i] != want[i] && !wrong++) first = i;
    report(!wrong, "product", where + ": " + std::to_string(wrong) + " of " + std::to_string(bytes) + " bytes, first " + std::to_string(first));
    report(guard_holds(out, bytes), "guard", where);
    CHECK(cudaFree(out));
    release(d);
}

static void check_quantize(int columns, int tokens, int flags, bool any) /* any: the kernel that takes any row */
{
    int blocks = (int)setun_prompt_blocks(columns), groups = (int)setun_prompt_groups(tokens);
    std::vector<float> x((size_t)tokens * columns), weight(columns);
    for (float &v : x) v = normal() * (below(50) ? 1 : 30);
    for (float &v : weight) v = 1 + 0.2f * normal();
    if (tokens > 2) for (int i = 0; i < columns; i++) x[columns + i] = 0; /* a row of zeros */
    std::vector<uint16_t> h;
    if (flags & SETUN_PROMPT_IN_BF16)
        for (float &v : x) h.push_back(host_bf16(v)), v = host_from_bf16(h.back());
    void *dx = flags & SETUN_PROMPT_IN_BF16 ? (void *)on_device(h.size(), h.data()) : (void *)on_device(x.size(), x.data());
    float *dw = on_device(weight.size(), weight.data()), *scale = on_device<float>(groups * 8);
    size_t bytes = setun_prompt_activation_bytes(tokens, columns);
    int8_t *q = on_device<int8_t>(bytes);
    int *sum = on_device<int>(groups * 8);
    const float epsilon = 1e-5f;
    (any ? setun_prompt_quantize : quantize_for(columns))<<<groups * 8, SETUN_PROMPT_QUANTIZE_THREADS, setun_prompt_quantize_shared(columns)>>>(dx, dw, q, scale, sum, columns, tokens, flags, epsilon);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    std::vector<int8_t> want(bytes, 0);
    std::vector<float> want_scale(groups * 8, 0);
    std::vector<int> want_sum(groups * 8, 0);
    for (int t = 0; t < tokens; t++) {
        std::vector<float> y(x.begin() + (size_t)t * columns, x.begin() + (size_t)(t + 1) * columns);
        if (flags & SETUN_PROMPT_NORM) {
            float chain[64] = {0}, lane[16];
            for (int i = 0; i < columns; i++) chain[i % 64] = fmaf(y[i], y[i], chain[i % 64]);
            for (int l = 0; l < 16; l++) lane[l] = (chain[l] + chain[16 + l]) + (chain[32 + l] + chain[48 + l]);
            for (int width = 8; width; width /= 2)
                for (int l = 0; l < width; l++) lane[l] += lane[l + width];
            float inverse = 1.0f / sqrtf(lane[0] / (float)columns + epsilon);
            for (int i = 0; i < columns; i++) {
                y[i] *= inverse;
                if (flags & SETUN_PROMPT_WEIGHT) y[i] *= weight[i] + (flags & SETUN_PROMPT_ONE_PLUS ? 1.0f : 0.0f);
            }
        }
        float most = 0;
        for (float v : y) most = fabsf(v) > most ? fabsf(v) : most;
        most = most > 1e-5f ? most : 1e-5f;
        float factor = 127.0f / most;
        for (int i = 0; i < columns; i++) {
            float v = y[i] * factor;
            int n = (int)rintf(v < -128 ? -128 : v > 127 ? 127 : v);
            want[setun_prompt_activation_index(t, groups, i)] = (int8_t)n;
            want_sum[t] += n;
        }
        want_scale[t] = most / 127.0f;
    }
    std::string where = "columns " + std::to_string(columns) + " tokens " + std::to_string(tokens) + " flags " + std::to_string(flags);
    report(from_device(q, bytes) == want, "quantize", where);
    report(from_device(scale, groups * 8) == want_scale, "scale", where);
    report(from_device(sum, groups * 8) == want_sum, "sum", where);
    report(guard_holds(q, bytes) && guard_holds(scale, groups * 8) && guard_holds(sum, groups * 8), "guard", where);
    (void)blocks;
    void *all[] = {dx, dw, q, scale, sum};
    for (void *p : all) CHECK(cudaFree(p));
}

static void check_pack(int rows0, int rows1, int rows2, int columns, bool gated)
{
    int blocks = (int)setun_prompt_blocks(columns), rows[3] = {rows0, rows1, rows2}, first = 0, all = rows0 + rows1 + rows2;
    std::vector<uint32_t> want(setun_prompt_weight_words(all, columns));
    setun_prompt_pack_begin(want.data(), all, columns);
    uint32_t *device[3];
    for (int i = 0; i < 3; i++) {
        std::vector<uint32_t> codes((size_t)rows[i] * blocks * 8 + 1);
        for (uint32_t &c : codes) c = next_random();
        setun_prompt_pack((const uint8_t *)codes.data(), (size_t)blocks * 32, rows[i], columns, gated ? i : first, gated ? 2 : 1, want.data());
        first += rows[i];
        device[i] = on_device(codes.size(), codes.data());
    }
    uint32_t *out = on_device<uint32_t>(want.size());
    setun_prompt_pack_rows<<<(int)((want.size() / 4 + 255) / 256), 256>>>(device[0], device[1], device[2], out, rows0, rows1, rows2, blocks, gated);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    report(from_device(out, want.size()) == want && guard_holds(out, want.size()), "pack", std::to_string(rows0) + " " + std::to_string(rows1) + " " + std::to_string(rows2));
    for (uint32_t *p : device) CHECK(cudaFree(p));
    CHECK(cudaFree(out));
}

static void check_rope(int tokens, int heads, int kv_heads, int size, int rotary, bool interleaved)
{
    int all = heads + 2 * kv_heads, first = 5, capacity = first + tokens + 3, half = rotary / 2;
    std::vector<float> x((size_t)tokens * all * size), c((size_t)capacity * half), s(c.size());
    std::vector<int> positions(tokens);
    for (float &v : x) v = normal();
    for (size_t i = 0; i < c.size(); i++) c[i] = normal(), s[i] = normal();
    for (int &p : positions) p = below(capacity);
    float poison;
    memset(&poison, 0xa5, 4);
    std::vector<float> q((size_t)heads * tokens * size), k((size_t)kv_heads * capacity * size, poison), v(k);
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < all; h++) {
            const float *from = &x[((size_t)t * all + h) * size];
            float *to = h < heads ? &q[((size_t)h * tokens + t) * size] : &(h < heads + kv_heads ? k : v)[((size_t)((h - heads) % kv_heads) * capacity + first + t) * size];
            memcpy(to, from, (size_t)size * 4);
            if (h >= heads + kv_heads) continue;
            for (int i = 0; i < half; i++) {
                int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
                float cosine = c[(size_t)positions[t] * half + i], sine = s[(size_t)positions[t] * half + i];
                to[a] = fmaf(from[a], cosine, -(from[b] * sine));
                to[b] = fmaf(from[b], cosine, from[a] * sine);
            }
        }
    float *dx = on_device(x.size(), x.data()), *dc = on_device(c.size(), c.data()), *ds = on_device(s.size(), s.data()), *dq = on_device<float>(q.size()), *dk = on_device<float>(k.size()), *dv = on_device<float>(v.size());
    int *dp = on_device(positions.size(), positions.data());
    setun_prompt_rope<<<tokens * all, 128>>>(dx, dc, ds, dp, dk, dv, dq, tokens, heads, kv_heads, size, rotary, capacity, first, interleaved ? SETUN_PROMPT_INTERLEAVED : 0);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    auto same = [](const std::vector<float> &a, const std::vector<float> &b) { return !memcmp(a.data(), b.data(), a.size() * 4); };
    report(same(from_device(dq, q.size()), q) && same(from_device(dk, k.size()), k) && same(from_device(dv, v.size()), v) && guard_holds(dq, q.size()), "rope", std::to_string(tokens) + " " + std::to_string(size));
    void *pointers[] = {dx, dc, ds, dq, dk, dv, dp};
    for (void *p : pointers) CHECK(cudaFree(p));
}

static int check(uint64_t seed, int shapes_to_try)
{
    state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    const int kinds[] = {0, SETUN_PROMPT_BF16, SETUN_PROMPT_BIAS | SETUN_PROMPT_RESIDUAL, SETUN_PROMPT_RESIDUAL | SETUN_PROMPT_BF16, SETUN_PROMPT_GATED, SETUN_PROMPT_GATED | SETUN_PROMPT_BF16 | SETUN_PROMPT_BIAS,
        SETUN_PROMPT_GATED | SETUN_PROMPT_SILU | SETUN_PROMPT_RESIDUAL, SETUN_PROMPT_GATED | SETUN_PROMPT_GELU | SETUN_PROMPT_BF16};
    int done = 0;
    for (int shape = 0; shape < shapes_to_try; shape++) {
        int rows = 1 + below(700), columns = 128 * (1 + below(14)), tokens = 1 + below(600);
        if (shape % 3 == 1) columns -= below(128), tokens = 1 + below(20);
        if (shape % 3 == 2) rows = (rows + 3) / 4 * 4; /* the vector paths */
        if (shape == 8) rows = 512, columns = 2560, tokens = 320;
        sample s = make_sample(rows, columns, tokens, true);
        for (const product_kernel &k : kernels) {
            check_product(&k, s, SETUN_PROMPT_SUMS, 1);
            int flags = kinds[(done + shape) % 8];
            if (rows % 2) flags &= ~SETUN_PROMPT_GATED;
            check_product(&k, s, flags, below(2) ? 1.0f : 0.75f);
            done++;
        }
    }
    printf("products: %d\n", 2 * done);
    for (int flags = 0; flags < 16; flags++) check_quantize(flags % 3 ? 1 + below(3000) : 128 * (1 + below(60)), 1 + below(40), flags, flags % 5 == 1);
    check_quantize(6912, 33, SETUN_PROMPT_NORM | SETUN_PROMPT_WEIGHT, false);
    check_quantize(2560, 33, SETUN_PROMPT_NORM | SETUN_PROMPT_WEIGHT, false);
    check_quantize(8192, 9, SETUN_PROMPT_NORM, false);
    check_quantize(576, 9, SETUN_PROMPT_NORM | SETUN_PROMPT_WEIGHT, false);
    check_pack(100, 37, 64, 1280, false);
    check_pack(333, 333, 0, 640, true);
    check_pack(2560, 640, 640, 2560, false);
    check_rope(37, 20, 5, 128, 128, false);
    check_rope(3, 9, 3, 64, 48, true);
    printf(differences ? "%d DIFFERENCES\n" : "all equal\n", differences);
    return differences != 0;
}

/* ---- timing ---- */

struct layer_shape { const char *name; int rows, columns, flags; };
static const layer_shape shapes[] = {{"qkv", 3840, 2560, SETUN_PROMPT_BF16}, {"o", 2560, 2560, SETUN_PROMPT_BF16 | SETUN_PROMPT_RESIDUAL}, {"gate_up", 13824, 2560, SETUN_PROMPT_BF16 | SETUN_PROMPT_GATED}, {"down", 2560, 6912, SETUN_PROMPT_BF16 | SETUN_PROMPT_RESIDUAL}};
enum { LAYERS = 30 };
static uint32_t *weights[LAYERS][4];
static float *weight_scale, *norm_weight;
struct activations { int8_t *x; float *scale; int *sum; void *out, *residual, *input; };

static __global__ void fill_trits(uint32_t *words, size_t count, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t w = 0, h = (uint32_t)i * 2654435761u ^ seed;
        for (int j = 0; j < 16; j++) {
            h = h * 1664525u + 1013904223u;
            w |= (h >> 16) % 3 << (2 * j);
        }
        words[i] = w;
    }
}
static __global__ void fill_normal(float *x, size_t count, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t h = (uint32_t)i * 2654435761u ^ seed;
        float s = 0;
        for (int j = 0; j < 4; j++) {
            h = h * 1664525u + 1013904223u;
            s += (float)h / 4294967296.0f - 0.5f;
        }
        x[i] = s;
    }
}

/* Median milliseconds of a graph's replay. */
static double time_graph(const std::function<void(cudaStream_t)> &work, int repeats)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cudaEvent_t from, to;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    work(stream);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < repeats + 3; i++) {
        CHECK(cudaEventRecord(from, stream));
        CHECK(cudaGraphLaunch(executable, stream));
        CHECK(cudaEventRecord(to, stream));
        CHECK(cudaEventSynchronize(to));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, from, to));
        if (i >= 3) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    CHECK(cudaGraphExecDestroy(executable));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaStreamDestroy(stream));
    CHECK(cudaEventDestroy(from));
    CHECK(cudaEventDestroy(to));
    return times[times.size() / 2];
}

static void product(const product_kernel *k, int layer, int shape, const activations &a, int tokens, cudaStream_t stream, bool f32 = false)
{
    const layer_shape &s = shapes[shape];
    launch(k, 0, weights[layer][shape], weight_scale, a.x, a.scale, a.sum, weight_scale, a.residual, a.out, s.rows, s.columns / 128, tokens, f32 ? s.flags & ~SETUN_PROMPT_BF16 : s.flags, 1.0f, stream);
}
static void quantize(int columns, const activations &a, int tokens, int flags, cudaStream_t stream)
{
    quantize_for(columns)<<<(tokens + 7) / 8 * 8, SETUN_PROMPT_QUANTIZE_THREADS, setun_prompt_quantize_shared(columns), stream>>>(a.input, norm_weight, a.x, a.scale, a.sum, columns, tokens, flags, 1e-5f);
    CHECK(cudaGetLastError());
}

static void set_up(activations &a, int tokens_max)
{
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < 4; i++) {
            size_t words = setun_prompt_weight_words(shapes[i].rows, shapes[i].columns);
            weights[l][i] = on_device<uint32_t>(words);
            fill_trits<<<1024, 256>>>(weights[l][i], words, (uint32_t)(l * 4 + i) * 977u + 1);
        }
    std::vector<float> ones(16384, 1.0f);
    weight_scale = on_device(ones.size(), ones.data());
    norm_weight = on_device(ones.size(), ones.data());
    a.x = on_device<int8_t>(setun_prompt_activation_bytes(tokens_max, 6912));
    a.scale = on_device<float>(tokens_max + 8);
    a.sum = on_device<int>(tokens_max + 8);
    a.out = on_device<float>((size_t)tokens_max * 13824);
    a.residual = on_device<float>((size_t)tokens_max * 2560);
    a.input = on_device<float>((size_t)tokens_max * 6912);
    fill_normal<<<1024, 256>>>((float *)a.residual, (size_t)tokens_max * 2560, 7);
    fill_normal<<<1024, 256>>>((float *)a.input, (size_t)tokens_max * 6912, 9);
    CHECK(cudaDeviceSynchronize());
}

static void time_all()
{
    activations a;
    set_up(a, 2048);
    const int counts[] = {8, 32, 64, 128, 256, 512, 1024, 2048};
    double operations = 0;
    for (const layer_shape &s : shapes) operations += 2.0 * s.rows * s.columns * LAYERS;
    for (int tokens : counts) {
        const product_kernel *best[4], *chosen[4];
        for (int i = 0; i < 4; i++) {
            const layer_shape &s = shapes[i];
            quantize(s.columns, a, tokens, 0, 0);
            CHECK(cudaDeviceSynchronize());
            chosen[i] = find(setun_prompt_choose(s.rows, s.columns, tokens, multiprocessors, 1).kernel);
            double least = 0, of_chosen = 0;
            printf("%4d tokens %-8s us:", tokens, s.name);
            for (const product_kernel &k : kernels) {
                bool mma = k.threads == SETUN_PROMPT_MMA_THREADS;
                if (mma ? k.n > std::max(8, tokens) || (tokens > 512) || (tokens > 128 && k.n < 32) : k.n >= 2 * std::max(24, tokens)) continue;
                double us = time_graph([&](cudaStream_t stream) { for (int l = 0; l < LAYERS; l++) product(&k, l, i, a, tokens, stream); }, 5) * 1e3 / LAYERS;
                printf(" %s%s %.1f", mma ? "m" : "", strrchr(k.name, '_') + 1, us);
                if (!least || us < least) least = us, best[i] = &k;
                if (&k == chosen[i]) of_chosen = us;
            }
            printf(" | best %s %.1f (%.0f TOP/s), chosen %s %.1f\n", best[i]->name + 13, least, 2.0 * s.rows * s.columns * tokens / least / 1e6, chosen[i]->name + 13, of_chosen);
        }
        auto all = [&](const product_kernel *const *use, bool f32, bool rounding) {
            return [&, use, f32, rounding](cudaStream_t stream) {
                for (int l = 0; l < LAYERS; l++)
                    for (int i = 0; i < 4; i++) {
                        if (rounding) quantize(shapes[i].columns, a, tokens, SETUN_PROMPT_NORM | SETUN_PROMPT_WEIGHT | (f32 ? 0 : SETUN_PROMPT_IN_BF16), stream);
                        product(use[i], l, i, a, tokens, stream, f32);
                    }
            };
        };
        double ms = time_graph(all(best, false, false), 20), ms_chosen = time_graph(all(chosen, false, false), 20), ms_f32 = time_graph(all(best, true, false), 20), ms_rounding = time_graph(all(best, true, true), 20), ms_rounding16 = time_graph(all(best, false, true), 20);
        printf("%4d tokens ALL LAYERS: best kernels %.3f ms = %.0f TOP/s; chosen %.3f ms = %.0f; f32 outputs %.3f ms = %.0f; with norm and rounding f32 %.3f, bf16 %.3f ms\n", tokens, ms, operations * tokens / ms / 1e9, ms_chosen,
            operations * tokens / ms_chosen / 1e9, ms_f32, operations * tokens / ms_f32 / 1e9, ms_rounding, ms_rounding16);
        fflush(stdout);
    }
}

static void profile()
{
    activations a;
    set_up(a, 2048);
    for (int tokens : {512, 2048})
        for (int i = 0; i < 4; i++) {
            quantize(shapes[i].columns, a, tokens, SETUN_PROMPT_NORM | SETUN_PROMPT_WEIGHT, 0);
            for (int l = 0; l < 2; l++) product(find(setun_prompt_choose(shapes[i].rows, shapes[i].columns, tokens, multiprocessors, 1).kernel), l, i, a, tokens, 0);
        }
    CHECK(cudaDeviceSynchronize());
}

int main(int argc, char **argv)
{
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    multiprocessors = properties.multiProcessorCount;
    printf("%s, %d multiprocessors\n", properties.name, multiprocessors);
    for (const product_kernel &k : kernels) CHECK(cudaFuncSetAttribute(k.function, cudaFuncAttributeMaxDynamicSharedMemorySize, k.shared));
    CHECK(cudaFuncSetAttribute(setun_prompt_quantize, cudaFuncAttributeMaxDynamicSharedMemorySize, setun_prompt_quantize_shared(SETUN_PROMPT_QUANTIZE_COLUMNS_MAX)));
    std::string what = argc > 1 ? argv[1] : "check";
    if (what == "check") return check(argc > 2 ? strtoull(argv[2], nullptr, 10) : 20261123, argc > 3 ? atoi(argv[3]) : 9);
    if (what == "profile") profile();
    else time_all();
    return 0;
}
