#!/bin/sh
# Installs MLX into an environment of its own, build/mlx-env, for the bridge: nothing outside that folder changes.
# usage: install_mlx.sh [cpu|cuda|metal|auto]   auto: Metal on macOS, CUDA where an NVIDIA GPU is, else the CPU. Prints the package's folder.
# The version is pinned: MLX's C++ interface changes with every release, so the bridge is built against exactly what is installed.
set -eu
cd "$(dirname "$0")/.."
version=0.32.4
what=${1:-auto}
if [ "$what" = auto ]; then
    if [ "$(uname -s)" = Darwin ]; then what=metal
    elif [ -e /dev/nvidiactl ] || [ -e /dev/nvidia0 ]; then what=cuda
    else what=cpu; fi
fi
case $what in
    cpu) packages="mlx-cpu==$version" ;;
    cuda) packages="mlx-cuda-13==$version" ;;
    metal) packages="mlx==$version" ;;
    *) echo "setun: install_mlx.sh: '$what' is none of cpu, cuda, metal, auto" >&2; exit 2 ;;
esac
folder=build/mlx-env
[ "$what" = cuda ] && folder=build/mlx-env-cuda
find_package() { for d in "$folder"/lib*/python3*/site-packages/mlx; do [ -f "$d/include/mlx/version.h" ] && { (cd "$d" && pwd); return 0; }; done; return 1; }
if [ "$(cat "$folder/installed" 2>/dev/null || true)" != "$packages" ] || ! find_package >/dev/null; then
    echo "setun: installing $packages into $folder" >&2
    mkdir -p build
    rm -rf "$folder"
    python3 -m venv "$folder" >&2 || { echo "setun: python3 -m venv failed (Debian: python3-venv)" >&2; exit 1; }
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2 || { echo "setun: pip could not install $packages: is the network there?" >&2; exit 1; }
    echo "$packages" >"$folder/installed"
fi
find_package || { echo "setun: $packages was installed, but has no include/mlx/version.h" >&2; exit 1; }
