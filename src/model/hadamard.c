/*
 * hadamard.c - `prism.hadamard.*` metadata: which weights are stored in a rotated basis, and how. Caller: load.c.
 * A rotated model loads and runs without this too, and answers nonsense: so every value that is not known is refused,
 * and so is every set of rotated weights that the graph cannot express.
 */
#include "model/family.h"
#include <math.h>

static setun_status unknown(const char *path, const char *key, const char *value, const char *known) {
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: 'prism.hadamard.%s' is '%s'; Setun knows %s", path, key, value, known);
}

static const setun_value *find(setun_file *file, const char *key) {
    char full[64];
    snprintf(full, sizeof full, "prism.hadamard.%s", key);
    return setun_file_find_value(file, full);
}

/* A text that must be one of two (the second may be NULL); *out says which. */
static setun_status choose(setun_file *file, const char *key, const char *first, const char *second, int *out) {
    const char *path = setun_file_path(file), *text = "";
    size_t length = 0;
    const setun_value *v = find(file, key);
    if (v && !setun_value_string(v, &text, &length)) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.%s' is not text", path, key);
    *out = 0;
    if (v && strlen(first) == length && memcmp(first, text, length) == 0) return SETUN_OK;
    *out = 1;
    if (v && second && strlen(second) == length && memcmp(second, text, length) == 0) return SETUN_OK;
    char shown[80], known[128];
    snprintf(shown, sizeof shown, "%.*s", (int)(length > 64 ? 64 : length), v ? text : "(missing)");
    snprintf(known, sizeof known, "%s%s%s", first, second ? ", " : "", second ? second : "");
    return unknown(path, key, shown, known);
}

/* Two of the widths may be equal: each has its own copy. */
static setun_status set_signs(setun_description *d, int64_t width, const float *signs, int block, const char *path) {
    int64_t widths[3] = {d->h.width, d->h.feed_forward, (int64_t)d->h.heads * d->h.head_size};
    setun_hadamard *each[3] = {&d->hadamard_width, &d->hadamard_feed_forward, &d->hadamard_attention};
    for (int i = 0; i < 3; i++) {
        if (widths[i] != width || !each[i]->block) continue;
        if (each[i]->signs) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.sign_widths' names %lld twice", path, (long long)width);
        each[i]->signs = setun_calloc((size_t)width, sizeof(float));
        if (!each[i]->signs) return setun_fail_memory((size_t)width * sizeof(float));
        memcpy(each[i]->signs, signs, (size_t)width * sizeof(float));
        each[i]->sign_count = width;
        each[i]->block = block;
    }
    return SETUN_OK;
}

static setun_status read_signs(setun_description *d, setun_file *file, int block) {
    const char *path = setun_file_path(file);
    const setun_value *widths = find(file, "sign_widths"), *values = find(file, "sign_values");
    if (!widths || widths->type != SETUN_VALUE_ARRAY || !values || values->type != SETUN_VALUE_ARRAY || widths->count > 64)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.sign_mode' is explicit, but 'sign_widths' and 'sign_values' are not lists", path);
    uint64_t at = 0;
    for (uint64_t i = 0; i < widths->count; i++) {
        int64_t width;
        if (!setun_value_i64_at(widths, i, &width) || width < 1 || width > 1 << 24 || values->count - at < (uint64_t)width)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.sign_widths' [%llu] does not go with %llu sign values", path, (unsigned long long)i, (unsigned long long)values->count);
        float *signs = setun_calloc((size_t)width, sizeof *signs);
        if (!signs) return setun_fail_memory((size_t)width * sizeof *signs);
        setun_status status = SETUN_OK;
        for (int64_t j = 0; j < width && status == SETUN_OK; j++) {
            double value = 0;
            int64_t whole;
            if (!setun_value_f64_at(values, at + (uint64_t)j, &value) && setun_value_i64_at(values, at + (uint64_t)j, &whole)) value = (double)whole;
            if (value != 1 && value != -1) status = setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.sign_values' [%llu] is %g, not 1 or -1", path, (unsigned long long)(at + (uint64_t)j), value);
            signs[j] = (float)value;
        }
        if (status == SETUN_OK) status = set_signs(d, width, signs, block, path);
        setun_free(signs);
        SETUN_TRY(status);
        at += (uint64_t)width;
    }
    if (at != values->count) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.sign_values' has %llu values, the widths add up to %llu", path, (unsigned long long)values->count, (unsigned long long)at);
    const setun_hadamard *each[3] = {&d->hadamard_width, &d->hadamard_feed_forward, &d->hadamard_attention};
    for (int i = 0; i < 3; i++)
        if (each[i]->block && !each[i]->signs) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.sign_widths' lacks a width that rotated weights have", path);
    return SETUN_OK;
}

/* Marks the named tensors; counts[role] is how many layers' weight of that role is named. */
static setun_status read_names(setun_description *d, setun_file *file, const char *key, bool inverse, int *counts) {
    const char *path = setun_file_path(file);
    const setun_value *names = find(file, key);
    if (!names && inverse) return SETUN_OK;
    if (!names || names->type != SETUN_VALUE_ARRAY || names->element != SETUN_VALUE_STRING) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.%s' is not a list of names", path, key);
    for (uint64_t i = 0; i < names->count; i++) {
        const char *text;
        size_t length;
        char name[160];
        if (!setun_value_string_at(names, i, &text, &length)) return setun_fail(SETUN_ERROR_FORMAT, "%s: 'prism.hadamard.%s' [%llu] is not text", path, key, (unsigned long long)i);
        snprintf(name, sizeof name, "%.*s", (int)(length > 128 ? 128 : length), text);
        setun_role role;
        int layer;
        const char *suffix;
        bool ok = setun_role_of(name, &role, &layer, &suffix) && strcmp(suffix, "weight") == 0 && layer < d->h.layers &&
                  (inverse ? role == SETUN_ROLE_EMBEDDING : setun_role_is_linear(role) || role == SETUN_ROLE_OUTPUT);
        if (ok) ok = (layer < 0 ? d->global.weight[role] : d->layers[layer].weight[role]) != NULL;
        if (!ok) return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: 'prism.hadamard.%s' names '%s', which is no weight that Setun can rotate the input of", path, key, name);
        counts[role]++;
    }
    return SETUN_OK;
}

static bool all_or_none(const int *counts, const setun_role *roles, int role_count, int layers, bool *all) {
    int sum = 0;
    for (int i = 0; i < role_count; i++) {
        if (counts[roles[i]] != 0 && counts[roles[i]] != layers) return false;
        sum += counts[roles[i]] != 0;
    }
    *all = sum == role_count;
    return sum == 0 || *all;
}

setun_status setun_description_read_hadamard(setun_description *d, setun_file *file) {
    if (setun_file_container(file) != SETUN_GGUF) return SETUN_OK;
    const char *path = setun_file_path(file);
    bool any = false;
    for (int i = 0; i < setun_file_value_count(file); i++) any |= strncmp(setun_file_value_at(file, i)->key, "prism.hadamard.", 15) == 0;
    if (!any) return SETUN_OK;

    int64_t version = 0, block = 0;
    const setun_value *v = find(file, "version");
    if (!v || !setun_value_i64(v, &version) || version != 1) {
        char shown[32];
        snprintf(shown, sizeof shown, "%lld", (long long)version);
        return unknown(path, "version", v ? shown : "(missing)", "1");
    }
    v = find(file, "block_size");
    if (!v || !setun_value_i64(v, &block) || block < 2 || block > 1 << 20 || (block & (block - 1)))
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: 'prism.hadamard.block_size' is %lld; it must be a power of two", path, (long long)block);
    int choice, explicit_signs;
    SETUN_TRY(choose(file, "transform", "normalized-sylvester-walsh-hadamard", NULL, &choice));
    SETUN_TRY(choose(file, "axis", "input-last-dimension", NULL, &choice));
    SETUN_TRY(choose(file, "sign_mode", "identity", "explicit", &explicit_signs));
    static const char *const known[] = {"version", "block_size", "transform", "axis", "sign_mode", "sign_widths", "sign_values", "weight_names", "inverse_weight_names"};
    for (int i = 0; i < setun_file_value_count(file); i++) {
        const char *key = setun_file_value_at(file, i)->key;
        if (strncmp(key, "prism.hadamard.", 15) != 0) continue;
        bool found = false;
        for (size_t k = 0; k < sizeof known / sizeof known[0]; k++) found |= strcmp(key + 15, known[k]) == 0;
        /* free text about where the rotation came from changes nothing; anything else might */
        if (!found && setun_file_value_at(file, i)->type != SETUN_VALUE_STRING)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: '%s' is a rule for rotated weights that Setun does not know", path, key);
    }

    int counts[SETUN_ROLE_COUNT] = {0};
    SETUN_TRY(read_names(d, file, "weight_names", false, counts));
    SETUN_TRY(read_names(d, file, "inverse_weight_names", true, counts));
    static const setun_role inputs[] = {SETUN_ROLE_Q, SETUN_ROLE_K, SETUN_ROLE_V, SETUN_ROLE_GATE, SETUN_ROLE_UP};
    static const setun_role output[] = {SETUN_ROLE_O}, down[] = {SETUN_ROLE_DOWN};
    bool rotate_width, rotate_attention, rotate_feed_forward;
    if (!all_or_none(counts, inputs, 5, d->h.layers, &rotate_width) || !all_or_none(counts, output, 1, d->h.layers, &rotate_attention) ||
        !all_or_none(counts, down, 1, d->h.layers, &rotate_feed_forward) || counts[SETUN_ROLE_EMBEDDING] > 1 || counts[SETUN_ROLE_OUTPUT] > 1)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: 'prism.hadamard.weight_names' names only some of the weights that share an input; Setun rotates all of them or none", path);
    d->rotated = true;
    d->embedding_rotated = counts[SETUN_ROLE_EMBEDDING] == 1;
    d->output_rotated = d->global.weight[SETUN_ROLE_OUTPUT] ? counts[SETUN_ROLE_OUTPUT] == 1 : d->embedding_rotated;
    if (rotate_width || d->embedding_rotated || d->output_rotated) d->hadamard_width.block = (int)block;
    if (!rotate_width && d->hadamard_width.block)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: 'prism.hadamard.weight_names' rotates the embedding or the head but not the layers' inputs, which Setun does not do", path);
    if (rotate_attention) d->hadamard_attention.block = (int)block;
    if (rotate_feed_forward) d->hadamard_feed_forward.block = (int)block;
    int64_t widths[3] = {d->h.width, d->h.feed_forward, (int64_t)d->h.heads * d->h.head_size};
    const setun_hadamard *each[3] = {&d->hadamard_width, &d->hadamard_feed_forward, &d->hadamard_attention};
    for (int i = 0; i < 3; i++)
        if (each[i]->block && widths[i] % block)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: rotated inputs of width %lld are not whole blocks of %lld", path, (long long)widths[i], (long long)block);
    return explicit_signs ? read_signs(d, file, (int)block) : SETUN_OK;
}

void setun_description_clear(setun_description *d) {
    setun_free(d->hadamard_width.signs);
    setun_free(d->hadamard_feed_forward.signs);
    setun_free(d->hadamard_attention.signs);
    setun_free(d->layers);
    setun_hparams_free(&d->h);
    memset(d, 0, sizeof *d);
}
