#!/usr/bin/env python3
"""First inputs for fuzz_model and fuzz_config: fuzz/corpus/model, fuzz/corpus/config.

    python tools/make_fuzz_corpus.py .

Needs nothing but Python. Folders of tests/golden/families are packed as fuzz/folder.h says; GGUF models of one small layer
are made here, with random codes (fixed seeds) in the ternary formats that the folders do not have, and one tokenizer each.
Files that fuzzing found are kept beside these under names that begin with "found-".
"""
import json
import os
import random
import struct
import sys

FILES = ["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "tq1_0": 34, "tq2_0": 35, "i2_s": 36, "q2_0": 42, "iq2_bn": 135, "ptq1_0": 143}
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    assert len(data) < 60000, path
    with open(path, "wb") as f:
        f.write(data)


def folder(path, more=None):
    out = b"FOLDER\n"
    for i, name in enumerate(FILES):
        if more and name in more:
            data = more[name]
        elif os.path.exists(os.path.join(path, name)):
            data = read(os.path.join(path, name))
        else:
            continue
        out += struct.pack("<BI", i, len(data)) + data
    return out


# ---- GGUF ----


def text(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def value(v):
    if isinstance(v, bool):
        return struct.pack("<IB", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    kind = {int: 5, float: 6, str: 8}[type(v[0])]
    return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(text(x) if kind == 8 else struct.pack("<i" if kind == 5 else "<f", x) for x in v)


def gguf(values, tensors):
    """tensors: name, type, shape (outermost first), data."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, v in values.items():
        head += text(key) + value(v)
    at = 0
    for name, kind, shape, data in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape)) + struct.pack("<IQ", TYPES[kind], at)
        at += (len(data) + 31) // 32 * 32
    for _, _, _, data in tensors:
        head += bytes(-len(head) % 32) + data
    return head + bytes(-len(head) % 32)


def twos(r, count):
    return bytes(r.choice((0, 1, 2)) | r.choice((0, 1, 2)) << 2 | r.choice((0, 1, 2)) << 4 | r.choice((0, 1, 2)) << 6 for _ in range(count))


def fives(r, count, trits=5):
    """Bytes of five (or four) digits of base 3, as TQ1_0 has them."""
    out = b""
    for _ in range(count):
        v = 0
        for i in range(5):
            v = v * 3 + (r.randrange(3) if i < trits else 0)
        out += bytes([(v * 256 + 242) // 243])
    return out


def weights(r, kind, rows, columns):
    n = rows * columns
    scale = struct.pack("<e", 0.0625)
    if kind == "f32":
        return struct.pack("<%df" % n, *(r.uniform(-1, 1) for _ in range(n)))
    if kind == "f16":
        return struct.pack("<%de" % n, *(r.uniform(-1, 1) for _ in range(n)))
    if kind == "q8_0":
        return b"".join(struct.pack("<e", 0.01) + r.randbytes(32) for _ in range(n // 32))
    if kind == "i2_s":
        return twos(r, n // 4) + struct.pack("<f", 0.0625) + bytes(28)
    if kind == "tq2_0":
        return b"".join(twos(r, 64) + scale for _ in range(n // 256))
    if kind == "tq1_0":
        return b"".join(fives(r, 48) + fives(r, 4, 4) + scale for _ in range(n // 256))
    if kind == "q2_0":
        return b"".join(scale + twos(r, 16) for _ in range(n // 64))
    if kind == "iq2_bn":
        return b"".join(struct.pack("<f", 0.0625) + twos(r, columns // 4) for _ in range(rows))
    raise ValueError(kind)


def model(seed, architecture, linear, width, ff, heads, kv, size, vocabulary, tokenizer, sub_norms=False, qk_norms=False, post_norms=False, o="f16", down=None, more=None):
    r = random.Random(seed)
    values = {"general.architecture": architecture, "general.name": "fuzz"}
    for key, v in (("block_count", 1), ("context_length", 64), ("embedding_length", width), ("feed_forward_length", ff), ("attention.head_count", heads), ("attention.head_count_kv", kv),
                   ("attention.key_length", size), ("attention.value_length", size), ("vocab_size", vocabulary), ("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 10000.0)):
        values[architecture + "." + key] = v
    values.update(more or {})
    values.update(tokenizer)
    tensors = [("token_embd.weight", "f16", (vocabulary, width)), ("output_norm.weight", "f32", (width,))]
    norms = [("attn_norm", width), ("ffn_norm", width)]
    if sub_norms:
        norms += [("attn_sub_norm", heads * size), ("ffn_sub_norm", ff)]
    if qk_norms:
        norms += [("attn_q_norm", size), ("attn_k_norm", size)]
    if post_norms:
        norms += [("post_attention_norm", width), ("post_ffw_norm", width)]
    tensors += [("blk.0.%s.weight" % name, "f32", (n,)) for name, n in norms]
    tensors += [("blk.0.%s.weight" % name, kind, shape) for name, kind, shape in (
        ("attn_q", linear, (heads * size, width)), ("attn_k", linear, (kv * size, width)), ("attn_v", linear, (kv * size, width)), ("attn_output", o, (width, heads * size)),
        ("ffn_gate", linear, (ff, width)), ("ffn_up", linear, (ff, width)), ("ffn_down", down or linear, (width, ff)))]
    return gguf(values, [(name, kind, shape, weights(r, kind, shape[0] if len(shape) == 2 else 1, shape[-1])) for name, kind, shape in tensors])


def spm_tokenizer(words):
    tokens = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(0, 256, 8)] + words
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 32 + [1] * len(words), "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}


def bpe_tokenizer():
    letters = [chr(c) for c in range(33, 127)] + ["\u0120", "\u010a"]
    merges = ["t h", "th e", "\u0120 c", "a t", "\u0120c at"]
    tokens = letters + [m.replace(" ", "") for m in merges] + ["<|im_start|>", "<|im_end|>"]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3], "tokenizer.ggml.eos_token_id": len(tokens) - 1, "tokenizer.chat_template": CHAT}


def main():
    top = sys.argv[1]
    golden, out = os.path.join(top, "tests/golden"), os.path.join(top, "fuzz/corpus")
    for name in ("model", "config"):
        os.makedirs(os.path.join(out, name), exist_ok=True)
    families = os.path.join(golden, "families")
    for name in sorted(os.listdir(families)):
        path = os.path.join(families, name, "config.json")
        if os.path.exists(path):
            write(os.path.join(out, "config", name), read(path))
    pairs = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99, "rms_norm_eps": 1e-5, "hidden_act": "silu",
             "max_position_embeddings": 512, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1, "rope_theta": 1e6}}
    write(os.path.join(out, "config", "yarn"), json.dumps(pairs).encode())

    generation = {"generation_config.json": b'{"eos_token_id": [261, 260]}', "tokenizer_config.json": json.dumps({"add_bos_token": True, "bos_token": "<|begin|>", "chat_template": CHAT}).encode()}
    for name in ("bonsai_mlx", "embedding_gemma3", "trilm"):
        write(os.path.join(out, "model", name), folder(os.path.join(families, name)))
    write(os.path.join(out, "model", "embedding_qwen3"), folder(os.path.join(families, "embedding_qwen3"), generation))
    write(os.path.join(out, "model", "unigram"), folder("/nonexistent", {"tokenizer.json": read(os.path.join(golden, "text/t5.json")), "chat_template.jinja": CHAT.encode()}))
    write(os.path.join(out, "model", "spm_t5"), read(os.path.join(golden, "text/spm_t5.gguf")))
    write(os.path.join(out, "model", "rotated"), read(os.path.join(families, "rotated/model.gguf")))
    words = ["\u2581", "\u2581the", "t", "h", "e", "th", "a", "c", "at", "\u2581c", "\u2581cat", "\n"]
    spm, bpe = spm_tokenizer(words), bpe_tokenizer()
    count = len(spm["tokenizer.ggml.tokens"])
    write(os.path.join(out, "model", "i2_s"), model(1, "bitnet-b1.58", "i2_s", 128, 128, 2, 1, 16, count, spm, sub_norms=True))
    write(os.path.join(out, "model", "q2_0"), model(2, "qwen3", "q2_0", 64, 64, 2, 1, 32, len(bpe["tokenizer.ggml.tokens"]), bpe, qk_norms=True, o="q2_0"))
    write(os.path.join(out, "model", "tq1_0"), model(3, "llama", "tq1_0", 256, 32, 1, 1, 32, 16, {}, o="q8_0", down="q8_0"))
    write(os.path.join(out, "model", "iq2_bn"), model(4, "gemma3", "iq2_bn", 64, 64, 1, 1, 64, count, spm, qk_norms=True, post_norms=True, o="iq2_bn",
                                                     more={"gemma3.attention.sliding_window": 4, "gemma3.pooling_type": 3}))


main()
