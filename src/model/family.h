/*
 * family.h - inside the model room: what families_gguf.c, families_config.c and families.c share.
 */
#ifndef SETUN_MODEL_FAMILY_H
#define SETUN_MODEL_FAMILY_H

#include "model/model.h"

/* An architecture by the word that files use for it. */
typedef struct setun_architecture {
    const char *word;
    bool gguf;                  /* general.architecture; else config.json's architectures[0] */
    setun_family family;
    setun_activation activation; /* unless the file says (Hugging Face does, GGUF does not) */
    bool int8;                  /* activations are int8 whatever the weights' format */
    bool interleaved;           /* GGUF: q and k rows are permuted for interleaved rope */
    bool embedding_model, masters;
} setun_architecture;
const setun_architecture *setun_architecture_find(const char *word, size_t length, bool gguf); /* NULL: unknown */
setun_status setun_architecture_unknown(const char *path, const char *word, size_t length, bool gguf); /* the message that lists the known ones */

setun_status setun_activation_from_name(const char *path, const char *name, size_t length, setun_activation *out);
const char *setun_activation_name(setun_activation activation);

/* Ranges and relations of every member; fills head_size and kv_heads where they are 0. `where` is the file. */
setun_status setun_hparams_check(setun_hparams *h, const char *where);

/* How positions are stretched, in the words of both worlds. */
typedef struct setun_rope_scaling {
    char type[24];              /* "", "none", "default", "linear", "llama3", "yarn", "longrope" */
    double factor;              /* 0: absent */
    double low_frequency, high_frequency; /* llama3; 0: absent */
    double beta_fast, beta_slow; /* yarn; 0: 32, 1 */
    double attention_factor;    /* yarn, longrope; 0: by the formula */
    double original_context;    /* 0: absent */
    bool no_truncate;           /* yarn: borders of the ramp are not rounded */
    double *short_factors;      /* longrope: [count], owned by the caller */
    int64_t count;
} setun_rope_scaling;
/* Sets rope_scale, rope_magnitude, rope_factors (allocated), original_context, context of h. head_size and rotary are known. */
setun_status setun_rope_scaling_apply(setun_hparams *h, const setun_rope_scaling *scaling, const char *where);

/* load.c, in steps, for inspect.c. */
typedef struct setun_loader {
    setun_model *model;
    setun_hparams *h;           /* the model's */
    const char *path;
    bool gguf;
    const json_t *config;       /* config.json; NULL for GGUF */
    setun_quantization quantization;
    bool has_input_norms;
} setun_loader;
setun_status setun_model_make(setun_context *context, const char *path, setun_model **out); /* an empty one, for setun_model_destroy */
setun_status setun_loader_open(setun_loader *l, setun_model *model, const setun_model_options *options); /* the file */
setun_status setun_loader_build(setun_loader *l); /* all but reading the weights and the tokenizer */
/* One tensor of the file as a weight of this role; what lies beside it (scales) included. */
setun_status setun_loader_describe(const setun_loader *l, const setun_file_tensor *t, setun_role role, const char *suffix, setun_weight *out);

/* Bytes of one element of F32, F16, BF16; 0 for the others. */
static inline size_t setun_float_bytes(setun_format format) {
    return format == SETUN_FORMAT_F32 ? 4 : format == SETUN_FORMAT_F16 || format == SETUN_FORMAT_BF16 ? 2 : 0;
}

/* hadamard.c: weights are in place. Nothing happens where the file has no such metadata. */
setun_status setun_description_read_hadamard(setun_description *description, setun_file *file);
void setun_description_clear(setun_description *description); /* frees what it owns */

#endif
