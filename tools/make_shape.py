#!/usr/bin/env python3
"""Writes a GGUF of a known model's shape with random ternary weights: for measuring speed, where the values don't matter but the bytes do.

usage: make_shape.py OUT.gguf --shape 2b-4t [--arch NAME] [--layers N] [--head f16]
Linear weights are F16 holding -s, 0, +s in equal shares, so that any engine's own quantiser makes its own format of them; the embedding is
random f16, tied to the head; norms are 1. Every layer holds the same random matrices (drawn once, to be quick): each lies at its own place in
the file and in memory, so reading them costs what reading different ones does. The vocabulary is byte-level BPE with fillers.
Needs numpy and gguf."""
import argparse

import gguf
import numpy as np

SHAPES = {  # width, feed forward, heads, kv heads, head size, vocabulary, layers, rope base, architecture
    "2b-4t": (2560, 6912, 20, 5, 128, 128256, 30, 500000.0, "bitnet-b1.58"),
    "135m": (576, 1536, 9, 3, 64, 49152, 30, 100000.0, "llama"),
    "falcon3-1b": (2048, 8192, 8, 4, 256, 131072, 18, 1000042.0, "llama"),
    "llama3-8b": (4096, 14336, 32, 8, 128, 128256, 32, 500000.0, "llama"),
}


def byte_level_tokens(count):
    """256 byte tokens in GPT-2's printable form, one merge, then fillers."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    form, spare = {}, 256
    for byte in range(256):
        if byte in printable:
            form[byte] = chr(byte)
        else:
            form[byte] = chr(spare)
            spare += 1
    tokens = [form[byte] for byte in range(256)]
    tokens.append(form[ord("t")] + form[ord("h")])
    tokens += ["<|filler_%d|>" % i for i in range(count - len(tokens))]
    kinds = [1] * 257 + [3] * (count - 257)
    return tokens, kinds, [form[ord("t")] + " " + form[ord("h")]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="2b-4t")
    parser.add_argument("--arch", help="general.architecture (default: the shape's own)")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    width, forward, heads, kv_heads, head_size, vocabulary, layers, base, arch = SHAPES[options.shape]
    layers, arch = options.layers or layers, options.arch or arch
    random = np.random.default_rng(options.seed)
    sub_norms = arch.startswith("bitnet")

    writer = gguf.GGUFWriter(options.output, arch)
    writer.add_name("%s shape, random weights" % options.shape)
    writer.add_file_type(1)
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if head_size * heads != width:
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(base)
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(vocabulary)
    tokens, kinds, merges = byte_level_tokens(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary - 256)
    writer.add_eos_token_id(vocabulary - 255)
    writer.add_add_bos_token(True)

    drawn = {}

    def values(shape, kind):
        if (shape, kind) not in drawn:
            count = int(np.prod(shape))
            if kind == "norm":
                drawn[shape, kind] = np.ones(shape, np.float32)
            elif kind == "embedding":
                # every row drawn: rows that repeat would tie, which no real vocabulary does
                rows = np.empty(shape, np.float16)
                for first in range(0, shape[0], 4096):
                    part = rows[first:first + 4096]
                    part[:] = random.standard_normal(part.shape, dtype=np.float32) * 0.5
                drawn[shape, kind] = rows
            else:
                s = np.float16(1.0 / np.sqrt(shape[-1] * 2 / 3))
                drawn[shape, kind] = np.array([-s, 0, s], np.float16)[random.integers(0, 3, count, dtype=np.uint8)].reshape(shape)
        return drawn[shape, kind]

    tensors = [("token_embd.weight", (vocabulary, width), "embedding"), ("output_norm.weight", (width,), "norm")]
    for layer in range(layers):
        def add(name, shape, kind):
            tensors.append(("blk.%d.%s.weight" % (layer, name), shape, kind))
        add("attn_norm", (width,), "norm")
        add("attn_q", (heads * head_size, width), "linear")
        add("attn_k", (kv_heads * head_size, width), "linear")
        add("attn_v", (kv_heads * head_size, width), "linear")
        if sub_norms:
            add("attn_sub_norm", (heads * head_size,), "norm")
        add("attn_output", (width, heads * head_size), "linear")
        add("ffn_norm", (width,), "norm")
        add("ffn_gate", (forward, width), "linear")
        add("ffn_up", (forward, width), "linear")
        if sub_norms:
            add("ffn_sub_norm", (forward,), "norm")
        add("ffn_down", (width, forward), "linear")
    for name, shape, kind in tensors:
        dtype = np.dtype(np.float32 if kind == "norm" else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, kind in tensors:
        writer.write_tensor_data(values(shape, kind))
    writer.close()


if __name__ == "__main__":
    main()
