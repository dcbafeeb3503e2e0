/*
 * test_gpu_text.c - the kernels' text as GPU compilers see it: signatures made as MLX makes them, the Metal form parsed by clang with a stub of
 * Metal's library, the CUDA form compiled by nvcc and by NVRTC where they are installed; and what MLX's search for names would trip over.
 */
#include "backend/mlx/kernels.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static const struct { const char *name, *type; } attributes[] = { /* of Metal, that MLX adds when the body contains the name */
    {"dispatch_quadgroups_per_threadgroup", "uint"}, {"dispatch_simdgroups_per_threadgroup", "uint"}, {"dispatch_threads_per_threadgroup", "uint3"}, {"grid_origin", "uint3"}, {"grid_size", "uint3"},
    {"quadgroup_index_in_threadgroup", "uint"}, {"quadgroups_per_threadgroup", "uint"}, {"simdgroup_index_in_threadgroup", "uint"}, {"simdgroups_per_threadgroup", "uint"},
    {"thread_execution_width", "uint"}, {"thread_index_in_quadgroup", "uint"}, {"thread_index_in_simdgroup", "uint"}, {"thread_index_in_threadgroup", "uint"},
    {"thread_position_in_grid", "uint3"}, {"thread_position_in_threadgroup", "uint3"}, {"threadgroup_position_in_grid", "uint3"}, {"threadgroups_per_grid", "uint3"},
    {"threads_per_grid", "uint3"}, {"threads_per_simdgroup", "uint"}, {"threads_per_threadgroup", "uint3"},
};
enum { ATTRIBUTES = sizeof attributes / sizeof attributes[0], VARIANTS = 3 };

static char folder[] = "/tmp/setun-gpu-text-XXXXXX", path[64], other[64];

static int make_folder(void **unused)
{
    (void)unused;
    return mkdtemp(folder) ? 0 : -1;
}
static int remove_folder(void **unused)
{
    (void)unused;
    static const char *const files[] = {"metal.cc", "metal_simdgroup_matrix", "kernels.cu", "kernels.cubin"};
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    return rmdir(folder);
}

/* Template values that take every branch of the text over the variants. */
static int32_t value_of(const char *name, int variant, bool gated)
{
    static const struct { const char *name; int32_t value[VARIANTS]; } numbers[] = {
        {"WEIGHTS", {3, 2, 1}}, {"ROWS", {4, 2, 1}}, {"TOKENS", {1, 4, 8}}, {"TILE_ROWS", {32, 64, 16}}, {"TILE_TOKENS", {32, 16, 32}}, {"OPERATION", {0, 2, 4}},
        {"BLOCK", {128, 4096, 1}}, {"HEAD_SIZE", {128, 64, 80}}, {"HEADS", {4, 1, 3}}, {"NORM_Q", {0, 2, 1}}, {"NORM_K", {2, 1, 0}},
    };
    if (!strcmp(name, "ACTIVATION")) return gated && variant != 1 ? 0 : 1 + variant;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!strcmp(name, numbers[i].name)) return numbers[i].value[variant];
    return variant == 1; /* flags; a new NUMBER belongs into the table */
}

static const char *type_name(const char *type, const int32_t *values, const setun_gpu_kernel *k, bool cuda)
{
    for (int i = 0; i < k->parameter_count; i++)
        if (!strcmp(k->parameters[i].name, type)) return values[i] == SETUN_F32 ? "float" : values[i] == SETUN_F16 ? (cuda ? "__half" : "float16_t") : cuda ? "__nv_bfloat16" : "bfloat16_t";
    return type;
}

static void values_of(const setun_gpu_kernel *k, int variant, int32_t *values)
{
    bool weights = false;
    int types = 0;
    for (int i = 0; i < k->parameter_count; i++) weights = weights || !strcmp(k->parameters[i].name, "WEIGHTS");
    for (int i = 0; i < k->parameter_count; i++)
        values[i] = k->parameters[i].kind == SETUN_GPU_TYPE ? SETUN_F32 + (variant + types++) % 3 : k->parameters[i].kind == SETUN_GPU_FLAG ? variant != 2 : value_of(k->parameters[i].name, variant, weights);
}

static void write_metal(FILE *f, const setun_gpu_kernel *k, int variant)
{
    int32_t values[SETUN_GPU_PARAMETERS_MAX];
    values_of(k, variant, values);
    fprintf(f, "template <");
    for (int i = 0; i < k->parameter_count; i++)
        fprintf(f, "%s%s %s", i ? ", " : "", k->parameters[i].kind == SETUN_GPU_TYPE ? "typename" : k->parameters[i].kind == SETUN_GPU_FLAG ? "bool" : "int", k->parameters[i].name);
    fprintf(f, ">\n[[kernel]] void %s_%d(\n", k->name, variant);
    for (int i = 0; i < k->input_count; i++) { /* arrays of fewer than 8 elements are constant: any of floats or ints may be */
        const char *type = k->inputs[i].type;
        bool whole = !strcmp(type, "uint8_t") || !strcmp(type, "int8_t") || !strcmp(type, "CACHE_TYPE");
        bool small = !whole && (variant == 1 || !strcmp(k->inputs[i].name, "factors"));
        fprintf(f, "  const %s %s* %s [[buffer(%d)]],\n", small ? "constant" : "device", type_name(type, values, k, false), k->inputs[i].name, i);
    }
    int used = 0, written = 0;
    for (int a = 0; a < ATTRIBUTES; a++) used += strstr(k->source, attributes[a].name) != NULL;
    for (int i = 0; i < k->output_count; i++)
        fprintf(f, "  device %s* %s [[buffer(%d)]]%s\n", type_name(k->outputs[i].type, values, k, false), k->outputs[i].name, k->input_count + i, i + 1 < k->output_count || used ? "," : ") {");
    for (int a = 0; a < ATTRIBUTES; a++)
        if (strstr(k->source, attributes[a].name)) fprintf(f, "  %s %s [[%s]]%s\n", attributes[a].type, attributes[a].name, attributes[a].name, ++written < used ? "," : ") {");
    fprintf(f, "%s\n}\n", k->source);
    fprintf(f, "void *use_%s_%d = (void *)&%s_%d<", k->name, variant, k->name, variant);
    for (int i = 0; i < k->parameter_count; i++)
        if (k->parameters[i].kind == SETUN_GPU_TYPE) fprintf(f, "%s%s", i ? ", " : "", type_name(k->parameters[i].name, values, k, false));
        else fprintf(f, "%s%d", i ? ", " : "", (int)values[i]);
    fprintf(f, ">;\n");
}

static void write_cuda(FILE *f, const setun_gpu_kernel *k, int variant)
{
    int32_t values[SETUN_GPU_PARAMETERS_MAX];
    values_of(k, variant, values);
    fprintf(f, "__global__ void custom_kernel_%s_%d(\n", k->name, variant);
    for (int i = 0; i < k->input_count; i++) fprintf(f, "    const %s* %s,\n", type_name(k->inputs[i].type, values, k, true), k->inputs[i].name);
    for (int i = 0; i < k->output_count; i++) fprintf(f, "    %s* %s%s\n", type_name(k->outputs[i].type, values, k, true), k->outputs[i].name, i + 1 < k->output_count ? "," : ") {");
    for (int i = 0; i < k->parameter_count; i++)
        if (k->parameters[i].kind == SETUN_GPU_TYPE) fprintf(f, "  using %s = %s;\n", k->parameters[i].name, type_name(k->parameters[i].name, values, k, true));
        else fprintf(f, "  constexpr %s %s = %d;\n", k->parameters[i].kind == SETUN_GPU_FLAG ? "bool" : "int", k->parameters[i].name, (int)values[i]);
    fprintf(f, "%s\n}\n\n", k->source);
}

static bool exists(const char *program)
{
    char command[128];
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", program);
    return system(command) == 0;
}

/* clang's opinion of the Metal form. Address spaces are strict, doubles refused, as Metal refuses them. */
static void metal_parses(void **unused)
{
    (void)unused;
    const char *clang = exists("clang++") ? "clang++" : exists("clang++-14") ? "clang++-14" : NULL;
    if (!clang) {
        print_message("clang++ is not here: the Metal form is not parsed\n");
        skip();
    }
    snprintf(path, sizeof path, "%s/metal_simdgroup_matrix", folder); /* Metal's header: the stub has it all */
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    snprintf(path, sizeof path, "%s/metal.cc", folder);
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "#include \"%s/tests/unit/backend/metal_stub.h\"\n%s\n", SETUN_TEST_SOURCE, setun_gpu_metal_header());
    for (int i = 0; i < SETUN_GPU_KERNEL_COUNT; i++)
        for (int v = 0; v < VARIANTS; v++) write_metal(f, setun_gpu_kernel_get((setun_gpu_kernel_id)i), v);
    fclose(f);
    char command[512];
    snprintf(command, sizeof command, "%s -std=c++14 -fsyntax-only -Wall -Wextra -Wdouble-promotion -Werror -Wno-unknown-attributes -Wno-unused-parameter -Wno-unknown-pragmas -Wno-unused-function -Wno-c++17-extensions "
             "-Wno-unused-but-set-variable -Wno-pass-failed -isystem %s %s", clang, folder, path);
    int status = system(command);
    if (status != 0) fail_msg("the Metal form is refused (status %d): %s", status, command);
}

static void write_all_cuda(void)
{
    snprintf(path, sizeof path, "%s/kernels.cu", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <cuda/std/cstdint>\nusing cuda::std::int8_t; using cuda::std::uint8_t; using cuda::std::int32_t; using cuda::std::uint32_t;\n");
    fprintf(f, "%s\nnamespace mlx::core::cu {\n", setun_gpu_cuda_header());
    for (int i = 0; i < SETUN_GPU_KERNEL_COUNT; i++)
        for (int v = 0; v < VARIANTS; v++) write_cuda(f, setun_gpu_kernel_get((setun_gpu_kernel_id)i), v);
    fprintf(f, "}\n");
    fclose(f);
}

static void cuda_compiles(void **unused)
{
    (void)unused;
    const char *nvcc = exists("nvcc") ? "nvcc" : exists("/usr/local/cuda/bin/nvcc") ? "/usr/local/cuda/bin/nvcc" : NULL;
    if (!nvcc) {
        print_message("nvcc is not here: the CUDA form is not compiled\n");
        skip();
    }
    write_all_cuda();
    snprintf(other, sizeof other, "%s/kernels.cubin", folder);
    char command[512];
    snprintf(command, sizeof command, "%s -std=c++17 -arch=sm_90 -cubin -o %s %s", nvcc, other, path);
    int status = system(command);
    if (status != 0) fail_msg("the CUDA form is refused (status %d): %s", status, command);
}

/* MLX compiles with NVRTC, which has no host headers. */
static void nvrtc_compiles(void **unused)
{
    (void)unused;
    void *library = dlopen("libnvrtc.so", RTLD_NOW | RTLD_NODELETE);
    if (!library) library = dlopen("/usr/local/cuda/lib64/libnvrtc.so", RTLD_NOW | RTLD_NODELETE);
    if (!library) {
        print_message("libnvrtc is not here: the CUDA form is not compiled as MLX does\n");
        skip();
    }
    typedef int (*create_fn)(void **, const char *, const char *, int, const char *const *, const char *const *);
    typedef int (*compile_fn)(void *, int, const char *const *);
    typedef int (*size_fn)(void *, size_t *);
    typedef int (*log_fn)(void *, char *);
    typedef int (*destroy_fn)(void **);
    create_fn create = (create_fn)(uintptr_t)dlsym(library, "nvrtcCreateProgram");
    compile_fn compile = (compile_fn)(uintptr_t)dlsym(library, "nvrtcCompileProgram");
    size_fn log_size = (size_fn)(uintptr_t)dlsym(library, "nvrtcGetProgramLogSize");
    log_fn get_log = (log_fn)(uintptr_t)dlsym(library, "nvrtcGetProgramLog");
    destroy_fn destroy = (destroy_fn)(uintptr_t)dlsym(library, "nvrtcDestroyProgram");
    assert_true(create && compile && log_size && get_log && destroy);
    write_all_cuda();
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    enum { ROOM = 4 << 20 };
    char *text = calloc(ROOM, 1);
    assert_non_null(text);
    assert_true(fread(text, 1, ROOM - 1, f) > 0);
    fclose(f);
    void *program = NULL;
    assert_int_equal(create(&program, text, "kernels.cu", 0, NULL, NULL), 0);
    /* compute_: as far as PTX; MLX's own flags beside it */
    const char *options[] = {"--device-as-default-execution-space", "--gpu-architecture=compute_90", "--include-path=/usr/local/cuda/include", "--include-path=/usr/local/cuda/include/cccl"};
    int status = compile(program, 4, options);
    if (status != 0) {
        size_t bytes = 0;
        log_size(program, &bytes);
        char *log = calloc(bytes + 1, 1);
        get_log(program, log);
        print_message("%.4000s\n", log);
        free(log);
    }
    destroy(&program);
    free(text);
    dlclose(library);
    assert_int_equal(status, 0);
}

/* MLX looks for NAME_shape, NAME_strides and NAME_ndim in the body and adds parameters; no text may contain one by accident. */
static void no_accidental_names(void **unused)
{
    (void)unused;
    static const char *const endings[] = {"_shape", "_strides", "_ndim"};
    for (int i = 0; i < SETUN_GPU_KERNEL_COUNT; i++) {
        const setun_gpu_kernel *k = setun_gpu_kernel_get((setun_gpu_kernel_id)i);
        for (int n = 0; n < k->input_count; n++)
            for (int e = 0; e < 3; e++) {
                char name[64];
                snprintf(name, sizeof name, "%s%s", k->inputs[n].name, endings[e]);
                assert_null(strstr(k->source, name));
            }
        for (int n = 0; n < k->input_count; n++) assert_non_null(strstr(k->source, k->inputs[n].name)); /* each is used */
        for (int n = 0; n < k->parameter_count; n++)
            if (k->parameters[n].kind != SETUN_GPU_TYPE) assert_non_null(strstr(k->source, k->parameters[n].name));
        assert_true(strlen(k->source) < 16000);
        assert_ptr_equal(setun_gpu_kernel_find(k->name), k);
    }
    assert_null(setun_gpu_kernel_get(SETUN_GPU_KERNEL_COUNT));
    assert_null(setun_gpu_kernel_find("no such kernel"));
}

#define KERNEL_OF(name) setun_gpu_kernel_find(name)
static void grid_is(const char *kernel, const int32_t *values, const int64_t extent[4], int threads, int x, int y, int z, int group_x)
{
    int grid[3], group[3];
    assert_int_equal(setun_gpu_grid(setun_gpu_kernel_find(kernel), values, extent, threads, grid, group), SETUN_OK);
    assert_int_equal(grid[0], x);
    assert_int_equal(grid[1], y);
    assert_int_equal(grid[2], z);
    assert_int_equal(group[0], group_x);
}
static void launch_shapes(void **unused)
{
    (void)unused;
    int grid[3], group[3];
    const int32_t three[] = {SETUN_F32, 3, 4, 2, 0, 0, 0, 0}, gated[] = {SETUN_F32, 2, 4, 2, 1, 0, 0, 0}, tile[] = {SETUN_F32, 3, 32, 16, 0, 0, 0, 0}, wide[] = {SETUN_F32, 1, 16, 8, 0, 0, 0, 0};
    const int64_t rows[4] = {10, 9, 8, 5}; /* 3 + 3 + 2 tiles, 3 token tiles */
    grid_is("ternary_matvec", three, rows, 64, 4 * 64, 3, 1, 64);
    grid_is("ternary_matvec", gated, rows, 64, 2 * 64, 3, 1, 64);
    grid_is("ternary_matmul", tile, rows, 0, 3 * 64, 1, 1, 64);
    assert_int_equal(setun_gpu_grid(KERNEL_OF("ternary_matvec"), wide, rows, 64, grid, group), SETUN_ERROR_ARGUMENT);
    const int32_t matrix[] = {SETUN_F32, 2, 64, 32, 1, 0, 0, 0}, odd_matrix[] = {SETUN_F32, 1, 24, 16, 0, 0, 0, 0};
    grid_is("ternary_matmul_matrix", tile, rows, 0, 3 * 64, 1, 1, 64);
    assert_int_equal(setun_gpu_grid(KERNEL_OF("ternary_matmul_matrix"), matrix, rows, 0, grid, group), SETUN_ERROR_ARGUMENT); /* over 32 KiB */
    assert_int_equal(setun_gpu_grid(KERNEL_OF("ternary_matmul_matrix"), odd_matrix, rows, 0, grid, group), SETUN_ERROR_ARGUMENT);
    const int32_t f32[] = {SETUN_F32, 1};
    const int64_t thousand[4] = {1000, 0, 0, 0};
    grid_is("unary", f32, thousand, 256, 1024, 1, 1, 256);
    grid_is("softmax", f32, thousand, 96, 96000, 1, 1, 96);
    assert_int_equal(setun_gpu_grid(KERNEL_OF("unary"), f32, thousand, 100, grid, group), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_gpu_grid(KERNEL_OF("unary"), f32, thousand, 2048, grid, group), SETUN_ERROR_ARGUMENT);
    const int64_t huge[4] = {1ll << 40, 0, 0, 0}, negative[4] = {-1, 0, 0, 0};
    assert_int_equal(setun_gpu_grid(KERNEL_OF("softmax"), f32, huge, 64, grid, group), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_gpu_grid(KERNEL_OF("softmax"), f32, negative, 64, grid, group), SETUN_ERROR_ARGUMENT);
    const int32_t attention[] = {SETUN_F32, SETUN_F16, 128, 4, 0, 0, 1, 0, 0, 1};
    const int64_t heads[4] = {20, 3, 5, 0}, odd[4] = {18, 3, 5, 0};
    grid_is("attention", attention, heads, 128, 5 * 128, 3, 5, 128);
    assert_int_equal(setun_gpu_grid(KERNEL_OF("attention"), attention, odd, 128, grid, group), SETUN_ERROR_ARGUMENT);
    setun_mlx_argument arguments[SETUN_GPU_PARAMETERS_MAX];
    assert_int_equal(setun_gpu_templates(KERNEL_OF("attention"), attention, arguments), SETUN_OK);
    assert_string_equal(arguments[2].name, "HEAD_SIZE");
    assert_int_equal(arguments[2].kind, SETUN_MLX_ARGUMENT_INTEGER);
    assert_int_equal(arguments[1].kind, SETUN_MLX_ARGUMENT_DTYPE);
    assert_int_equal(arguments[9].kind, SETUN_MLX_ARGUMENT_BOOL);
    const int32_t bad_type[] = {SETUN_I8, 1}, bad_flag[] = {SETUN_F32, SETUN_F32, 2, 0};
    assert_int_equal(setun_gpu_templates(KERNEL_OF("unary"), bad_type, arguments), SETUN_ERROR_ARGUMENT);
    assert_int_equal(setun_gpu_templates(KERNEL_OF("rms_norm"), bad_flag, arguments), SETUN_ERROR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_accidental_names), cmocka_unit_test(launch_shapes), cmocka_unit_test(metal_parses), cmocka_unit_test(cuda_compiles), cmocka_unit_test(nvrtc_compiles)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
