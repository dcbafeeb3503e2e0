/*
 * test_forward.cc - forward.cu's kernels on emulated.hh's fibers against plain loops: attention over several tiles of queries and keys, behind a
 * context, in windows, for both ways to rotate; the embedding, the norm and the head in every format.
 */
#include "emulated.hh"
#include "../../src/backend/mlx/cuda/forward.cu"

static uint64_t seed = 1;
static float number() { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return (float)(int32_t)(seed >> 32) / 2147483648.0f; }
static double apart(const std::vector<float> &got, const std::vector<double> &want)
{
    double d = 0, size = 0;
    for (size_t i = 0; i < want.size(); i++) d += (got[i] - want[i]) * (got[i] - want[i]), size += want[i] * want[i];
    return sqrt(d / size);
}
static bool all_well = true;
static void judge(const char *what, int a, int b, double difference, double bound)
{
    bool ok = difference < bound;
    printf("%-10s %4d %4d: differ by %.1e  %s\n", what, a, b, difference, ok ? "ok" : "FAILED");
    all_well = all_well && ok;
}

static void attention_case(int d, int tokens, int first, int heads, int kv, int window, int interleaved)
{
    const int capacity = first + tokens + 5, half = d / 2, stride = (heads + 2 * kv) * d;
    std::vector<float> qkv((size_t)tokens * stride), cosines((size_t)capacity * half), sines(cosines.size()), out((size_t)tokens * heads * d, NAN);
    std::vector<uint16_t> keys((size_t)kv * capacity * d), values(keys.size());
    for (auto &v : qkv) v = 3 * number();
    for (auto &v : keys) v = (uint16_t)f16_pair(2 * number(), 0);
    for (auto &v : values) v = (uint16_t)f16_pair(number(), 0);
    for (int p = 0; p < capacity; p++)
        for (int i = 0; i < half; i++) cosines[(size_t)p * half + i] = cosf(p * 0.3f / (i + 1)), sines[(size_t)p * half + i] = sinf(p * 0.3f / (i + 1));
    const float scale = 1.0f / sqrtf((float)d);
    emulated::run(heads * ((tokens + 63) / 64), 128, 0, [&]() {
        (d == 64 ? setun_forward_attention_64 : setun_forward_attention_128)(qkv.data(), cosines.data(), sines.data(), (const u8 *)keys.data(), (const u8 *)values.data(), out.data(), tokens, heads, kv, capacity, first, window, interleaved, scale);
    });
    std::vector<double> want(out.size());
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < heads; h++) {
            std::vector<double> q(qkv.begin() + (size_t)t * stride + h * d, qkv.begin() + (size_t)t * stride + (h + 1) * d), p((size_t)(first + t + 1));
            for (int i = 0; i < half; i++) {
                int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
                double x = q[a], y = q[b], c = cosines[(size_t)(first + t) * half + i], s = sines[(size_t)(first + t) * half + i];
                q[a] = x * c - y * s, q[b] = y * c + x * s;
            }
            double sum = 0;
            const int low = window > 0 && first + t - window + 1 > 0 ? first + t - window + 1 : 0;
            for (int k = low; k <= first + t; k++) {
                for (int i = 0; i < d; i++) p[k] += q[i] * f16_float(keys[((size_t)(h / (heads / kv)) * capacity + k) * d + i]);
                sum += p[k] = exp(p[k] * scale);
            }
            for (int k = low; k <= first + t; k++)
                for (int i = 0; i < d; i++) want[((size_t)t * heads + h) * d + i] += p[k] / sum * f16_float(values[((size_t)(h / (heads / kv)) * capacity + k) * d + i]);
        }
    judge(window ? "window" : "attention", tokens, first, apart(out, want), 3e-6);
}

static void head_case(int format, int tokens)
{
    const int width = 96, vocabulary = 75, row_bytes = (format == SETUN_CUDA_Q8 ? width + width / 32 * 2 + 15 : width * 2 + 15) / 16 * 16;
    std::vector<u8> table((size_t)vocabulary * row_bytes);
    std::vector<double> dense((size_t)vocabulary * width);
    for (int r = 0; r < vocabulary; r++)
        for (int i = 0; i < width; i++) {
            u8 *row = table.data() + (size_t)r * row_bytes;
            if (format == SETUN_CUDA_Q8) {
                uint16_t s = (uint16_t)f16_pair(0.02f * (float)(1 + i / 32), 0);
                memcpy(row + width + i / 32 * 2, &s, 2);
                row[i] = (u8)(int8_t)(127 * number());
                dense[(size_t)r * width + i] = (double)f16_float(s) * (int8_t)row[i];
            } else {
                uint16_t h = format == SETUN_CUDA_F16 ? (uint16_t)f16_pair(number(), 0) : (uint16_t)(__float_as_uint(number()) >> 16);
                memcpy(row + 2 * i, &h, 2);
                dense[(size_t)r * width + i] = low_half(h, format == SETUN_CUDA_F16);
            }
        }
    std::vector<int> ids, rows;
    for (int t = 0; t < tokens; t++) ids.push_back(t * 17 % vocabulary), rows.push_back(tokens - 1 - t);
    std::vector<float> x((size_t)tokens * width, NAN), y(x.size(), NAN), weight, logits((size_t)tokens * vocabulary, NAN);
    for (int i = 0; i < width; i++) weight.push_back(1 + 0.3f * number());
    emulated::run(tokens, 256, 0, [&]() { setun_forward_embed(table.data(), ids.data(), x.data(), width, row_bytes, format, 2.0f); });
    emulated::run(tokens, 256, 0, [&]() { setun_forward_norm(x.data(), rows.data(), weight.data(), y.data(), width, 1, 1e-5f); });
    emulated::run(3, 256, 0, [&]() { setun_forward_head(table.data(), y.data(), logits.data(), width, vocabulary, row_bytes, format, tokens, 0.5f); });
    std::vector<double> want;
    for (int t = 0; t < tokens; t++) {
        const double *from = &dense[(size_t)ids[rows[t]] * width];
        double squares = 0;
        for (int i = 0; i < width; i++) squares += 4 * from[i] * from[i];
        for (int r = 0; r < vocabulary; r++) {
            double sum = 0;
            for (int i = 0; i < width; i++) sum += 2 * from[i] / sqrt(squares / width + 1e-5) * weight[i] * dense[(size_t)r * width + i];
            want.push_back(sum * 0.5);
        }
    }
    judge("head", format, tokens, apart(logits, want), 1e-6);
}

int main()
{
    const char *given = getenv("SETUN_TEST_SEED");
    if (given) seed = strtoull(given, nullptr, 10) | 1;
    printf("seed %llu\n", (unsigned long long)seed);
    emulated::m.seed = seed * 77 + 1;
    attention_case(64, 1, 0, 3, 1, 0, 0);
    attention_case(64, 70, 37, 3, 1, 0, 0);
    attention_case(64, 130, 0, 2, 2, 0, 1);
    attention_case(128, 65, 129, 2, 1, 0, 0);
    attention_case(128, 66, 100, 2, 1, 50, 1);
    attention_case(64, 100, 0, 1, 1, 7, 0);
    for (int format = SETUN_CUDA_BF16; format <= SETUN_CUDA_Q8; format++) head_case(format, 1), head_case(format, 8);
    printf("%s\n", all_well ? "all well" : "FAILED");
    return all_well ? 0 : 1;
}
