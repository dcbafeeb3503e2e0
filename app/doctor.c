/* doctor.c - `setun doctor`: what this machine has, what Setun chose, and what is missing. */
#include "report.h"
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static json_t *library_report(void) {
    json_t *libraries = json_object();
    json_object_set_new(libraries, "jansson", json_string(JANSSON_VERSION));
#ifdef SETUN_HAVE_LIBEDIT
    json_object_set_new(libraries, "libedit", json_string("built in"));
#else
    json_object_set_new(libraries, "libedit", json_null());
#endif
    return libraries;
}

/* MLX in words: version and bridge, then a line for each device, or why there is none. */
static void print_mlx(const json_t *mlx) {
    const json_t *devices = json_object_get(mlx, "devices"), *device;
    const char *problem = json_string_value(json_object_get(mlx, "problem")), *version = json_string_value(json_object_get(mlx, "version"));
    size_t i;
    if (!json_is_true(json_object_get(mlx, "found"))) {
        if (problem && !strncmp(problem, "MLX: ", 5)) problem += 5;
        printf("%-14s none: %s\n", "mlx", problem ? problem : "?");
        return;
    }
    printf("%-14s %s through %s\n", "mlx", version ? version : "?", json_string_value(json_object_get(mlx, "bridge")));
    json_array_foreach(devices, i, device) {
        const double gib = 1.0 / (1024.0 * 1024.0 * 1024.0);
        double working_set = json_number_value(json_object_get(device, "working_set_bytes"));
        json_int_t cores = json_integer_value(json_object_get(device, "cores"));
        printf("  %-12s %s (%s), %.1f GiB", json_string_value(json_object_get(device, "id")), json_string_value(json_object_get(device, "name")), json_string_value(json_object_get(device, "architecture")),
               json_number_value(json_object_get(device, "memory_bytes")) * gib);
        if (json_object_get(device, "free_bytes")) printf(", %.1f free", json_number_value(json_object_get(device, "free_bytes")) * gib);
        if (working_set > 0) printf(", recommended working set %.1f", working_set * gib);
        printf(", limit to set %.1f", json_number_value(json_object_get(device, "optimal_limit_bytes")) * gib);
        if (cores) printf(", %lld %s", (long long)cores, !strcmp(json_string_value(json_object_get(device, "backend")), "cuda") ? "multiprocessors" : "CPUs");
        printf(json_is_true(json_object_get(device, "shares_memory")) ? ", weights by pointer" : ", weights copied to it");
        puts(json_is_true(json_object_get(device, "compiles")) ? ", graphs compiled" : "");
        printf("  %-12s group sizes: %s\n", "", json_string_value(json_object_get(device, "tuning")));
    }
    if (problem) printf("%-14s %s\n", "", problem);
}

/* model: $SETUN_MODEL or the one that comes with Setun, NULL if there is none. */
static int gather(settings *s, json_t **out, setun_machine_limits *limits, const char **out_path) {
    *out = NULL;
    setun_context *context;
    int status = open_context(s, s->threads, &context);
    if (status != EXIT_OK) return status;
    char *json = NULL;
    setun_status code = setun_context_describe(context, &json);
    if (code == SETUN_OK && !s->quiet && !s->json) fprintf(stderr, "measuring the machine (about 2 seconds) ..\n");
    if (code == SETUN_OK) code = setun_context_measure(context, limits);
    json_t *root = code == SETUN_OK ? json_loads(json, 0, NULL) : NULL;
    setun_free(json);
    setun_context_destroy(context);
    if (code != SETUN_OK) return fail_status(code);
    if (!root) return fail("cannot read the library's own report");
    json_t *missing = json_array();
    json_object_set_new(root, "version", json_string(setun_version()));
    json_object_set_new(root, "measured", json_pack("{s:f, s:f, s:f, s:f}", "read_bytes_per_second_1", limits->read_bytes_per_second_1, "read_bytes_per_second_n", limits->read_bytes_per_second_n,
        "int8_operations_per_second_1", limits->int8_operations_per_second_1, "int8_operations_per_second_n", limits->int8_operations_per_second_n));
    json_object_set_new(root, "libraries", library_report());
#ifndef SETUN_HAVE_LIBEDIT
    json_array_append_new(missing, json_string("libedit: no line editing in `setun chat` (Debian: libedit-dev)"));
#endif
    const char *path = model_path(s);
    struct stat st;
    if (!path || stat(path, &st)) json_array_append_new(missing, json_string("the default model: give one with -m or SETUN_MODEL"));
    json_object_set_new(root, "model", path ? json_string(path) : json_null());
    const char *isa = json_string_value(json_object_get(root, "isa"));
    if (isa && !strcmp(isa, "ref")) json_array_append_new(missing, json_string("fast kernels for this CPU: Setun has AVX2, AVX-512 and NEON; the reference kernels are correct but slow"));
    json_object_set_new(root, "missing", missing);
    *out = root;
    *out_path = path;
    return EXIT_OK;
}

int doctor_report(settings *s, json_t **out) {
    setun_machine_limits limits = {.size = sizeof limits};
    const char *path;
    return gather(s, out, &limits, &path);
}

int command_doctor(settings *s) {
    if (s->words.count) return usage_error("setun doctor takes no words");
    setun_machine_limits limits = {.size = sizeof limits};
    const char *path;
    json_t *root;
    int status = gather(s, &root, &limits, &path);
    if (status != EXIT_OK) return status;
    const json_t *missing = json_object_get(root, "missing");
    if (s->json) {
        json_dumpf(root, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
    } else {
        const char *key;
        json_t *value;
        size_t i;
        json_object_foreach(root, key, value) {
            if (!strcmp(key, "measured") || !strcmp(key, "missing") || !strcmp(key, "buffers")) continue;
            if (!strcmp(key, "mlx")) {
                print_mlx(value);
                continue;
            }
            printf("%-14s ", key);
            if (json_is_object(value) && !strcmp(key, "kernels")) {
                const char *kernel;
                json_t *origin;
                int column = 0;
                json_object_foreach(value, kernel, origin) printf("%s%s[%s]", column++ ? column % 4 == 1 ? "\n               " : "  " : "", kernel, json_string_value(origin));
            } else if (json_is_string(value)) fputs(json_string_value(value), stdout);
            else {
                char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
                fputs(text ? text : "?", stdout);
                free(text);
            }
            putchar('\n');
        }
        printf("%-14s 1 thread %.1f GB/s, all %.1f GB/s\n%-14s 1 thread %.0f Gop/s, all %.0f Gop/s (ternary x int8, 2 operations a multiply-add)\n", "memory read", limits.read_bytes_per_second_1 * 1e-9,
            limits.read_bytes_per_second_n * 1e-9, "int8 rate", limits.int8_operations_per_second_1 * 1e-9, limits.int8_operations_per_second_n * 1e-9);
        json_array_foreach(missing, i, value) printf("missing        %s\n", json_string_value(value));
        if (!json_array_size(missing)) puts("nothing is missing");
    }
    status = json_array_size(missing) && !path ? EXIT_FAILED : EXIT_OK;
    json_decref(root);
    return status;
}
