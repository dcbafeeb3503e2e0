#include "emulated.hh"
#include "../../bench/cuda_decode.cu"
int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    pool.resize(1 << 22); for (auto &c : pool) { uint32_t r; do r = rnd() & 3; while (r == 3); c = (uint8_t)r; }
    int layers = atoi(argv[1]), which = atoi(argv[2]), T = atoi(argv[3]), start = atoi(argv[4]), vocab = atoi(argv[5]);
    emulated::m.blocks = atoi(argv[6]);
    emulated::m.seed = argc > 7 ? strtoull(argv[7],0,10) * 0x9e3779b97f4a7c15ull + 1 : 1;
    bool ok;
    if (which == 0) { Model m({"2B", layers, 2560, 6912, 20, 5, 128, vocab, SETUN_CUDA_ACT_RELU2, SETUN_CUDA_BF16}); ok = check(m, T, start); }
    else { Model m({"135M", layers, 576, 1536, 9, 3, 64, vocab, SETUN_CUDA_ACT_SILU, SETUN_CUDA_Q8}); ok = check(m, T, start); }
    return !ok;
}
