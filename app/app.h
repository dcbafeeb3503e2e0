/*
 * app.h - what the commands of the program share: settings, option tables, opening a model, progress, output.
 * The program includes the public header only.
 */
#ifndef SETUN_APP_H
#define SETUN_APP_H

#include "setun/setun.h"
#include <stdio.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

typedef struct list { const char **items; size_t count; } list;
typedef struct numbers { int items[16]; int count; } numbers;
typedef const char *app_text;

/* settings has one member an option, of the type its kind says; and given[option] tells whether the user set it. */
#define APP_TYPE_TEXT const char *
#define APP_TYPE_PATH const char *
#define APP_TYPE_INTEGER int
#define APP_TYPE_REAL double
#define APP_TYPE_SEED uint64_t
#define APP_TYPE_FLAG bool
#define APP_TYPE_LIST list
#define APP_TYPE_NUMBERS numbers

typedef enum option_id {
#define SETUN_OPTION(field, letter, name, kind, argument, help) OPTION_##field,
#include "options.def"
#undef SETUN_OPTION
    OPTION_COUNT
} option_id;

typedef struct settings {
#define SETUN_OPTION(field, letter, name, kind, argument, help) APP_TYPE_##kind field;
#include "options.def"
#undef SETUN_OPTION
    bool given[OPTION_COUNT];
    list words; /* what is no option */
} settings;

typedef struct command {
    const char *name, *summary, *usage, *details, *example;
    const signed char *options; /* option_ids, ended by -1 */
    int (*run)(settings *s);
} command;
extern const command commands[];
extern const int command_count;

/* Parses argv after the command's name. Returns -1 to go on, or the exit status (help, usage error). */
int options_parse(const command *c, int argc, char **argv, settings *s);
void options_free(settings *s);
void help_command(const command *c, FILE *out);
void help_program(FILE *out);
int print_man(FILE *out);                       /* the manual page, in mdoc */
int print_completion(const char *shell, FILE *out);

/* Commands, one file each. */
int command_run(settings *s);
int command_chat(settings *s);
int command_inspect(settings *s);
int command_explain(settings *s);
int command_tokenize(settings *s);
int command_perplexity(settings *s);
int command_bench(settings *s);
int command_convert(settings *s);
int command_quantize(settings *s);
int command_doctor(settings *s);
int command_tune(settings *s);

/* Prints "setun: message" (and the library's message when status says so); returns EXIT_FAILED. */
int fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
int usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
int fail_status(setun_status status); /* the library's message */

const char *model_path(const settings *s); /* -m, $SETUN_MODEL, or the model that comes with Setun; NULL with a message if there is none */
int open_context(const settings *s, int threads, setun_context **out);
setun_model_options model_options(const settings *s);
int open_model(const settings *s, setun_context *context, setun_model **out);
setun_session_options session_options(const settings *s);
int make_sampler(const settings *s, int vocabulary, setun_sampler **out);

/* All of a file, or of standard input for "-"; 0-terminated; free() it. */
int read_text(const char *path, char **out, size_t *out_length);
/* What a command works on: its words, --prompt, --file, or standard input. what: "prompt", "text", for messages. free() it. */
int input_text(const settings *s, const char *command_name, const char *what, char **out, size_t *out_length);
/* Writes a small file whole: temporary name, sync, rename. */
int write_text(const char *path, const char *text, size_t length);

/* Ctrl-C: cancels this session's running call; a second one ends the program. NULL: back to the default. */
void interrupt_session(setun_session *session);
bool interrupted(void);
void interrupt_clear(void);

bool progress_callback(void *user, const char *what, uint64_t done, uint64_t total); /* a line on a terminal, nothing in a pipe */
void progress_end(void);
bool print_bytes(FILE *out, const char *text, size_t length); /* flushes; false when the reader has gone */
char *human_bytes(double bytes, char out[32]);
uint64_t peak_memory(void); /* bytes */
double now_seconds(void);
int compare_doubles(const void *a, const void *b);
/* q: 0..1, linear interpolation between order statistics; values sorted. */
double quantile(const double *sorted, int count, double q);

#endif
