/*
 * model.h - floor 2: names and hyper-parameters -> a description of one transformer, weights as borrowed views.
 * Knows families (families.c) and names (roles.def). Computes nothing. Caller: graph/transformer.c, run, the API.
 */
#ifndef SETUN_MODEL_H
#define SETUN_MODEL_H

#include "text/text.h"
#include <pthread.h>

typedef enum setun_role {
#define SETUN_ROLE(e, g, h, l) SETUN_ROLE_##e,
#include "model/roles.def"
#undef SETUN_ROLE
    SETUN_ROLE_COUNT
} setun_role;

typedef enum setun_activation { SETUN_ACT_SILU, SETUN_ACT_RELU2, SETUN_ACT_GELU } setun_activation;

typedef enum setun_family { SETUN_FAMILY_LLAMA, SETUN_FAMILY_BITNET, SETUN_FAMILY_QWEN2, SETUN_FAMILY_QWEN3, SETUN_FAMILY_GEMMA3, SETUN_FAMILY_MINICPM } setun_family;

/* One transformer: what transformer.c needs and nothing about files. Zero means absent/none unless said otherwise. */
typedef struct setun_hparams {
    char architecture[64];      /* the file's word */
    int layers, width, feed_forward, heads, kv_heads, head_size, vocabulary, context;
    float epsilon;              /* RMSNorm */
    bool norm_one_plus;         /* Gemma in HF form: weight is 1 + w. (GGUF stores 1+w already) */
    setun_activation activation;
    bool activation_int8;       /* ternary linears take int8 per-token activations (BitNet); false: f32 (TriLM, Bonsai) */
    bool projection_norm;       /* an RMSNorm (projection_norm_epsilon) before every linear, with weights where the file has them */
    float projection_norm_epsilon;
    float rope_theta;
    bool rope_interleaved;      /* GGUF arch llama; HF and bitnet use halves */
    int rotary;                 /* rotated dimensions; 0: head_size */
    float rope_scale;           /* multiplies positions (linear scaling); 0: 1 */
    float rope_magnitude;       /* 0: 1 */
    float *rope_factors;        /* [rotary/2] owned by the description; NULL: none (llama3, longrope) */
    float rope_local_theta;     /* Gemma3: layers with a sliding window use this; 0: same */
    int sliding_window;         /* 0: none */
    int sliding_pattern;        /* every n-th layer (1-based) is global, the others slide; 0: all layers as sliding_window says */
    float attention_scale;      /* 0: 1/sqrt(head_size) */
    float embedding_scale;      /* 0: 1 */
    float residual_scale;       /* multiplies each block's output before the residual add (MiniCPM); 0: 1 */
    float logit_scale;          /* multiplies the logits; 0: 1 */
    float logit_softcap;        /* refused when not 0 */
    bool embedding_model;       /* made for embeddings: EOS appended, last token pooled */
    setun_family family;        /* which tensors must be there, and what a name means */
    int original_context;       /* longrope, yarn: the context before scaling; 0: none. For convert */
    bool masters;               /* linear weights are float masters by the architecture's definition (1bitLLM): absmean at load */
} setun_hparams;

typedef struct setun_hadamard { int block; float *signs; int64_t sign_count; /* owned by the description */ } setun_hadamard;

typedef struct setun_layer {
    setun_weight *weight[SETUN_ROLE_COUNT];   /* NULL where the model has none */
    setun_weight *bias[SETUN_ROLE_COUNT];     /* of linear roles */
    setun_weight *input_norm[SETUN_ROLE_COUNT]; /* projection_norm weights, of linear roles; may be NULL */
} setun_layer;

typedef struct setun_description {
    setun_hparams h;
    setun_layer global;         /* EMBEDDING, OUTPUT_NORM, OUTPUT (NULL: tied to EMBEDDING) */
    setun_layer *layers;        /* [h.layers] */
    bool rotated;               /* prism.hadamard: */
    setun_hadamard hadamard_width, hadamard_feed_forward, hadamard_attention; /* by input width: width, feed_forward, heads*head_size; block 0: none */
    bool embedding_rotated;     /* embedding rows are h = s * (H z) */
    bool output_rotated;        /* the head takes H(s * x) of hadamard_width: it is named, or tied to a rotated embedding */
} setun_description;

/* GGUF key of files with tensors in a layout of Setun's own (trits). */
#define SETUN_PACKED_KEY "setun.packed"
#define SETUN_PACKED_VERSION 1
/* Tensors of such files that hold the small copy of the vocabulary projection (backend/cpu/shortlist.h): bytes, as the backend reads them. */
#define SETUN_SHORTLIST_HIGH "output.shortlist.high"
#define SETUN_SHORTLIST_LOW "output.shortlist.low"
#define SETUN_SHORTLIST_SCALES "output.shortlist.scales"
bool setun_is_shortlist_name(const char *tensor_name);
/* The weight that gives the logits: the head, or the embedding where they are tied. */
const setun_weight *setun_model_head(const setun_model *model);

/* Where prepared weights lie: AUTO lets the backend judge; MAP uses the file's bytes wherever kernels can read them; PACK uses none of them. */
typedef enum setun_weights_policy { SETUN_WEIGHTS_AUTO, SETUN_WEIGHTS_MAP, SETUN_WEIGHTS_PACK } setun_weights_policy;

struct setun_model {
    setun_context *context;
    setun_weights_policy weights_policy;
    setun_file *file;
    char *path, *name;
    setun_description description;
    setun_weight *weights;      /* every tensor of the file that is a weight, in file order */
    int weight_count;
    setun_tokenizer *tokenizer; /* NULL: none */
    pthread_mutex_t lock;       /* guards weights[i].prepared */
    uint64_t parameters, weight_bytes;
    void (*free_prepared)(void *prepared); /* set by the backend that prepared */
    const struct setun_backend *backend;   /* of the device it was opened for: its sessions run there; NULL: the CPU */
    bool lock_made;
};

/* Opens, describes, checks every shape, probes every ternary candidate (in parallel over the context's threads) and validates it. */
setun_status setun_model_load(setun_context *context, const char *path, const setun_model_options *options, setun_model **out);
/* The same for who runs it on the CPU, which checks the codes of large mapped weights while it first reads them: no answer comes of a broken one. */
setun_status setun_model_load_late(setun_context *context, const char *path, const setun_model_options *options, setun_model **out);
void setun_force_late_checks(bool on); /* tests: small models too */
void setun_model_destroy(setun_model *model);
/* By the file's tensor name. For HF packed tensors "X.weight". NULL if absent. */
setun_weight *setun_model_find(setun_model *model, const char *name);

/* families.c: hyper-parameters from GGUF metadata or config.json. Unknown architecture: SETUN_ERROR_UNSUPPORTED naming it and the known ones. */
setun_status setun_hparams_from_gguf(setun_file *file, setun_hparams *out);
setun_status setun_hparams_from_config(const json_t *config, const char *path, setun_hparams *out);
/* Writes them as GGUF metadata (convert), general.architecture first. What GGUF's own words cannot say goes into keys
 * "setun.*", which setun_hparams_from_gguf reads back: any hparams come back as they went in. For files that others can
 * run as well, convert brings the tensors into GGUF's form before (q and k rows interleaved for the architectures
 * where setun_gguf_interleaved, 1 + w in Gemma's norms) and says so in h: rope_interleaved = true, norm_one_plus = false. */
setun_status setun_hparams_to_gguf(const setun_hparams *h, setun_gguf_writer *writer);
const char *setun_gguf_architecture(const setun_hparams *h); /* "llama", "bitnet", "bitnet-b1.58", "qwen3", ... */
bool setun_gguf_interleaved(const char *architecture);       /* other programs expect interleaved rope under this word */
void setun_hparams_free(setun_hparams *h);                   /* rope_factors; the struct itself is the caller's */

/* config.json's quantization_config (quant_method bitnet) or MLX's "quantization"; all zero where there is neither. */
typedef struct setun_quantization {
    bool bitnet;          /* quant_method bitnet: activations are int8 */
    bool multiply;        /* weight_scale multiplies the codes; false: it divides */
    bool online;          /* float masters: absmean at load */
    const json_t *skip;   /* modules_to_not_convert, borrowed from the config; NULL: none */
    const json_t *mlx;    /* MLX's object, borrowed; NULL: none */
} setun_quantization;
setun_status setun_quantization_from_config(const json_t *config, const char *path, setun_quantization *out);
/* Is the module of this weight ("model.layers.0.mlp.up_proj.weight") in modules_to_not_convert? */
bool setun_quantization_skips(const setun_quantization *q, const char *weight_name);
/* names.c: role and layer of a tensor name; false if unknown. suffix: "weight", "bias", "weight_scale", "input_norm", "scales", "biases". */
bool setun_role_of(const char *name, setun_role *role, int *layer, const char **suffix);
setun_status setun_role_name(setun_role role, int layer, bool gguf, const char *suffix, char *out, size_t out_size);
/* The same, where the family decides (Gemma3 in Hugging Face form). */
bool setun_role_of_family(const char *name, setun_family family, setun_role *role, int *layer, const char **suffix);
setun_status setun_role_name_family(setun_role role, setun_family family, int layer, bool gguf, const char *suffix, char *out, size_t out_size);
bool setun_role_is_linear(setun_role role);     /* the seven projections of a layer */
bool setun_role_is_matrix(setun_role role);     /* those, EMBEDDING and OUTPUT; the others are norms */
bool setun_role_is_per_layer(setun_role role);
const char *setun_role_title(setun_role role);  /* "ATTN_SUB_NORM", for messages */
/* Rows (1 for a norm) and columns a tensor of this role has in this model. */
void setun_role_shape(setun_role role, const setun_hparams *h, int64_t *rows, int64_t *columns);

/* setun_convert, with a caller that adds tensors to a packed file (run/convert.c; this room knows no backend). add is called with the model once it
 * is known that its head's bytes stay as they are; what it gives is borrowed until `done`, which is called if add was. */
typedef struct setun_convert_extra { const char *name; int64_t rows, columns; const void *data; } setun_convert_extra; /* bytes [rows, columns] */
enum { SETUN_CONVERT_EXTRAS = 4 };
typedef struct setun_convert_hook {
    setun_status (*add)(void *user, setun_model *model, setun_convert_extra extras[SETUN_CONVERT_EXTRAS], int *out_count);
    void (*done)(void *user);
    void *user;
} setun_convert_hook;
setun_status setun_model_convert(setun_context *context, const char *in_path, const char *out_path, const setun_convert_options *options, const setun_convert_hook *hook, char **out_json);

/* The public setun_file_inspect (inspect.c) lives in this room too. */

#endif
