/* convert.c - `setun convert` and `setun quantize`: another file with the same model. */
#include "app.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static void print_report(const json_t *root, const char *out_path) {
    size_t i, lossy = 0;
    json_t *tensor, *tensors = json_object_get(root, "tensors");
    char a[32], b[32];
    printf("%s: %s -> %s\n", out_path, human_bytes((double)json_integer_value(json_object_get(root, "input_bytes")), a), human_bytes((double)json_integer_value(json_object_get(root, "output_bytes")), b));
    /* one line for each pair of formats */
    json_t *pairs = json_object();
    json_array_foreach(tensors, i, tensor) {
        char key[96];
        snprintf(key, sizeof key, "%s -> %s", json_string_value(json_object_get(tensor, "from")), json_string_value(json_object_get(tensor, "to")));
        json_object_set_new(pairs, key, json_integer(json_integer_value(json_object_get(pairs, key)) + 1));
        lossy += json_is_false(json_object_get(tensor, "exact"));
    }
    const char *key;
    json_t *count;
    json_object_foreach(pairs, key, count) printf("  %4d x %s\n", (int)json_integer_value(count), key);
    json_decref(pairs);
    if (!lossy) puts("every value is exactly the same");
    else {
        printf("%zu tensors are not exact:\n", lossy);
        json_array_foreach(tensors, i, tensor)
            if (json_is_false(json_object_get(tensor, "exact")))
                printf("  %s: %s -> %s, largest difference %g\n", json_string_value(json_object_get(tensor, "name")), json_string_value(json_object_get(tensor, "from")),
                    json_string_value(json_object_get(tensor, "to")), json_number_value(json_object_get(tensor, "max_error")));
    }
}

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

static int convert(settings *s, bool quantise, const char *name) {
    const char *in = s->given[OPTION_model] ? s->model : NULL, *out = s->given[OPTION_output] ? s->output : NULL;
    size_t used = 0;
    if (!in && used < s->words.count) in = s->words.items[used++];
    if (!out && used < s->words.count) out = s->words.items[used++];
    if (!in || !out || used != s->words.count) return usage_error("usage: setun %s [options] INPUT OUTPUT", name);
    setun_context *context = NULL;
    int status = open_context(s, s->threads, &context);
    if (status != EXIT_OK) return status;
    setun_convert_options o = {.size = sizeof o, .container = s->given[OPTION_container] ? s->container : ends_with(out, ".gguf") ? "gguf" : "safetensors",
        .ternary = s->to, .embedding = s->embedding, .dense = s->dense, .i2s_layout = s->i2s_layout, .quantise = quantise, .force = s->force,
        .progress = s->quiet ? NULL : progress_callback};
    char *report = NULL;
    setun_status code = setun_convert(context, in, out, &o, &report);
    progress_end();
    if (code != SETUN_OK) status = fail_status(code);
    else if (s->json) puts(report);
    else if (!s->quiet) {
        json_t *root = json_loads(report, 0, NULL);
        if (root) print_report(root, out);
        json_decref(root);
    }
    setun_free(report);
    setun_context_destroy(context);
    return status;
}

int command_convert(settings *s) { return convert(s, false, "convert"); }
int command_quantize(settings *s) { return convert(s, true, "quantize"); }
