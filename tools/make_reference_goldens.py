#!/usr/bin/env python3
"""Makes tests/golden/references/references.json from the references that came with the model in the repository.

    make_reference_goldens.py FOLDER OUTPUT

FOLDER holds references.json (prompt, ids, greedy_ids of six prompts) and refN.npz (ids, last_logits, top_ids, top_logprobs, greedy), computed in float32
with int8 activations. Kept: ids, greedy ids, the 20 best log-probabilities of each position, and every 24th of the last logits.
"""
import json
import sys

import numpy as np


def numbers(values, digits):
    return [round(float(v), digits) for v in values]


def main():
    folder, output = sys.argv[1:]
    entries = json.load(open(f"{folder}/references.json"))
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
            "logit_stride": 24,
            "last_logits": numbers(data["last_logits"][::24], 5),
        })
    with open(output, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(g, separators=(",", ":")) for g in golden) + "\n]\n")


main()
