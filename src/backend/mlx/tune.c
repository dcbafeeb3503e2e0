/*
 * tune.c - `setun tune`: times the GPU kernels on a device with one group size and tile after another, keeps the best and stores them in
 * the user's file. Caller: the program, through setun_device_tune. Knows kernels and shapes; refuses to know plans and models.
 */
#include "backend/mlx/tune.h"
#include "backend/mlx/cases.h"

#include <errno.h>
#include <sys/stat.h>
#include <time.h>

/* ---- the search ---- */

enum { MOST_CANDIDATES = 8, MARGIN_PERCENT = 3 };
typedef enum group_id { NORM, ROW, ELEMENT, MATVEC, MATVEC_TOKENS, MATMUL, MATRIX, MATMUL_FROM, TEAM, TEAM_TOKENS, ATTENTION, SPLIT, GROUPS } group_id;
typedef struct group { const char *name; const char *field[2]; int candidate[2][MOST_CANDIDATES]; /* end with 0 */ } group;
static const group groups[GROUPS] = {
    [NORM] = {"norms and rounding to int8", {"norm_threads"}, {{64, 128, 256, 512, 1024}}},
    [ROW] = {"rotations and rows", {"row_threads"}, {{32, 64, 128, 256, 512}}},
    [ELEMENT] = {"element by element", {"element_threads"}, {{64, 128, 256, 512, 1024}}},
    [MATVEC] = {"ternary product, one token", {"matvec_rows", "matvec_threads"}, {{1, 2, 4, 8, 16}, {32, 64, 128, 256}}},
    [MATVEC_TOKENS] = {"ternary product, 8 tokens", {"matvec_token_rows", "matvec_tokens"}, {{1, 2, 4, 8, 16}, {2, 4, 8}}},
    [MATMUL] = {"ternary product, prompt", {"matmul_rows", "matmul_tokens"}, {{16, 32, 64, 128}, {16, 32, 64, 128}}},
    [MATRIX] = {"the same on matrix units", {"matmul_way"}, {{1, 2}}},
    [MATMUL_FROM] = {"tokens from which the prompt's product is used", {"matmul_from"}, {{2, 5, 9, 13, 17, 25, 33, 65}}},
    [TEAM] = {"float product, one token", {"team_rows", "team_threads"}, {{1, 2, 4, 8}, {64, 128, 256}}},
    [TEAM_TOKENS] = {"float product, 8 tokens", {"team_tokens"}, {{1, 2, 4, 8}}},
    [ATTENTION] = {"attention, one token", {"attention_heads", "attention_threads"}, {{1, 2, 4, 8}, {64, 128, 256}}},
    [SPLIT] = {"keys from which attention is split", {"attention_split"}, {{257, 513, 1025, 2049, 4097, 1048576}}},
};

int setun_tune_group_count(void) { return GROUPS; }
const char *setun_tune_group_name(int g) { return g >= 0 && g < GROUPS ? groups[g].name : NULL; }

static int field_of(const char *name)
{
    int field = 0;
    while (field < setun_tuning_field_count() && strcmp(setun_tuning_field_name(field), name)) field++;
    return field;
}

/* Two fields of a group may break a rule one after the other and obey it together. */
static bool set_both(setun_tuning *values, const group *g, int first, int second)
{
    for (int order = 0; order < 2; order++) {
        setun_tuning changed = *values;
        bool good = true;
        for (int i = 0; i < 2 && good; i++) {
            int which = (i + order) % 2;
            if (g->field[which]) good = setun_tuning_set(&changed, field_of(g->field[which]), which ? second : first) == SETUN_OK;
        }
        if (good) {
            *values = changed;
            return true;
        }
    }
    return false;
}

static int candidate_count(const int *candidates)
{
    int n = 0;
    while (n < MOST_CANDIDATES && candidates[n]) n++;
    return n ? n : 1;
}

setun_status setun_tune_search(setun_tuning *values, setun_tune_measure_fn measure, void *user, setun_progress_fn progress, void *progress_user, setun_tune_gain *gains)
{
    uint64_t done = 0, total = 0;
    for (int g = 0; g < GROUPS; g++) total += 1 + (uint64_t)candidate_count(groups[g].candidate[0]) * (uint64_t)candidate_count(groups[g].candidate[1]);
    for (int g = 0; g < GROUPS; g++) {
        const group *gr = &groups[g];
        setun_tuning start = *values;
        double best;
        SETUN_TRY(measure(user, g, &start, &best));
        gains[g] = (setun_tune_gain){best, best, 1};
        if (progress && !progress(progress_user, "measurements", ++done, total)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
        for (int i = 0; i < candidate_count(gr->candidate[0]); i++)
            for (int j = 0; j < candidate_count(gr->candidate[1]); j++) {
                setun_tuning trial = start;
                double seconds;
                if (set_both(&trial, gr, gr->candidate[0][i], gr->candidate[1][j]) && memcmp(&trial, &start, sizeof trial) != 0) {
                    SETUN_TRY(measure(user, g, &trial, &seconds));
                    gains[g].tried++;
                    bool clearly = seconds * (100 + MARGIN_PERCENT) < gains[g].before * 100; /* than what was there */
                    if (clearly && seconds < best) {
                        best = seconds;
                        *values = trial;
                    }
                }
                if (progress && !progress(progress_user, "measurements", ++done, total)) return setun_fail(SETUN_ERROR_CANCELLED, "cancelled");
            }
        gains[g].after = best;
    }
    return SETUN_OK;
}

/* ---- what is measured on a device ---- */

/* A GPU is asked about shapes of models; the host form, which runs thread by thread, about what ends in seconds. */
typedef struct shapes { int columns, rows, prompt, heads, kv_heads, head_size, length; uint64_t streamed_bytes; int calls; double sample; } shapes;
static const shapes gpu_shapes = {2560, 6912, 512, 20, 5, 128, 4096, (uint64_t)256 << 20, 256, 0.003};
static const shapes host_shapes = {256, 64, 32, 4, 2, 64, 1024, 0, 1, 0.0};

typedef struct meter {
    setun_gpu_runner runner;
    shapes shape;
    setun_dtype type;
    int repeats;
    double from[2][8], split[2][8]; /* by the way and the ladder's step; 0: not measured yet */
} meter;
static const int token_ladder[] = {2, 4, 8, 12, 16, 24, 32, 64}, length_ladder[] = {256, 512, 1024, 2048, 4096};
enum { TOKEN_STEPS = sizeof token_ladder / sizeof token_ladder[0], LENGTH_STEPS = sizeof length_ladder / sizeof length_ladder[0], MOST_COPIES = 64 };

/* `calls` calls, each after the one before, in one evaluation. */
static setun_status run_calls(meter *m, const setun_gpu_case *c, const setun_gpu_case_arrays *arrays, setun_mlx_array *const *copies, int copy_count, int calls, double *out_seconds)
{
    setun_mlx_array *last = NULL, *outputs[SETUN_GPU_OUTPUTS_MAX];
    setun_gpu_case_arrays turn = *arrays;
    setun_status status = SETUN_OK;
    double start = setun_seconds();
    for (int i = 0; i < calls && status == SETUN_OK; i++) {
        if (copy_count) turn.input[c->streamed] = copies[i % copy_count];
        status = setun_gpu_case_call(&m->runner, c, &turn, last, outputs);
        m->runner.table->array_release(last);
        last = NULL;
        if (status != SETUN_OK) break;
        last = outputs[c->defined[0] ? 0 : 1];
        for (int o = 0; o < c->kernel->output_count; o++)
            if (outputs[o] != last) m->runner.table->array_release(outputs[o]);
    }
    if (status == SETUN_OK) status = setun_mlx_check(m->runner.table, m->runner.table->eval(m->runner.stream, &last, 1, true), c->kernel->name);
    m->runner.table->array_release(last);
    *out_seconds = (setun_seconds() - start) / calls;
    return status;
}

static setun_status time_case(meter *m, const setun_gpu_case *c, double *out_seconds)
{
    setun_gpu_case_arrays arrays;
    setun_mlx_array *copies[MOST_COPIES] = {NULL};
    int copy_count = 0, wanted = 0;
    SETUN_TRY(setun_gpu_case_upload(&m->runner, c, &arrays));
    if (c->streamed >= 0) wanted = (int)(m->shape.streamed_bytes / setun_gpu_spec_bytes(&c->input_spec[c->streamed]));
    if (wanted > MOST_COPIES) wanted = MOST_COPIES;
    setun_status status = SETUN_OK;
    while (copy_count < wanted && status == SETUN_OK) {
        status = setun_mlx_check(m->runner.table, m->runner.table->array_from_host(m->runner.stream, &c->input_spec[c->streamed], c->input[c->streamed], &copies[copy_count]), "copies of a weight");
        copy_count += status == SETUN_OK;
    }
    double warm = 0, seconds, best = 1e30;
    if (status == SETUN_OK) status = run_calls(m, c, &arrays, copies, copy_count, 1, &warm); /* compiles */
    if (status == SETUN_OK) status = run_calls(m, c, &arrays, copies, copy_count, m->shape.calls < 8 ? m->shape.calls : 8, &warm);
    int calls = warm > 0 ? (int)(m->shape.sample / warm) + 1 : m->shape.calls;
    if (calls > m->shape.calls) calls = m->shape.calls;
    for (int i = 0; i < m->repeats && status == SETUN_OK; i++) {
        status = run_calls(m, c, &arrays, copies, copy_count, calls, &seconds);
        if (seconds < best) best = seconds;
    }
    for (int i = 0; i < copy_count; i++) m->runner.table->array_release(copies[i]);
    setun_gpu_case_release(&m->runner, &arrays);
    *out_seconds = best;
    return status;
}

static setun_status time_kernel(meter *m, const setun_gpu_case_options *o, double *out_seconds)
{
    setun_gpu_case c;
    *out_seconds = 0;
    SETUN_TRY(setun_gpu_case_make(o, &c));
    setun_status status = time_case(m, &c, out_seconds);
    setun_gpu_case_free(&c);
    return status;
}

static setun_status time_attention(meter *m, setun_gpu_case_options o, int length, bool split, double *out_seconds)
{
    double combine = 0;
    o.kernel = SETUN_GPU_attention;
    o.tokens = 1;
    o.length = length;
    o.append = true;
    o.split = split;
    SETUN_TRY(time_kernel(m, &o, out_seconds));
    if (!split) return SETUN_OK;
    o.kernel = SETUN_GPU_attention_combine;
    SETUN_TRY(time_kernel(m, &o, &combine));
    *out_seconds += combine;
    return SETUN_OK;
}

/* How far from the better way the threshold lands, averaged over the ladder; 1: always on the better one. */
static double threshold_cost(double times[2][8], const int *ladder, int steps, int threshold)
{
    double sum = 0;
    for (int i = 0; i < steps; i++) sum += times[ladder[i] >= threshold][i] / (times[0][i] < times[1][i] ? times[0][i] : times[1][i]);
    return sum / steps;
}

static setun_gpu_kernel_id prompt_kernel(const setun_tuning *values)
{
    return values->matmul_way == 2 && setun_gpu_matrix_fits(values->matmul_rows, values->matmul_tokens, true) ? SETUN_GPU_ternary_matmul_matrix : SETUN_GPU_ternary_matmul;
}

static setun_status measure_group(void *user, int g, const setun_tuning *values, double *out_seconds)
{
    meter *m = user;
    const shapes *s = &m->shape;
    setun_gpu_case_options o = {.type = m->type, .columns = s->columns, .rows = s->rows, .tokens = 1, .weights = 1, .heads = s->heads, .kv_heads = s->kv_heads, .head_size = s->head_size, .length = s->length,
                                .tuning = *values, .seed = 7};
    double more = 0;
    switch ((group_id)g) {
    case NORM:
        o.kernel = SETUN_GPU_rms_norm_quantize;
        SETUN_TRY(time_kernel(m, &o, out_seconds));
        o.tokens = s->prompt;
        SETUN_TRY(time_kernel(m, &o, &more));
        *out_seconds += more / s->prompt;
        return SETUN_OK;
    case ROW:
        o.kernel = SETUN_GPU_rope;
        o.tokens = s->prompt / 4;
        return time_kernel(m, &o, out_seconds);
    case ELEMENT:
        o.kernel = SETUN_GPU_binary;
        o.tokens = s->prompt / 4;
        return time_kernel(m, &o, out_seconds);
    case MATVEC:
        o.kernel = SETUN_GPU_ternary_matvec;
        return time_kernel(m, &o, out_seconds);
    case MATVEC_TOKENS:
        o.kernel = SETUN_GPU_ternary_matvec;
        o.tokens = 8;
        return time_kernel(m, &o, out_seconds);
    case MATMUL:
    case MATRIX:
        o.kernel = prompt_kernel(values);
        o.tokens = s->prompt;
        if (o.kernel == SETUN_GPU_ternary_matmul) return time_kernel(m, &o, out_seconds);
        /* Only Metal has units for it; what does not compile there is not chosen. */
        if (m->runner.device != SETUN_MLX_METAL || time_kernel(m, &o, out_seconds) != SETUN_OK) *out_seconds = 1e30;
        return SETUN_OK;
    case MATMUL_FROM:
        for (int i = 0; i < TOKEN_STEPS; i++) {
            o.tokens = token_ladder[i];
            for (int way = 0; way < 2; way++) {
                o.kernel = way ? prompt_kernel(values) : SETUN_GPU_ternary_matvec;
                if (m->from[way][i] == 0) SETUN_TRY(time_kernel(m, &o, &m->from[way][i]));
            }
        }
        *out_seconds = threshold_cost(m->from, token_ladder, TOKEN_STEPS, values->matmul_from);
        return SETUN_OK;
    case TEAM:
        o.kernel = SETUN_GPU_dense_matvec;
        return time_kernel(m, &o, out_seconds);
    case TEAM_TOKENS:
        o.kernel = SETUN_GPU_dense_matvec;
        o.tokens = 8;
        return time_kernel(m, &o, out_seconds);
    case ATTENTION: return time_attention(m, o, s->length / 4, false, out_seconds);
    case SPLIT: {
        int steps = 0;
        while (steps < LENGTH_STEPS && length_ladder[steps] <= s->length) steps++;
        for (int i = 0; i < steps; i++)
            for (int way = 0; way < 2; way++)
                if (m->split[way][i] == 0) SETUN_TRY(time_attention(m, o, length_ladder[i], way == 1, &m->split[way][i]));
        *out_seconds = threshold_cost(m->split, length_ladder, steps, values->attention_split);
        return SETUN_OK;
    }
    case GROUPS: break;
    }
    return setun_fail(SETUN_ERROR_STATE, "measurement %d", g);
}

static meter meter_of(const setun_mlx *mlx, int repeats)
{
    bool host = mlx->device.backend == SETUN_MLX_CPU;
    return (meter){.runner = {.table = mlx->table, .stream = mlx->stream, .device = mlx->device.backend}, .shape = host ? host_shapes : gpu_shapes, .type = host ? SETUN_F32 : SETUN_BF16, .repeats = repeats};
}

setun_status setun_tune_rates_of(const setun_mlx *mlx, const setun_tuning *values, setun_tune_rates *out)
{
    meter m = meter_of(mlx, 5);
    double one = 0, many = 0, call = 0;
    setun_gpu_case_options tiny = {.kernel = SETUN_GPU_unary, .type = SETUN_F32, .columns = 8, .tokens = 1, .tuning = *values, .seed = 7};
    setun_status status = measure_group(&m, MATVEC, values, &one);
    if (status == SETUN_OK) status = measure_group(&m, MATMUL, values, &many);
    if (status == SETUN_OK) status = time_kernel(&m, &tiny, &call);
    setun_gpu_runner_close(&m.runner);
    SETUN_TRY(status);
    out->ternary_bytes_per_second = (double)m.shape.rows * (double)((m.shape.columns + 127) / 128 * 32) / one;
    out->prompt_operations_per_second = 2.0 * m.shape.rows * m.shape.columns * m.shape.prompt / many;
    out->call_seconds = call;
    return SETUN_OK;
}

/* ---- which values a device has, and the file ---- */

/* MLX's CPU may have its GPU's name. */
static void key_of(const setun_mlx_device *device, char out[160])
{
    snprintf(out, 160, device->backend == SETUN_MLX_CPU ? "%.127s (host form)" : "%.127s", device->name);
}

void setun_mlx_tuned(setun_context *context, const setun_mlx_device *device, setun_tuned *out)
{
    const char *path = context->environment.tuning;
    setun_tuning_store *store = NULL;
    out->family = setun_gpu_family_of(device->architecture, device->name);
    if (*path && setun_tuning_load(path, &store) != SETUN_OK) setun_log(context, SETUN_LOG_WARNING, "measured group sizes are not used: %s", setun_error());
    char key[160];
    key_of(device, key);
    out->measured = setun_tuning_lookup(store, key, out->family, &out->values);
    const char *when = setun_tuning_measured(store, key);
    if (out->measured) snprintf(out->note, sizeof out->note, "measured%s%.60s, %.160s", *when ? " " : "", when, path);
    else snprintf(out->note, sizeof out->note, "table of family %s", setun_gpu_family_name(out->family));
    setun_tuning_destroy(store);
}

static setun_status make_folders(const char *path)
{
    char folder[1024];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *at = folder + 1; *at; at++) {
        if (*at != '/') continue;
        *at = 0;
        if (mkdir(folder, 0777) != 0 && errno != EEXIST) return setun_fail(SETUN_ERROR_IO, "%s: the folder cannot be made: %s", folder, strerror(errno));
        *at = '/';
    }
    return SETUN_OK;
}

static setun_status store_values(const char *path, const setun_mlx_device *device, setun_gpu_family family, const char *note, const setun_tuning *values)
{
    setun_tuning_store *store = NULL;
    SETUN_TRY(setun_tuning_load(path, &store)); /* other devices' values stay */
    char key[160];
    key_of(device, key);
    setun_status status = setun_tuning_put(store, key, family, note, values);
    if (status == SETUN_OK) status = make_folders(path);
    if (status == SETUN_OK) status = setun_tuning_save(store, path);
    setun_tuning_destroy(store);
    return status;
}

static void as_json(setun_string *s, const setun_mlx *mlx, const setun_tuned *before, const setun_tuning *after, const setun_tune_gain *gains, const char *path, const char *note)
{
    setun_string_printf(s, "{\"device\": \"%s\", \"name\": ", mlx->id);
    setun_string_json(s, mlx->device.name, strnlen(mlx->device.name, sizeof mlx->device.name));
    setun_string_printf(s, ", \"family\": \"%s\", \"before\": ", setun_gpu_family_name(before->family));
    setun_string_json(s, before->note, strlen(before->note));
    setun_string_puts(s, ", \"measured\": ");
    setun_string_json(s, note, strlen(note));
    setun_string_puts(s, ", \"path\": ");
    if (path) setun_string_json(s, path, strlen(path));
    else setun_string_puts(s, "null");
    setun_string_puts(s, ", \"values\": {");
    for (int f = 0; f < setun_tuning_field_count(); f++)
        setun_string_printf(s, "%s\"%s\": {\"before\": %d, \"after\": %d}", f ? ", " : "", setun_tuning_field_name(f), setun_tuning_get(&before->values, f), setun_tuning_get(after, f));
    setun_string_puts(s, "}, \"measurements\": [");
    for (int g = 0; g < GROUPS; g++) {
        bool ratio = g == MATMUL_FROM || g == SPLIT;
        setun_string_printf(s, "%s{\"what\": \"%s\", \"tried\": %d, \"unit\": \"%s\", \"before\": %.9g, \"after\": %.9g}", g ? ", " : "", groups[g].name, gains[g].tried,
                            ratio ? "times the better way" : "seconds", gains[g].before, gains[g].after);
    }
    setun_string_puts(s, "]}");
}

setun_status setun_device_tune(setun_context *context, const setun_tune_options *options, char **out_json)
{
    if (!context || !out_json) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_device_tune: %s is NULL", context ? "out_json" : "context");
    *out_json = NULL;
    SETUN_OPTIONS(setun_tune_options, o, options);
    if (o.repeats < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_device_tune: %d repeats", o.repeats);
    const char *path = o.path && *o.path ? o.path : context->environment.tuning;
    if (!o.measure_only && !*path) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_device_tune: no file for the values: neither SETUN_TUNING nor XDG_CONFIG_HOME nor HOME is set; give a path");
    if (strlen(path) >= sizeof context->environment.tuning) return setun_fail(SETUN_ERROR_ARGUMENT, "setun_device_tune: the path is too long");
    const char *device = o.device && *o.device ? o.device : "mlx:gpu";
    if (!strcmp(device, "cpu")) return setun_fail(SETUN_ERROR_UNSUPPORTED, "the CPU backend has no group sizes to measure; choose a device of MLX");
    setun_mlx *mlx;
    setun_status status = setun_mlx_open(context, device, &mlx);
    if (status != SETUN_OK) return setun_fail_prefix(status, "nothing was measured on %s", device);
    if (!o.measure_only) { /* minutes before it is needed */
        setun_tuning_store *store;
        SETUN_TRY(setun_tuning_load(path, &store));
        setun_tuning_destroy(store);
    }
    setun_tuned before;
    setun_mlx_tuned(context, &mlx->device, &before);
    meter m = meter_of(mlx, o.repeats ? o.repeats : 5);
    setun_tuning values = before.values;
    setun_tune_gain gains[GROUPS];
    status = setun_tune_search(&values, measure_group, &m, o.progress, o.progress_user, gains);
    setun_gpu_runner_close(&m.runner);
    if (status != SETUN_OK) return status;
    char note[96];
    time_t now = time(NULL);
    struct tm date;
    gmtime_r(&now, &date);
    snprintf(note, sizeof note, "%04d-%02d-%02d, setun %s, mlx %.32s", date.tm_year + 1900, date.tm_mon + 1, date.tm_mday, setun_version(), mlx->table->version());
    if (!o.measure_only) SETUN_TRY(store_values(path, &mlx->device, before.family, note, &values));
    setun_string s = {0};
    as_json(&s, mlx, &before, &values, gains, o.measure_only ? NULL : path, note);
    return setun_string_take(&s, out_json, NULL);
}
