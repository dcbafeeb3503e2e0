/* options.c - parses options by options.def, and prints help, manual page and completions from the same tables. */
#include "app.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum kind { KIND_TEXT, KIND_PATH, KIND_INTEGER, KIND_REAL, KIND_SEED, KIND_FLAG, KIND_LIST, KIND_NUMBERS } kind;
typedef struct option_row { const char *name; char letter; kind kind; const char *argument, *help; size_t offset; } option_row;

static const option_row rows[] = {
#define SETUN_OPTION(field, letter, name, kind, argument, help) {name, letter, KIND_##kind, argument, help, offsetof(settings, field)},
#include "options.def"
#undef SETUN_OPTION
};

static int add(list *l, const char *item) {
    const char **items = realloc(l->items, (l->count + 1) * sizeof *items);
    if (!items) return fail("out of memory");
    l->items = items;
    l->items[l->count++] = item;
    return -1;
}

static bool parse_integer(const char *text, int *out) {
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (errno || end == text || *end || v < -1000000000L || v > 1000000000L) return false;
    *out = (int)v;
    return true;
}

/* Stores one option's argument; -1 to go on. */
static int store(const command *c, int id, const char *value, settings *s) {
    const option_row *row = &rows[id];
    void *target = (char *)s + row->offset;
    s->given[id] = true;
    char *end = NULL;
    switch (row->kind) {
    case KIND_TEXT: case KIND_PATH: *(const char **)target = value; return -1;
    case KIND_FLAG: *(bool *)target = true; return -1;
    case KIND_LIST: return add(target, value);
    case KIND_INTEGER:
        if (!parse_integer(value, target) || *(int *)target < 0) return usage_error("setun %s: --%s: '%s' is not a whole number from 0", c->name, row->name, value);
        return -1;
    case KIND_SEED:
        errno = 0;
        *(uint64_t *)target = strtoull(value, &end, 10);
        if (errno || end == value || *end || *value == '-') return usage_error("setun %s: --%s: '%s' is not a whole number from 0", c->name, row->name, value);
        return -1;
    case KIND_REAL:
        *(double *)target = strtod(value, &end);
        if (end == value || *end || !isfinite(*(double *)target)) return usage_error("setun %s: --%s: '%s' is not a number", c->name, row->name, value);
        return -1;
    case KIND_NUMBERS: {
        numbers *n = target;
        n->count = 0;
        char text[256];
        if (strlen(value) >= sizeof text) return usage_error("setun %s: --%s: too long", c->name, row->name);
        strcpy(text, value);
        for (char *word = strtok(text, ","); word; word = strtok(NULL, ",")) {
            if (n->count == (int)(sizeof n->items / sizeof *n->items)) return usage_error("setun %s: --%s: too many numbers", c->name, row->name);
            if (!parse_integer(word, &n->items[n->count]) || n->items[n->count] < 0)
                return usage_error("setun %s: --%s: '%s' is not a whole number from 0", c->name, row->name, word);
            n->count++;
        }
        if (!n->count) return usage_error("setun %s: --%s: no number in '%s'", c->name, row->name, value);
        return -1;
    }
    }
    return usage_error("setun %s: --%s: unknown kind", c->name, row->name);
}

static int find(const command *c, const char *name, size_t length, char letter) {
    for (const signed char *id = c->options; *id >= 0; id++) {
        const option_row *row = &rows[*id];
        if (letter ? row->letter == letter : strlen(row->name) == length && !memcmp(row->name, name, length)) return *id;
    }
    return -1;
}

int options_parse(const command *c, int argc, char **argv, settings *s) {
    memset(s, 0, sizeof *s);
    bool only_words = false;
    for (int i = 0; i < argc; i++) {
        char *argument = argv[i];
        int id;
        const char *value = NULL;
        if (only_words || argument[0] != '-' || !argument[1]) {
            int status = add(&s->words, argument);
            if (status >= 0) return status;
            continue;
        }
        if (!strcmp(argument, "--")) {
            only_words = true;
            continue;
        }
        if (!strcmp(argument, "--help") || !strcmp(argument, "-h")) {
            help_command(c, stdout);
            return EXIT_OK;
        }
        if (argument[1] == '-') {
            char *equals = strchr(argument, '=');
            size_t length = equals ? (size_t)(equals - argument - 2) : strlen(argument + 2);
            id = find(c, argument + 2, length, 0);
            if (id < 0) return usage_error("setun %s: unknown option '%s'; `setun %s --help` lists them", c->name, argument, c->name);
            if (equals) value = equals + 1;
            if (equals && rows[id].kind == KIND_FLAG) return usage_error("setun %s: --%s takes no argument", c->name, rows[id].name);
        } else {
            id = find(c, NULL, 0, argument[1]);
            if (id < 0) return usage_error("setun %s: unknown option '%s'; `setun %s --help` lists them", c->name, argument, c->name);
            if (rows[id].kind == KIND_FLAG) {
                if (argument[2]) return usage_error("setun %s: -%c takes no argument", c->name, argument[1]);
            } else if (argument[2]) value = argument + 2;
        }
        if (rows[id].kind != KIND_FLAG && !value) {
            if (i + 1 >= argc) return usage_error("setun %s: --%s needs an argument: %s", c->name, rows[id].name, rows[id].argument);
            value = argv[++i];
        }
        int status = store(c, id, value, s);
        if (status >= 0) return status;
    }
    return -1;
}

void options_free(settings *s) {
#define FREE_TEXT(x)
#define FREE_PATH(x)
#define FREE_INTEGER(x)
#define FREE_REAL(x)
#define FREE_SEED(x)
#define FREE_FLAG(x)
#define FREE_NUMBERS(x)
#define FREE_LIST(x) free((s->x).items);
#define SETUN_OPTION(field, letter, name, kind, argument, help) FREE_##kind(field)
#include "options.def"
#undef SETUN_OPTION
    free(s->words.items);
    memset(s, 0, sizeof *s);
}

/* Prints text wrapped at 100 columns with a hanging indent. */
static void wrap(FILE *out, const char *text, int column, int indent) {
    while (*text) {
        const char *space = strchr(text, ' ');
        int length = space ? (int)(space - text) : (int)strlen(text);
        if (column > indent && column + 1 + length > 100) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, (size_t)length, out);
        column += length;
        text += length + (space != NULL);
    }
    fputc('\n', out);
}

void help_command(const command *c, FILE *out) {
    fprintf(out, "usage: %s\n\n", c->usage);
    wrap(out, c->details, 0, 0);
    fprintf(out, "\noptions:\n");
    for (const signed char *id = c->options; *id >= 0; id++) {
        const option_row *row = &rows[*id];
        int n = row->letter ? fprintf(out, "  -%c, --%s", row->letter, row->name) : fprintf(out, "      --%s", row->name);
        if (row->argument) n += fprintf(out, " %s", row->argument);
        if (n > 34) { fputc('\n', out); n = 0; }
        fprintf(out, "%*s", 36 - n, "");
        wrap(out, row->help, 36, 36);
    }
    fprintf(out, "  -h, --help                        show this help\n\nexample:\n  %s\n", c->example);
}

void help_program(FILE *out) {
    fprintf(out, "Setun %s runs language models whose weights are -1, 0, +1.\n\nusage: setun COMMAND [options]\n\n", setun_version());
    for (int i = 0; i < command_count; i++) fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "  %-12s %s\n  %-12s %s\n", "completion", "print a completion script: bash, zsh or fish", "man", "print the manual page");
    fprintf(out, "\n`setun COMMAND --help` says more. Try: setun run \"What is the capital of France?\"\n");
}

/* mdoc: a backslash and a leading dot or quote are special. */
static void man_text(FILE *out, const char *text) {
    if (*text == '.' || *text == '\'') fputs("\\&", out);
    for (; *text; text++) {
        if (*text == '\\') fputs("\\e", out);
        else if (*text == '-') fputs("\\-", out);
        else fputc(*text, out);
    }
    fputc('\n', out);
}

int print_man(FILE *out) {
    fprintf(out, ".\\\" Made by `setun man` from the program's own tables; do not edit.\n.Dd $Mdocdate$\n.Dt SETUN 1\n.Os Setun %s\n.Sh NAME\n.Nm setun\n.Nd run language models with ternary weights\n.Sh SYNOPSIS\n", setun_version());
    for (int i = 0; i < command_count; i++) fprintf(out, ".Nm setun\n.Cm %s\n.Op options\n", commands[i].name);
    fprintf(out, ".Sh DESCRIPTION\nSetun runs, inspects, converts and measures language models whose weights are \\-1, 0, +1.\n");
    for (int i = 0; i < command_count; i++) {
        const command *c = &commands[i];
        fprintf(out, ".Ss setun %s: %s\n", c->name, c->summary);
        man_text(out, c->details);
        fprintf(out, ".Bl -tag -width Ds\n");
        for (const signed char *id = c->options; *id >= 0; id++) {
            const option_row *row = &rows[*id];
            if (row->letter) fprintf(out, ".It Fl %c , Fl \\-%s", row->letter, row->name);
            else fprintf(out, ".It Fl \\-%s", row->name);
            if (row->argument) fprintf(out, " Ar %s", row->argument);
            fputc('\n', out);
            man_text(out, row->help);
        }
        fprintf(out, ".El\n.Pp\nExample:\n.Dl %s\n", c->example);
    }
    fprintf(out, ".Sh ENVIRONMENT\n.Bl -tag -width SETUN_THREADS\n.It Ev SETUN_MODEL\nthe default model\n.It Ev SETUN_THREADS\nthe default number of threads\n"
                 ".It Ev SETUN_ISA\nthe instruction set to use at most\n.It Ev SETUN_DEBUG\n1 to 4: log more to standard error\n.It Ev SETUN_MLX_BRIDGE\nthe file of the bridge to MLX; default: libsetun_mlx beside the program or in ../lib\n"
                 ".It Ev SETUN_TUNING\nthe file of measured group sizes that\n.Nm\ntune writes; default: setun/tuning.json in XDG_CONFIG_HOME or ~/.config\n.El\n"
                 ".Sh EXIT STATUS\n0 on success, 1 on failure, 2 on wrong usage, 130 after Ctrl\\-C.\n");
    return ferror(out) ? EXIT_FAILED : EXIT_OK;
}

int print_completion(const char *shell, FILE *out) {
    if (!strcmp(shell, "bash")) {
        fprintf(out, "# bash completion for setun\n_setun() {\n  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n  COMPREPLY=()\n"
                     "  if [ \"$COMP_CWORD\" -eq 1 ]; then COMPREPLY=($(compgen -W \"");
        for (int i = 0; i < command_count; i++) fprintf(out, "%s ", commands[i].name);
        fprintf(out, "completion man help --help --version\" -- \"$current\")); return; fi\n  case \"$current\" in -*) case \"${COMP_WORDS[1]}\" in\n");
        for (int i = 0; i < command_count; i++) {
            fprintf(out, "    %s) COMPREPLY=($(compgen -W \"--help", commands[i].name);
            for (const signed char *id = commands[i].options; *id >= 0; id++) fprintf(out, " --%s", rows[*id].name);
            fprintf(out, "\" -- \"$current\"));;\n");
        }
        fprintf(out, "  esac; return;; esac\n  COMPREPLY=($(compgen -f -- \"$current\"))\n}\ncomplete -o filenames -F _setun setun\n");
    } else if (!strcmp(shell, "zsh")) {
        fprintf(out, "#compdef setun\n_setun() {\n  local -a names\n  if (( CURRENT == 2 )); then\n    names=(");
        for (int i = 0; i < command_count; i++) fprintf(out, "'%s:%s' ", commands[i].name, commands[i].summary);
        fprintf(out, ")\n    _describe command names\n    return\n  fi\n  case $words[2] in\n");
        for (int i = 0; i < command_count; i++) {
            fprintf(out, "    %s) names=('--help'", commands[i].name);
            for (const signed char *id = commands[i].options; *id >= 0; id++) fprintf(out, " '--%s'", rows[*id].name);
            fprintf(out, ");;\n");
        }
        fprintf(out, "  esac\n  if [[ $PREFIX == -* ]]; then compadd -- $names; else _files; fi\n}\n_setun \"$@\"\n");
    } else if (!strcmp(shell, "fish")) {
        fprintf(out, "# fish completion for setun\n");
        for (int i = 0; i < command_count; i++) {
            fprintf(out, "complete -c setun -n __fish_use_subcommand -a %s -d \"%s\"\n", commands[i].name, commands[i].summary);
            for (const signed char *id = commands[i].options; *id >= 0; id++) {
                const option_row *row = &rows[*id];
                fprintf(out, "complete -c setun -n \"__fish_seen_subcommand_from %s\" -l %s", commands[i].name, row->name);
                if (row->letter) fprintf(out, " -s %c", row->letter);
                if (row->kind != KIND_FLAG) fprintf(out, row->kind == KIND_PATH ? " -r" : " -x");
                fputc('\n', out);
            }
        }
    } else return usage_error("setun completion: '%s' is none of bash, zsh, fish", shell);
    return ferror(out) ? EXIT_FAILED : EXIT_OK;
}
