/* inspect.c - `setun inspect` and `setun explain`: what a file holds, and how it is computed. */
#include "app.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int take_path(settings *s, const char *name) {
    if (s->words.count == 1 && !s->given[OPTION_model]) {
        s->model = s->words.items[0];
        s->given[OPTION_model] = true;
        return EXIT_OK;
    }
    return s->words.count ? usage_error("setun %s: give one model", name) : EXIT_OK;
}

/* A value of the metadata, short: long arrays and texts are cut. */
static void print_value(const json_t *value) {
    if (json_is_array(value)) {
        size_t n = json_array_size(value);
        printf("[");
        for (size_t i = 0; i < n && i < 6; i++) {
            if (i) printf(", ");
            print_value(json_array_get(value, i));
        }
        printf(n > 6 ? ", .. %zu values]" : "]", n);
        return;
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(7) | JSON_COMPACT | JSON_ENSURE_ASCII);
    if (!text) return;
    if (strlen(text) > 120) printf("%.110s..\" (%zu characters)", text, strlen(text));
    else fputs(text, stdout);
    free(text);
}

static void print_shape(const json_t *shape) {
    size_t i;
    json_t *dim;
    char text[96] = "[";
    json_array_foreach(shape, i, dim) snprintf(text + strlen(text), sizeof text - strlen(text), "%s%lld", i ? ", " : "", (long long)json_integer_value(dim));
    strncat(text, "]", sizeof text - strlen(text) - 1);
    printf("%-16s", text);
}

static void print_inspection(const json_t *root) {
    const char *key;
    json_t *value, *tensor, *problem;
    size_t i;
    char size[32];
    const json_t *totals = json_object_get(root, "totals"), *architecture = json_object_get(root, "architecture");
    printf("%s: %s, architecture %s\n\nmetadata\n", json_string_value(json_object_get(root, "path")), json_string_value(json_object_get(root, "container")),
        json_is_string(architecture) ? json_string_value(architecture) : "none");
    json_object_foreach(json_object_get(root, "metadata"), key, value) {
        printf("  %-44s ", key);
        print_value(value);
        putchar('\n');
    }
    printf("\ntensors\n");
    json_array_foreach(json_object_get(root, "tensors"), i, tensor) {
        const json_t *zeros = json_object_get(tensor, "zero_share");
        printf("  %-36s %-10s ", json_string_value(json_object_get(tensor, "name")), json_string_value(json_object_get(tensor, "format")));
        print_shape(json_object_get(tensor, "shape"));
        printf(" %10s %6.3f bits", human_bytes((double)json_integer_value(json_object_get(tensor, "bytes")), size), json_number_value(json_object_get(tensor, "bits_per_weight")));
        if (json_is_number(zeros)) printf("  %4.1f %% zeros", 100 * json_number_value(zeros));
        if (json_is_number(json_object_get(tensor, "scale"))) printf("  scale %.6g", json_number_value(json_object_get(tensor, "scale")));
        if (json_is_false(json_object_get(tensor, "supported"))) printf("  UNSUPPORTED: %s", json_string_value(json_object_get(tensor, "reason")));
        putchar('\n');
    }
    printf("\n%lld parameters, %s, %.3f bits a weight, %.1f %% of the weights ternary\n", (long long)json_integer_value(json_object_get(totals, "parameters")),
        human_bytes((double)json_integer_value(json_object_get(totals, "bytes")), size), json_number_value(json_object_get(totals, "bits_per_weight")), 100 * json_number_value(json_object_get(totals, "ternary_share")));
    const json_t *model = json_object_get(root, "model");
    if (json_is_object(model)) {
        printf("\nmodel\n");
        json_object_foreach((json_t *)model, key, value) {
            printf("  %-24s ", key);
            print_value(value);
            putchar('\n');
        }
    }
    json_array_foreach(json_object_get(root, "problems"), i, problem) printf("problem: %s\n", json_string_value(problem));
}

int command_inspect(settings *s) {
    int status = take_path(s, "inspect");
    const char *path = status == EXIT_OK ? model_path(s) : NULL;
    if (!path) return status == EXIT_OK ? EXIT_FAILED : status;
    setun_context *context;
    status = open_context(s, s->threads, &context);
    if (status != EXIT_OK) return status;
    setun_model_options o = model_options(s);
    char *json = NULL;
    setun_status code = setun_file_inspect(context, path, &o, s->deep, &json);
    progress_end();
    if (code != SETUN_OK) status = fail_status(code);
    else if (s->json) puts(json);
    else {
        json_t *root = json_loads(json, 0, NULL);
        if (root) print_inspection(root);
        else status = fail("cannot read the library's own report");
        json_decref(root);
    }
    setun_free(json);
    setun_context_destroy(context);
    return status;
}

int command_explain(settings *s) {
    int status = take_path(s, "explain");
    if (status != EXIT_OK) return status;
    setun_context *context = NULL;
    setun_model *model = NULL;
    status = open_context(s, s->threads, &context);
    if (status == EXIT_OK) status = open_model(s, context, &model);
    if (status == EXIT_OK) {
        setun_explain_options o = {.size = sizeof o, .session = session_options(s), .json = s->json, .measure = s->measure, .tokens = s->tokens};
        char *text = NULL;
        setun_status code = setun_model_explain(model, &o, &text);
        if (code != SETUN_OK) status = fail_status(code);
        else fputs(text, stdout);
        setun_free(text);
    }
    setun_model_close(model);
    setun_context_destroy(context);
    return status;
}
