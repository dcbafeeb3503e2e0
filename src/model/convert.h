/*
 * convert.h - inside the model room: what convert.c (plans), convert_encode.c (re-encodes one tensor) and convert_folder.c (a
 * Hugging Face folder's other files) share.
 */
#ifndef SETUN_MODEL_CONVERT_H
#define SETUN_MODEL_CONVERT_H

#include "model/family.h"

/* One tensor of the output. */
typedef struct setun_convert_item {
    char name[192];           /* in the output */
    const char *source;       /* in the input, for the report */
    setun_weight weight;      /* a copy of the model's, or a view made for this item */
    setun_ternary_info info;
    setun_format to;
    enum { SETUN_ITEM_COPY, SETUN_ITEM_CODES, SETUN_ITEM_VALUES } how; /* bytes as they lie; ternary codes; f32 values */
    int rank;
    int64_t shape[SETUN_MAX_RANK];
    uint64_t bytes;
    int head_size, rotary;    /* rope: rows (elements of a vector) of each head change places; 0: they stay */
    bool interleave;          /* halves -> pairs; false: pairs -> halves */
    float add;                /* to every value: Gemma's 1 + w */
    bool quantised;           /* made ternary because the user asked: what that changed is reported */
    float *own;               /* values made for this item (weight_scale, rope factors), freed with it */
    bool exact;               /* filled by setun_convert_item_write */
    double max_error;
} setun_convert_item;

typedef setun_status (*setun_convert_sink)(void *user, const void *data, uint64_t bytes);
/* Re-encodes the tensor on the context's threads and gives its bytes in order to the sink. */
setun_status setun_convert_item_write(setun_context *context, setun_convert_item *item, setun_convert_sink sink, void *user);
/* Are all scales of this ternary weight f16 (bf16) numbers? */
setun_status setun_convert_scales_fit(const setun_weight *w, const setun_ternary_info *info, bool *out_f16, bool *out_bf16);

/* What a Hugging Face folder's config.json must say about the output. */
typedef struct setun_convert_folder {
    const setun_model *model;
    bool packed;              /* linears are uint8 codes with a scale that multiplies */
    const char *dtype;        /* "float32", "bfloat16", "float16" */
    json_t *not_converted;    /* modules that stay dense among packed ones */
    setun_string *missing;    /* JSON strings, separated by commas: files the folder lacks */
} setun_convert_folder;
setun_status setun_convert_folder_files(const setun_convert_folder *f, const char *folder, bool overwrite);

#endif
