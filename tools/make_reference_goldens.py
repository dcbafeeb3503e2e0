#!/usr/bin/env python3
"""Makes tests/golden/references/references.json from the references that came with the model in the repository.

    make_reference_goldens.py FOLDER MODEL.gguf OUTPUT

FOLDER holds references.json (prompt, ids, greedy_ids of six prompts) and refN.npz (ids, last_logits, top_ids, top_logprobs, greedy), computed in float32
with int8 activations. Kept: ids, greedy ids, the 20 best log-probabilities of each position, and every 24th of the last logits. Added: the last logits
without rounding of activations, computed here in float64 from the model's values (needs numpy and gguf).
"""
import json
import sys

import gguf
import numpy as np

STRIDE = 24


def numbers(values, digits):
    return [round(float(v), digits) for v in values]


class Model:
    """The bitnet architecture as its paper and its Hugging Face form describe it, in float64, whole sequence at once."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        field = lambda key: reader.fields["bitnet." + key].contents()
        self.layers, self.heads, self.kv_heads = field("block_count"), field("attention.head_count"), field("attention.head_count_kv")
        self.theta, self.epsilon = field("rope.freq_base"), field("attention.layer_norm_rms_epsilon")
        self.weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.epsilon) * self.weights[name + ".weight"]

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T

    def rotate(self, x):  # [T, heads, d], pairs (i, i + d/2)
        tokens, _, d = x.shape
        angle = np.arange(tokens)[:, None, None] * self.theta ** (-np.arange(0, d, 2) / d)
        a, b = x[..., : d // 2], x[..., d // 2:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    def last_logits(self, ids):
        embedding = self.weights["token_embd.weight"]
        x, tokens = embedding[ids], len(ids)
        for i in range(self.layers):
            p = f"blk.{i}."
            h = self.norm(x, p + "attn_norm")
            q, k, v = (self.linear(h, p + "attn_" + n) for n in "qkv")
            d = q.shape[1] // self.heads
            q, k = self.rotate(q.reshape(tokens, self.heads, d)), self.rotate(k.reshape(tokens, self.kv_heads, d))
            v, group = v.reshape(tokens, self.kv_heads, d), self.heads // self.kv_heads
            k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
            scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(tokens, -1)
            x = x + self.linear(self.norm(out, p + "attn_sub_norm"), p + "attn_output")
            h = self.norm(x, p + "ffn_norm")
            gate, up = self.linear(h, p + "ffn_gate"), self.linear(h, p + "ffn_up")
            x = x + self.linear(self.norm(gate / (1 + np.exp(-gate)) * up, p + "ffn_sub_norm"), p + "ffn_down")
        return self.norm(x[-1], "output_norm") @ embedding.T


def main():
    folder, model_path, output = sys.argv[1:]
    entries = json.load(open(f"{folder}/references.json"))
    model = Model(model_path)
    golden = []
    for i, entry in enumerate(entries):
        data = np.load(f"{folder}/ref{i}.npz")
        assert data["ids"].tolist() == entry["ids"]
        assert data["greedy"].tolist()[: len(entry["greedy_ids"])] == entry["greedy_ids"]
        golden.append({
            "prompt": entry["prompt"],
            "ids": data["ids"].tolist(),
            "greedy": data["greedy"].tolist(),
            "top": [{"ids": ids.tolist(), "logprobs": numbers(logprobs, 5)} for ids, logprobs in zip(data["top_ids"], data["top_logprobs"])],
            "logit_stride": STRIDE,
            "last_logits": numbers(data["last_logits"][::STRIDE], 5),
            "last_logits_without_rounding": numbers(model.last_logits(entry["ids"])[::STRIDE], 6),
        })
    with open(output, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(g, separators=(",", ":")) for g in golden) + "\n]\n")


main()
