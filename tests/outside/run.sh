#!/bin/sh
# Installs the library into a fresh folder and builds programs outside the tree against it: C and C++, by pkg-config and by
# find_package, static and shared; checks that the shared library exports nothing but setun_* and runs the example of docs/library.md.
# usage: run.sh SOURCE BUILD CC
set -eu
source=$1; build=$2; cc=${3:-cc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" >"$work/install.log" 2>&1 || { cat "$work/install.log"; exit 1; }
for tree in lib lib64 lib/$(uname -m)-linux-gnu; do [ -d "$work/prefix/$tree/pkgconfig" ] && lib=$work/prefix/$tree; done
export PKG_CONFIG_PATH="$lib/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
model=$work/prefix/share/setun/models/setun-smol-135m.gguf
[ -f "$model" ] || { echo "the model was not installed"; exit 1; }
if [ "$(uname -s)" = Linux ] && [ -f "$lib/libsetun.so" ]; then
    alien=$(nm -D --defined-only "$lib/libsetun.so" | awk '$2 ~ /[TDBRW]/ {print $3}' | grep -v '^setun_' || true)
    [ -z "$alien" ] || { echo "the shared library exports: $alien"; exit 1; }
    header=$(grep -c '^SETUN_API' "$source/include/setun/setun.h")
    exported=$(nm -D --defined-only "$lib/libsetun.so" | awk '$2 == "T"' | wc -l)
    [ "$header" = "$exported" ] || { echo "the header declares $header functions, the library exports $exported"; nm -D --defined-only "$lib/libsetun.so" | awk '$2 == "T" {print $3}' | sort >"$work/have"; sed -n 's/^SETUN_API .*[ *]\(setun_[a-z0-9_]*\)(.*/\1/p' "$source/include/setun/setun.h" | sort >"$work/want"; diff "$work/want" "$work/have" || true; exit 1; }
fi
# the complete example of docs/library.md
awk '/^```c complete$/ {on=1; next} /^```$/ {on=0} on' "$source/docs/library.md" >"$work/example.c"
[ -s "$work/example.c" ] || { echo "docs/library.md has no complete example"; exit 1; }
$cc -std=c11 -Wall -Wextra -Werror "$work/example.c" -o "$work/shared" $(pkg-config --cflags --libs setun) -Wl,-rpath,"$lib"
$cc -std=c11 "$work/example.c" -o "$work/static" $(pkg-config --cflags setun) "$lib/libsetun.a" $(pkg-config --libs jansson libpcre2-8) -lpthread -lm
for program in shared static; do
    "$work/$program" "$model" >"$work/out" || { cat "$work/out"; echo "the example failed ($program)"; exit 1; }
    grep -q Paris "$work/out" || { cat "$work/out"; echo "the example does not know Paris ($program)"; exit 1; }
done
# find_package from C and C++
mkdir "$work/project"
cp "$work/example.c" "$work/project/example.c"
cat >"$work/project/main.cpp" <<'CPP'
#include <setun/setun.h>
#include <cstdio>
int main() {
    setun_context *context = nullptr;
    if (setun_context_create(nullptr, &context) != SETUN_OK) { std::puts(setun_error()); return 1; }
    setun_graph *graph = nullptr;
    setun_plan *plan = nullptr;
    int64_t shape[] = {SETUN_DIM_TOKENS, 4};
    int8_t codes[] = {1, 0, -1, 1, 0, 1, 1, -1};
    float scale = 0.5f;
    setun_graph_create(context, &graph);
    setun_node x = setun_graph_input(graph, "x", SETUN_F32, 2, shape);
    setun_graph_output(graph, setun_graph_linear(graph, setun_graph_ternary_weight(graph, "w", 2, 4, codes, &scale, -1), x, SETUN_NODE_NONE), "y");
    setun_compile_options options{};
    options.size = sizeof options;
    options.tokens_max = 1;
    if (setun_graph_compile(graph, &options, &plan) != SETUN_OK) { std::puts(setun_error()); return 1; }
    float values[] = {1, 2, 3, 4};
    int64_t one[] = {1, 4};
    setun_tensor *in = nullptr, *out = nullptr;
    setun_tensor_wrap(SETUN_F32, 2, one, values, &in);
    setun_plan_set_input(plan, "x", in);
    if (setun_plan_run(plan, 1, 1) != SETUN_OK || setun_plan_get_output(plan, "y", &out) != SETUN_OK) { std::puts(setun_error()); return 1; }
    const float *y = static_cast<const float *>(setun_tensor_data(out));
    bool good = y[0] == 1.0f && y[1] == 0.5f; /* 0.5*(1-3+4), 0.5*(2+3-4) */
    std::printf("%g %g\n", y[0], y[1]);
    setun_tensor_destroy(in);
    setun_tensor_destroy(out);
    setun_plan_destroy(plan);
    setun_graph_destroy(graph);
    setun_context_destroy(context);
    return good ? 0 : 1;
}
CPP
languages=C
if command -v c++ >/dev/null 2>&1; then languages="C CXX"; fi
cat >"$work/project/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.22)
project(outside LANGUAGES $languages)
find_package(Setun 0.1 REQUIRED)
add_executable(example example.c)
target_link_libraries(example PRIVATE Setun::static)
CMAKE
case $languages in *CXX*) cat >>"$work/project/CMakeLists.txt" <<'CMAKE'
add_executable(outside_cxx main.cpp)
target_link_libraries(outside_cxx PRIVATE Setun::shared)
CMAKE
esac
cmake -S "$work/project" -B "$work/project/build" -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/cmake.log" 2>&1 && cmake --build "$work/project/build" >>"$work/cmake.log" 2>&1 || { cat "$work/cmake.log"; exit 1; }
"$work/project/build/example" "$model" | grep -q Paris || { echo "the find_package example failed"; exit 1; }
if [ -x "$work/project/build/outside_cxx" ]; then "$work/project/build/outside_cxx" || { echo "the C++ program failed"; exit 1; }; fi
# the installed program finds its installed model
"$work/prefix/bin/setun" doctor -q --json | grep -q "\"model\": \"$work/prefix/share/setun/models/" || { echo "the installed program does not find its installed model"; exit 1; }
"$work/prefix/bin/setun" run -q -n 8 "What is the capital of France?" | grep -q Paris || { echo "the installed program failed"; exit 1; }
echo "outside programs: all good"
