/*
 * fake_driver.cc - as much of NVIDIA's driver as driver.c calls, over host memory, graphs included: launches of decode.cu and forward.cu run on emulated.hh's
 * fibers; the products of prompt.cu, whose instructions are Hopper's alone, are computed from what prompt.h promises. So a whole session on "the GPU"
 * is tested without one. SETUN_EMULATED_BLOCKS: multiprocessors. Loaded through SETUN_CUDA_DRIVER.
 */
#include "emulated_forward.hh"
#include "../../src/backend/mlx/cuda/forward.cu"
#include "../../src/backend/mlx/cuda/prompt.h"
#include <map>

#define ENTRY extern "C" __attribute__((visibility("default")))
typedef unsigned long long pointer;
enum { OK = 0, INVALID = 1, MEMORY = 2, NOT_FOUND = 500 };

struct call { int blocks, threads, shared; void **arguments; };
template <typename T> static T get(const call &c, int i) { T v; memcpy(&v, c.arguments[i], sizeof v); return v; }
typedef void (*runner)(const call &);
struct function { std::string name; runner run; int shared; std::vector<int> sizes; }; /* of the arguments */

/* A kernel's arguments from the pointers to them. */
template <typename... A, size_t... I> static void launch_with(void (*kernel)(A...), const call &c, std::index_sequence<I...>)
{
    std::tuple<A...> a{get<A>(c, (int)I)...};
    emulated::run(c.blocks, c.threads, (size_t)c.shared, [=]() { kernel(std::get<I>(a)...); });
}
template <typename... A> static void launch(void (*kernel)(A...), const call &c) { launch_with(kernel, c, std::index_sequence_for<A...>()); }
template <typename... A> static std::vector<int> sizes_of(void (*)(A...)) { return {(int)sizeof(A)...}; }

static int8_t x_at(const int8_t *x, int64_t token, int64_t groups, int64_t k) { return x[setun_prompt_activation_index(token, groups, k)]; }

static void quantize(const call &c)
{
    const float *x = get<const float *>(c, 0), *norm = get<const float *>(c, 1);
    int8_t *q = get<int8_t *>(c, 2);
    float *scale = get<float *>(c, 3), epsilon = get<float>(c, 8);
    int *sum = get<int *>(c, 4), columns = get<int>(c, 5), tokens = get<int>(c, 6), flags = get<int>(c, 7), groups = c.blocks / 8;
    if (c.blocks != setun_prompt_groups(tokens) * 8 || c.shared != setun_prompt_quantize_shared(columns) || flags & SETUN_PROMPT_IN_BF16) abort();
    for (int t = 0; t < groups * 8; t++) {
        double squares = 0;
        float most = 1e-5f;
        for (int64_t k = 0; k < setun_prompt_blocks(columns) * 128; k++) q[setun_prompt_activation_index(t, groups, k)] = 0;
        scale[t] = 0, sum[t] = 0;
        if (t >= tokens) continue;
        std::vector<float> y(x + (size_t)t * columns, x + (size_t)(t + 1) * columns);
        for (float v : y) squares += (double)v * v;
        float inverse = flags & SETUN_PROMPT_NORM ? (float)(1 / sqrt(squares / columns + (double)epsilon)) : 1.0f;
        for (int k = 0; k < columns; k++) y[k] = y[k] * inverse * (flags & SETUN_PROMPT_WEIGHT ? norm[k] : 1.0f), most = fmaxf(most, fabsf(y[k]));
        scale[t] = most / 127.0f;
        for (int k = 0; k < columns; k++) {
            int v = (int)rintf(y[k] * (127.0f / most));
            q[setun_prompt_activation_index(t, groups, k)] = (int8_t)v;
            sum[t] += v;
        }
    }
}

static void product(const call &c)
{
    const uint32_t *words = get<const uint32_t *>(c, 0);
    const float *weight_scale = get<const float *>(c, 1), *x_scale = get<const float *>(c, 3), *bias = get<const float *>(c, 5), *residual = get<const float *>(c, 6);
    const int8_t *x = get<const int8_t *>(c, 2);
    const int *x_sum = get<const int *>(c, 4);
    float *out = get<float *>(c, 7), factor = get<float>(c, 12);
    int rows = get<int>(c, 8), blocks = get<int>(c, 9), tokens = get<int>(c, 10), flags = get<int>(c, 11);
    int64_t groups = setun_prompt_groups(tokens);
    if (flags & SETUN_PROMPT_RESIDUAL && residual == out) abort();
    std::vector<uint8_t> codes((size_t)blocks * 128);
    bool gated = flags & SETUN_PROMPT_GATED;
    std::vector<float> kept((size_t)tokens);
    std::vector<int8_t> plain((size_t)tokens * blocks * 128);
    for (int t = 0; t < tokens; t++)
        for (int64_t k = 0; k < (int64_t)blocks * 128; k++) plain[(size_t)t * blocks * 128 + k] = x_at(x, t, groups, k);
    for (int r = 0; r < rows; r++) {
        for (int b = 0; b < blocks; b++)
            for (int p = 0; p < 32; p++) {
                uint32_t word = words[setun_prompt_word_index(r, blocks, b, p / 4)];
                for (int i = 0; i < 4; i++) codes[(size_t)b * 128 + i * 32 + p] = word >> (8 * (p % 4)) >> (6 - 2 * i) & 3;
            }
        for (int t = 0; t < tokens; t++) {
            int sum = -x_sum[t];
            const int8_t *row = plain.data() + (size_t)t * blocks * 128;
            for (int k = 0; k < blocks * 128; k++) sum += codes[(size_t)k] * row[k];
            float y = (float)sum * (x_scale[t] * weight_scale[r]) + (flags & SETUN_PROMPT_BIAS ? bias[r] : 0.0f);
            if (gated && r % 2 == 0) {
                kept[t] = activate(flags & SETUN_PROMPT_SILU ? SETUN_CUDA_ACT_SILU : flags & SETUN_PROMPT_GELU ? SETUN_CUDA_ACT_GELU : SETUN_CUDA_ACT_RELU2, y);
                continue;
            }
            if (gated) y *= kept[t];
            size_t at = (size_t)t * (gated ? rows / 2 : rows) + (gated ? r / 2 : r);
            y *= factor;
            if (flags & SETUN_PROMPT_RESIDUAL) y += residual[at];
            out[at] = y;
        }
    }
}

static std::map<std::string, function> functions = {
#define KERNEL(name) {#name, {#name, [](const call &c) { launch(name, c); }, 0, sizes_of(name)}}
    KERNEL(setun_cuda_decode_one), KERNEL(setun_cuda_decode_many), KERNEL(setun_forward_embed), KERNEL(setun_forward_norm), KERNEL(setun_forward_rope), KERNEL(setun_forward_attention_64_1),
    KERNEL(setun_forward_attention_64_2), KERNEL(setun_forward_attention_128_1), KERNEL(setun_forward_attention_128_2), KERNEL(setun_forward_single_64), KERNEL(setun_forward_single_128),
    KERNEL(setun_forward_head_bf16_8), KERNEL(setun_forward_head_bf16_32), KERNEL(setun_forward_head_f16_8), KERNEL(setun_forward_head_f16_32), KERNEL(setun_forward_head_q8_8), KERNEL(setun_forward_head_q8_32),
    {"setun_prompt_quantize", {"setun_prompt_quantize", quantize, 0, {8, 8, 8, 8, 8, 4, 4, 4, 4}}}};

ENTRY int cuInit(unsigned) { return OK; }
ENTRY int cuDeviceGet(int *out, int ordinal) { *out = ordinal; return ordinal ? INVALID : OK; }
ENTRY int cuDeviceGetAttribute(int *out, int attribute, int)
{
    const char *blocks = getenv("SETUN_EMULATED_BLOCKS");
    *out = attribute == 16 ? (blocks ? atoi(blocks) : 6) : attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 97 ? 232448 : -1;
    return OK;
}
ENTRY int cuDevicePrimaryCtxRetain(void **out, int) { *out = &functions; return OK; }
ENTRY int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
ENTRY int cuCtxPushCurrent_v2(void *) { return OK; }
ENTRY int cuCtxPopCurrent_v2(void **out) { *out = &functions; return OK; }
ENTRY int cuModuleLoadData(void **out, const void *) { *out = &functions; return OK; }
ENTRY int cuModuleUnload(void *) { return OK; }
ENTRY int cuModuleGetFunction(void **out, void *, const char *name)
{
    auto found = functions.find(name);
    if (found == functions.end() && !strncmp(name, "setun_prompt_quantize_", 22)) found = functions.insert({name, functions["setun_prompt_quantize"]}).first;
    if (found == functions.end() && (!strncmp(name, "setun_prompt_wgmma_", 19) || !strncmp(name, "setun_prompt_mma_", 17))) found = functions.insert({name, {name, product, 0, {8, 8, 8, 8, 8, 8, 8, 8, 4, 4, 4, 4, 4}}}).first;
    *out = found == functions.end() ? nullptr : &found->second;
    return *out ? OK : NOT_FOUND;
}
ENTRY int cuFuncSetAttribute(void *f, int, int value) { ((function *)f)->shared = value; return value > 232448 ? INVALID : OK; }
/* Launches that are kept between begin and end of a capture, with copies of their arguments. */
struct kept_launch { function *f; int blocks, threads, shared; std::vector<std::vector<char>> arguments; };
typedef std::vector<kept_launch> graph;
static graph *capturing;
static int launch_function(function *f, int blocks, int threads, int shared, void **arguments)
{
    if (shared > 48000 && shared > f->shared) return INVALID;
    if (!capturing) {
        f->run({blocks, threads, shared, arguments});
        return emulated::copies_are_done() ? OK : INVALID;
    }
    kept_launch k{f, blocks, threads, shared, {}};
    for (size_t i = 0; i < f->sizes.size(); i++) k.arguments.push_back(std::vector<char>((char *)arguments[i], (char *)arguments[i] + f->sizes[i]));
    capturing->push_back(k);
    return OK;
}
ENTRY int cuLaunchKernel(void *f, unsigned bx, unsigned, unsigned, unsigned tx, unsigned, unsigned, unsigned shared, void *, void **arguments, void **)
{
    return launch_function((function *)f, (int)bx, (int)tx, (int)shared, arguments);
}
struct launch_attribute { int name; char pad[4]; union { int value; unsigned long long words[8]; }; };
struct launch_configuration { unsigned grid[3], block[3], shared; void *stream; launch_attribute *attributes; unsigned count; };
ENTRY int cuLaunchKernelEx(const launch_configuration *c, void *f, void **arguments, void **)
{
    if (c->count != 1 || c->attributes->name != 6 || c->attributes->value != 1 || c->grid[1] != 1 || c->block[1] != 1) return INVALID;
    if (!strncmp(((function *)f)->name.c_str(), "setun_cuda_", 11)) return INVALID; /* has no wait for the launch before */
    return launch_function((function *)f, (int)c->grid[0], (int)c->block[0], (int)c->shared, arguments);
}
ENTRY int cuStreamBeginCapture_v2(void *, int) { capturing = new graph; return OK; }
ENTRY int cuStreamEndCapture(void *, void **out) { *out = capturing; capturing = nullptr; return OK; }
ENTRY int cuGraphInstantiateWithFlags(void **out, void *text, unsigned long long) { *out = new graph(*(graph *)text); return OK; }
ENTRY int cuGraphDestroy(void *text) { delete (graph *)text; return OK; }
ENTRY int cuGraphExecDestroy(void *g) { delete (graph *)g; return OK; }
ENTRY int cuGraphLaunch(void *g, void *)
{
    for (auto &k : *(graph *)g) {
        std::vector<void *> arguments;
        for (auto &a : k.arguments) arguments.push_back(a.data());
        int result = launch_function(k.f, k.blocks, k.threads, k.shared, arguments.data());
        if (result != OK) return result;
    }
    return OK;
}
ENTRY int cuStreamCreate(void **out, unsigned) { *out = &functions; return OK; }
ENTRY int cuStreamDestroy_v2(void *) { return OK; }
ENTRY int cuStreamSynchronize(void *) { return OK; }
ENTRY int cuMemAlloc_v2(pointer *out, size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!p) return MEMORY;
    memset(p, 0xa5, bytes);
    *out = (pointer)(uintptr_t)p;
    return OK;
}
ENTRY int cuMemFree_v2(pointer p) { free((void *)(uintptr_t)p); return OK; }
ENTRY int cuMemHostAlloc(void **out, size_t bytes, unsigned) { *out = malloc(bytes); return *out ? OK : MEMORY; }
ENTRY int cuMemFreeHost(void *p) { free(p); return OK; }
ENTRY int cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, void *) { memcpy((void *)(uintptr_t)to, from, bytes); return OK; }
ENTRY int cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, void *) { memcpy(to, (const void *)(uintptr_t)from, bytes); return OK; }
ENTRY int cuMemsetD8Async(pointer p, unsigned char value, size_t bytes, void *) { memset((void *)(uintptr_t)p, value, bytes); return OK; }
ENTRY int cuGetErrorString(int result, const char **out) { *out = result == MEMORY ? "out of memory" : "invalid value"; return OK; }
