#!/usr/bin/env python3
"""Writes tests/golden/text/unicode.json: FNV-1a of what Python's unicodedata makes of every character and of random
sequences of composing characters. The test makes the same sequences by the same generator. Run without arguments."""
import json
import os
import unicodedata

OUT = os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "text", "unicode.json")
POOL = [(0x41, 0x7A), (0xC0, 0x17F), (0x300, 0x34F), (0x1100, 0x1113), (0x1161, 0x1176), (0x11A7, 0x11C3), (0xAC00, 0xAC80), (0x900, 0x97F), (0x1E00, 0x1EFF), (0x5B0, 0x5EA), (0x653, 0x656),
        (0x3041, 0x309A), (0xFB00, 0xFB06), (0x2460, 0x2480), (0x1D15E, 0x1D172), (0x110B9, 0x110BA)]


class Random:
    def __init__(self):
        self.state = 1958

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & (2 ** 64 - 1)
        return (self.state >> 33) % n


def fnv(h, data):
    for b in data:
        h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return h


def main():
    out = {}
    texts = {f: 0x811C9DC5 for f in ("NFC", "NFD", "NFKC", "NFKD", "lower")}
    for c in range(0x110000):
        if 0xD800 <= c <= 0xDFFF:
            continue
        for f in texts:
            made = "".join(x.lower() for x in chr(c)) if f == "lower" else unicodedata.normalize(f, chr(c))
            texts[f] = fnv(texts[f], made.encode() + b"\0")
    out["characters"] = texts
    texts = {f: 0x811C9DC5 for f in ("NFC", "NFD", "NFKC", "NFKD")}
    random = Random()
    for _ in range(4000):
        length = 1 + random.below(60)
        made = ""
        for _ in range(length):
            first, last = POOL[random.below(len(POOL))]
            made += chr(first + random.below(last - first + 1))
        for f in texts:
            texts[f] = fnv(texts[f], unicodedata.normalize(f, made).encode() + b"\0")
    out["sequences"] = texts
    with open(OUT, "w") as f:
        json.dump(out, f)


if __name__ == "__main__":
    main()
