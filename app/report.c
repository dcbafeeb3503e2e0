/*
 * report.c - `setun bench --report FILE`: one document that says what a machine is, whether its devices compute what they should, and how fast.
 * Every device runs the model beside a reference (a GPU beside the CPU, the CPU beside its reference kernels), both fed the reference's tokens.
 */
#include "report.h"
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

enum { REPORT_VERSION = 1, PROMPT = 16, MOST_STEPS = 16, MOST_DEVICES = 16 };
static const double budget_seconds = 45; /* of a comparison: slow references compare fewer tokens */

/* ---- what the machine tells of its heat and power ---- */

static bool read_number(const char *folder, const char *name, double *out) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    if (!f) return false;
    bool good = fscanf(f, "%lf", out) == 1;
    fclose(f);
    return good;
}

/* The largest (hottest: true) or the sum of a file in the folders that begin so. */
static bool read_all(const char *root, const char *prefix, const char *name, bool hottest, double *out) {
    DIR *d = opendir(root);
    bool any = false;
    *out = 0;
    if (!d) return false;
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        char folder[400];
        double v;
        if (strncmp(e->d_name, prefix, strlen(prefix)) || (!hottest && strchr(e->d_name, ':') != strrchr(e->d_name, ':'))) continue; /* intel-rapl:0:0 is part of intel-rapl:0 */
        snprintf(folder, sizeof folder, "%s/%.200s", root, e->d_name);
        if (!read_number(folder, name, &v)) continue;
        *out = hottest ? (any && *out > v ? *out : v) : *out + v;
        any = true;
    }
    closedir(d);
    return any;
}

typedef struct heat { bool has_temperature, has_energy; double celsius, joules, seconds; } heat;
static heat read_heat(void) {
    heat h = {.seconds = now_seconds()};
    h.has_temperature = read_all("/sys/class/thermal", "thermal_zone", "temp", true, &h.celsius);
    h.has_energy = read_all("/sys/class/powercap", "intel-rapl:", "energy_uj", false, &h.joules);
    h.celsius *= 1e-3;
    h.joules *= 1e-6;
    return h;
}

static json_t *heat_report(const heat *before, const heat *after) {
    json_t *o = json_object();
    bool warm = before->has_temperature && after->has_temperature, watts = before->has_energy && after->has_energy && after->joules > before->joules;
    json_object_set_new(o, "temperature_celsius", warm ? json_pack("{s:f, s:f}", "before", before->celsius, "after", after->celsius) : json_string("unknown"));
    json_object_set_new(o, "package_watts", watts ? json_real((after->joules - before->joules) / (after->seconds - before->seconds)) : json_string("unknown"));
#ifdef __APPLE__
    json_object_set_new(o, "why", json_string("macOS tells power and heat to root only (sudo powermetrics)"));
#else
    if (!warm || !watts) json_object_set_new(o, "why", json_string("no readable thermal zone or energy counter in /sys"));
#endif
    return o;
}

/* ---- a device beside its reference ---- */

typedef struct side { setun_context *context; setun_model *model; setun_session *session; int vocabulary; } side;

static void close_side(side *x) {
    setun_session_destroy(x->session);
    setun_model_close(x->model);
    setun_context_destroy(x->context);
    memset(x, 0, sizeof *x);
}

static int open_side(const settings *s, const char *device, const char *isa, side *x) {
    settings own = *s;
    own.device = device;
    own.isa = isa;
    own.precision = !strncmp(device, "mlx", 3) ? s->precision : NULL; /* the reference's is f32 */
    memset(x, 0, sizeof *x);
    int status = open_context(&own, s->bench_threads.items[0], &x->context);
    if (status == EXIT_OK) status = open_model(&own, x->context, &x->model);
    setun_session_options o = session_options(&own);
    o.context = PROMPT + MOST_STEPS + 1;
    setun_model_info info = {.size = sizeof info};
    setun_status code = SETUN_OK;
    if (status == EXIT_OK) code = setun_session_create(x->model, &o, &x->session);
    if (status == EXIT_OK && code == SETUN_OK) code = setun_model_get_info(x->model, &info);
    x->vocabulary = info.vocabulary;
    return status != EXIT_OK ? status : code == SETUN_OK ? EXIT_OK : fail_status(code);
}

static int32_t likeliest(const float *logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* A prompt at once, then the reference's tokens one by one, until the budget is spent. */
static int compare_sides(side *device, side *reference, const char *against, json_t **out) {
    int32_t ids[PROMPT];
    int compared = 0, same_tokens = 0, same_bits = 0, count = PROMPT;
    double worst = 0, start = now_seconds();
    for (int i = 0; i < PROMPT; i++) ids[i] = (int32_t)((uint32_t)(i + 1) * 2654435761u % (uint32_t)reference->vocabulary);
    setun_status code = SETUN_OK;
    while (code == SETUN_OK && compared < MOST_STEPS && (compared == 0 || now_seconds() - start < budget_seconds)) {
        if ((code = setun_session_feed(reference->session, ids, (size_t)count)) != SETUN_OK || (code = setun_session_feed(device->session, ids, (size_t)count)) != SETUN_OK) break;
        const float *want = setun_session_logits(reference->session, NULL), *got = setun_session_logits(device->session, NULL);
        if (!want || !got) return fail("no logits after %d tokens", compared);
        double difference = 0, size = 0;
        for (int i = 0; i < reference->vocabulary; i++) {
            difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
            size += (double)want[i] * want[i];
        }
        double error = size > 0 ? sqrt(difference / size) : sqrt(difference);
        if (!(error <= worst)) worst = isfinite(error) ? error : 1e300;
        same_bits += memcmp(want, got, (size_t)reference->vocabulary * sizeof *want) == 0;
        same_tokens += likeliest(want, reference->vocabulary) == likeliest(got, reference->vocabulary);
        compared++;
        ids[0] = likeliest(want, reference->vocabulary);
        count = 1;
    }
    if (code != SETUN_OK) return fail_status(code);
    *out = json_pack("{s:s, s:i, s:i, s:i, s:i, s:f}", "against", against, "prompt_tokens", PROMPT, "tokens", compared, "same_tokens", same_tokens, "same_bits", same_bits, "worst_relative_error", worst);
    return EXIT_OK;
}

/* The part of explain that is about the device: weights in place, kernels and waits a token, fallbacks. */
static int explain_side(const settings *s, side *x, json_t **out) {
    setun_explain_options o = {.size = sizeof o, .session = session_options(s), .json = true};
    o.session.context = PROMPT + MOST_STEPS + 1;
    if (!x->model) return EXIT_FAILED;
    char *text = NULL;
    setun_status code = setun_model_explain(x->model, &o, &text);
    if (code != SETUN_OK) return fail_status(code);
    json_t *root = json_loads(text, 0, NULL);
    setun_free(text);
    *out = json_incref(json_object_get(root, "device"));
    json_decref(root);
    return *out ? EXIT_OK : fail("cannot read the library's own report");
}

static int validate(const settings *s, const char *device, json_t *into, bool *good) {
    side x, reference;
    bool cpu = !strcmp(device, "cpu");
    char against[96];
    int status = open_side(s, device, s->isa, &x);
    memset(&reference, 0, sizeof reference);
    const char *isa = x.context ? setun_context_isa(x.context) : "";
    snprintf(against, sizeof against, "cpu, kernels %s", cpu ? "ref" : isa);
    json_t *comparison = NULL, *explained = NULL;
    if (status == EXIT_OK) status = explain_side(s, &x, &explained);
    if (status == EXIT_OK && cpu && !strcmp(isa, "ref")) comparison = json_pack("{s:s, s:i}", "against", "nothing: these are the reference kernels", "tokens", 0);
    else {
        if (status == EXIT_OK) status = open_side(s, "cpu", cpu ? "ref" : s->isa, &reference);
        if (status == EXIT_OK) status = compare_sides(&x, &reference, against, &comparison);
    }
    if (comparison) {
        if (json_integer_value(json_object_get(comparison, "tokens")) != json_integer_value(json_object_get(comparison, "same_tokens")) && json_object_get(comparison, "same_tokens")) *good = false;
        json_object_set_new(into, "validation", comparison);
    }
    if (explained) json_object_set_new(into, "plan", explained);
    if (!cpu && status == EXIT_OK) {
        char *text = NULL;
        setun_status code = setun_device_check(x.context, device, s->quiet ? NULL : progress_callback, NULL, &text);
        progress_end();
        json_t *kernels = code == SETUN_OK ? json_loads(text, 0, NULL) : NULL;
        setun_free(text);
        if (code != SETUN_OK) status = fail_status(code);
        else if (!kernels) status = fail("cannot read the library's own report");
        else {
            if (json_integer_value(json_object_get(kernels, "checked")) != json_integer_value(json_object_get(kernels, "same_bits"))) *good = false;
            json_object_set_new(into, "kernels", kernels);
        }
    }
    setun_device_memory memory = {.size = sizeof memory};
    if (status == EXIT_OK && setun_device_get_memory(x.context, device, &memory) == SETUN_OK)
        json_object_set_new(into, "memory", json_pack("{s:I, s:I, s:I, s:I, s:I}", "active_bytes", (json_int_t)memory.active_bytes, "peak_bytes", (json_int_t)memory.peak_bytes, "cache_bytes",
            (json_int_t)memory.cache_bytes, "shared_bytes", (json_int_t)memory.shared_bytes, "copied_bytes", (json_int_t)memory.copied_bytes));
    close_side(&x);
    close_side(&reference);
    return status;
}

/* ---- the document ---- */

static int report_device(const settings *s, const char *device, json_t *devices, bool *good) {
    json_t *part = json_pack("{s:s}", "device", device), *runs = json_array(), *measured = json_object();
    settings own = *s;
    own.device = device;
    own.given[OPTION_device] = true;
    if (!strcmp(device, "cpu")) own.precision = NULL; /* it has f32 only */
    if (!strcmp(device, "mlx:cpu")) { /* thread by thread: a check, not a speed */
        if (!s->given[OPTION_bench_prompt]) own.bench_prompt = 16;
        if (!s->given[OPTION_generate]) own.generate = 4;
        if (!s->given[OPTION_repeats]) own.repeats = 2;
    }
    if (!s->quiet) fprintf(stderr, "setun: %s: comparing ..\n", device);
    int status = validate(&own, device, part, good);
    heat before = read_heat();
    if (!s->quiet && status == EXIT_OK) fprintf(stderr, "setun: %s: measuring ..\n", device);
    if (status == EXIT_OK) status = bench_runs(&own, measured, runs);
    heat after = read_heat();
    if (status == EXIT_OK) {
        json_object_del(measured, "model"); /* a path of the user's */
        json_object_set(measured, "runs", runs);
        json_object_set(part, "measured", measured);
        json_object_set_new(part, "power", heat_report(&before, &after));
    }
    json_object_set_new(part, "completed", json_boolean(status == EXIT_OK));
    if (status != EXIT_OK && *setun_error()) json_object_set_new(part, "problem", json_string(setun_error()));
    json_array_append_new(devices, part);
    json_decref(runs);
    json_decref(measured);
    return status;
}

static json_t *best_of(const json_t *part, const char *what) {
    json_t *run;
    size_t i;
    json_array_foreach(json_object_get(json_object_get(part, "measured"), "runs"), i, run)
        if (json_object_get(run, what)) return json_object_get(json_object_get(run, what), "median");
    return NULL;
}

static void print_summary(const json_t *root, const char *path) {
    const json_t *part;
    size_t i;
    json_array_foreach(json_object_get(root, "devices"), i, part) {
        const json_t *v = json_object_get(part, "validation"), *kernels = json_object_get(part, "kernels"), *plan = json_object_get(part, "plan");
        printf("%s\n", json_string_value(json_object_get(part, "device")));
        if (!json_is_true(json_object_get(part, "completed"))) {
            printf("  %-16s %s\n", "not completed", json_string_value(json_object_get(part, "problem")));
            continue;
        }
        printf("  %-16s %d of %d tokens the same, %d times the same bits, error at most %.2g (against %s)\n", "model", (int)json_integer_value(json_object_get(v, "same_tokens")), (int)json_integer_value(json_object_get(v, "tokens")),
            (int)json_integer_value(json_object_get(v, "same_bits")), json_number_value(json_object_get(v, "worst_relative_error")), json_string_value(json_object_get(v, "against")));
        if (kernels)
            printf("  %-16s %d of %d calls the same bits; reads %.1f GB/s, ternary codes %.1f GB/s, %.1f us a call\n", "kernels", (int)json_integer_value(json_object_get(kernels, "same_bits")),
                (int)json_integer_value(json_object_get(kernels, "checked")), json_number_value(json_object_get(kernels, "read_bytes_per_second")) * 1e-9,
                json_number_value(json_object_get(kernels, "ternary_bytes_per_second")) * 1e-9, json_number_value(json_object_get(kernels, "call_seconds")) * 1e6);
        printf("  %-16s %.1f %% of the bytes in place\n", "weights", 100 * json_number_value(json_object_get(json_object_get(plan, "weights"), "mapped_share")));
        const json_t *run = json_object_get(plan, "run");
        if (run) printf("  %-16s %d kernels, %d operations of MLX, %d wait(s) of the host\n", "a token", (int)json_integer_value(json_object_get(run, "kernels")), (int)json_integer_value(json_object_get(run, "operations")),
            (int)json_integer_value(json_object_get(run, "synchronisations")));
        if (best_of(part, "prefill")) printf("  %-16s %.1f tokens/s\n", "prefill", json_real_value(best_of(part, "prefill")));
        if (best_of(part, "decode")) printf("  %-16s %.1f tokens/s\n", "decode", json_real_value(best_of(part, "decode")));
    }
    printf("written to %s\n", path);
}

int bench_report(settings *s) {
    char names[MOST_DEVICES][24];
    int count = 0, given = 0;
    json_t *machine = NULL, *devices = json_array(), *root = json_object();
    bool good = true;
    const char *path = model_path(s);
    if (!path) return EXIT_FAILED;
    if (!s->quiet) fprintf(stderr, "setun: looking at the machine ..\n");
    int status = doctor_report(s, &machine);
    setun_context *context = NULL;
    if (status == EXIT_OK) status = open_context(s, 1, &context);
    if (status == EXIT_OK && setun_context_device_count(context, &given) != SETUN_OK) status = fail_status(SETUN_ERROR_DEVICE);
    snprintf(names[count++], sizeof names[0], "cpu");
    if (s->given[OPTION_device] && strcmp(s->device, "cpu") && strcmp(s->device, "auto")) snprintf(names[count++], sizeof names[0], "%s", s->device);
    for (int i = 0; !s->given[OPTION_device] && status == EXIT_OK && i < given && count < MOST_DEVICES; i++) {
        const char *name;
        if (setun_context_device_name(context, i, &name) == SETUN_OK && !strncmp(name, "mlx:gpu", 7)) snprintf(names[count++], sizeof names[0], "%s", name);
    }
    setun_context_destroy(context);
    int first_problem = EXIT_OK;
    for (int i = 0; status == EXIT_OK && i < count; i++) {
        int one = report_device(s, names[i], devices, &good);
        if (one == EXIT_INTERRUPTED) status = one;
        else if (one != EXIT_OK) first_problem = one; /* the others may be fine */
    }
    if (status == EXIT_OK) {
        struct utsname system = {0};
        char when[32] = "";
        time_t now = time(NULL);
        struct tm date;
        uname(&system);
        if (gmtime_r(&now, &date)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &date);
        json_object_set_new(root, "setun_report", json_integer(REPORT_VERSION));
        json_object_set_new(root, "version", json_string(setun_version()));
        json_object_set_new(root, "created", json_string(when));
        json_object_set_new(root, "system", json_pack("{s:s, s:s, s:s}", "name", system.sysname, "release", system.release, "machine", system.machine));
        const char *name = strrchr(path, '/');
        json_object_set_new(root, "model", json_string(name ? name + 1 : path));
        json_object_set(root, "machine", machine);
        json_object_set(root, "devices", devices);
        json_object_set_new(root, "valid", json_boolean(good && first_problem == EXIT_OK));
        json_object_set_new(root, "peak_memory_bytes", json_integer((json_int_t)peak_memory()));
        char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(7));
        status = text ? write_text(s->report, text, strlen(text)) : fail("out of memory");
        if (status == EXIT_OK && s->json) puts(text);
        else if (status == EXIT_OK) print_summary(root, s->report);
        free(text);
        if (status == EXIT_OK) status = first_problem;
        if (status == EXIT_OK && !good) status = fail("a device does not compute what its reference does: see validation and kernels in %s", s->report);
    }
    json_decref(machine);
    json_decref(devices);
    json_decref(root);
    return status;
}
