"""One decode step of both shapes as PyTorch runs it in bf16 (cuBLAS, one CUDA graph): the matrix products, norms, gate and head, without attention.
usage: python bench/cuda_decode_torch.py"""
import torch

def step(layers, width, ff, heads, kv, d, vocabulary, batch):
    dev, t = "cuda", torch.bfloat16
    w = [[torch.randn(r, c, device=dev, dtype=t) * 0.02 for r, c in (((heads + 2 * kv) * d, width), (width, heads * d), (2 * ff, width), (width, ff))] for _ in range(layers)]
    head = torch.randn(vocabulary, width, device=dev, dtype=t)
    x = torch.randn(batch, width, device=dev, dtype=t)
    norm = torch.nn.functional.rms_norm

    def run():
        h = x
        for q, o, g, f in w:
            a = (norm(h, (width,)) @ q.t())[:, :heads * d]
            h = h + norm(a, (heads * d,)) @ o.t()
            gate, up = (norm(h, (width,)) @ g.t()).chunk(2, dim=1)
            h = h + norm(torch.relu(gate).square() * up, (ff,)) @ f.t()
        return (norm(h, (width,)) @ head.t()).argmax(dim=1)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(30):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times[5:])[len(times[5:]) // 2]

print(torch.cuda.get_device_name(0), torch.__version__)
for name, shape in (("135M", (30, 576, 1536, 9, 3, 64, 49152)), ("2B", (30, 2560, 6912, 20, 5, 128, 128256))):
    for batch in (1, 8, 32):
        ms = step(*shape, batch)
        print(f"torch bf16 graph {name} batch {batch}: {ms:.4f} ms a step, {1e3 * batch / ms:.0f} tokens/s")
