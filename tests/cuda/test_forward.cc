/*
 * test_forward.cc - forward.cu's kernels on emulated.hh's fibers against plain loops: attention of prompts over several tiles of queries and keys, behind a
 * context, in windows, of several sequences at once; rows that are alone in their sequence, their contexts in parts; both ways to rotate; the
 * embedding, the norm and the head in every format.
 */
#include "emulated_forward.hh"
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
    bool ok = difference < bound && emulated::copies_are_done();
    printf("%-10s %4d %4d: differ by %.1e  %s\n", what, a, b, difference, ok ? "ok" : "FAILED");
    all_well = all_well && ok;
}

struct one { int rows, position; };
/* Sequences of a shape. parts: of the prompts' kernel; 0: single rows, whose contexts are cut in `splits`. */
static void attention_case(int d, std::vector<one> given, int heads, int kv, int window, int interleaved, int parts, int splits)
{
    const int half = d / 2, stride = (heads + 2 * kv) * d, layers = 2, layer = 1, group = heads / kv;
    int rows = 0, furthest = 0;
    std::vector<setun_forward_sequence> sequences;
    std::vector<std::vector<uint16_t>> keys, values;
    std::vector<int> row_sequence, singles;
    std::vector<setun_forward_work> work;
    for (size_t i = 0; i < given.size(); i++) {
        const int capacity = given[i].position + given[i].rows + 3;
        keys.push_back(std::vector<uint16_t>((size_t)layers * kv * capacity * d)), values.push_back(keys.back());
        for (auto &v : keys[i]) v = (uint16_t)f16_pair(2 * number(), 0);
        for (auto &v : values[i]) v = (uint16_t)f16_pair(number(), 0);
        sequences.push_back({rows, given[i].rows, given[i].position, capacity, (unsigned long long)(uintptr_t)keys[i].data(), (unsigned long long)(uintptr_t)values[i].data()});
        for (int t = 0; t < given[i].rows; t++) row_sequence.push_back((int)i);
        for (int p = 0; parts && p < given[i].rows * group; p += SETUN_FORWARD_QUERIES(parts)) work.push_back({(int)i, p});
        singles.push_back((int)i);
        rows += given[i].rows;
        furthest = std::max(furthest, capacity);
    }
    std::vector<float> qkv((size_t)rows * stride), cosines((size_t)furthest * half), sines(cosines.size()), out((size_t)rows * heads * d, NAN);
    for (auto &v : qkv) v = 3 * number();
    for (int p = 0; p < furthest; p++)
        for (int i = 0; i < half; i++) cosines[(size_t)p * half + i] = cosf(p * 0.3f / (i + 1)), sines[(size_t)p * half + i] = sinf(p * 0.3f / (i + 1));
    const float scale = 1.0f / sqrtf((float)d), factor = scale * 1.4426950408889634f;
    if (parts) {
        std::vector<uint16_t> q((size_t)rows * heads * d, 0x7e00);
        emulated::run(rows, 256, 0, [&]() { setun_forward_rope(qkv.data(), cosines.data(), sines.data(), sequences.data(), row_sequence.data(), q.data(), heads, kv, d, layer, interleaved, factor); });
        emulated::run((int)work.size() * kv, SETUN_FORWARD_ATTENTION_THREADS(parts), (size_t)SETUN_FORWARD_SHARED(d, parts), [&]() {
            (d == 64 ? parts == 1 ? setun_forward_attention_64_1 : setun_forward_attention_64_2 : parts == 1 ? setun_forward_attention_128_1 : setun_forward_attention_128_2)(
                q.data(), sequences.data(), work.data(), out.data(), heads, kv, layer, window);
        });
    } else {
        const int sets = (group + SETUN_FORWARD_HEADS - 1) / SETUN_FORWARD_HEADS;
        std::vector<u32> counters(given.size() * (size_t)(kv * sets));
        std::vector<float> partial(given.size() * (size_t)(heads * splits * SETUN_FORWARD_PARTIAL(d)), NAN);
        emulated::run((int)given.size() * kv * sets * splits, SETUN_FORWARD_SINGLE_THREADS, 0, [&]() {
            (d == 64 ? setun_forward_single_64 : setun_forward_single_128)(qkv.data(), cosines.data(), sines.data(), sequences.data(), singles.data(), out.data(), partial.data(), counters.data(), heads, kv, layer, window,
                                                                           interleaved, splits, factor);
        });
        for (u32 c : counters) all_well = all_well && c == 0;
    }
    std::vector<double> want(out.size());
    bool stored = true;
    for (size_t s = 0; s < given.size(); s++)
        for (int t = 0; t < given[s].rows; t++) {
            const int row = sequences[s].first_row + t, at = given[s].position + t;
            for (int h = 0; h < heads + kv; h++) {
                std::vector<double> q(qkv.begin() + (size_t)row * stride + h * d, qkv.begin() + (size_t)row * stride + (h + 1) * d), p((size_t)(at + 1));
                for (int i = 0; i < half; i++) {
                    int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
                    double x = q[a], y = q[b], c = cosines[(size_t)at * half + i], z = sines[(size_t)at * half + i];
                    q[a] = x * c - y * z, q[b] = y * c + x * z;
                }
                if (h >= heads) { /* a key, and its value: are they in the cache? */
                    const size_t place = ((size_t)(layer * kv + h - heads) * sequences[s].capacity + at) * d;
                    for (int i = 0; i < d; i++)
                        stored = stored && fabs(f16_float(keys[s][place + i]) - q[i]) < 4e-3 && fabs(f16_float(values[s][place + i]) - qkv[(size_t)row * stride + (h + kv) * d + i]) < 4e-3;
                    continue;
                }
                double sum = 0;
                const uint16_t *k_rows = &keys[s][(size_t)(layer * kv + h / group) * sequences[s].capacity * d], *v_rows = &values[s][(size_t)(layer * kv + h / group) * sequences[s].capacity * d];
                const int low = window > 0 && at - window + 1 > 0 ? at - window + 1 : 0;
                for (int k = low; k <= at; k++) {
                    for (int i = 0; i < d; i++) p[k] += q[i] * f16_float(k_rows[(size_t)k * d + i]);
                    sum += p[k] = exp(p[k] * scale);
                }
                for (int k = low; k <= at; k++)
                    for (int i = 0; i < d; i++) want[((size_t)row * heads + h) * d + i] += p[k] / sum * f16_float(v_rows[(size_t)k * d + i]);
            }
        }
    judge(parts ? window ? "window" : "prompt" : window ? "window, one" : "one row", rows, given[0].position, stored ? apart(out, want) : 1.0, parts ? 1e-3 : 1e-6);
}

static void head_case(int format, int tokens, int width)
{
    const int vocabulary = 295, row_bytes = (format == SETUN_CUDA_Q8 ? width + width / 32 * 2 : width * 2) / 16 * 16 + 16;
    std::vector<uint4> memory((size_t)vocabulary * row_bytes / 16);
    u8 *table = (u8 *)memory.data();
    std::vector<double> dense((size_t)vocabulary * width);
    for (int r = 0; r < vocabulary; r++)
        for (int i = 0; i < width; i++) {
            u8 *row = table + (size_t)r * row_bytes;
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
    std::vector<float> x((size_t)tokens * width, NAN), weight, logits((size_t)tokens * vocabulary, NAN);
    std::vector<uint4> y_memory((size_t)tokens * 2 * SETUN_FORWARD_PADDED(width) / 8);
    unsigned short *y = (unsigned short *)y_memory.data();
    memset(y, 0xff, (size_t)tokens * 4 * SETUN_FORWARD_PADDED(width));
    for (int i = 0; i < width; i++) weight.push_back(1 + 0.3f * number());
    emulated::run(tokens, 256, 0, [&]() { setun_forward_embed(table, ids.data(), x.data(), width, row_bytes, format, 2.0f); });
    emulated::run(tokens, 256, 0, [&]() { setun_forward_norm(x.data(), rows.data(), weight.data(), y, width, 1, format != SETUN_CUDA_BF16, 1e-5f); });
    emulated::run(1, SETUN_FORWARD_THREADS, (size_t)SETUN_FORWARD_HEAD_SHARED(tokens <= 8 ? 8 : 32), [&]() {
        (format == SETUN_CUDA_BF16 ? tokens <= 8 ? setun_forward_head_bf16_8 : setun_forward_head_bf16_32
         : format == SETUN_CUDA_F16 ? tokens <= 8 ? setun_forward_head_f16_8 : setun_forward_head_f16_32
                                    : tokens <= 8 ? setun_forward_head_q8_8 : setun_forward_head_q8_32)(table, y, logits.data(), width, vocabulary, row_bytes, tokens, 0.5f);
    });
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
    judge("head", format, tokens, apart(logits, want), format == SETUN_CUDA_BF16 ? 1e-5 : 1e-6);
}

int main()
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *given = getenv("SETUN_TEST_SEED");
    if (given) seed = strtoull(given, nullptr, 10) | 1;
    printf("seed %llu\n", (unsigned long long)seed);
    emulated::m.seed = seed * 77 + 1;
    attention_case(64, {{1, 0}}, 3, 1, 0, 0, 1, 0);
    attention_case(64, {{50, 37}, {3, 90}, {1, 0}}, 3, 1, 0, 0, 1, 0);
    attention_case(64, {{70, 0}}, 2, 2, 0, 1, 2, 0);
    attention_case(128, {{33, 129}}, 4, 1, 0, 0, 2, 0);
    attention_case(128, {{66, 60}}, 2, 1, 50, 1, 1, 0);
    attention_case(64, {{70, 30}, {2, 1}}, 1, 1, 7, 0, 2, 0);
    attention_case(64, {{1, 0}, {1, 70}, {1, 300}}, 6, 2, 0, 0, 0, 4);
    attention_case(128, {{1, 130}}, 5, 1, 0, 1, 0, 2);
    attention_case(128, {{1, 20}, {1, 200}}, 4, 1, 60, 0, 0, 1);
    for (int format = SETUN_CUDA_BF16; format <= SETUN_CUDA_Q8; format++) head_case(format, 5, 320), head_case(format, 19, 96);
    printf("%s\n", all_well ? "all well" : "FAILED");
    return all_well ? 0 : 1;
}
