/* tokenize.c - `setun tokenize`: text to ids, or ids to text. */
#include "app.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The words (or the file's words) as ids -> text. */
static int decode(const settings *s, const setun_tokenizer *tokenizer, char *text) {
    size_t capacity = strlen(text) / 2 + 2, count = 0;
    int32_t *ids = malloc(capacity * sizeof *ids);
    if (!ids) return fail("out of memory");
    for (char *word = strtok(text, " \t\r\n,[]"); word; word = strtok(NULL, " \t\r\n,[]")) {
        char *end;
        errno = 0;
        long id = strtol(word, &end, 10);
        if (errno || *end || end == word || id < 0 || id >= setun_tokenizer_vocabulary(tokenizer)) {
            free(ids);
            return fail("'%s' is no token id: they go from 0 to %d", word, setun_tokenizer_vocabulary(tokenizer) - 1);
        }
        ids[count++] = (int32_t)id;
    }
    char *out;
    size_t length;
    setun_status status = setun_tokenizer_decode(tokenizer, ids, count, true, &out, &length);
    free(ids);
    if (status != SETUN_OK) return fail_status(status);
    if (s->json) {
        json_t *string = json_stringn(out, length), *root = json_pack("{s:o}", "text", string ? string : json_null());
        json_dumpf(root, stdout, 0);
        json_decref(root);
    } else fwrite(out, 1, length, stdout);
    putchar('\n');
    setun_free(out);
    return EXIT_OK;
}

/* Bytes as they are where they are printable UTF-8, else \xNN. */
static void print_piece(const char *bytes, size_t length) {
    bool whole = setun_utf8_complete(bytes, length) == length;
    for (size_t i = 0; i < length; i++) {
        unsigned char ch = (unsigned char)bytes[i];
        if (ch == '\n') fputs("\\n", stdout);
        else if (ch == '\\') fputs("\\\\", stdout);
        else if (ch < 0x20 || ch == 0x7f || (ch >= 0x80 && (!whole || (bytes[0] & 0xc0) == 0x80))) printf("\\x%02x", ch);
        else putchar(ch);
    }
}

int command_tokenize(settings *s) {
    char *text = NULL;
    size_t length = 0;
    int status = input_text(s, "tokenize", "text", &text, &length);
    const char *path = status == EXIT_OK ? model_path(s) : NULL;
    setun_tokenizer *tokenizer = NULL;
    if (path) {
        setun_status code = setun_tokenizer_open(path, &tokenizer);
        if (code != SETUN_OK) status = fail_status(code);
    } else if (status == EXIT_OK) status = EXIT_FAILED;
    if (status == EXIT_OK && s->decode) status = decode(s, tokenizer, text);
    else if (status == EXIT_OK) {
        int32_t *ids;
        size_t count;
        int flags = (s->special ? SETUN_TOKENIZE_PARSE_SPECIAL : 0) | (s->add_special ? SETUN_TOKENIZE_ADD_SPECIAL : 0);
        setun_status code = setun_tokenizer_encode(tokenizer, text, length, flags, &ids, &count);
        if (code != SETUN_OK) status = fail_status(code);
        else {
            json_t *array = s->json ? json_array() : NULL;
            for (size_t i = 0; i < count; i++) {
                const char *bytes;
                size_t n;
                bool special;
                if (setun_tokenizer_piece(tokenizer, ids[i], &bytes, &n, &special) != SETUN_OK) continue;
                if (array) {
                    json_t *piece = json_stringn(bytes, n);
                    json_array_append_new(array, json_pack("{s:i, s:o, s:b}", "id", (int)ids[i], "text", piece ? piece : json_null(), "special", (int)special));
                } else if (s->ids) printf("%s%d", i ? " " : "", (int)ids[i]);
                else {
                    printf("%7d  ", (int)ids[i]);
                    print_piece(bytes, n);
                    puts(special ? "  (special)" : "");
                }
            }
            if (array) {
                json_t *root = json_pack("{s:I, s:o}", "count", (json_int_t)count, "tokens", array);
                json_dumpf(root, stdout, 0);
                json_decref(root);
            }
            if (array || s->ids) putchar('\n');
            setun_free(ids);
        }
    }
    setun_tokenizer_close(tokenizer);
    free(text);
    return status;
}
