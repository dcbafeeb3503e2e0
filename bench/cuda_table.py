"""One table and result.json from the logs of bench/cuda_validate.sh. usage: cuda_table.py FOLDER"""
import json
import re
import sys
from pathlib import Path

folder = Path(sys.argv[1])
result = {"gpu": (folder / "gpu.txt").read_text().strip() if (folder / "gpu.txt").exists() else "", "failed": []}
rows = []


def text(name):
    path = folder / (name + ".txt")
    return path.read_text(errors="replace") if path.exists() else ""


for name in ("decode_check", "decode_time", "engine_135m", "engine_2b", "prompt_check", "prompt_time"):
    if not text(name):
        result["failed"].append(name + ": not run")
    for line in text(name).splitlines():
        if "FAILED" in line:
            result["failed"].append(name + ": " + line.strip())
for what, asked in (("135m", {"decode_at_16_ms": 1 / 3}), ("2b", {"decode_at_16_ms": 0.60})):
    found = [line for line in text("engine_" + what).splitlines() if line.startswith("{")]
    if not found:
        continue
    data = result["engine_" + what] = json.loads(found[-1])
    for key in ("prompt_512_ms", "prompt_2048_ms", "decode_at_16_ms", "decode_at_2048_ms", "batch_8_ms", "batch_32_ms"):
        if key in data:
            rows.append((what + " " + key[:-3].replace("_", " "), "%.4f ms" % data[key], "asked %.3f" % asked[key] if key in asked else ""))
    rows.append((what + " tokens like the CPU's", "%d of %d" % (data.get("tokens_same", 0), data.get("tokens_all", 0)), "logits differ %.1e" % data.get("logits_worst", float("nan"))))
result["kernel"] = {}
for line in text("decode_time").splitlines():
    m = re.match(r"time\s+(.+?)\s+(\d+) sequences, context\s+(\d+),\s+(\d+) tokens a launch: ([\d.]+) ms a step", line)
    if m:
        key = "%s, %s sequences at %s, %s a launch" % m.groups()[:4]
        result["kernel"][key] = float(m.group(5))
        rows.append(("kernel alone: " + key, m.group(5) + " ms", ""))
result["variants"] = {name: [line.strip() for line in text("decode_" + name).splitlines() if "clocks" in line or "tokens a launch" in line] for name in ("profile", "backoff20", "backoff100")}
result["torch"] = {}
for line in text("torch_decode").splitlines():
    m = re.match(r"torch bf16 graph (\w+) batch (\d+): ([\d.]+) ms", line)
    if m:
        result["torch"]["%s batch %s" % m.groups()[:2]] = float(m.group(3))
        rows.append(("PyTorch bf16 graph, no attention: %s batch %s" % m.groups()[:2], m.group(3) + " ms", ""))
result["torch_prompt"] = [line for line in text("torch_prompt").splitlines() if "tokens PyTorch" in line]
result["prompt"] = [line for line in text("prompt_time").splitlines() if "tokens" in line]
result["ncu"] = {}
for what in ("135m", "2b"):
    for line in text("ncu_" + what).splitlines():
        cells = re.findall(r'"([^"]*)"', line)
        if len(cells) > 3 and "__" in line:
            name = next((c for c in cells if "__" in c and "." in c), "")
            result["ncu"].setdefault(what, {}).setdefault(name, []).append(cells[-1] + " " + cells[-2])
            rows.append(("ncu %s %s" % (what, name), cells[-1], cells[-2]))
(folder / "result.json").write_text(json.dumps(result, indent=1))
width = max([len(r[0]) for r in rows] + [10])
print(result["gpu"])
for r in rows:
    print("%-*s  %14s  %s" % ((width,) + r))
for line in result["prompt"][:6] + result["torch_prompt"][:6]:
    print(line)
print("failed: " + ("; ".join(result["failed"]) if result["failed"] else "nothing"))
