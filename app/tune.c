/* tune.c - `setun tune`: measures group sizes and tile shapes of the GPU kernels on a device and stores the fastest. */
#include "app.h"
#include <jansson.h>
#include <stdlib.h>

static void print_tuning(const json_t *root) {
    const char *key, *path = json_string_value(json_object_get(root, "path"));
    json_t *value;
    size_t i;
    printf("%s: %s, family %s; before: %s\n\n%-48s %6s %12s %12s\n", json_string_value(json_object_get(root, "device")), json_string_value(json_object_get(root, "name")),
        json_string_value(json_object_get(root, "family")), json_string_value(json_object_get(root, "before")), "", "tried", "before", "after");
    json_array_foreach(json_object_get(root, "measurements"), i, value) {
        double before = json_number_value(json_object_get(value, "before")), after = json_number_value(json_object_get(value, "after"));
        bool seconds = *json_string_value(json_object_get(value, "unit")) == 's';
        printf("%-48s %6d %9.2f %-2s %9.2f %-2s\n", json_string_value(json_object_get(value, "what")), (int)json_integer_value(json_object_get(value, "tried")), before * (seconds ? 1e6 : 1), seconds ? "us" : "x",
            after * (seconds ? 1e6 : 1), seconds ? "us" : "x");
    }
    puts("\n(x: time of what the threshold picks, the faster way being 1)\n");
    json_object_foreach(json_object_get(root, "values"), key, value) {
        int before = (int)json_integer_value(json_object_get(value, "before")), after = (int)json_integer_value(json_object_get(value, "after"));
        if (before == after) printf("%-20s %8d\n", key, after);
        else printf("%-20s %8d  was %d\n", key, after, before);
    }
    if (path) printf("\nstored in %s; used from the next start on\n", path);
    else puts("\nnothing was stored");
}

int command_tune(settings *s) {
    if (s->words.count) return usage_error("setun tune takes no words; --device names the device");
    if (s->given[OPTION_repeats] && s->repeats < 1) return usage_error("setun tune: --repeats must be 1 or more");
    setun_context *context;
    int status = open_context(s, s->threads, &context);
    if (status != EXIT_OK) return status;
    setun_tune_options o = {.size = sizeof o, .device = s->device, .path = s->output, .repeats = s->repeats, .measure_only = s->no_store, .progress = s->quiet ? NULL : progress_callback};
    char *json = NULL;
    setun_status code = setun_device_tune(context, &o, &json);
    progress_end();
    if (code != SETUN_OK) {
        status = fail_status(code);
        if (code == SETUN_ERROR_UNSUPPORTED && !s->device)
            fprintf(stderr, "setun: there is nothing to tune without a GPU that MLX can use; `setun doctor` says what is missing. --device mlx:cpu measures the kernels' host form, a check and no fast path\n");
    } else if (s->json) puts(json);
    else {
        json_t *root = json_loads(json, 0, NULL);
        if (root) print_tuning(root);
        else status = fail("cannot read the library's own report");
        json_decref(root);
    }
    setun_free(json);
    setun_context_destroy(context);
    return status;
}
