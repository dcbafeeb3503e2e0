/*
 * names.c - what a tensor's name means, in GGUF and in Hugging Face files, and how a role is called in either.
 * Callers: load.c, inspect.c, convert.c. Knows only spelling: no files, no shapes beyond a role's own.
 */
#include "model/model.h"

typedef struct spelling { setun_role role; const char *gguf, *huggingface; } spelling;

/* The first SETUN_ROLE_COUNT are the names that are written; aliases follow, and are only read. */
static const spelling spellings[] = {
#define SETUN_ROLE(e, g, h, l) {SETUN_ROLE_##e, g, h},
#include "model/roles.def"
#undef SETUN_ROLE
#define SETUN_ROLE_ALIAS(e, g, h) {SETUN_ROLE_##e, g, h},
#include "model/roles.def"
};

static const struct { const char *title; bool per_layer; } titles[SETUN_ROLE_COUNT] = {
#define SETUN_ROLE(e, g, h, l) [SETUN_ROLE_##e] = {#e, l},
#include "model/roles.def"
#undef SETUN_ROLE
};

/* What follows the role's own name, and what it is to Setun. "_norm_in" is how BitNet's embedding models spell it in GGUF. */
static const struct { const char *text, *meaning; } endings[] = {
    {".weight", "weight"}, {".bias", "bias"}, {".weight_scale", "weight_scale"}, {".scales", "scales"}, {".biases", "biases"},
    {".rms_norm.weight", "input_norm"}, {".norm.weight", "input_norm"}, {"_norm_in.weight", "input_norm"}, {".scale", "scale"},
};

/* Text after `pattern` where name begins with it (%d stands for a layer number without leading zeros), or NULL. */
static const char *match(const char *name, const char *pattern, int *layer) {
    *layer = -1;
    while (*pattern) {
        if (pattern[0] == '%' && pattern[1] == 'd') {
            int digits = 0, value = 0;
            while (name[digits] >= '0' && name[digits] <= '9') {
                if (digits == 7) return NULL;
                value = value * 10 + (name[digits++] - '0');
            }
            if (digits == 0 || (digits > 1 && name[0] == '0')) return NULL;
            *layer = value;
            name += digits;
            pattern += 2;
        } else if (*name++ != *pattern++) {
            return NULL;
        }
    }
    return name;
}

static const char *ending_meaning(const char *text) {
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++)
        if (strcmp(text, endings[i].text) == 0) return endings[i].meaning;
    return NULL;
}

bool setun_role_of(const char *name, setun_role *role, int *layer, const char **suffix) {
    for (size_t i = 0; i < sizeof spellings / sizeof spellings[0]; i++) {
        const char *patterns[3] = {spellings[i].gguf, spellings[i].huggingface, NULL};
        if (patterns[1] && strncmp(patterns[1], "model.", 6) == 0) patterns[2] = patterns[1] + 6;
        for (int p = 0; p < 3; p++) {
            int found_layer;
            const char *rest = patterns[p] ? match(name, patterns[p], &found_layer) : NULL;
            const char *meaning = rest ? ending_meaning(rest) : NULL;
            if (!meaning) continue;
            *role = spellings[i].role;
            *layer = found_layer;
            *suffix = meaning;
            return true;
        }
    }
    return false;
}

bool setun_role_of_family(const char *name, setun_family family, setun_role *role, int *layer, const char **suffix) {
    if (!setun_role_of(name, role, layer, suffix)) return false;
    if (family == SETUN_FAMILY_GEMMA3 && *role == SETUN_ROLE_FFN_NORM && strstr(name, "post_attention_layernorm")) *role = SETUN_ROLE_POST_ATTN_NORM;
    return true;
}

setun_status setun_role_name_family(setun_role role, setun_family family, int layer, bool gguf, const char *suffix, char *out, size_t out_size) {
    if (out_size) out[0] = 0;
    if ((unsigned)role >= SETUN_ROLE_COUNT) return setun_fail(SETUN_ERROR_ARGUMENT, "role %d does not exist", (int)role);
    const char *pattern = gguf ? spellings[role].gguf : spellings[role].huggingface;
    if (!gguf && family == SETUN_FAMILY_GEMMA3 && role == SETUN_ROLE_FFN_NORM) pattern = "model.layers.%d.pre_feedforward_layernorm";
    if (!gguf && role == SETUN_ROLE_POST_ATTN_NORM) {
        if (family != SETUN_FAMILY_GEMMA3)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "a norm after the attention has no name in Hugging Face files outside Gemma3; write a GGUF file");
        pattern = "model.layers.%d.post_attention_layernorm";
    }
    const char *ending = NULL;
    if (strcmp(suffix, "input_norm") == 0) {
        ending = gguf ? "_norm_in.weight" : ".rms_norm.weight";
    } else {
        for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++)
            if (strcmp(suffix, endings[i].meaning) == 0) ending = endings[i].text;
    }
    if (!pattern || !ending) return setun_fail(SETUN_ERROR_ARGUMENT, "role %s has no '%s'", titles[role].title, suffix);
    const char *number = strstr(pattern, "%d");
    int length;
    if (number) {
        if (layer < 0) return setun_fail(SETUN_ERROR_ARGUMENT, "role %s needs a layer", titles[role].title);
        length = snprintf(out, out_size, "%.*s%d%s%s", (int)(number - pattern), pattern, layer, number + 2, ending);
    } else {
        length = snprintf(out, out_size, "%s%s", pattern, ending);
    }
    if (length < 0 || (size_t)length >= out_size) return setun_fail(SETUN_ERROR_ARGUMENT, "a tensor name needs %d bytes, there are %zu", length + 1, out_size);
    return SETUN_OK;
}

setun_status setun_role_name(setun_role role, int layer, bool gguf, const char *suffix, char *out, size_t out_size) {
    return setun_role_name_family(role, SETUN_FAMILY_LLAMA, layer, gguf, suffix, out, out_size);
}

bool setun_role_is_linear(setun_role role) {
    switch (role) {
    case SETUN_ROLE_Q: case SETUN_ROLE_K: case SETUN_ROLE_V: case SETUN_ROLE_O: case SETUN_ROLE_GATE: case SETUN_ROLE_UP: case SETUN_ROLE_DOWN: return true;
    default: return false;
    }
}

bool setun_role_is_matrix(setun_role role) { return setun_role_is_linear(role) || role == SETUN_ROLE_EMBEDDING || role == SETUN_ROLE_OUTPUT; }

bool setun_role_is_per_layer(setun_role role) { return (unsigned)role < SETUN_ROLE_COUNT && titles[role].per_layer; }

const char *setun_role_title(setun_role role) { return (unsigned)role < SETUN_ROLE_COUNT ? titles[role].title : "?"; }

void setun_role_shape(setun_role role, const setun_hparams *h, int64_t *rows, int64_t *columns) {
    int64_t attention = (int64_t)h->heads * h->head_size, keys = (int64_t)h->kv_heads * h->head_size;
    *rows = 1;
    *columns = h->width;
    switch (role) {
    case SETUN_ROLE_EMBEDDING: case SETUN_ROLE_OUTPUT: *rows = h->vocabulary; break;
    case SETUN_ROLE_Q: *rows = attention; break;
    case SETUN_ROLE_K: case SETUN_ROLE_V: *rows = keys; break;
    case SETUN_ROLE_O: *rows = h->width; *columns = attention; break;
    case SETUN_ROLE_GATE: case SETUN_ROLE_UP: *rows = h->feed_forward; break;
    case SETUN_ROLE_DOWN: *rows = h->width; *columns = h->feed_forward; break;
    case SETUN_ROLE_Q_NORM: case SETUN_ROLE_K_NORM: *columns = h->head_size; break;
    case SETUN_ROLE_ATTN_SUB_NORM: *columns = attention; break;
    case SETUN_ROLE_FFN_SUB_NORM: *columns = h->feed_forward; break;
    default: break;
    }
}
