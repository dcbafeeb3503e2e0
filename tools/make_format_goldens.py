#!/usr/bin/env python3
"""Golden files for the weight formats: tests/golden/formats/NAME.bin.

Formats that PyPI `gguf` knows are decoded and encoded by it. The others are read bit by bit here, from docs/formats.md,
as naively as possible, so that the library is checked against a second reader that shares nothing with it.

File: 'SGOLD1\\0\\0', int32 rows, columns, group (MLX), source (1: values+encoded follow), uint32 bytes, scales bytes, biases bytes,
float tensor scale; then data, scales, biases (MLX), decoded float32; then, where source is 1, float32 values and their encoding
(as many bytes as data).
"""
import pathlib
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type, quants

ROWS, COLUMNS = 4, 512
rng = np.random.default_rng(1958)
out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / "tests/golden/formats")
out.mkdir(parents=True, exist_ok=True)


def write(name, data, decoded, values=None, encoded=None, scales=b"", biases=b"", group=0, tensor_scale=0.0):
    data, encoded = bytes(data), None if encoded is None else bytes(encoded)
    decoded = np.ascontiguousarray(decoded, np.float32).reshape(ROWS, COLUMNS)
    with open(out / f"{name}.bin", "wb") as f:
        f.write(b"SGOLD1\0\0")
        f.write(struct.pack("<4i3If", ROWS, COLUMNS, group, encoded is not None, len(data), len(scales), len(biases), tensor_scale))
        f.write(data + bytes(scales) + bytes(biases) + decoded.tobytes())
        if encoded is not None:
            assert len(encoded) == len(data), name
            f.write(np.ascontiguousarray(values, np.float32).tobytes() + encoded)


def f16(v):
    return np.float16(v).tobytes()


def scale16():
    """A scale that f16 holds."""
    return float(np.float16(rng.uniform(0.01, 2)))


# ---- formats that gguf knows: random blocks decoded, random values encoded ----
def finite_scales(raw, stride, places):
    """Puts small finite f16 numbers where a random block has scales."""
    blocks = raw.reshape(-1, stride)
    for place in places:
        blocks[:, place:place + 2] = np.float16(rng.uniform(-0.1, 0.1, len(blocks))).view(np.uint8).reshape(-1, 2)
    return raw


for name, kind, stride, elements, places in [
        ("f16", Type.F16, 2, 1, [0]), ("bf16", Type.BF16, 2, 1, []), ("q8_0", Type.Q8_0, 34, 32, [0]), ("q4_0", Type.Q4_0, 18, 32, [0]),
        ("q4_1", Type.Q4_1, 20, 32, [0, 2]), ("q4_k", Type.Q4_K, 144, 256, [0, 2]), ("q6_k", Type.Q6_K, 210, 256, [208]),
        ("tq1_0", Type.TQ1_0, 54, 256, [52]), ("tq2_0", Type.TQ2_0, 66, 256, [64])]:
    n = ROWS * COLUMNS // elements * stride
    raw = finite_scales(rng.integers(0, 256, n, dtype=np.uint8), stride, places)
    if name == "bf16":
        raw = quants.quantize(rng.normal(0, 3, (ROWS, COLUMNS)).astype(np.float32), kind).ravel().view(np.uint8)
    decoded = quants.dequantize(raw.reshape(ROWS, -1), kind)
    values = encoded = None
    if name not in ("q4_k", "q6_k"):
        values = rng.normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)
        if name.startswith("tq"):
            scales = np.repeat([[scale16()] for _ in range(ROWS * COLUMNS // 256)], 256, 1).reshape(ROWS, COLUMNS)
            values = (rng.integers(-1, 2, (ROWS, COLUMNS)) * scales).astype(np.float32)
        encoded = quants.quantize(values, kind).view(np.uint8).ravel()
    write(name, raw, decoded, values, encoded)
values = rng.normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
write("f32", values.tobytes(), values, values, values.tobytes())


# ---- the others, weight by weight ----
def codes_and(scale):
    codes = rng.integers(0, 3, (ROWS, COLUMNS))
    values = np.array([[np.float32(scale(r, c)) * np.float32(codes[r, c] - 1) for c in range(COLUMNS)] for r in range(ROWS)], np.float32)
    return codes, values


def i2_s(block):
    s = float(np.float32(rng.uniform(0.1, 1)))
    codes, values = codes_and(lambda r, c: s)
    flat, data = codes.ravel(), bytearray(ROWS * COLUMNS // 4)
    lanes = block // 4
    for i, code in enumerate(flat):
        within = i % block
        data[i // block * lanes + within % lanes] |= int(code) << (6 - 2 * (within // lanes))
    return bytes(data) + struct.pack("<f", s) + bytes(28), values


for name, block in (("i2_s", 128), ("i2_s-64x16", 64)):
    data, values = i2_s(block)
    write(name, data, values, values, data)

s = float(np.float32(rng.uniform(0.1, 1)))
codes, values = codes_and(lambda r, c: s)
data = bytearray(ROWS * COLUMNS // 4)
for r in range(ROWS):
    for c in range(COLUMNS):
        data[r // 4 * COLUMNS + c] |= int(codes[r, c]) << (6 - 2 * (r % 4))
data += struct.pack("<f", s) + bytes(28)
write("i2_s-row4", data, values, values, data)

codes, values = codes_and(lambda r, c: s)
data = bytearray(ROWS * COLUMNS // 4)
for r in range(ROWS):
    for c in range(COLUMNS):
        i, packed = r // (ROWS // 4), r % (ROWS // 4)
        data[packed * COLUMNS + c] |= int(codes[r, c]) << (2 * i)
write("hf", data, values, values, data, tensor_scale=s)

# IQ2_BN: f32 scale of the row, then 16 bytes per 64
row_scales = [float(np.float32(rng.uniform(0.1, 1))) for _ in range(ROWS)]
codes, values = codes_and(lambda r, c: row_scales[r])
data = bytearray()
for r in range(ROWS):
    row = bytearray(COLUMNS // 4)
    for c in range(COLUMNS):
        row[c // 64 * 16 + c % 16] |= int(codes[r, c]) << (2 * (c % 64 // 16))
    data += struct.pack("<f", row_scales[r]) + row
write("iq2_bn", data, values, values, data)


def digit_byte(digits):
    """digits, most significant first, base 3, five of them -> ceil(v * 256 / 243)."""
    v = 0
    for d in digits:
        v = v * 3 + int(d)
    return -(-v * 256 // 243)


# IQ1_BN: f16 scale of the row, then 12 bytes of five and one byte of four, least significant first
row_scales = [scale16() for _ in range(ROWS)]
codes, values = codes_and(lambda r, c: row_scales[r])
data = bytearray()
for r in range(ROWS):
    data += f16(row_scales[r])
    for b in range(0, COLUMNS, 64):
        w = codes[r, b:b + 64]
        block = [0] * 13
        for i in range(4):
            for k in range(3):
                block[3 * i + k] = digit_byte([w[16 * i + 5 * k + j] for j in (4, 3, 2, 1, 0)])
        block[12] = digit_byte([0] + [w[16 * i + 15] for i in (3, 2, 1, 0)])
        data += bytes(block)
write("iq1_bn", data, values, values, data)

for name, group in (("q2_0", 64), ("pq2_0", 128)):
    scales = {(r, g): scale16() for r in range(ROWS) for g in range(COLUMNS // group)}
    codes, values = codes_and(lambda r, c: scales[r, c // group])
    data = bytearray()
    for r in range(ROWS):
        for g in range(COLUMNS // group):
            block = bytearray(group // 4)
            for j in range(group):
                block[j // 4] |= int(codes[r, g * group + j]) << (2 * (j % 4))
            data += f16(scales[r, g]) + block
    write(name, data, values, values, data)

scales = {(r, g): scale16() for r in range(ROWS) for g in range(COLUMNS // 128)}
codes, values = codes_and(lambda r, c: scales[r, c // 128])
data = bytearray()
for r in range(ROWS):
    for g in range(COLUMNS // 128):
        w = codes[r, g * 128:g * 128 + 128]
        block = [digit_byte([w[16 * n + m] for n in range(5)]) for m in range(16)]
        block += [digit_byte([w[80 + 8 * n + m] for n in range(5)]) for m in range(8)]
        block += [digit_byte([w[120 + 2 * n + m] for n in range(4)] + [0]) for m in range(2)]
        data += bytes(block) + f16(scales[r, g])
write("ptq1_0", data, values, values, data)

# MLX: words of 16 codes; w = scale * q + bias; once ternary (bias = -scale), once not
for name, ternary in (("mlx-2bit", True), ("mlx-2bit-dense", False)):
    group = 64
    q = rng.integers(0, 3 if ternary else 4, (ROWS, COLUMNS))
    s16 = np.float16(rng.uniform(0.01, 1, (ROWS, COLUMNS // group)))
    b16 = -s16 if ternary else np.float16(rng.uniform(-1, 1, s16.shape))
    words = np.zeros((ROWS, COLUMNS // 16), np.uint32)
    for r in range(ROWS):
        for c in range(COLUMNS):
            words[r, c // 16] |= np.uint32(int(q[r, c]) << (2 * (c % 16)))
    full_s, full_b = (np.repeat(v.astype(np.float32), group, 1) for v in (s16, b16))
    write(name, words.tobytes(), q.astype(np.float32) * full_s + full_b, scales=s16.tobytes(), biases=b16.tobytes(), group=group)
