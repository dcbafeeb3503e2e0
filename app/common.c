/* common.c - errors, opening models, progress, files, interrupts: what more than one command needs. */
#define _GNU_SOURCE
#include "app.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

int fail(const char *format, ...) {
    progress_end();
    va_list arguments;
    va_start(arguments, format);
    fputs("setun: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return EXIT_FAILED;
}

int usage_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("setun: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return EXIT_USAGE;
}

int fail_status(setun_status status) {
    const char *message = setun_error();
    fail("%s", message && *message ? message : setun_status_name(status));
    return status == SETUN_ERROR_CANCELLED ? EXIT_INTERRUPTED : EXIT_FAILED;
}

static void log_line(void *user, setun_log_level level, const char *message) {
    (void)user;
    progress_end();
    fprintf(stderr, "setun: %s%s\n", level == SETUN_LOG_WARNING ? "warning: " : level == SETUN_LOG_ERROR ? "error: " : "", message);
}

/* PREFIX/share/setun/models for a program that lies in PREFIX/bin, wherever it was installed; "" if the system does not say. */
static void installed_models(char *out, size_t size) {
    char path[3072] = "";
#ifdef __APPLE__
    uint32_t capacity = sizeof path;
    if (_NSGetExecutablePath(path, &capacity)) path[0] = 0;
#else
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
#endif
    for (int i = 0; i < 2; i++) {
        char *slash = strrchr(path, '/');
        if (slash) *slash = 0;
    }
    if (*path) snprintf(out, size, "%s/" SETUN_DATA_FOLDER "/setun/models", path);
    else *out = 0;
}

const char *model_path(const settings *s) {
    static char found[4352], installed[4096];
    if (s->given[OPTION_model]) return s->model;
    const char *variable = getenv("SETUN_MODEL");
    if (variable && *variable) return variable;
    installed_models(installed, sizeof installed);
    const char *const places[] = {installed, SETUN_SOURCE_MODELS};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (!*places[i]) continue;
        snprintf(found, sizeof found, "%s/setun-smol-135m.gguf", places[i]);
        if (!access(found, R_OK)) return found;
    }
    fail("no model: give one with -m PATH or SETUN_MODEL; the model that comes with Setun was not found in %s nor %s", places[0], places[1]);
    return NULL;
}

int open_context(const settings *s, int threads, setun_context **out) {
    setun_context_options o = {.size = sizeof o, .threads = threads, .pin_threads = s->pin, .isa = s->isa, .log = log_line,
        .log_level = s->quiet ? SETUN_LOG_ERROR : s->verbose ? SETUN_LOG_INFO : SETUN_LOG_WARNING};
    setun_status status = setun_context_create(&o, out);
    return status == SETUN_OK ? EXIT_OK : fail_status(status);
}

setun_model_options model_options(const settings *s) {
    return (setun_model_options){.size = sizeof(setun_model_options), .i2s_layout = s->i2s_layout, .device = s->device, .no_map = s->no_map, .weights = s->weights,
        .progress = s->quiet ? NULL : progress_callback};
}

int open_model(const settings *s, setun_context *context, setun_model **out) {
    *out = NULL;
    const char *path = model_path(s);
    if (!path) return EXIT_FAILED;
    setun_model_options o = model_options(s);
    double start = now_seconds();
    setun_status status = setun_model_open(context, path, &o, out);
    progress_end();
    if (status != SETUN_OK) return fail_status(status);
    if (s->verbose) fprintf(stderr, "setun: opened %s in %.3f s\n", path, now_seconds() - start);
    return EXIT_OK;
}

setun_session_options session_options(const settings *s) {
    return (setun_session_options){.size = sizeof(setun_session_options), .context = s->context, .batch = s->batch, .kv_type = s->kv_type,
        .no_fusion = s->no_fusion, .no_activation_quantisation = s->no_activation, .head = s->head, .precision = s->precision};
}

int make_sampler(const settings *s, int vocabulary, setun_sampler **out) {
    setun_logit_bias *bias = calloc(s->bias.count + 1, sizeof *bias);
    if (!bias) return fail("out of memory");
    for (size_t i = 0; i < s->bias.count; i++) {
        char *end;
        const char *text = s->bias.items[i];
        long id = strtol(text, &end, 10);
        bool good = end != text && (*end == '=' || *end == ':') && id >= 0 && id < vocabulary;
        const char *number = end + 1;
        if (good) bias[i].bias = strtof(number, &end);
        if (!good || end == number || *end || isnan(bias[i].bias)) {
            free(bias);
            return usage_error("--logit-bias: '%s' is not ID=X with an id below %d", text, vocabulary);
        }
        bias[i].id = (int32_t)id;
    }
    setun_sampler_options o = {.size = sizeof o, .temperature = (float)s->temperature, .top_k = s->top_k, .top_p = (float)s->top_p, .min_p = (float)s->min_p,
        .repetition_penalty = (float)s->repetition, .presence_penalty = (float)s->presence, .frequency_penalty = (float)s->frequency, .seed = s->seed,
        .bias = bias, .bias_count = s->bias.count};
    setun_status status = setun_sampler_create(&o, vocabulary, out);
    free(bias);
    return status == SETUN_OK ? EXIT_OK : fail_status(status);
}

int read_text(const char *path, char **out, size_t *out_length) {
    bool standard = !strcmp(path, "-");
    FILE *f = standard ? stdin : fopen(path, "rb");
    if (!f) return fail("%s: cannot open: %s", path, strerror(errno));
    char *text = NULL;
    size_t length = 0, capacity = 0;
    for (;;) {
        if (capacity - length < 65536) {
            capacity = capacity ? capacity * 2 : 1 << 17;
            char *bigger = realloc(text, capacity);
            if (!bigger) {
                free(text);
                if (!standard) fclose(f);
                return fail("%s: out of memory", path);
            }
            text = bigger;
        }
        size_t n = fread(text + length, 1, capacity - length - 1, f);
        length += n;
        if (!n) break;
    }
    int error = ferror(f);
    if (!standard) fclose(f);
    if (error) {
        free(text);
        return fail("%s: cannot read: %s", standard ? "standard input" : path, strerror(errno));
    }
    text[length] = 0;
    *out = text;
    *out_length = length;
    return EXIT_OK;
}

int input_text(const settings *s, const char *command_name, const char *what, char **out, size_t *out_length) {
    int sources = s->given[OPTION_prompt] + s->given[OPTION_file] + (s->words.count > 0);
    if (sources > 1) return usage_error("setun %s: give the %s once: as words, with --prompt, or with --file", command_name, what);
    if (s->given[OPTION_file]) return read_text(s->file, out, out_length);
    if (!sources) return read_text("-", out, out_length);
    size_t length = 1;
    if (s->given[OPTION_prompt]) length += strlen(s->prompt);
    for (size_t i = 0; i < s->words.count; i++) length += strlen(s->words.items[i]) + 1;
    char *text = calloc(1, length);
    if (!text) return fail("out of memory");
    if (s->given[OPTION_prompt]) strcpy(text, s->prompt);
    for (size_t i = 0; i < s->words.count; i++) {
        if (i) strcat(text, " ");
        strcat(text, s->words.items[i]);
    }
    *out = text;
    *out_length = strlen(text);
    return EXIT_OK;
}

int write_text(const char *path, const char *text, size_t length) {
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.tmp.XXXXXX", path) >= (int)sizeof temporary) return fail("%s: the name is too long", path);
    int fd = mkstemp(temporary);
    if (fd < 0) return fail("%s: cannot create: %s", temporary, strerror(errno));
    size_t done = 0;
    while (done < length) {
        ssize_t n = write(fd, text + done, length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        done += (size_t)n;
    }
    int good = done == length && !fsync(fd);
    good = !close(fd) && good && !rename(temporary, path);
    if (!good) {
        int error = errno;
        unlink(temporary);
        return fail("%s: cannot write: %s", path, strerror(error));
    }
    return EXIT_OK;
}

/* ---- Ctrl-C ---- */
static setun_session *volatile cancel_target;
static volatile sig_atomic_t interrupts;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (interrupts++ || !cancel_target) _exit(EXIT_INTERRUPTED);
    setun_session_cancel(cancel_target);
}

void interrupt_session(setun_session *session) {
    cancel_target = session;
    interrupts = 0;
    struct sigaction action = {.sa_handler = session ? on_interrupt : SIG_DFL};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

bool interrupted(void) { return interrupts > 0; }
void interrupt_clear(void) { interrupts = 0; }

/* ---- progress ---- */
static bool progress_shown;
static double progress_time;

bool progress_callback(void *user, const char *what, uint64_t done, uint64_t total) {
    (void)user;
    if (!isatty(STDERR_FILENO)) return true;
    double now = now_seconds();
    if (done < total && now - progress_time < 0.1) return true;
    progress_time = now;
    char a[32], b[32];
    if (!strcmp(what, "bytes")) fprintf(stderr, "\r\033[K%3.0f %%  %s of %s", total ? 100.0 * (double)done / (double)total : 100, human_bytes((double)done, a), human_bytes((double)total, b));
    else fprintf(stderr, "\r\033[K%3.0f %%  %llu of %llu %s", total ? 100.0 * (double)done / (double)total : 100, (unsigned long long)done, (unsigned long long)total, what);
    fflush(stderr);
    progress_shown = true;
    return true;
}

void progress_end(void) {
    if (progress_shown) fputs("\r\033[K", stderr);
    progress_shown = false;
}

bool print_bytes(FILE *out, const char *text, size_t length) { return fwrite(text, 1, length, out) == length && !fflush(out); }

char *human_bytes(double bytes, char out[32]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 4) { bytes /= 1024; unit++; }
    snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return out;
}

uint64_t peak_memory(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage)) return 0;
#ifdef __APPLE__
    return (uint64_t)usage.ru_maxrss;
#else
    return (uint64_t)usage.ru_maxrss * 1024;
#endif
}

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double quantile(const double *sorted, int count, double q) {
    if (count < 1) return 0;
    double at = q * (count - 1);
    int i = (int)at;
    return i + 1 < count ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[count - 1];
}
