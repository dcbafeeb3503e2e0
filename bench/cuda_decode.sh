#!/bin/sh
# Builds bench/cuda_decode.cu and runs it on this machine's GPU. usage: sh bench/cuda_decode.sh OUT_FOLDER [check|time|all] [more nvcc flags]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=$1
what=${2:-all}
[ $# -lt 2 ] || shift
shift
mkdir -p "$out"
for f in backend/mlx/cuda/decode_layout base/memory base/status; do
    cc -std=gnu11 -O3 -I"$root/include" -I"$root/src" -c "$root/src/$f.c" -o "$out/$(basename $f).o"
done
nvcc -gencode=arch=compute_90,code=sm_90 -O3 --std=c++17 -Xcompiler -O3,-march=native -o "$out/cuda_decode" "$@" "$root/bench/cuda_decode.cu" "$out/decode_layout.o" "$out/memory.o" "$out/status.o"
"$out/cuda_decode" "$what"
