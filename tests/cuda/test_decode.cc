/*
 * test_decode.cc - the checks of bench/cuda_decode.cu on emulated GPUs of a few multiprocessors: logits against a plain reference, one launch of three
 * tokens against three, for orders of execution drawn from several seeds. Arguments: LAYERS SHAPE(0: 2B, 1: 135M) SEQUENCES POSITION VOCABULARY BLOCKS SEED
 * for a shape of one's own.
 */
#include "emulated.hh"
#include "../../bench/cuda_decode.cu"

static bool try_shape(int layers, int shape, int sequences, int position, int vocabulary, int blocks, uint64_t order)
{
    emulated::m.blocks = blocks;
    emulated::m.seed = order * 0x9e3779b97f4a7c15ull + 1;
    Model m(shape == 0 ? Shape{"2B", layers, 2560, 6912, 20, 5, 128, vocabulary, SETUN_CUDA_ACT_RELU2, SETUN_CUDA_BF16}
            : shape == 1 ? Shape{"135M", layers, 576, 1536, 9, 3, 64, vocabulary, SETUN_CUDA_ACT_SILU, SETUN_CUDA_Q8}
                         : Shape{"small f16", layers, 192, 320, 3, 1, 64, vocabulary, SETUN_CUDA_ACT_SILU, SETUN_CUDA_F16});
    bool ok = check(m, sequences, position);
    if (!ok) printf("  again with: %d %d %d %d %d %d %llu\n", layers, shape, sequences, position, vocabulary, blocks, (unsigned long long)order);
    return ok;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    pool.resize(1 << 20);
    for (auto &c : pool) { uint32_t r; do r = rnd() & 3; while (r == 3); c = (uint8_t)r; }
    if (argc > 7) return !try_shape(atoi(argv[1]), atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), atoi(argv[6]), strtoull(argv[7], nullptr, 10));
    const char *given = getenv("SETUN_TEST_SEED");
    const uint64_t order = given ? strtoull(given, nullptr, 10) : 1;
    printf("seed %llu\n", (unsigned long long)order);
    bool ok = true;
    /* more stages of the head than the ring has, several warps to a stage: a warp once waited for what faster ones had passed */
    ok = try_shape(2, 1, 1, 3, 2100, 3, order) && ok;
    ok = try_shape(13, 2, 1, 0, 300, 4, order + 1) && ok; /* vectors are used again and again */
    ok = try_shape(1, 2, 1, 300, 200, 7, order + 2) && ok; /* a context in parts */
    ok = try_shape(1, 2, 1, 290, 200, 2, order + 4) && ok; /* a context longer than a chunk, and no blocks to share it */
    ok = try_shape(3, 1, 1, 252, 300, 5, order + 5) && ok; /* from one chunk into the next: contexts of 253 to 258 */
    ok = try_shape(2, 2, 9, 20, 200, 3, order + 3) && ok; /* two groups of sequences */
    printf("%s\n", ok ? "all well" : "FAILED");
    return ok ? 0 : 1;
}
