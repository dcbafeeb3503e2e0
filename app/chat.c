/*
 * chat.c - `setun chat`: a conversation with history. The session keeps the tokens of what was said, so a turn only feeds
 * what is new. Line editing by libedit where it was found; plain lines in a pipe.
 */
#include "app.h"
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef SETUN_HAVE_LIBEDIT
#include <histedit.h>
#endif

typedef struct turn { char *role, *content; } turn;

typedef struct chat {
    settings *s;
    setun_session *session;
    setun_sampler *sampler;
    const setun_tokenizer *tokenizer;
    turn *turns;
    size_t count;
    int32_t *held;          /* the tokens in the session */
    size_t held_count;
    char *answer;           /* being generated */
    size_t answer_length, answer_capacity;
    int32_t *answer_ids;
    size_t answer_id_count, answer_id_capacity;
    bool broken;            /* standard output has gone, or memory */
    bool terminal;
    setun_generate_result last;
} chat;

static bool push(chat *c, const char *role, const char *content, size_t length) {
    turn *turns = realloc(c->turns, (c->count + 1) * sizeof *turns);
    if (!turns) return false;
    c->turns = turns;
    turn t = {strdup(role), strndup(content, length)};
    if (!t.role || !t.content) {
        free(t.role);
        free(t.content);
        return false;
    }
    c->turns[c->count++] = t;
    return true;
}

static void pop(chat *c) {
    if (!c->count) return;
    c->count--;
    free(c->turns[c->count].role);
    free(c->turns[c->count].content);
}

static bool is_role(const chat *c, size_t i, const char *role) { return i < c->count && !strcmp(c->turns[i].role, role); }

static void set_system(chat *c, const char *text) {
    char *old_first = is_role(c, 0, "system") ? c->turns[0].content : NULL;
    if (old_first) {
        char *copy = strdup(text);
        if (!copy) return;
        free(old_first);
        c->turns[0].content = copy;
        return;
    }
    if (!push(c, "system", text, strlen(text))) return;
    turn last = c->turns[c->count - 1];
    memmove(c->turns + 1, c->turns, (c->count - 1) * sizeof *c->turns);
    c->turns[0] = last;
}

static bool on_token(void *user, const setun_token_event *event) {
    chat *c = user;
    if (c->answer_length + event->length + 1 > c->answer_capacity) {
        size_t capacity = (c->answer_length + event->length + 1) * 2;
        char *bigger = realloc(c->answer, capacity);
        if (!bigger) return !(c->broken = true);
        c->answer = bigger;
        c->answer_capacity = capacity;
    }
    if (event->length) memcpy(c->answer + c->answer_length, event->text, event->length);
    c->answer_length += event->length;
    if (c->answer_id_count == c->answer_id_capacity) {
        size_t capacity = c->answer_id_capacity * 2 + 256;
        int32_t *bigger = realloc(c->answer_ids, capacity * sizeof *bigger);
        if (!bigger) return !(c->broken = true);
        c->answer_ids = bigger;
        c->answer_id_capacity = capacity;
    }
    c->answer_ids[c->answer_id_count++] = event->id;
    if (event->length && !print_bytes(stdout, event->text, event->length)) c->broken = true;
    return !c->broken;
}

/* What the session holds after a call: believed only as far as its position says. */
static int hold(chat *c, const int32_t *prompt, size_t count) {
    size_t position = (size_t)setun_session_position(c->session), answer = position > count ? position - count : 0;
    if (answer > c->answer_id_count) answer = c->answer_id_count;
    int32_t *held = malloc((count + answer + 1) * sizeof *held);
    if (!held) return fail("out of memory");
    if (count > position) count = position;
    if (count) memcpy(held, prompt, count * sizeof *held);
    if (answer) memcpy(held + count, c->answer_ids, answer * sizeof *held);
    free(c->held);
    c->held = held;
    c->held_count = count + answer;
    if (c->held_count < position) return setun_session_truncate(c->session, (int)c->held_count) == SETUN_OK ? EXIT_OK : EXIT_FAILED;
    return EXIT_OK;
}

/* Answers the last user's turn. EXIT_OK also when the answer was stopped. */
static int answer(chat *c) {
    int32_t *ids = NULL;
    size_t count = 0, same = 0;
    setun_message *messages = calloc(c->count + 1, sizeof *messages);
    if (!messages) return fail("out of memory");
    for (size_t i = 0; i < c->count; i++) messages[i] = (setun_message){c->turns[i].role, c->turns[i].content};
    setun_status code = setun_chat_encode(c->tokenizer, messages, c->count, true, &ids, &count);
    free(messages);
    if (code != SETUN_OK) return fail_status(code);
    int status = EXIT_OK;
    while (same < count && same < c->held_count && ids[same] == c->held[same]) same++;
    if (same == count && same) same--; /* logits after the last token are needed */
    if ((int)count >= setun_session_context(c->session)) {
        fail("the conversation has %zu tokens and the context holds %d: /clear starts anew, /undo takes the last turn back, -c makes it larger", count, setun_session_context(c->session));
        setun_free(ids);
        return EXIT_FAILED;
    }
    code = setun_session_truncate(c->session, (int)same);
    c->answer_length = c->answer_id_count = 0;
    if (code == SETUN_OK) {
        setun_generate_options options = {.size = sizeof options, .tokens = c->s->tokens, .stop = c->s->stop.items, .stop_count = c->s->stop.count,
            .ignore_end = c->s->ignore_end, .lookup = c->s->lookup, .token = on_token, .token_user = c};
        c->last = (setun_generate_result){.size = sizeof c->last};
        interrupt_session(c->session);
        setun_sampler_reset(c->sampler);
        code = setun_generate(c->session, c->sampler, ids + same, count - same, &options, &c->last);
        signal(SIGINT, SIG_IGN);
    }
    if (code != SETUN_OK && code != SETUN_ERROR_CANCELLED) {
        status = fail_status(code);
        setun_session_truncate(c->session, 0);
        c->held_count = 0;
    } else {
        putchar('\n');
        if (interrupted()) fprintf(stderr, "(stopped)\n");
        interrupt_clear();
        if (c->last.finish == SETUN_FINISH_CONTEXT)
            fprintf(stderr, "setun: the context of %d tokens is full; /clear starts anew, -c makes it larger\n", setun_session_context(c->session));
        status = hold(c, ids, count);
        if (status == EXIT_OK && !push(c, "assistant", c->answer ? c->answer : "", c->answer_length)) status = fail("out of memory");
    }
    setun_free(ids);
    return c->broken ? EXIT_FAILED : status;
}

static int save(chat *c, const char *path) {
    json_t *root = json_array();
    for (size_t i = 0; i < c->count; i++) {
        json_t *content = json_string(c->turns[i].content);
        json_array_append_new(root, json_pack("{s:s, s:o}", "role", c->turns[i].role, "content", content ? content : json_string("")));
    }
    char *text = json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    if (!text) return fail("out of memory");
    int status = write_text(path, text, strlen(text));
    free(text);
    if (status == EXIT_OK) fprintf(stderr, "saved %zu messages to %s\n", c->count, path);
    return status;
}

static int load(chat *c, const char *path) {
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error), *item;
    if (!root) return fail("%s: line %d: %s", path, error.line, error.text);
    size_t i;
    bool good = json_is_array(root);
    if (good) json_array_foreach(root, i, item) {
        const char *role = json_string_value(json_object_get(item, "role"));
        if (!role || !json_is_string(json_object_get(item, "content")) || (strcmp(role, "system") && strcmp(role, "user") && strcmp(role, "assistant"))) good = false;
    }
    if (good) {
        while (c->count) pop(c);
        json_array_foreach(root, i, item)
            if (!push(c, json_string_value(json_object_get(item, "role")), json_string_value(json_object_get(item, "content")), json_string_length(json_object_get(item, "content")))) good = false;
        fprintf(stderr, "loaded %zu messages from %s\n", c->count, path);
    } else fail("%s: not a list of {\"role\", \"content\"} messages as /save writes", path);
    json_decref(root);
    return good ? EXIT_OK : EXIT_FAILED;
}

static void show_history(const chat *c) {
    for (size_t i = 0; i < c->count; i++) printf("[%s] %s\n", c->turns[i].role, c->turns[i].content);
    fflush(stdout);
}

static int set_option(chat *c, char *text) {
    char *value = strchr(text, ' ');
    if (value) *value++ = 0;
    struct { const char *name; double *real; int *integer; double most; } const knobs[] = {
        {"temperature", &c->s->temperature, NULL, 100}, {"top-p", &c->s->top_p, NULL, 1}, {"min-p", &c->s->min_p, NULL, 1}, {"top-k", NULL, &c->s->top_k, 1e9},
        {"repetition-penalty", &c->s->repetition, NULL, 100}, {"tokens", NULL, &c->s->tokens, 1e9}};
    for (size_t i = 0; i < sizeof knobs / sizeof *knobs; i++) {
        if (strcmp(knobs[i].name, text)) continue;
        char *end;
        double v = value ? strtod(value, &end) : -1;
        if (!value || end == value || *end || !(v >= 0 && v <= knobs[i].most)) return fail("/set %s: '%s' is not a number from 0 to %g", text, value ? value : "", knobs[i].most);
        if (knobs[i].real) *knobs[i].real = v;
        else *knobs[i].integer = (int)v;
        setun_sampler *sampler = NULL;
        int status = make_sampler(c->s, setun_tokenizer_vocabulary(c->tokenizer), &sampler);
        if (status != EXIT_OK) return status;
        setun_sampler_destroy(c->sampler);
        c->sampler = sampler;
        return EXIT_OK;
    }
    return fail("/set knows temperature, top-p, min-p, top-k, repetition-penalty and tokens");
}

static const char help_text[] =
    "  /help              this list\n  /clear             forget the conversation\n  /system TEXT       set the system prompt\n  /undo              take back the last turn\n"
    "  /retry             answer the last message again\n  /history           show the conversation\n  /file PATH         send a file's text as a message\n"
    "  /save PATH         save the conversation as JSON\n  /load PATH         load one\n  /set NAME VALUE    temperature, top-p, min-p, top-k, repetition-penalty, tokens\n"
    "  /stats             speed of the last answer, tokens in the context\n  /exit              leave (Ctrl-D too)\n"
    "  A line that ends in \\ goes on in the next. Ctrl-C stops the answer.\n";

/* Runs a /command. Returns true when the user wants to leave. */
static bool slash(chat *c, char *line) {
    char *rest = strchr(line, ' ');
    if (rest) {
        *rest++ = 0;
        while (*rest == ' ') rest++;
    } else rest = line + strlen(line);
    if (!strcmp(line, "/exit") || !strcmp(line, "/quit") || !strcmp(line, "/bye")) return true;
    if (!strcmp(line, "/help") || !strcmp(line, "/?")) fputs(help_text, stderr);
    else if (!strcmp(line, "/clear") || !strcmp(line, "/reset")) {
        bool keep = is_role(c, 0, "system");
        while (c->count > (keep ? 1u : 0u)) pop(c);
        fprintf(stderr, "(a new conversation)\n");
    } else if (!strcmp(line, "/system")) {
        if (*rest) set_system(c, rest);
        else fprintf(stderr, "%s\n", is_role(c, 0, "system") ? c->turns[0].content : "(the template's own)");
    } else if (!strcmp(line, "/undo")) {
        if (is_role(c, c->count - 1, "assistant")) pop(c);
        if (is_role(c, c->count - 1, "user")) pop(c);
    } else if (!strcmp(line, "/retry")) {
        if (is_role(c, c->count - 1, "assistant")) pop(c);
        if (is_role(c, c->count - 1, "user")) {
            c->s->seed++; /* another answer where sampling is on */
            char again[32];
            snprintf(again, sizeof again, "tokens %d", c->s->tokens);
            if (set_option(c, again) == EXIT_OK) answer(c);
        } else fprintf(stderr, "nothing to answer\n");
    } else if (!strcmp(line, "/history")) show_history(c);
    else if (!strcmp(line, "/file")) {
        char *text;
        size_t length;
        if (*rest && read_text(rest, &text, &length) == EXIT_OK) {
            if (strlen(text) != length) fail("%s: contains a zero byte, so it is no text", rest);
            else if (push(c, "user", text, length) && answer(c) != EXIT_OK) pop(c);
            free(text);
        }
    } else if (!strcmp(line, "/save")) {
        if (*rest) save(c, rest);
        else fail("/save needs a file's name");
    } else if (!strcmp(line, "/load")) {
        if (*rest) load(c, rest);
        else fail("/load needs a file's name");
    } else if (!strcmp(line, "/set")) set_option(c, rest);
    else if (!strcmp(line, "/stats"))
        fprintf(stderr, "%d of %d tokens in the context; last answer: %d prompt tokens %.1f/s, %d tokens %.1f/s\n", setun_session_position(c->session), setun_session_context(c->session),
            c->last.prompt_tokens, c->last.prompt_seconds > 0 ? c->last.prompt_tokens / c->last.prompt_seconds : 0, c->last.generated_tokens,
            c->last.generate_seconds > 0 ? c->last.generated_tokens / c->last.generate_seconds : 0);
    else fail("unknown command '%s'; /help lists them", line);
    return false;
}

/* ---- reading lines ---- */

static bool line_dropped; /* Ctrl-C while typing */

#ifdef SETUN_HAVE_LIBEDIT
static EditLine *editor;
static History *history_lines;
static bool continuing;

static char *editor_prompt(EditLine *e) {
    (void)e;
    static char first[] = "> ", next[] = ". ";
    return continuing ? next : first;
}

/* Ctrl-C while typing drops the line. */
static unsigned char editor_interrupt(EditLine *e, int ch) {
    (void)ch;
    const LineInfo *info = el_line(e);
    el_cursor(e, (int)(info->lastchar - info->cursor));
    el_deletestr(e, (int)(info->lastchar - info->buffer));
    el_insertstr(e, "\n"); /* an empty read would be the end of the input */
    line_dropped = true;
    return CC_NEWLINE;
}

static unsigned char editor_suspend(EditLine *e, int ch) {
    (void)e;
    (void)ch;
    raise(SIGTSTP);
    return CC_REDISPLAY;
}

static void editor_start(void) {
    HistEvent event;
    editor = el_init("setun", stdin, stdout, stderr);
    history_lines = history_init();
    if (!editor || !history_lines) return;
    history(history_lines, &event, H_SETSIZE, 1000);
    history(history_lines, &event, H_SETUNIQUE, 1);
    el_set(editor, EL_PROMPT, editor_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, history, history_lines);
    el_set(editor, EL_ADDFN, "setun-interrupt", "drop the line", editor_interrupt);
    el_set(editor, EL_ADDFN, "setun-suspend", "suspend", editor_suspend);
    el_set(editor, EL_SETTY, "-d", "-isig", NULL); /* Ctrl-C arrives as a character */
    el_set(editor, EL_BIND, "^C", "setun-interrupt", NULL);
    el_set(editor, EL_BIND, "^Z", "setun-suspend", NULL);
    el_source(editor, NULL);
}

static void editor_end(void) {
    if (history_lines) history_end(history_lines);
    if (editor) el_end(editor);
}
#endif

/* One line without its newline; NULL at the end. free() it. */
static char *read_line(chat *c, bool more) {
#ifdef SETUN_HAVE_LIBEDIT
    if (c->terminal && editor) {
        int count;
        line_dropped = false;
        continuing = more;
        const char *line = el_gets(editor, &count);
        if (!line || count <= 0) return NULL;
        HistEvent event;
        if (!line_dropped && count > 1) history(history_lines, &event, H_ENTER, line);
        if (line_dropped) puts("^C");
        return line_dropped ? strdup("") : strndup(line, strcspn(line, "\n"));
    }
#endif
    if (c->terminal) {
        fputs(more ? ". " : "> ", stderr);
        fflush(stderr);
    }
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n = getline(&line, &capacity, stdin);
    if (n < 0) {
        free(line);
        return NULL;
    }
    if (n && line[n - 1] == '\n') line[n - 1] = 0;
    return line;
}

/* A message may go on over lines that end in a backslash. */
static char *read_message(chat *c) {
    char *message = NULL;
    size_t length = 0;
    for (;;) {
        char *line = read_line(c, message != NULL);
        if (!line) return message;
        if (line_dropped) { /* and with it the lines before it */
            free(message);
            return line;
        }
        size_t n = strlen(line);
        bool goes_on = n && line[n - 1] == '\\';
        if (goes_on) line[n - 1] = '\n';
        char *bigger = realloc(message, length + n + 1);
        if (!bigger) {
            free(line);
            return message;
        }
        message = bigger;
        memcpy(message + length, line, n + 1);
        length += n;
        free(line);
        if (!goes_on) return message;
    }
}

static int converse(chat *c) {
    int status = EXIT_OK;
    for (;;) {
        char *message = read_message(c);
        if (!message) break;
        bool leave = false;
        if (message[0] == '/') leave = slash(c, message);
        else if (message[strspn(message, " \t\n")]) {
            if (!c->terminal) printf("> %s\n", message);
            if (!push(c, "user", message, strlen(message))) status = fail("out of memory");
            else {
                status = answer(c);
                if (status != EXIT_OK) pop(c); /* the message can be sent again */
            }
        }
        free(message);
        if (leave || c->broken || (status != EXIT_OK && !c->terminal)) break;
    }
    return c->broken ? EXIT_FAILED : c->terminal ? EXIT_OK : status;
}

int command_chat(settings *s) {
    if (s->words.count) return usage_error("setun chat takes no words; `setun run` answers a prompt");
    setun_context *context = NULL;
    setun_model *model = NULL;
    chat c = {.s = s, .terminal = isatty(STDIN_FILENO)};
    int status = open_context(s, s->threads, &context);
    if (status == EXIT_OK) status = open_model(s, context, &model);
    setun_session_options options = session_options(s);
    if (status == EXIT_OK) {
        c.tokenizer = setun_model_tokenizer(model);
        setun_status code;
        if (!c.tokenizer) status = fail("%s has no tokenizer, so there is no way to talk with it", model_path(s));
        else if (!setun_chat_template(c.tokenizer)) status = fail("%s has no chat template that Setun knows; `setun run --raw` continues a text", model_path(s));
        else if ((code = setun_session_create(model, &options, &c.session)) != SETUN_OK) status = fail_status(code);
    }
    if (status == EXIT_OK) status = make_sampler(s, setun_tokenizer_vocabulary(c.tokenizer), &c.sampler);
    if (status == EXIT_OK && s->given[OPTION_system]) set_system(&c, s->system);
    if (status == EXIT_OK) {
        signal(SIGINT, c.terminal ? SIG_IGN : SIG_DFL);
#ifdef SETUN_HAVE_LIBEDIT
        if (c.terminal) editor_start();
#endif
        setun_model_info info = {.size = sizeof info};
        if (c.terminal && !s->quiet && setun_model_get_info(model, &info) == SETUN_OK)
            fprintf(stderr, "%s, %.0fM parameters at %.2f bits, context %d. /help lists the commands.\n", *info.name ? info.name : info.architecture,
                (double)info.parameters * 1e-6, info.bits_per_weight, setun_session_context(c.session));
        status = converse(&c);
#ifdef SETUN_HAVE_LIBEDIT
        editor_end();
#endif
    }
    while (c.count) pop(&c);
    free(c.turns);
    free(c.held);
    free(c.answer);
    free(c.answer_ids);
    setun_sampler_destroy(c.sampler);
    setun_session_destroy(c.session);
    setun_model_close(model);
    setun_context_destroy(context);
    return status;
}
