#!/usr/bin/env python3
"""Writes src/text/unicode_tables.inc from Python's unicodedata: decompositions, compositions, combining classes,
lower case, word characters. Run: tools/make_unicode_tables.py > src/text/unicode_tables.inc
Caller: a developer, when a newer Unicode is wanted. Hangul syllables are left out (they follow arithmetic)."""
import sys
import unicodedata

LAST = 0x110000
HANGUL = range(0xAC00, 0xAC00 + 11172)


def emit(kind, name, values, width=16):
    print(f"static const {kind} {name}[] = {{")
    for i in range(0, len(values), width):
        print("    " + ", ".join(values[i:i + width]) + ",")
    print("};")


def ranges(predicate):
    out, start = [], None
    for c in range(LAST + 1):
        inside = c < LAST and not 0xD800 <= c <= 0xDFFF and predicate(chr(c))
        if inside and start is None:
            start = c
        elif not inside and start is not None:
            out.append((start, c - 1))
            start = None
    return out


def emit_ranges(name, pairs):
    emit("uint32_t", name, [f"0x{a:x}, 0x{b:x}" for a, b in pairs], 8)


def is_word(ch):
    # Alphabetic is not in unicodedata: letters, letter numbers and the circled and squared letters make it up together
    # with marks, which are word characters anyway.
    if unicodedata.category(ch) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Nd", "Pc", "Mn", "Mc", "Me"):
        return True
    c = ord(ch)
    return (c in (0x200C, 0x200D) or 0x24B6 <= c <= 0x24E9 or 0x1F130 <= c <= 0x1F149
            or 0x1F150 <= c <= 0x1F169 or 0x1F170 <= c <= 0x1F189)


def main():
    print(f"/* Made by tools/make_unicode_tables.py from Unicode {unicodedata.unidata_version}; do not edit. */")

    # Full decompositions, applied to the end, so that run time needs no recursion. One pool of code points; an entry is
    # (code point, offset << 5 | length), canonical ones first and compatibility ones in a second list.
    pool, index = [], {}

    def place(sequence):
        key = tuple(sequence)
        if key not in index:
            index[key] = len(pool)
            pool.extend(key)
        return index[key] << 5 | len(key)

    canonical, compatible = [], []
    for c in range(LAST):
        if 0xD800 <= c <= 0xDFFF or c in HANGUL:
            continue
        ch = chr(c)
        d = unicodedata.normalize("NFD", ch)
        k = unicodedata.normalize("NFKD", ch)
        if d != ch:
            canonical.append((c, place([ord(x) for x in d])))
        if k != d:
            compatible.append((c, place([ord(x) for x in k])))
    emit("uint32_t", "decomposition_pool", [f"0x{x:x}" for x in pool])
    emit("uint32_t", "canonical_table", [f"0x{a:x}, 0x{b:x}" for a, b in canonical], 8)
    emit("uint32_t", "compatible_table", [f"0x{a:x}, 0x{b:x}" for a, b in compatible], 8)

    # Primary composites: (first, second) -> composite, sorted.
    pairs = []
    for c in range(LAST):
        if 0xD800 <= c <= 0xDFFF or c in HANGUL:
            continue
        d = unicodedata.decomposition(chr(c))
        if d and not d.startswith("<"):
            parts = [int(x, 16) for x in d.split()]
            if len(parts) == 2 and unicodedata.normalize("NFC", chr(parts[0]) + chr(parts[1])) == chr(c):
                pairs.append((parts[0], parts[1], c))
    pairs.sort()
    emit("uint32_t", "composition_table", [f"0x{a:x}, 0x{b:x}, 0x{c:x}" for a, b, c in pairs], 6)

    classes = []
    start = previous = None
    for c in range(LAST + 1):
        value = unicodedata.combining(chr(c)) if c < LAST and not 0xD800 <= c <= 0xDFFF else 0
        if value != (previous or 0):
            if previous:
                classes.append((start, c - 1, previous))
            start, previous = c, value
    emit("uint32_t", "combining_table", [f"0x{a:x}, 0x{b:x}, {v}" for a, b, v in classes], 8)

    # Lower case as runs of (first, last, step, difference); the only multi-character one is U+0130.
    lower = [(c, ord(chr(c).lower()) - c) for c in range(LAST)
             if not 0xD800 <= c <= 0xDFFF and len(chr(c).lower()) == 1 and chr(c).lower() != chr(c)]
    multiple = [c for c in range(LAST) if not 0xD800 <= c <= 0xDFFF and len(chr(c).lower()) > 1]
    assert multiple == [0x130], multiple
    runs = []
    for c, difference in lower:
        if runs:
            first, last, step, d = runs[-1]
            if d == difference and c - last in (1, 2) and (step == 0 or c - last == step):
                runs[-1] = (first, c, c - last, d)
                continue
        runs.append((c, c, 0, difference))
    emit("int32_t", "lower_table", [f"0x{a:x}, 0x{b:x}, {s or 1}, {d}" for a, b, s, d in runs], 6)

    emit_ranges("word_table", ranges(is_word))
    emit_ranges("mark_table", ranges(lambda ch: unicodedata.category(ch)[0] == "M"))


if __name__ == "__main__":
    sys.exit(main())
