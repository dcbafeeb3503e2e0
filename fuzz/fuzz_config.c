/*
 * fuzz_config.c - any text as config.json: refused with a reason, or hyper-parameters that the rest of the library can rely on.
 */
#include "model/family.h"
#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const setun_hparams *h) {
    setun_hparams again = *h;
    if (setun_hparams_check(&again, "again") != SETUN_OK || again.kv_heads != h->kv_heads || again.head_size != h->head_size) __builtin_trap();
    if (!memchr(h->architecture, 0, sizeof h->architecture) || !h->architecture[0] || h->heads % h->kv_heads || h->head_size % 2) __builtin_trap();
    if ((int)h->family < SETUN_FAMILY_LLAMA || h->family > SETUN_FAMILY_MINICPM) __builtin_trap();
    const float *f = h->rope_factors;
    for (int i = 0; f && i < h->rotary / 2; i++)
        if (!(f[i] > 0) || !isfinite(f[i])) __builtin_trap();
    if (!isfinite(h->rope_scale) || !isfinite(h->rope_magnitude) || h->rope_scale < 0) __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *config;
    int64_t live = setun_alloc_live();
    if (setun_json_parse((const char *)data, size, "config.json", &config) != SETUN_OK) return 0;
    setun_hparams h;
    memset(&h, 0, sizeof h);
    setun_status status = setun_hparams_from_config(config, "config.json", &h);
    if (status == SETUN_OK) check(&h);
    else if (!*setun_error() || status == SETUN_ERROR_MEMORY) __builtin_trap();
    setun_hparams_free(&h);
    setun_quantization q;
    memset(&q, 0, sizeof q);
    if (setun_quantization_from_config(config, "config.json", &q) == SETUN_OK)
        (void)setun_quantization_skips(&q, "model.layers.0.mlp.up_proj.weight");
    else if (!*setun_error()) __builtin_trap();
    json_decref(config);
    if (setun_alloc_live() != live) __builtin_trap();
    return 0;
}
