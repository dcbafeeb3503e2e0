#!/usr/bin/env python3
"""The products of all layers of the 2B-4T shape in PyTorch, one CUDA graph: bf16 (cuBLAS) and int8 (cublasLt). Beside bench/cuda_prompt.cu."""
import torch

SHAPES = [(3840, 2560), (2560, 2560), (13824, 2560), (2560, 6912)]
LAYERS = 30


def replay_ms(work, repeats=20):
    """Median milliseconds of a replay of work(), captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for i in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times[3:])[repeats // 2]


def main():
    operations = sum(2 * rows * columns for rows, columns in SHAPES) * LAYERS
    bf16 = [[torch.randn(columns, rows, device="cuda", dtype=torch.bfloat16).t().contiguous().t() for rows, columns in SHAPES] for _ in range(LAYERS)]
    int8 = [[torch.randint(-1, 2, (rows, columns), device="cuda", dtype=torch.int8).t() for rows, columns in SHAPES] for _ in range(LAYERS)]
    for tokens in (8, 32, 128, 512, 2048):
        x16 = [torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16) for _, columns in SHAPES]
        x8 = [torch.randint(-127, 128, (tokens, columns), device="cuda", dtype=torch.int8) for _, columns in SHAPES]
        out16 = [torch.empty(tokens, rows, device="cuda", dtype=torch.bfloat16) for rows, _ in SHAPES]
        ms = replay_ms(lambda: [torch.matmul(x16[i], layer[i], out=out16[i]) for layer in bf16 for i in range(4)])
        line = f"{tokens:4d} tokens PyTorch {torch.__version__} bf16 {ms:.3f} ms = {operations * tokens / ms / 1e9:.0f} TFLOP/s"
        if tokens > 16:
            ms = replay_ms(lambda: [torch._int_mm(x8[i], layer[i]) for layer in int8 for i in range(4)])
            line += f"; int8 {ms:.3f} ms = {operations * tokens / ms / 1e9:.0f} TOP/s"
        print(line, flush=True)


if __name__ == "__main__":
    main()
