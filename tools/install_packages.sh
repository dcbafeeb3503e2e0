#!/bin/sh
# Installs the packages that are missing, after saying which. usage: install_packages.sh build|test|mlx|aarch64   mlx: what installing MLX and building its bridge needs
# Debian and Ubuntu by apt, Fedora by dnf, Arch by pacman, macOS by Homebrew. Asks sudo only when not root.
set -eu
what=${1:-build}
have() { command -v "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

if [ "$(uname -s)" = Darwin ]; then
    have cc || { echo "setun: the compiler is missing: run \`xcode-select --install\`, then this again"; exit 1; }
    have brew || { echo "setun: Homebrew is missing (brew.sh): it provides cmake, jansson and pcre2"; exit 1; }
    need="cmake pkg-config jansson pcre2"
    [ "$what" = mlx ] && need="$need python3"
    [ "$what" = test ] && need="$need cmocka"
    missing=
    for p in $need; do brew list --versions "$p" >/dev/null 2>&1 || missing="$missing $p"; done
    [ -z "$missing" ] || { echo "setun: installing with Homebrew:$missing"; brew install $missing; }
    exit 0
fi

if have apt-get; then
    need="gcc libc6-dev cmake make pkg-config libjansson-dev libpcre2-dev libedit-dev"
    [ "$what" = test ] && need="$need libcmocka-dev g++ python3 python3-venv"
    [ "$what" = mlx ] && need="$need g++ python3 python3-venv"
    if [ "$what" = aarch64 ]; then
        need="gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user libjansson-dev:arm64 libpcre2-dev:arm64 libcmocka-dev:arm64"
        if ! dpkg --print-foreign-architectures | grep -qx arm64; then
            echo "setun: adding the architecture arm64 to dpkg (for the cross-compiled tests)"
            as_root dpkg --add-architecture arm64
            as_root rm -f /var/lib/apt/setun-updated
        fi
    fi
    missing=
    for p in $need; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
    done
    [ -z "$missing" ] && exit 0
    echo "setun: installing with apt-get:$missing"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    exit 0
fi
[ "$what" = aarch64 ] && { echo "setun: the aarch64 tests know only Debian's packages"; exit 3; }
if have dnf; then
    need="gcc cmake make pkgconf-pkg-config jansson-devel pcre2-devel libedit-devel"
    [ "$what" = test ] && need="$need libcmocka-devel gcc-c++ python3"
    [ "$what" = mlx ] && need="$need gcc-c++ python3"
    missing=
    for p in $need; do rpm -q "$p" >/dev/null 2>&1 || missing="$missing $p"; done
    [ -z "$missing" ] || { echo "setun: installing with dnf:$missing"; as_root dnf install -y -q $missing; }
elif have pacman; then
    need="gcc cmake make pkgconf jansson pcre2 libedit"
    [ "$what" = test ] && need="$need cmocka python"
    [ "$what" = mlx ] && need="$need python"
    missing=$(pacman -T $need || true)
    [ -z "$missing" ] || { echo "setun: installing with pacman: $missing"; as_root pacman -S --noconfirm --needed $missing; }
else
    echo "setun: unknown system: install a C11 compiler, CMake >= 3.22, pkg-config, jansson, PCRE2 (8 bit), libedit and, for the tests, cmocka"
    have cc && have cmake && have pkg-config || exit 1
fi
