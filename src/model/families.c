/*
 * families.c - the architectures Setun knows, what is a sane hyper-parameter, and hyper-parameters as GGUF metadata.
 * Callers: families_gguf.c and families_config.c (which read), convert.c (which writes). Reads no file itself.
 */
#include "model/family.h"
#include <math.h>
#include <strings.h>

/* bitnet.cpp and ik_llama.cpp call the 2B-4T model bitnet-b1.58 and, in older files, bitnet-25: the only ones with relu2. */
static const setun_architecture architectures[] = {
    {"bitnet",       true,  SETUN_FAMILY_BITNET,  SETUN_ACT_SILU,  .int8 = true},
    {"bitnet-b1.58", true,  SETUN_FAMILY_BITNET,  SETUN_ACT_RELU2, .int8 = true},
    {"bitnet-25",    true,  SETUN_FAMILY_BITNET,  SETUN_ACT_RELU2, .int8 = true},
    {"llama",        true,  SETUN_FAMILY_LLAMA,   SETUN_ACT_SILU,  .interleaved = true},
    {"qwen2",        true,  SETUN_FAMILY_QWEN2,   SETUN_ACT_SILU, .int8 = false},
    {"qwen3",        true,  SETUN_FAMILY_QWEN3,   SETUN_ACT_SILU, .int8 = false},
    {"gemma3",       true,  SETUN_FAMILY_GEMMA3,  SETUN_ACT_GELU, .int8 = false},
    {"minicpm",      true,  SETUN_FAMILY_MINICPM, SETUN_ACT_SILU,  .interleaved = true},
    {"BitNetForCausalLM",   false, SETUN_FAMILY_BITNET,  SETUN_ACT_RELU2, .int8 = true},
    {"BitnetForCausalLM",   false, SETUN_FAMILY_BITNET,  SETUN_ACT_SILU,  .int8 = true, .masters = true}, /* 1bitLLM */
    {"LlamaForCausalLM",    false, SETUN_FAMILY_LLAMA,   SETUN_ACT_SILU, .int8 = false},
    {"Qwen2ForCausalLM",    false, SETUN_FAMILY_QWEN2,   SETUN_ACT_SILU, .int8 = false},
    {"Qwen3ForCausalLM",    false, SETUN_FAMILY_QWEN3,   SETUN_ACT_SILU, .int8 = false},
    {"Qwen3Model",          false, SETUN_FAMILY_QWEN3,   SETUN_ACT_SILU,  .embedding_model = true},
    {"Gemma3ForCausalLM",   false, SETUN_FAMILY_GEMMA3,  SETUN_ACT_GELU, .int8 = false},
    {"Gemma3TextModel",     false, SETUN_FAMILY_GEMMA3,  SETUN_ACT_GELU,  .embedding_model = true},
    {"MiniCPMForCausalLM",  false, SETUN_FAMILY_MINICPM, SETUN_ACT_SILU, .int8 = false},
    {"MiniCPM4ForCausalLM", false, SETUN_FAMILY_MINICPM, SETUN_ACT_SILU, .int8 = false},
};
#define ARCHITECTURES (sizeof architectures / sizeof architectures[0])

const setun_architecture *setun_architecture_find(const char *word, size_t length, bool gguf) {
    for (size_t i = 0; i < ARCHITECTURES; i++)
        if (architectures[i].gguf == gguf && strlen(architectures[i].word) == length && memcmp(architectures[i].word, word, length) == 0) return &architectures[i];
    return NULL;
}

setun_status setun_architecture_unknown(const char *path, const char *word, size_t length, bool gguf) {
    char list[512];
    size_t used = 0;
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        if (architectures[i].gguf != gguf) continue;
        int n = snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", architectures[i].word);
        if (n < 0 || (size_t)n >= sizeof list - used) break;
        used += (size_t)n;
    }
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: architecture '%.*s' is not one that Setun runs; it runs %s", path, (int)(length > 64 ? 64 : length), word, list);
}

/* ---- activations ---- */

static const struct { const char *name; setun_activation activation; } activations[] = {
    {"silu", SETUN_ACT_SILU}, {"swish", SETUN_ACT_SILU}, {"relu2", SETUN_ACT_RELU2}, {"relu_squared", SETUN_ACT_RELU2},
    {"gelu_pytorch_tanh", SETUN_ACT_GELU}, {"gelu_new", SETUN_ACT_GELU}, {"gelu_tanh", SETUN_ACT_GELU},
};

setun_status setun_activation_from_name(const char *path, const char *name, size_t length, setun_activation *out) {
    for (size_t i = 0; i < sizeof activations / sizeof activations[0]; i++)
        if (strlen(activations[i].name) == length && memcmp(activations[i].name, name, length) == 0) {
            *out = activations[i].activation;
            return SETUN_OK;
        }
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: activation '%.*s' is not one that Setun computes: silu, relu2, gelu_pytorch_tanh", path,
        (int)(length > 64 ? 64 : length), name);
}

const char *setun_activation_name(setun_activation activation) {
    return activation == SETUN_ACT_RELU2 ? "relu2" : activation == SETUN_ACT_GELU ? "gelu_pytorch_tanh" : "silu";
}

/* ---- sanity ---- */

static setun_status in_range(const char *where, const char *what, int value, int low, int high) {
    if (value >= low && value <= high) return SETUN_OK;
    return setun_fail(SETUN_ERROR_FORMAT, "%s: %s is %d; Setun takes %d to %d", where, what, value, low, high);
}

static setun_status finite_positive(const char *where, const char *what, float value, bool zero_too) {
    if (isfinite(value) && (value > 0 || (zero_too && value == 0))) return SETUN_OK;
    return setun_fail(SETUN_ERROR_FORMAT, "%s: %s is %g; it must be a positive number", where, what, (double)value);
}

setun_status setun_hparams_check(setun_hparams *h, const char *where) {
    SETUN_TRY(in_range(where, "the number of layers", h->layers, 1, 4096));
    SETUN_TRY(in_range(where, "the width (hidden size)", h->width, 1, 1 << 20));
    SETUN_TRY(in_range(where, "the feed-forward size", h->feed_forward, 1, 1 << 22));
    SETUN_TRY(in_range(where, "the number of attention heads", h->heads, 1, 8192));
    if (h->kv_heads == 0) h->kv_heads = h->heads;
    SETUN_TRY(in_range(where, "the number of key-value heads", h->kv_heads, 1, 8192));
    if (h->heads % h->kv_heads)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: %d attention heads cannot share %d key-value heads evenly", where, h->heads, h->kv_heads);
    if (h->head_size == 0) {
        if (h->width % h->heads)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: width %d is not a multiple of %d heads, and no head size is given", where, h->width, h->heads);
        h->head_size = h->width / h->heads;
    }
    SETUN_TRY(in_range(where, "the head size", h->head_size, 2, 8192));
    if (h->head_size % 2) return setun_fail(SETUN_ERROR_FORMAT, "%s: head size %d is odd; rope turns pairs", where, h->head_size);
    if (h->rotary == 0) h->rotary = h->head_size;
    if (h->rotary < 2 || h->rotary % 2 || h->rotary > h->head_size)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: rope over %d of %d dimensions; it must be an even number of them", where, h->rotary, h->head_size);
    SETUN_TRY(in_range(where, "the vocabulary", h->vocabulary, 1, 1 << 24));
    SETUN_TRY(in_range(where, "the context length", h->context, 1, 1 << 30));
    SETUN_TRY(finite_positive(where, "the epsilon of the norms", h->epsilon, true));
    if (h->epsilon >= 1) return setun_fail(SETUN_ERROR_FORMAT, "%s: the epsilon of the norms is %g", where, (double)h->epsilon);
    SETUN_TRY(finite_positive(where, "the epsilon of the projection norms", h->projection_norm_epsilon, true));
    SETUN_TRY(finite_positive(where, "rope theta", h->rope_theta, false));
    SETUN_TRY(finite_positive(where, "the local rope theta", h->rope_local_theta, true));
    SETUN_TRY(finite_positive(where, "the rope scale", h->rope_scale, true));
    SETUN_TRY(finite_positive(where, "the rope magnitude", h->rope_magnitude, true));
    for (int i = 0; h->rope_factors && i < h->rotary / 2; i++) SETUN_TRY(finite_positive(where, "a rope factor", h->rope_factors[i], false));
    SETUN_TRY(finite_positive(where, "the attention scale", h->attention_scale, true));
    SETUN_TRY(finite_positive(where, "the embedding scale", h->embedding_scale, true));
    SETUN_TRY(finite_positive(where, "the residual scale", h->residual_scale, true));
    SETUN_TRY(finite_positive(where, "the logit scale", h->logit_scale, true));
    if (h->logit_softcap != 0)
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: logits are soft-capped at %g, which Setun does not do; use a model without it", where, (double)h->logit_softcap);
    if (h->sliding_window < 0 || h->sliding_pattern < 0)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: a sliding window of %d tokens, every %d layers", where, h->sliding_window, h->sliding_pattern);
    return SETUN_OK;
}

void setun_hparams_free(setun_hparams *h) {
    if (!h) return;
    setun_free(h->rope_factors);
    h->rope_factors = NULL;
}

/* ---- writing ---- */

const char *setun_gguf_architecture(const setun_hparams *h) {
    switch (h->family) {
    case SETUN_FAMILY_BITNET: return h->activation == SETUN_ACT_RELU2 ? "bitnet-b1.58" : "bitnet";
    case SETUN_FAMILY_QWEN2: return "qwen2";
    case SETUN_FAMILY_QWEN3: return "qwen3";
    case SETUN_FAMILY_GEMMA3: return "gemma3";
    case SETUN_FAMILY_MINICPM: return "minicpm";
    case SETUN_FAMILY_LLAMA: break;
    }
    return "llama";
}

bool setun_gguf_interleaved(const char *architecture) {
    const setun_architecture *a = setun_architecture_find(architecture, strlen(architecture), true);
    return a && a->interleaved;
}

typedef struct metadata { setun_gguf_writer *writer; const char *architecture; setun_status status; } metadata;

static const char *full_key(metadata *m, const char *key, char *out, size_t size) {
    snprintf(out, size, "%s.%s", m->architecture, key);
    return out;
}

/* After the first failure the rest does nothing: one check at the end. */
static void put_u32(metadata *m, const char *key, int value) {
    char name[128];
    if (m->status == SETUN_OK) m->status = setun_gguf_add_u32(m->writer, full_key(m, key, name, sizeof name), (uint32_t)value);
}
static void put_f32(metadata *m, const char *key, float value) {
    char name[128];
    if (m->status == SETUN_OK) m->status = setun_gguf_add_f32(m->writer, full_key(m, key, name, sizeof name), value);
}
static void put_own_f32(metadata *m, const char *key, float value) {
    if (m->status == SETUN_OK && value != 0) m->status = setun_gguf_add_f32(m->writer, key, value);
}
static void put_own_bool(metadata *m, const char *key, bool value) {
    if (m->status == SETUN_OK) m->status = setun_gguf_add_bool(m->writer, key, value);
}

setun_status setun_hparams_to_gguf(const setun_hparams *h, setun_gguf_writer *writer) {
    metadata m = {writer, setun_gguf_architecture(h), SETUN_OK};
    const setun_architecture *a = setun_architecture_find(m.architecture, strlen(m.architecture), true);
    m.status = setun_gguf_add_string(writer, "general.architecture", m.architecture, strlen(m.architecture));
    put_u32(&m, "block_count", h->layers);
    put_u32(&m, "context_length", h->context);
    put_u32(&m, "embedding_length", h->width);
    put_u32(&m, "feed_forward_length", h->feed_forward);
    put_u32(&m, "attention.head_count", h->heads);
    put_u32(&m, "attention.head_count_kv", h->kv_heads);
    put_u32(&m, "attention.key_length", h->head_size);
    put_u32(&m, "attention.value_length", h->head_size);
    put_f32(&m, "attention.layer_norm_rms_epsilon", h->epsilon);
    put_f32(&m, "rope.freq_base", h->rope_theta);
    put_u32(&m, "rope.dimension_count", h->rotary ? h->rotary : h->head_size);
    put_u32(&m, "vocab_size", h->vocabulary);
    if (h->attention_scale != 0) put_f32(&m, "attention.scale", h->attention_scale);
    if (h->sliding_window) {
        put_u32(&m, "attention.sliding_window", h->sliding_window);
        put_u32(&m, "attention.sliding_window_pattern", h->sliding_pattern ? h->sliding_pattern : 1 << 20);
    }
    if (h->rope_local_theta != 0) put_f32(&m, "rope.freq_base_swa", h->rope_local_theta);
    if (h->rope_scale != 0 && h->rope_scale != 1) {
        if (m.status == SETUN_OK) m.status = setun_gguf_add_string(writer, full_key(&m, "rope.scaling.type", (char[128]){0}, 128), "linear", 6);
        put_f32(&m, "rope.scaling.factor", 1 / h->rope_scale);
        put_own_f32(&m, "setun.rope_scale", h->rope_scale); /* 1/(1/x) may differ from x in the last bit */
    }
    if (h->family == SETUN_FAMILY_MINICPM) {
        put_f32(&m, "embedding_scale", h->embedding_scale != 0 ? h->embedding_scale : 1);
        put_f32(&m, "residual_scale", h->residual_scale != 0 ? h->residual_scale : 1);
        put_f32(&m, "logit_scale", h->logit_scale != 0 ? 1 / h->logit_scale : 1); /* GGUF divides by it */
    }
    put_own_f32(&m, "setun.embedding_scale", h->embedding_scale);
    put_own_f32(&m, "setun.residual_scale", h->residual_scale);
    put_own_f32(&m, "setun.logit_scale", h->logit_scale);
    if (h->embedding_model) put_u32(&m, "pooling_type", 3); /* the last token's */
    /* What GGUF has no word for. */
    put_own_bool(&m, "setun.activation_int8", h->activation_int8);
    if (h->rope_interleaved != a->interleaved) put_own_bool(&m, "setun.rope_interleaved", h->rope_interleaved);
    if (h->norm_one_plus) put_own_bool(&m, "setun.norm_one_plus", true);
    if (h->activation != a->activation && m.status == SETUN_OK) {
        const char *name = setun_activation_name(h->activation);
        m.status = setun_gguf_add_string(writer, "setun.hidden_act", name, strlen(name));
    }
    if (h->projection_norm) {
        put_own_bool(&m, "setun.projection_norm", true);
        put_own_f32(&m, "setun.projection_norm_epsilon", h->projection_norm_epsilon);
    }
    put_own_f32(&m, "setun.rope_magnitude", h->rope_magnitude);
    if (h->rope_factors && m.status == SETUN_OK)
        m.status = setun_gguf_add_f32s(writer, "setun.rope_factors", h->rope_factors, (uint64_t)(h->rotary ? h->rotary : h->head_size) / 2);
    return m.status;
}
