#!/usr/bin/env python3
"""Makes tests/golden/file/: small files written by the reference packages (PyPI gguf, safetensors), and what is in them.

Needs: numpy, gguf, safetensors, torch (for bf16 and f8). Usage: tools/make_file_goldens.py [folder]
"""
import json
import os
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import save_file as save_torch

out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "file")
os.makedirs(out, exist_ok=True)
rng = np.random.default_rng(20240214)


def fnv(data):
    """FNV-1a, 64 bits, over the raw bytes of a tensor: what the test computes over what it was given."""
    h = 0xCBF29CE484222325
    for b in bytes(data):
        h = (h ^ b) * 0x100000001B3 % 2**64
    return "%016x" % h


def describe_gguf(path):
    reader = gguf.GGUFReader(path)
    tensors = []
    for t in reader.tensors:
        name = t.tensor_type.name.lower()
        tensors.append({"name": t.name, "type": name, "shape": [int(d) for d in reversed(t.shape)], "offset": int(t.data_offset), "bytes": int(t.n_bytes), "fnv": fnv(t.data.tobytes())})
    return tensors


def write_gguf(name, alignment):
    path = os.path.join(out, name)
    w = gguf.GGUFWriter(path, "bitnet")
    if alignment != 32:
        w.add_custom_alignment(alignment)
    w.add_uint8("test.u8", 200)
    w.add_int8("test.i8", -100)
    w.add_uint16("test.u16", 60000)
    w.add_int16("test.i16", -30000)
    w.add_uint32("test.u32", 4000000000)
    w.add_int32("test.i32", -2000000000)
    w.add_float32("test.f32", 0.5)
    w.add_float64("test.f64", 1e300)
    w.add_uint64("test.u64", 2**64 - 1)
    w.add_int64("test.i64", -(2**63))
    w.add_bool("test.true", True)
    w.add_bool("test.false", False)
    w.add_string("test.string", "Сетунь ±1")
    w.add_array("test.strings", ["", "a", "три", "\n"])
    w.add_array("test.ints", [1, -2, 3])
    w.add_array("test.floats", [0.25, -1.5])
    w.add_array("test.bools", [True, False, True])
    codes = rng.integers(-1, 2, (3, 256)).astype(np.float32)
    w.add_tensor("dense.f32", rng.standard_normal((2, 3, 5)).astype(np.float32))
    w.add_tensor("dense.f16", rng.standard_normal((7,)).astype(np.float16))
    for kind in ("Q8_0", "Q4_0", "TQ1_0", "TQ2_0", "BF16"):
        raw = gguf.quants.quantize(codes, getattr(gguf.GGMLQuantizationType, kind))
        w.add_tensor("quantised." + kind.lower(), raw, raw_dtype=getattr(gguf.GGMLQuantizationType, kind))
    w.add_tensor("whole.i32", np.arange(6, dtype=np.int32).reshape(3, 2))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return describe_gguf(path)


def describe_arrays(arrays):
    names = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float64": "F64", "torch.int8": "I8", "torch.int16": "I16", "torch.int32": "I32",
             "torch.int64": "I64", "torch.uint8": "U8", "torch.bool": "BOOL", "torch.float8_e4m3fn": "F8_E4M3"}
    return [{"name": n, "type": names[str(a.dtype)], "shape": list(a.shape), "bytes": a.numel() * a.element_size(), "fnv": fnv(a.contiguous().view(torch.uint8).numpy().tobytes() if a.dim() else a.reshape(1).view(torch.uint8).numpy().tobytes())} for n, a in arrays.items()]


expected = {"aligned64.gguf": write_gguf("aligned64.gguf", 64), "plain.gguf": write_gguf("plain.gguf", 32)}
torch.manual_seed(1958)
arrays = {
    "a.f32": torch.randn(2, 3), "a.f16": torch.randn(5).half(), "a.bf16": torch.randn(2, 2, 2).bfloat16(), "a.f64": torch.randn(3).double(),
    "a.i8": torch.arange(-3, 4).to(torch.int8), "a.i16": torch.arange(4).to(torch.int16), "a.i32": torch.arange(4).to(torch.int32), "a.i64": torch.arange(4),
    "a.u8": torch.arange(9).to(torch.uint8).reshape(3, 3), "a.bool": torch.tensor([True, False]), "a.f8": torch.randn(4).to(torch.float8_e4m3fn),
    "a.scalar": torch.tensor(1.5), "a.empty": torch.zeros(0, 4),
}
save_torch(arrays, os.path.join(out, "types.safetensors"), metadata={"format": "pt", "note": "тест"})
expected["types.safetensors"] = describe_arrays(arrays)

folder = os.path.join(out, "sharded")
os.makedirs(folder, exist_ok=True)
first = {"model.embed_tokens.weight": torch.randn(4, 6).bfloat16(), "model.layers.0.weight": torch.arange(12).to(torch.uint8).reshape(2, 6)}
second = {"model.layers.0.weight_scale": torch.tensor([0.125]).bfloat16(), "model.norm.weight": torch.ones(6)}
save_torch(first, os.path.join(folder, "model-00001-of-00002.safetensors"), metadata={"format": "pt"})
save_torch(second, os.path.join(folder, "model-00002-of-00002.safetensors"), metadata={"format": "pt"})
total = sum(t.numel() * t.element_size() for t in [*first.values(), *second.values()])
weight_map = {**{n: "model-00001-of-00002.safetensors" for n in first}, **{n: "model-00002-of-00002.safetensors" for n in second}}
with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
    json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=1)
with open(os.path.join(folder, "config.json"), "w") as f:
    json.dump({"model_type": "bitnet", "hidden_size": 6}, f)
with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
    json.dump({"model_max_length": 1000000000000000019884624838656}, f)
with open(os.path.join(folder, "chat_template.jinja"), "w") as f:
    f.write("{{ messages }}")
expected["sharded"] = describe_arrays(first) + describe_arrays(second)
with open(os.path.join(out, "expected.json"), "w") as f:
    json.dump(expected, f, indent=1)
