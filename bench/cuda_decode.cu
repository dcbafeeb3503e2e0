/*
 * cuda_decode.cu - checks and times the decode kernel alone, without MLX: random models of a shape, against a plain reference on the host,
 * then the times of whole steps. Build: see bench/cuda_decode.sh. Nothing here is part of the library.
 */
#include "../src/backend/mlx/cuda/decode.cu"
#ifndef SETUN_CUDA_EMULATED
#include <cuda_runtime.h>
#define SETUN_LAUNCH(kernel, grid, threads, shared, ...) kernel<<<grid, threads, shared>>>(__VA_ARGS__)
#endif
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define CHECK(call) do { cudaError_t e_ = (call); if (e_ != cudaSuccess) { printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_)); exit(1); } } while (0)

static uint64_t seed = 12345;
static uint32_t rnd() { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return (uint32_t)(seed >> 32); }
static float gauss() { float s = 0; for (int i = 0; i < 4; i++) s += (float)(rnd() & 0xffff) / 65536.0f - 0.5f; return s * 1.7320508f; }
static uint16_t bf16(float f) { uint32_t u; memcpy(&u, &f, 4); return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16); }
static float from_bf16(uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }
static uint16_t f16(float f) { _Float16 h = (_Float16)f; uint16_t u; memcpy(&u, &h, 2); return u; }
static float from_f16(uint16_t u) { _Float16 h; memcpy(&h, &u, 2); return (float)h; }

struct Shape { const char *name; int layers, width, ff, heads, kv, d, vocab, act, head_format; };
struct Source { const uint8_t *pool; size_t offset; int64_t columns; };
static std::vector<uint8_t> pool; /* random codes; a weight begins somewhere in it */
static bool read_codes(void *source, int64_t row, int64_t rows, uint8_t *codes)
{
    const Source *s = (const Source *)source;
    for (int64_t r = 0; r < rows; r++) memcpy(codes + r * s->columns, s->pool + (s->offset + (size_t)(row + r) * 7919u) % (pool.size() - (size_t)s->columns), (size_t)s->columns);
    return true;
}

struct Model {
    Shape s;
    std::vector<setun_cuda_op> ops;
    std::vector<Source *> sources;
    std::vector<std::vector<float>> norms;
    std::vector<double> frequencies;
    std::vector<uint8_t> table; /* embedding, kernel order */
    int row_bytes;
    setun_cuda_model m;
    const float *norm(int n) { std::vector<float> v(n); for (auto &x : v) x = 1.0f + 0.2f * gauss(); norms.push_back(v); return norms.back().data(); }
    setun_cuda_matrix matrix(int64_t rows, int64_t columns, float scale) {
        Source *s = new Source{pool.data(), rnd() % pool.size(), columns};
        sources.push_back(s);
        setun_cuda_matrix w = {}; w.rows = rows; w.columns = columns; w.scale = scale; w.source = s; return w;
    }
    Model(Shape shape) : s(shape) {
        norms.reserve(1000);
        int q = s.heads * s.d, kv = s.kv * s.d;
        for (int l = 0; l < s.layers; l++) {
            setun_cuda_op o = {}; o.kind = SETUN_CUDA_LINEAR; o.normed = true; o.epsilon = 1e-5f; o.factor = 1.0f;
            setun_cuda_op a = o; a.norm = norm(s.width); a.matrix_count = 3; a.matrix[0] = matrix(q, s.width, 0.03f); a.matrix[1] = matrix(kv, s.width, 0.05f); a.matrix[2] = matrix(kv, s.width, 0.04f); ops.push_back(a);
            setun_cuda_op t = {}; t.kind = SETUN_CUDA_ATTENTION; t.heads = s.heads; t.kv_heads = s.kv; t.layer = l; t.scale = 1.0f / sqrtf((float)s.d); ops.push_back(t);
            setun_cuda_op b = o; b.norm = norm(q); b.matrix_count = 1; b.matrix[0] = matrix(s.width, q, 0.02f); b.residual = true; ops.push_back(b);
            setun_cuda_op g = o; g.norm = norm(s.width); g.matrix_count = 2; g.gated = true; g.activation = s.act; g.matrix[0] = matrix(s.ff, s.width, 0.03f); g.matrix[1] = matrix(s.ff, s.width, 0.03f); ops.push_back(g);
            setun_cuda_op e = o; e.norm = norm(s.ff); e.matrix_count = 1; e.matrix[0] = matrix(s.width, s.ff, 0.01f); e.residual = true; ops.push_back(e);
        }
        for (int i = 0; i < s.d / 2; i++) frequencies.push_back(pow(5e5, -2.0 * i / s.d));
        row_bytes = setun_cuda_dense_row_bytes(s.head_format, s.width);
        table.assign((size_t)s.vocab * row_bytes, 0);
        for (size_t r = 0; r < (size_t)s.vocab; r++) {
            uint8_t *row = table.data() + r * row_bytes;
            if (s.head_format == SETUN_CUDA_Q8) {
                for (int i = 0; i < s.width; i++) row[i] = (uint8_t)(int8_t)((int)(rnd() % 255) - 127);
                for (int i = 0; i < s.width / 32; i++) { uint16_t h = f16(0.005f + 0.002f * (rnd() & 7)); memcpy(row + s.width + 2 * i, &h, 2); }
            } else
                for (int i = 0; i < s.width; i += 2) {
                    uint32_t x = rnd(); float f = ((float)(x & 0xffff) / 32768.0f - 1), g = ((float)(x >> 16) / 32768.0f - 1);
                    uint16_t h[2] = {s.head_format == SETUN_CUDA_F16 ? f16(f) : bf16(f), s.head_format == SETUN_CUDA_F16 ? f16(g) : bf16(g)};
                    memcpy(row + 2 * i, h, 4);
                }
        }
        m = {}; m.ops = ops.data(); m.op_count = (int)ops.size(); m.width = s.width; m.vocabulary = s.vocab; m.head_size = s.d; m.kv_heads = s.kv; m.layers = s.layers;
        m.embedding_format = m.head_format = s.head_format; m.embedding_factor = m.head_factor = 1.0f; m.head_normed = true; m.head_norm = norm(s.width); m.head_epsilon = 1e-5f;
        m.rope_frequencies = frequencies.data(); m.rope_magnitude = 1.0f; m.codes = read_codes;
    }
    float dense(int row, int i) const {
        const uint8_t *p = table.data() + (size_t)row * row_bytes;
        if (s.head_format == SETUN_CUDA_Q8) { uint16_t h; memcpy(&h, p + s.width + i / 32 * 2, 2); return from_f16(h) * (float)(int8_t)p[i]; }
        uint16_t h; memcpy(&h, p + 2 * i, 2); return s.head_format == SETUN_CUDA_F16 ? from_f16(h) : from_bf16(h);
    }
};

/* The plain reference: one token of one sequence. kv: f16 [layers][kv][capacity][d]. */
static void reference(const Model &M, int id, int position, int capacity, std::vector<uint16_t> &K, std::vector<uint16_t> &V, std::vector<float> &logits)
{
    const Shape &s = M.s;
    std::vector<double> x(s.width), in, out;
    for (int i = 0; i < s.width; i++) x[i] = M.dense(id, i);
    in = x;
    for (const setun_cuda_op &o : M.ops) {
        if (o.kind == SETUN_CUDA_ATTENTION) {
            int q = s.heads * s.d, kv = s.kv * s.d, half = s.d / 2;
            auto rotate = [&](double *v) { for (int i = 0; i < half; i++) { double a = position * M.frequencies[i], c = cos(a), n = sin(a), p = v[i], r = v[i + half]; v[i] = p * c - r * n; v[i + half] = r * c + p * n; } };
            for (int h = 0; h < s.heads; h++) rotate(&in[h * s.d]);
            for (int h = 0; h < s.kv; h++) {
                rotate(&in[q + h * s.d]);
                for (int i = 0; i < s.d; i++) { size_t at = (((size_t)o.layer * s.kv + h) * capacity + position) * s.d + i; K[at] = f16((float)in[q + h * s.d + i]); V[at] = f16((float)in[q + kv + h * s.d + i]); }
            }
            out.assign(q, 0.0);
            for (int h = 0; h < s.heads; h++) {
                size_t base = ((size_t)o.layer * s.kv + h / (s.heads / s.kv)) * capacity * s.d;
                std::vector<double> p(position + 1); double top = -1e300, sum = 0;
                for (int k = 0; k <= position; k++) { double d = 0; for (int i = 0; i < s.d; i++) d += in[h * s.d + i] * from_f16(K[base + (size_t)k * s.d + i]); p[k] = d * o.scale; top = std::max(top, p[k]); }
                for (auto &v : p) v = exp(v - top), sum += v;
                for (int k = 0; k <= position; k++) for (int i = 0; i < s.d; i++) out[h * s.d + i] += p[k] / sum * from_f16(V[base + (size_t)k * s.d + i]);
            }
            in = out;
            continue;
        }
        int n = (int)o.matrix[0].columns; double ss = 0, top = 1e-5;
        for (double v : in) ss += v * v;
        double inv = 1 / sqrt(ss / n + o.epsilon);
        std::vector<double> y(n); for (int i = 0; i < n; i++) y[i] = in[i] * inv * o.norm[i], top = std::max(top, fabs(y[i]));
        std::vector<int> q(n); for (int i = 0; i < n; i++) q[i] = (int)rint(y[i] * 127 / top);
        out.clear();
        std::vector<uint8_t> codes(n);
        for (int j = 0; j < o.matrix_count; j++)
            for (int64_t r = 0; r < o.matrix[j].rows; r++) {
                read_codes(o.matrix[j].source, r, 1, codes.data());
                int sum = 0; for (int i = 0; i < n; i++) sum += ((int)codes[i] - 1) * q[i];
                out.push_back(sum * (top / 127) * o.matrix[j].scale);
            }
        if (o.gated) { int f = (int)o.matrix[0].rows; for (int i = 0; i < f; i++) { double g = out[i]; g = o.activation == SETUN_CUDA_ACT_RELU2 ? (g > 0 ? g * g : 0) : g / (1 + exp(-g)); out[i] = g * out[f + i]; } out.resize(f); }
        if (o.residual) { for (int i = 0; i < s.width; i++) x[i] += out[i]; out = x; }
        in = out;
    }
    double ss = 0; for (double v : in) ss += v * v;
    double inv = 1 / sqrt(ss / s.width + M.m.head_epsilon);
    logits.assign(s.vocab, 0);
    for (int i = 0; i < s.width; i++) in[i] *= inv * M.m.head_norm[i];
    for (int r = 0; r < s.vocab; r++) { double d = 0; for (int i = 0; i < s.width; i++) d += in[i] * M.dense(r, i); logits[r] = (float)d; }
}

struct Device {
    setun_cuda_header *t = nullptr; size_t bytes = 0;
    uint8_t *weights = nullptr, *table = nullptr, *dense = nullptr, *cache = nullptr, *state = nullptr; int *run = nullptr, *ids = nullptr; float *logits = nullptr;
    size_t cache_one; int capacity, T, N;
    long long *profile = nullptr;
    Device(const Model &M, int T_, int N_, int capacity_, const uint8_t *shared_weights) : capacity(capacity_), T(T_), N(N_) {
        cudaDeviceProp p; CHECK(cudaGetDeviceProperties(&p, 0));
        setun_cuda_limits limits = {p.multiProcessorCount, (int)p.sharedMemPerBlockOptin}; const char *why, *blocks = getenv("SETUN_BENCH_BLOCKS");
        if (blocks) limits.multiprocessors = atoi(blocks);
        if (!setun_cuda_layout(&M.m, &limits, T, &t, &bytes, &why)) { printf("layout: needs %s\n", why); exit(1); }
        if (shared_weights) weights = (uint8_t *)shared_weights;
        else {
            std::vector<uint8_t> w(bytes);
            if (!setun_cuda_pack(&M.m, t, w.data())) { printf("pack failed\n"); exit(1); }
            CHECK(cudaMalloc(&weights, bytes)); CHECK(cudaMemcpy(weights, w.data(), bytes, cudaMemcpyHostToDevice));
        }
        CHECK(cudaMalloc(&table, t->bytes)); CHECK(cudaMemcpy(table, t, t->bytes, cudaMemcpyHostToDevice));
        CHECK(cudaMalloc(&dense, M.table.size())); CHECK(cudaMemcpy(dense, M.table.data(), M.table.size(), cudaMemcpyHostToDevice));
        cache_one = (size_t)M.s.layers * M.s.kv * capacity * M.s.d * 2;
        CHECK(cudaMalloc(&cache, cache_one * 2 * T)); CHECK(cudaMemset(cache, 0, cache_one * 2 * T));
        CHECK(cudaMalloc(&state, t->state_bytes)); CHECK(cudaMemset(state, 0, t->state_bytes));
        CHECK(cudaMalloc(&run, setun_cuda_run_ints(T, N) * 4)); CHECK(cudaMalloc(&ids, (size_t)T * N * 4)); CHECK(cudaMalloc(&logits, (size_t)T * M.s.vocab * 4));
        CHECK(cudaMalloc(&profile, (size_t)(N * (t->steps + 2)) * t->grid * 8));
        CHECK(cudaFuncSetAttribute(setun_cuda_decode_one, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)t->shared_bytes));
        CHECK(cudaFuncSetAttribute(setun_cuda_decode_many, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)t->shared_bytes));
    }
    void prepare(int steps, const std::vector<int> &given, const std::vector<int> &positions, int flags) {
        std::vector<int> r = {T, steps, flags, 0};
        r.insert(r.end(), given.begin(), given.end()); r.insert(r.end(), positions.begin(), positions.end());
        for (int i = 0; i < T; i++) r.push_back(capacity);
        for (int i = 0; i < T; i++) { uint64_t k = cache_one * 2 * i, v = k + cache_one; int a[4] = {(int)(uint32_t)k, (int)(k >> 32), (int)(uint32_t)v, (int)(v >> 32)}; r.insert(r.end(), a, a + 4); }
        CHECK(cudaMemcpy(run, r.data(), r.size() * 4, cudaMemcpyHostToDevice));
    }
    void launch() {
#ifdef SETUN_CUDA_PROFILE
#define EXTRA , profile
#else
#define EXTRA
#endif
        if (!t->many) SETUN_LAUNCH(setun_cuda_decode_one, t->grid, t->threads, t->shared_bytes, weights, dense, dense, (int *)table, cache, state, run, ids, logits EXTRA);
        else SETUN_LAUNCH(setun_cuda_decode_many, t->grid, t->threads, t->shared_bytes, weights, dense, dense, (int *)table, cache, state, run, ids, logits EXTRA);
        CHECK(cudaGetLastError());
    }
    unsigned status() { unsigned s; CHECK(cudaMemcpy(&s, state, 4, cudaMemcpyDeviceToHost)); return s; }
};

/* T sequences from `start` on, keys before it random; three launches of one step with logits, then one of three tokens. */
static bool check(const Model &M, int T, int start)
{ /* words of 22 bits round a value now and then to another int8, which layers carry on: hundredths, where a mistake makes it of the order of 1 */
    const int capacity = start + 64;
    Device dev(M, T, 3, capacity, nullptr);
    std::vector<std::vector<uint16_t>> K(T), V(T);
    std::vector<int> ids(T), positions(T);
    size_t n = dev.cache_one / 2;
    for (int t = 0; t < T; t++) {
        K[t].resize(n), V[t].resize(n);
        for (auto &k : K[t]) k = f16(gauss()); for (auto &v : V[t]) v = f16(gauss());
        CHECK(cudaMemcpy(dev.cache + dev.cache_one * 2 * t, K[t].data(), dev.cache_one, cudaMemcpyHostToDevice)); CHECK(cudaMemcpy(dev.cache + dev.cache_one * (2 * t + 1), V[t].data(), dev.cache_one, cudaMemcpyHostToDevice));
        ids[t] = (int)(rnd() % M.s.vocab), positions[t] = start > 8 ? start - t % 8 : start;
    }
    double worst = 0; int same = 0, all = 0; bool ok = true;
    std::vector<float> got((size_t)T * M.s.vocab), want;
    for (int step = 0; step < 2; step++) {
        CHECK(cudaMemset(dev.logits, 0xff, got.size() * 4));
        dev.prepare(1, ids, positions, 1); dev.launch(); CHECK(cudaDeviceSynchronize());
        CHECK(cudaMemcpy(got.data(), dev.logits, got.size() * 4, cudaMemcpyDeviceToHost));
        std::vector<int> next(T); CHECK(cudaMemcpy(next.data(), dev.ids, T * 4, cudaMemcpyDeviceToHost));
        for (int t = 0; t < T; t++) {
            const float *g = &got[(size_t)t * M.s.vocab];
            if (T <= 3 || t % 7 == 0) {
                reference(M, ids[t], positions[t], capacity, K[t], V[t], want);
                double e = 0, w = 0; for (int i = 0; i < M.s.vocab; i++) e += (double)(g[i] - want[i]) * (g[i] - want[i]), w += (double)want[i] * want[i];
                e = sqrt(e / w); if (!(e <= worst)) worst = e;
                int best = (int)(std::max_element(want.begin(), want.end()) - want.begin()); same += best == next[t]; all++;
            }
            if (next[t] != (int)(std::max_element(g, g + M.s.vocab) - g)) { printf("  argmax of row %d: %d, of its logits %d\n", t, next[t], (int)(std::max_element(g, g + M.s.vocab) - g)); ok = false; }
            ids[t] = next[t], positions[t]++;
        }
    }
    /* one launch of three tokens gives what three launches give */
    std::vector<int> given(3 * T, -1), one(3 * T), three(3 * T), at = positions; std::copy(ids.begin(), ids.end(), given.begin());
    dev.prepare(3, given, positions, 0); dev.launch(); CHECK(cudaMemcpy(three.data(), dev.ids, 3 * T * 4, cudaMemcpyDeviceToHost));
    std::vector<int> cur = ids;
    for (int i = 0; i < 3; i++) { dev.prepare(1, cur, at, 0); dev.launch(); CHECK(cudaMemcpy(cur.data(), dev.ids, T * 4, cudaMemcpyDeviceToHost)); std::copy(cur.begin(), cur.end(), one.begin() + i * T); for (auto &p : at) p++; }
    bool loops = one == three; unsigned status = dev.status();
    ok = ok && worst < 1e-1 && loops && status == 0;
    printf("check %-14s %2d sequences at %4d: logits differ %.2e, argmax %d/%d, three-token launch %s, status %u  %s\n", M.s.name, T, start, worst, same, all, loops ? "same" : "DIFFERS", status, ok ? "ok" : "FAILED");
    cudaFree(dev.weights); cudaFree(dev.dense); cudaFree(dev.cache); cudaFree(dev.state);
    return ok;
}

#ifndef SETUN_CUDA_EMULATED
static void timing(const Model &M, int T, int context, int N, int reps, uint8_t **weights)
{
    const int capacity = context + N + 8;
    Device dev(M, T, N, capacity, *weights); *weights = dev.weights;
    std::vector<int> given((size_t)N * T, -1), positions(T, context); for (int t = 0; t < T; t++) given[t] = 5 + t;
    dev.prepare(N, given, positions, 0);
    cudaEvent_t a, b; cudaEventCreate(&a); cudaEventCreate(&b);
    std::vector<float> ms;
    for (int i = 0; i < reps + 3; i++) { cudaEventRecord(a); dev.launch(); cudaEventRecord(b); CHECK(cudaEventSynchronize(b)); float x; cudaEventElapsedTime(&x, a, b); if (i >= 3) ms.push_back(x / N); }
    std::sort(ms.begin(), ms.end());
    float m = ms[ms.size() / 2];
    printf("time  %-14s %2d sequences, context %4d, %2d tokens a launch: %.4f ms a step (%.4f .. %.4f), %.0f tokens/s, status %u\n", M.s.name, T, context, N, m, ms.front(), ms.back(), 1e3 * T / m, dev.status());
#ifdef SETUN_CUDA_PROFILE
    if (N >= 2 && T == 1 && context < 100) {
        size_t per = (size_t)(dev.t->steps + 2); std::vector<long long> p(per * N * dev.t->grid); CHECK(cudaMemcpy(p.data(), dev.profile, p.size() * 8, cudaMemcpyDeviceToHost));
        const char *names[5] = {"qkv", "attention", "o", "gate/up", "down"};
        std::vector<long long> sub(132 * 5 * 16); CHECK(cudaMemcpyFromSymbol(sub.data(), sub_marks, sub.size() * 8));
        for (int blk = 0; blk < 24; blk++) { /* against the moment at which the next step's factor is known, which is nearly the same for all */
            printf("      block %2d, before o's factor: qkv told %lld sums %lld | attention started, taken, multiplied, met, written; the newest key's warp: query, key, multiplied:", blk, sub[(size_t)blk * 80 + 10] - sub[((size_t)blk * 5 + 2) * 16 + 10], sub[(size_t)blk * 80 + 13] - sub[((size_t)blk * 5 + 2) * 16 + 10]);
            for (int i : {0, 1, 2, 3, 4, 7, 5, 6}) printf(" %lld", sub[((size_t)blk * 5 + 1) * 16 + i] - sub[((size_t)blk * 5 + 2) * 16 + 10]);
            printf("\n");
        }
        for (int blk : {0, 5, 60, 131}) { /* 0-5: started, asked, there, factor, weights, multiplied (attention: started, taken, met, scored, summed, written); 8-13: started, factor, told, parts, written, sums */
            printf("      block %3d, clocks in the last layer from its first mark of qkv:", blk);
            for (int k = 0; k < 5; k++) { printf(" |%s", names[k]); for (int i = 0; i < 14; i++) { long long v = sub[((size_t)blk * 5 + k) * 16 + i]; if (v) printf(" %lld", v - sub[(size_t)blk * 5 * 16]); else if (i < 6 || i >= 8) printf(" -"); } }
            printf("\n");
        }
        for (int blk : {0, 5, 60, 131}) {
            printf("      block %3d clocks:", blk);
            for (int k = 0; k < 5; k++) { double s = 0; int n = 0; for (int i = 5 + k; i + 1 <= dev.t->steps; i += 5) s += (double)(p[(per + i + 1) * dev.t->grid + blk] - p[(per + i) * dev.t->grid + blk]), n++; printf(" %s %.0f", names[k], s / n); }
            printf(", head %.0f\n", (double)(p[(per + dev.t->steps + 1) * dev.t->grid + blk] - p[(per + dev.t->steps) * dev.t->grid + blk]));
        }
    }
#endif
    cudaFree(dev.dense); cudaFree(dev.cache); cudaFree(dev.state);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    pool.resize(1 << 22); for (auto &c : pool) { uint32_t r; do r = rnd() & 3; while (r == 3); c = (uint8_t)r; }
    cudaDeviceProp p; CHECK(cudaGetDeviceProperties(&p, 0)); printf("%s, %d multiprocessors, shared %zu\n", p.name, p.multiProcessorCount, p.sharedMemPerBlockOptin);
    bool ok = true;
    std::string what = argc > 1 ? argv[1] : "all";
    if (what == "all" || what == "check") {
        Model small({"2B/2 layers", 2, 2560, 6912, 20, 5, 128, 4096, SETUN_CUDA_ACT_RELU2, SETUN_CUDA_BF16});
        ok = check(small, 1, 5) && ok; if (!ok && what == "check") return 1;
        ok = check(small, 1, 700) && ok; ok = check(small, 3, 40) && ok; ok = check(small, 20, 300) && ok;
        Model tiny({"135M/3 layers", 3, 576, 1536, 9, 3, 64, 5003, SETUN_CUDA_ACT_SILU, SETUN_CUDA_Q8});
        ok = check(tiny, 1, 0) && ok; ok = check(tiny, 1, 1500) && ok; ok = check(tiny, 8, 100) && ok; ok = check(tiny, 32, 64) && ok;
        Model large({"135M/49152", 2, 576, 1536, 9, 3, 64, 49152, SETUN_CUDA_ACT_SILU, SETUN_CUDA_Q8}); /* more of the head than the ring holds */
        ok = check(large, 1, 3) && ok;
        Model half({"135M/f16", 2, 576, 1536, 9, 3, 64, 4999, SETUN_CUDA_ACT_SILU, SETUN_CUDA_F16});
        ok = check(half, 1, 10) && ok;
        if (!ok) { printf("FAILED\n"); if (what == "all") return 1; }
    }
    if (what == "all" || what == "time") {
        { Model m({"135M q8 head", 30, 576, 1536, 9, 3, 64, 49152, SETUN_CUDA_ACT_SILU, SETUN_CUDA_Q8}); uint8_t *w = nullptr;
          timing(m, 1, 16, 1, 50, &w); timing(m, 1, 16, 32, 10, &w); timing(m, 1, 1024, 32, 5, &w); timing(m, 8, 16, 8, 10, &w); timing(m, 32, 16, 8, 10, &w); cudaFree(w); }
        { Model m({"2B bf16 head", 30, 2560, 6912, 20, 5, 128, 128256, SETUN_CUDA_ACT_RELU2, SETUN_CUDA_BF16}); uint8_t *w = nullptr;
          timing(m, 1, 16, 1, 50, &w); timing(m, 1, 16, 32, 10, &w); timing(m, 1, 2048, 16, 5, &w); timing(m, 8, 16, 8, 10, &w); timing(m, 32, 16, 4, 10, &w); cudaFree(w); }
    }
    if (what == "quick") { /* one sequence, a short context: to compare variants and, with -DSETUN_CUDA_PROFILE, to see where the time goes */
        { Model m({"135M q8 head", 30, 576, 1536, 9, 3, 64, 49152, SETUN_CUDA_ACT_SILU, SETUN_CUDA_Q8}); uint8_t *w = nullptr; timing(m, 1, 16, 1, 50, &w); timing(m, 1, 16, 32, 10, &w); cudaFree(w); }
        { Model m({"2B bf16 head", 30, 2560, 6912, 20, 5, 128, 128256, SETUN_CUDA_ACT_RELU2, SETUN_CUDA_BF16}); uint8_t *w = nullptr; timing(m, 1, 16, 1, 50, &w); timing(m, 1, 16, 32, 10, &w); cudaFree(w); }
    }
    if (what == "long") { /* where time and check differ: many layers, many rows */
        int layers = atoi(argv[2]), vocabulary = atoi(argv[3]), context = argc > 4 ? atoi(argv[4]) : 16;
        Model m({"2B variant", layers, 2560, 6912, 20, 5, 128, vocabulary, SETUN_CUDA_ACT_RELU2, SETUN_CUDA_BF16}); uint8_t *w = nullptr; timing(m, 1, context, 1, 5, &w); timing(m, 1, context, 16, 5, &w);
    }
    printf("%s\n", ok ? "all well" : "FAILED");
    return ok ? 0 : 1;
}
#endif
