#!/usr/bin/env python3
"""Makes docs/performance.svg and the tables of docs/performance.md from the JSON that bench/side_by_side.py wrote.

usage: draw_performance.py RESULTS.json [MORE.json ..]      (docs/ beside this script's folder; the text between the markers is replaced)
Python's standard library only."""
import html
import json
import pathlib
import sys

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- figures: made by tools/draw_performance.py -->", "<!-- end of figures -->"


def number(value):
    return "%.0f" % value if value >= 200 else "%.1f" % value if value >= 10 else "%.2f" % value


def title(case):
    layers = ", %d of its layers" % case["layers"] if case.get("layers") else ""
    return "%s%s: %s, %d thread%s" % (case["shape"], layers, case["case"], case["threads"], "" if case["threads"] == 1 else "s")


def ordered(case):
    return sorted(case["engines"].items(), key=lambda item: item[1]["median"], reverse=not case["lower_is_better"])


def tables(cases):
    out = []
    for case in cases:
        out += ["", "### %s (%s)" % (title(case), case["unit"]), "", "| | median | range | peak MiB |", "| --- | --- | --- | --- |"]
        for label, e in ordered(case):
            name = "**%s**" % label if label.startswith("Setun") else label
            out.append("| %s | %s | %s–%s | %.0f |" % (name, number(e["median"]), number(e["min"]), number(e["max"]), e["peak_bytes"] / 2**20))
        seen = set()
        for r in case["ratios"]:
            if (r["setun"], r["best_peer"]) in seen:
                continue
            seen.add((r["setun"], r["best_peer"]))
            out.append("")
            out.append("%s: %.2f × [%.2f–%.2f] of %s (best of %s); memory %.2f ×." % (r["setun"], r["ratio"], r["low"], r["high"], r["best_peer"], r["among"], r["memory_ratio"] or 0))
    return out


def chart(cases):
    row, gap, left, width = 18, 30, 250, 460
    height = sum(gap + row * len(c["engines"]) for c in cases) + 20
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">' % (left + width + 90, height), '<rect width="100%" height="100%" fill="white"/>']
    y = 10
    for case in cases:
        y += 16
        out.append('<text x="6" y="%d" font-weight="bold">%s (%s)</text>' % (y, html.escape(title(case)), case["unit"]))
        y += 6
        most = max(e["max"] for e in case["engines"].values())
        for label, e in ordered(case):
            colour = "#2a6f97" if label.startswith("Setun") else "#b0b0b0"
            out.append('<text x="%d" y="%d" text-anchor="end">%s</text>' % (left - 6, y + 13, html.escape(label)))
            out.append('<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>' % (left, y + 3, e["median"] / most * width, row - 5, colour))
            out.append('<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="black"/>' % (left + e["min"] / most * width, left + e["max"] / most * width, y + row // 2, y + row // 2))
            out.append('<text x="%.1f" y="%d">%s</text>' % (left + e["max"] / most * width + 6, y + 13, number(e["median"])))
            y += row
        y += gap - 22
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    runs = [json.load(open(path)) for path in sys.argv[1:]]
    for run in runs:
        for case in run["cases"]:
            if "=avx2" in run["command"]:
                case["shape"] += " (all held to AVX2)"
    cases = [c for run in runs for c in run["cases"] if c["engines"]]
    doctor = runs[0]["machine"].get("doctor", {})
    head = ["%s, %s; %s." % (doctor.get("cpu", {}).get("name", "") if isinstance(doctor.get("cpu"), dict) else doctor.get("cpu", ""), runs[0]["machine"]["system"], runs[0]["machine"]["date"]), "", "Commands:", ""]
    head += ["    %s   (%d rounds)" % (run["command"], run["rounds"]) for run in runs]
    page = DOCS / "performance.md"
    text = page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(before + BEGIN + "\n" + "\n".join(head + tables(cases)) + "\n" + END + after)
    (DOCS / "performance.svg").write_text(chart(cases))


if __name__ == "__main__":
    main()
