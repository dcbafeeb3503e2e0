#!/usr/bin/env python3
"""Setun beside the other engines: the same shapes, the same machine, one run, interleaved.

usage: side_by_side.py --setun BUILD/setun --peer ik=DIR [--peer llama.cpp=DIR ..] --models DIR --out results.json
       side_by_side.py --build ik=SOURCE_FOLDER            builds a peer natively in SOURCE_FOLDER/build and says which --peer to give
       side_by_side.py --prepare --peer ik=DIR .. --models DIR   makes random-weight models of each shape in each engine's own format
       side_by_side.py --list                              the cases

A peer's DIR holds its llama-bench (llama-quantize for --prepare, llama-batched-bench for the batch cases). Known peers: ik (ik_llama.cpp), llama.cpp,
bitnet.cpp, vlut.cpp. Every round runs every engine of a case once, one process each, in an order that rotates; a figure is the median over the rounds, a
ratio is the median of Setun over the median of the best peer, its interval the 95 % bootstrap interval over rounds (rounds drawn with
replacement, 4000 times). Peak memory is the process's largest resident size. Start to first token is a whole process: open the file, evaluate 16 tokens
up to the logits of the next (Setun picks and prints it too), end. Python's standard library only; --prepare needs numpy and gguf."""
import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TARGETS = {"build": ["llama-bench", "llama-quantize"], "optional": ["llama-batched-bench"]}

# shape -> {engine: [(label, model file, extra arguments)]}. A label names a format and its head. Setun reads the peers' own files.
MODELS = {
    "2b-4t": {
        "ik": [("ik IQ2_BN_R4 f16", "2b-4t-ik-iq2_bn_r4-f16.gguf", []), ("ik IQ2_BN_R4 f16 -thp", "2b-4t-ik-iq2_bn_r4-f16.gguf", ["-thp", "1"]),
               ("ik IQ2_BN q6_K", "2b-4t-ik-iq2_bn-q6_K.gguf", ["-rtr", "1"]), ("ik IQ2_BN q6_K -thp", "2b-4t-ik-iq2_bn-q6_K.gguf", ["-rtr", "1", "-thp", "1"])],
        "bitnet.cpp": [("bitnet.cpp I2_S f16", "2b-4t-bitnet-i2_s-f16.gguf", []), ("bitnet.cpp I2_S q6_K", "2b-4t-bitnet-i2_s-q6_K.gguf", [])],
        "llama.cpp": [("llama.cpp TQ2_0 f16", "2b-4t-llama-tq2_0-f16.gguf", []), ("llama.cpp TQ2_0 q6_K", "2b-4t-llama-tq2_0-q6_K.gguf", [])],
        "vlut.cpp": [("vlut.cpp I2_V_4", "2b-4t-vlut-i2_v_4.gguf", [])],
    },
    "135m": {"ik": [("ik IQ2_BN f16", "135m-ik-iq2_bn-f16.gguf", ["-rtr", "1"]), ("ik IQ2_BN f16 -thp", "135m-ik-iq2_bn-f16.gguf", ["-rtr", "1", "-thp", "1"])]},
}
for shape in ("falcon3-1b", "llama3-8b"):
    MODELS[shape] = {
        "ik": [("ik IQ2_BN f16 -thp", shape + "-ik-iq2_bn-f16.gguf", ["-rtr", "1", "-thp", "1"]), ("ik IQ2_BN q6_K -thp", shape + "-ik-iq2_bn-q6_K.gguf", ["-rtr", "1", "-thp", "1"])],
        "llama.cpp": [("llama.cpp TQ2_0 q6_K", shape + "-llama-tq2_0-q6_K.gguf", [])],
    }
# Setun's own runs: (label, model file, extra arguments); the file is one that a peer made, or what `setun convert --to packed` made of it.
SETUN = {
    "2b-4t": [("Setun f16, proved", "2b-4t-bitnet-i2_s-f16.gguf", ["--head", "proved"]), ("Setun f16, 4-bit shortlist", "2b-4t-bitnet-i2_s-f16.gguf", ["--head", "shortlist"]),
              ("Setun q6_K, proved", "2b-4t-bitnet-i2_s-q6_K.gguf", ["--head", "proved"])],
    "135m": [("Setun f16, proved", "135m-ik-iq2_bn-f16.gguf", ["--head", "proved"])],
    "falcon3-1b": [("Setun f16, proved", "falcon3-1b-ik-iq2_bn-f16.gguf", ["--head", "proved"])],
    "llama3-8b": [("Setun f16, proved", "llama3-8b-ik-iq2_bn-f16.gguf", ["--head", "proved"])],
}
PACKED = {"2b-4t": ("Setun packed, proved", "2b-4t-setun-packed.gguf", ["--head", "proved"])}
LAYERS = {"llama3-8b": 4}  # the whole shape does not fit a small machine: four of its layers


class Case:
    """One figure: what is run, in which unit, and what is wanted of the ratio to the best peer (higher is better unless lower)."""

    def __init__(self, name, shape, kind, threads, target=None, lower=False, argument=0):
        self.name, self.shape, self.kind, self.threads, self.target, self.lower, self.argument = name, shape, kind, threads, target, lower, argument


def all_cases():
    cases = []
    for threads in (2, 1):
        cases += [Case("prefill 512", "2b-4t", "prefill", threads, 2.0, argument=512), Case("decode 64", "2b-4t", "decode", threads, 1.5, argument=64),
                  Case("decode 64 at depth 2048", "2b-4t", "depth", threads, 2.0, argument=2048)]
    cases += [Case("start to first token", "2b-4t", "start", 2, 1.0, lower=True, argument=16)]
    cases += [Case("decode, batch %d" % n, "2b-4t", "batch", 2, 1.0, argument=n) for n in (2, 4, 8, 16)]
    for shape in ("135m", "falcon3-1b", "llama3-8b"):
        for threads in (2, 1):
            cases += [Case("prefill 512", shape, "prefill", threads, 1.0, argument=512), Case("decode 64", shape, "decode", threads, 1.0, argument=64)]
    return cases


def run_process(command, timeout=900):
    """Runs it with an unlimited stack (a peer's one-thread prompt needs that); returns output, seconds and the largest resident size in bytes."""
    def unlimited():
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=unlimited)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, 0.0, 0, "timed out"
    seconds = time.monotonic() - start
    if process.returncode != 0:
        return None, seconds, 0, (errors or output).strip().splitlines()[-1:] or ["exit %d" % process.returncode]
    return output, seconds, 0, errors


def timed(command):
    """As run_process, under a small child of our own, so that the peak memory is that process's alone."""
    program = ("import resource,subprocess,sys,json,time\n"
               "h=resource.getrlimit(resource.RLIMIT_STACK)[1];resource.setrlimit(resource.RLIMIT_STACK,(h,h))\n"
               "t=time.monotonic();p=subprocess.run(sys.argv[1:],capture_output=True,text=True);s=time.monotonic()-t\n"
               "print(json.dumps([p.returncode,p.stdout,p.stderr[-2000:],s,resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))\n")
    output, _, _, why = run_process([sys.executable, "-c", program] + [str(c) for c in command])
    if output is None:
        return None, 0.0, 0, why
    code, text, errors, seconds, peak = json.loads(output)
    if code != 0:
        return None, seconds, 0, (errors.strip().splitlines() or ["exit %d" % code])[-1]
    return text, seconds, peak * (1 if sys.platform == "darwin" else 1024), errors


def peer_figure(engine, folder, model, extra, case):
    """(value, peak bytes) or (None, why). Values: tokens/s, or seconds for `start`."""
    bench = [folder / "llama-bench", "-m", model, "-t", case.threads, "-r", 1, "-o", "json"] + extra
    if case.kind == "batch":
        program = folder / "llama-batched-bench"
        if not program.exists():
            return None, "it has no llama-batched-bench"
        extra = [a for a in extra if a.startswith("-")]  # its switches take no value
        command = [program, "-m", model, "-t", case.threads, "-npp", 16, "-ntg", 32, "-npl", case.argument, "-c", 4096, "-b", 512, "-ub", 512] + extra
        output, _, peak, why = timed(command)
        if output is None:
            return None, why
        rows = re.findall(r"^\|\s*16 \|\s*32 \|\s*%d \|.*$" % case.argument, output + "\n" + str(why), re.M)  # some print it to standard error
        if not rows:
            return None, "no row in its table"
        return float(rows[-1].split("|")[8]), peak
    if case.kind == "prefill":
        bench += ["-p", case.argument, "-n", 0]
    elif case.kind == "decode":
        bench += ["-p", 0, "-n", case.argument]
    elif case.kind == "depth":
        if engine == "ik":
            bench += ["-p", 0, "-n", 0, "-gp", "%d,64" % case.argument]
        elif engine == "llama.cpp":
            bench += ["-p", 0, "-n", 64, "-d", case.argument]
        else:
            return None, "its bench cannot decode at a depth"
    elif case.kind == "start":
        bench += ["-p", case.argument, "-n", 0] + (["-w", 0] if engine in ("ik",) else ["--no-warmup"] if engine == "llama.cpp" else [])
    output, seconds, peak, why = timed(bench)
    if output is None:
        return None, why
    if case.kind == "start":
        return seconds, peak
    rows = json.loads(output[output.index("["):])
    if not rows:
        return None, "no result"
    return rows[-1]["avg_ts"], peak


def setun_figure(program, model, extra, case):
    if case.kind == "start":
        # 15 letters are 15 tokens of the random vocabulary, and the begin token makes 16
        command = [program, "run", "-m", model, "-t", case.threads, "--raw", "--ignore-end", "-n", 1, "-q"] + extra + ["abcdefgijklmnop"]
        output, seconds, peak, why = timed(command)
        return (None, why) if output is None else (seconds, peak)
    command = [program, "bench", "-m", model, "-t", case.threads, "--repeats", 1, "--json", "-q"] + extra
    if case.kind == "prefill":
        command += ["--prompt", case.argument, "--generate", 0]
    elif case.kind == "decode":
        command += ["--prompt", 0, "--generate", case.argument]
    elif case.kind == "depth":
        command += ["--prompt", 0, "--generate", 64, "--depth", case.argument]
    elif case.kind == "batch":
        command += ["--prompt", 0, "--generate", 32, "--depth", 16, "--sequences", case.argument]
    output, _, peak, why = timed(command)
    if output is None:
        return None, why
    result = json.loads(output)
    part = result["runs"][0]["prefill" if case.kind == "prefill" else "decode"]
    return part["median"], peak


def bootstrap(ours, theirs, draws=4000):
    rounds = min(len(ours), len(theirs))
    generator, ratios = random.Random(1), []
    for _ in range(draws):
        chosen = [generator.randrange(rounds) for _ in range(rounds)]
        ratios.append(statistics.median(ours[i] for i in chosen) / statistics.median(theirs[i] for i in chosen))
    ratios.sort()
    return ratios[int(0.025 * draws)], ratios[int(0.975 * draws) - 1]


def head_of(label):
    return "q6_K" if "q6_K" in label else "f16"


def measure(options, peers):
    cases = [c for c in all_cases() if (not options.case or any(re.search(p, "%s %s %dt" % (c.shape, c.name, c.threads)) for p in options.case))]
    models, results = pathlib.Path(options.models), []
    for case in cases:
        engines = []
        own = list(SETUN[case.shape])
        if case.kind == "start" and case.shape in PACKED:
            own.append(PACKED[case.shape])
        if case.kind == "prefill":
            own = own[:1]
        for label, file, extra in own:
            engines.append((label, file, lambda f=file, e=extra: setun_figure(options.setun, models / f, e + options.setun_argument, case)))
        for engine, folder in peers.items():
            for label, file, extra in MODELS[case.shape].get(engine, []):
                engines.append((label, file, lambda g=engine, d=folder, f=file, e=extra: peer_figure(g, d, models / f, e, case)))
        engines = [e for e in engines if (models / e[1]).exists() and (not options.engine or any(re.search(p, e[0]) for p in options.engine))]
        values, peaks, reasons = {}, {}, {}
        for round_number in range(options.rounds):
            shift = round_number % max(1, len(engines))
            for label, _, figure in engines[shift:] + engines[:shift]:
                if label in reasons:
                    continue
                value, peak = figure()
                if value is None:
                    reasons[label] = str(peak)
                    continue
                values.setdefault(label, []).append(value)
                peaks.setdefault(label, []).append(peak)
        entry = {"case": case.name, "shape": case.shape, "layers": LAYERS.get(case.shape), "threads": case.threads, "unit": "s" if case.kind == "start" else "tokens/s", "lower_is_better": case.lower,
                 "target": case.target, "engines": {}, "not_run": reasons, "ratios": []}
        for label, v in values.items():
            entry["engines"][label] = {"median": statistics.median(v), "min": min(v), "max": max(v), "samples": v, "peak_bytes": statistics.median(peaks[label])}
        theirs = {l: v for l, v in values.items() if not l.startswith("Setun")}
        pick = min if case.lower else max
        for label in [l for l in values if l.startswith("Setun")]:
            for among, chosen in (("all", theirs), ("same head", {l: v for l, v in theirs.items() if head_of(l) == head_of(label)}),
                                  ("same head, default settings", {l: v for l, v in theirs.items() if head_of(l) == head_of(label) and "-thp" not in l})):
                if not chosen:
                    continue
                best = pick(chosen, key=lambda l: statistics.median(chosen[l]))
                low, high = bootstrap(values[label], chosen[best])
                memory = min(entry["engines"][l]["peak_bytes"] for l in chosen)
                entry["ratios"].append({"setun": label, "among": among, "best_peer": best, "ratio": statistics.median(values[label]) / statistics.median(chosen[best]), "low": low, "high": high,
                                        "memory_ratio": entry["engines"][label]["peak_bytes"] / memory if memory else None})
        results.append(entry)
        print_case(entry)
        write(options, results)
    return results


def print_case(entry):
    print("\n%s, %s, %d thread%s (%s)" % (entry["shape"], entry["case"], entry["threads"], "" if entry["threads"] == 1 else "s", entry["unit"]))
    for label, e in sorted(entry["engines"].items(), key=lambda item: -item[1]["median"]):
        print("  %-34s %9.2f  [%.2f - %.2f]  peak %5.0f MiB" % (label, e["median"], e["min"], e["max"], e["peak_bytes"] / 2**20))
    for label, why in entry["not_run"].items():
        print("  %-34s not run: %s" % (label, why))
    for r in entry["ratios"]:
        print("  %-28s %5.2f x [%.2f - %.2f] of %s (%s)%s" % (r["setun"], r["ratio"], r["low"], r["high"], r["best_peer"], r["among"], "; memory %.2f x" % r["memory_ratio"] if r["memory_ratio"] else ""))
    sys.stdout.flush()


def machine(options):
    about = {"system": platform.platform(), "cpus": os.cpu_count(), "date": datetime.date.today().isoformat()}
    try:
        doctor = json.loads(subprocess.run([options.setun, "doctor", "--json"], capture_output=True, text=True, check=True).stdout)
        about["doctor"] = doctor
    except (subprocess.CalledProcessError, ValueError, OSError) as error:
        about["doctor"] = {"error": str(error)}
    return about


def write(options, results):
    if not options.out:
        return
    temporary = options.out + ".tmp"
    with open(temporary, "w") as f:
        json.dump({"machine": options.about, "rounds": options.rounds, "command": " ".join([pathlib.Path(sys.argv[0]).name] + [pathlib.Path(a).name if "/" in a and "=" not in a else re.sub(r"=.*/", "=", a) for a in sys.argv[1:]]),
                   "cases": results}, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, options.out)


def build(name, source):
    source = pathlib.Path(source)
    folder = source / "build"
    subprocess.run(["cmake", "-S", source, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF"]
                   + (["-DVLUT_AVX512=ON"] if name == "vlut.cpp" else []), check=True)
    subprocess.run(["cmake", "--build", folder, "-j", str(os.cpu_count()), "--target"] + TARGETS["build"], check=True)
    for target in TARGETS["optional"]:
        subprocess.run(["cmake", "--build", folder, "-j", str(os.cpu_count()), "--target", target])
    print("--peer %s=%s" % (name, folder / "bin"))


def prepare(options, peers):
    models = pathlib.Path(options.models)
    models.mkdir(parents=True, exist_ok=True)

    def quantise(engine, source, output, kind, head):
        if engine not in peers or (models / output).exists():
            return
        command = [peers[engine] / "llama-quantize", "--token-embedding-type", head] + (["--output-tensor-type", head] if engine == "ik" else []) + ["./" + source, "./" + output, kind]
        done = subprocess.run([str(c) for c in command] + (["1", "1"] if engine == "bitnet.cpp" else [str(os.cpu_count())]), cwd=models, capture_output=True, text=True)
        print("%-40s %s" % (output, "made" if done.returncode == 0 and (models / output).exists() else "NOT made: " + (done.stderr or done.stdout).strip()[-200:]))

    for shape in MODELS:
        source = shape + "-f16.gguf"
        layers = ["--layers", str(LAYERS[shape])] if shape in LAYERS else []
        subprocess.run([sys.executable, HERE.parent / "tools" / "make_shape.py", models / source, "--shape", shape] + layers, check=True)
        for head in ("f16", "q6_K"):
            kind = "iq2_bn_r4" if head == "f16" and shape == "2b-4t" else "iq2_bn"  # Setun reads IQ2_BN, not the interleaved form
            quantise("ik", source, "%s-ik-%s-%s.gguf" % (shape, kind, head), kind, head)
            if shape == "2b-4t":
                quantise("bitnet.cpp", source, "2b-4t-bitnet-i2_s-%s.gguf" % head, "I2_S", head)
        if shape == "2b-4t":  # llama.cpp knows the architecture by another name
            subprocess.run([sys.executable, HERE.parent / "tools" / "make_shape.py", models / "2b-4t-bitnet-f16.gguf", "--shape", shape, "--arch", "bitnet"], check=True)
            for head in ("f16", "q6_K"):
                quantise("llama.cpp", "2b-4t-bitnet-f16.gguf", "2b-4t-llama-tq2_0-%s.gguf" % head, "TQ2_0", head)
            quantise("vlut.cpp", "2b-4t-bitnet-f16.gguf", "2b-4t-vlut-i2_v_4.gguf", "I2_V_4", "f16")
            (models / "2b-4t-bitnet-f16.gguf").unlink()
        elif shape != "135m":
            quantise("llama.cpp", source, shape + "-llama-tq2_0-q6_K.gguf", "TQ2_0", "q6_K")
        (models / source).unlink()
    if options.setun:
        for shape, (_, file, _) in PACKED.items():
            if not (models / file).exists() and (models / SETUN[shape][0][1]).exists():
                subprocess.run([options.setun, "convert", models / SETUN[shape][0][1], models / file, "--to", "packed", "-q"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setun", help="the setun program")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--models", metavar="DIR")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", action="append", default=[], metavar="REGEX", help="only cases whose 'shape name THREADSt' matches; may be given again")
    parser.add_argument("--engine", action="append", default=[], metavar="REGEX", help="only engines whose label matches; may be given again")
    parser.add_argument("--setun-argument", action="append", default=[], metavar="ARG", help="an argument more for Setun's own runs, as --setun-argument=--isa=avx2")
    parser.add_argument("--build", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        for c in all_cases():
            print("%s %s %dt" % (c.shape, c.name, c.threads))
        return
    for spec in options.build:
        build(*spec.split("=", 1))
    peers = {name: pathlib.Path(folder).resolve() for name, folder in (p.split("=", 1) for p in options.peer)}
    if options.prepare:
        prepare(options, peers)
    elif options.setun and options.models:
        options.about = machine(options)
        measure(options, peers)
    elif not options.build:
        parser.error("give --setun and --models, or --prepare, --build, --list")


if __name__ == "__main__":
    main()
