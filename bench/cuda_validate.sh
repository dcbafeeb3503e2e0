#!/bin/sh
# Everything about the CUDA kernels that only a GPU can say, in about six minutes: correctness, waits without end, times, PyTorch beside them,
# bandwidth by ncu. Needs an NVIDIA GPU from sm_80 (H100 or H200 for the figures), nvcc, a C compiler; PyTorch, ncu, cmake and ninja where they are.
# usage: sh bench/cuda_validate.sh [OUT_FOLDER] [MODEL_2B.gguf]
#   OUT_FOLDER (build/cuda_validate) gets logs, table.txt and result.json. MODEL_2B: any model that the kernels take; without one
#   tools/make_shape.py makes the 2B-4T shape (needs Python's numpy and gguf). SETUN_PREBUILT=FOLDER: bench_cuda_engine, setun, cuda_decode, cuda_prompt and
#   the two fatbins built elsewhere, taken where they run here.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/build/cuda_validate}
model=${2:-}
mkdir -p "$out/bin"
out=$(cd "$out" && pwd)
began=$(date +%s)
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
python=$(command -v python3 || true)
jobs=$(nproc 2>/dev/null || echo 4)
say() { echo "[$(($(date +%s) - began)) s] $*"; }
cuda=$root/src/backend/mlx/cuda

build_fatbin() { # NAME SOURCE
    "$nvcc" -std=c++17 -O3 -fatbin -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_80,code=compute_80 -o "$out/bin/setun_cuda_$1.fatbin" "$cuda/$2.cu" >"$out/build_$1.log" 2>&1
}
build_library() {
    cmake -G Ninja -S "$root" -B "$out/build" -DCMAKE_BUILD_TYPE=Release -DSETUN_BUILD_TESTS=OFF -DSETUN_BUILD_FUZZ=OFF -DSETUN_MLX_ROOT=OFF &&
        cmake --build "$out/build" -j "$jobs" --target bench_cuda_engine setun && cp "$out/build/bench_cuda_engine" "$out/build/setun" "$out/bin/"
}
if [ -n "${SETUN_PREBUILT:-}" ]; then cp "$SETUN_PREBUILT"/* "$out/bin/" && chmod +x "$out"/bin/*; fi
[ -s "$out/bin/setun_cuda_decode.fatbin" ] || build_fatbin decode forward &
[ -s "$out/bin/setun_cuda_prompt.fatbin" ] || build_fatbin prompt prompt &
"$out/bin/bench_cuda_engine" >/dev/null 2>&1; [ $? -eq 2 ] || build_library >"$out/build_library.log" 2>&1 &
"$out/bin/cuda_decode" nothing >/dev/null 2>&1 || sh "$root/bench/cuda_decode.sh" "$out/bin" nothing >"$out/build_bench_decode.log" 2>&1 &
# where a step's time goes, and whether waiting more slowly helps those who are waited for
variants="profile:-DSETUN_CUDA_PROFILE backoff20:-DSETUN_CUDA_BACKOFF=20 backoff100:-DSETUN_CUDA_BACKOFF=100"
for v in $variants; do
    mkdir -p "$out/${v%%:*}"
    sh "$root/bench/cuda_decode.sh" "$out/${v%%:*}" nothing "${v#*:}" >"$out/build_${v%%:*}.log" 2>&1 &
done
[ -x "$out/bin/cuda_prompt" ] || "$nvcc" -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -o "$out/bin/cuda_prompt" "$root/bench/cuda_prompt.cu" >"$out/build_bench_prompt.log" 2>&1 &
if [ -z "$model" ] && [ -n "$python" ]; then
    "$python" "$root/tools/make_shape.py" "$out/2b.gguf" --shape 2b-4t >"$out/make_shape.log" 2>&1 &
fi
wait
[ -n "$model" ] || model=$out/2b.gguf
say "built"
for f in setun_cuda_decode.fatbin setun_cuda_prompt.fatbin bench_cuda_engine cuda_decode cuda_prompt; do [ -e "$out/bin/$f" ] || say "MISSING $f (see $out/build_*.log)"; done
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | tee "$out/gpu.txt"

run() { # NAME SECONDS COMMAND..: output to NAME.txt and here; a run that hangs is ended
    name=$1 limit=$2
    shift 2
    timeout -k 5 "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    [ $code -eq 0 ] || echo "FAILED: exit $code$([ $code -eq 124 ] && echo ', it ran past its time')" >>"$out/$name.txt"
    say "$name: exit $code"
    tail -n "${lines:-14}" "$out/$name.txt"
}
small=$(ls "$root"/models/*.gguf 2>/dev/null | head -n 1)
run decode_check 60 "$out/bin/cuda_decode" check
run decode_time 60 "$out/bin/cuda_decode" time
[ -n "$small" ] && run engine_135m 60 "$out/bin/bench_cuda_engine" "$out/bin" "$small" all 1000
if [ -s "$model" ]; then run engine_2b 120 "$out/bin/bench_cuda_engine" "$out/bin" "$model" all 1000; else say "no 2B model: $(tail -n 1 "$out/make_shape.log" 2>/dev/null)"; fi
for v in $variants; do [ -x "$out/${v%%:*}/cuda_decode" ] && run "decode_${v%%:*}" 30 "$out/${v%%:*}/cuda_decode" quick; done
run prompt_check 40 "$out/bin/cuda_prompt" check 1 3
run prompt_time 40 "$out/bin/cuda_prompt" time
if [ -n "$python" ] && "$python" -c 'import torch' 2>/dev/null; then
    lines=40 run torch_decode 60 "$python" "$root/bench/cuda_decode_torch.py"
    run torch_prompt 60 "$python" "$root/bench/cuda_prompt_torch.py"
fi
if command -v ncu >/dev/null 2>&1; then # share of the memory's rate; the clocks are left alone
    for what in 135m 2b; do
        file=$small
        [ $what = 2b ] && file=$model
        [ -s "$file" ] || continue
        run ncu_$what 60 ncu --clock-control none --csv --launch-skip 4 --launch-count 2 --kernel-name regex:setun_cuda_decode --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__inst_executed.sum,smsp__cycles_active.avg "$out/bin/bench_cuda_engine" "$out/bin" "$file" time
    done
fi
rm -f "$out/2b.gguf"
if [ -n "$python" ]; then "$python" "$root/bench/cuda_table.py" "$out" | tee "$out/table.txt"; fi
say "done: $out/table.txt, $out/result.json"
! grep -l "FAILED" "$out"/*_check.txt "$out"/engine_*.txt 2>/dev/null
