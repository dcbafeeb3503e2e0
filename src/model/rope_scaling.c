/*
 * rope_scaling.c - stretched positions (linear, llama3, YaRN, LongRoPE) as one factor a frequency and one magnitude.
 * Callers: families_gguf.c, families_config.c. Knows no file: it gets numbers.
 *
 * Rope turns pair i by position * theta^(-2i/rotary) / factor[i]; all of these schemes only choose factor[] and a
 * multiplier of cos and sin, so the graph needs no word for them.
 */
#include "model/family.h"
#include <math.h>

static const double pi = 3.14159265358979323846;

static setun_status make_factors(setun_hparams *h) {
    setun_free(h->rope_factors);
    h->rope_factors = setun_calloc((size_t)h->rotary / 2, sizeof *h->rope_factors);
    return h->rope_factors ? SETUN_OK : setun_fail_memory((size_t)h->rotary / 2 * sizeof *h->rope_factors);
}

static setun_status bad(const char *where, const char *what, double value) {
    return setun_fail(SETUN_ERROR_FORMAT, "%s: rope scaling has %s = %g, which makes no sense", where, what, value);
}

/* Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended. */
static setun_status llama3(setun_hparams *h, const setun_rope_scaling *s, const char *where) {
    double low = s->low_frequency, high = s->high_frequency, original = s->original_context;
    if (!(s->factor >= 1)) return bad(where, "factor", s->factor);
    if (!(low > 0)) return bad(where, "low_freq_factor", low);
    if (!(high > low)) return bad(where, "high_freq_factor", high);
    if (!(original >= 1) || original > INT32_MAX) return bad(where, "original_max_position_embeddings", original);
    SETUN_TRY(make_factors(h));
    for (int i = 0; i < h->rotary / 2; i++) {
        double frequency = pow(h->rope_theta, -2.0 * i / h->rotary), wavelength = 2 * pi / frequency;
        double factor = 1;
        if (wavelength > original / low) {
            factor = s->factor;
        } else if (wavelength >= original / high) {
            double smooth = (original / wavelength - low) / (high - low);
            factor = 1 / ((1 - smooth) / s->factor + smooth);
        }
        h->rope_factors[i] = (float)factor;
    }
    h->original_context = (int)original;
    return SETUN_OK;
}

/* YaRN (arXiv 2309.00071): dimensions that turn often keep their frequency, those that turn rarely are interpolated. */
static setun_status yarn(setun_hparams *h, const setun_rope_scaling *s, const char *where) {
    double original = s->original_context > 0 ? s->original_context : h->context;
    double fast = s->beta_fast > 0 ? s->beta_fast : 32, slow = s->beta_slow > 0 ? s->beta_slow : 1;
    if (!(s->factor >= 1)) return bad(where, "factor", s->factor);
    if (!(fast > slow)) return bad(where, "beta_fast", fast);
    double scale = h->rotary / (2 * log((double)h->rope_theta));
    double first = scale * log(original / (fast * 2 * pi)), last = scale * log(original / (slow * 2 * pi));
    if (!s->no_truncate) {
        first = floor(first);
        last = ceil(last);
    }
    first = fmax(first, 0);
    last = fmin(last, h->rotary - 1);
    if (first == last) last += 0.001;
    SETUN_TRY(make_factors(h));
    for (int i = 0; i < h->rotary / 2; i++) {
        double ramp = fmin(fmax((i - first) / (last - first), 0), 1);
        h->rope_factors[i] = (float)(1 / (ramp / s->factor + 1 - ramp));
    }
    h->rope_magnitude = (float)(s->attention_factor > 0 ? s->attention_factor : s->factor > 1 ? 0.1 * log(s->factor) + 1 : 1);
    h->original_context = original <= INT32_MAX ? (int)original : 0;
    return SETUN_OK;
}

/*
 * LongRoPE (arXiv 2402.13753) has two lists of factors: the short one up to the original context, the long one for
 * sequences beyond it. A description has one: the short, and the model's context is the original one, where it is exact.
 */
static setun_status longrope(setun_hparams *h, const setun_rope_scaling *s, const char *where) {
    double original = s->original_context > 0 ? s->original_context : h->context;
    if (!(original > 1) || original > INT32_MAX) return bad(where, "original_max_position_embeddings", original);
    if (s->count != h->rotary / 2)
        return setun_fail(SETUN_ERROR_FORMAT, "%s: rope scaling has %lld short factors for %d pairs of dimensions", where, (long long)s->count, h->rotary / 2);
    SETUN_TRY(make_factors(h));
    for (int i = 0; i < h->rotary / 2; i++) {
        if (!(s->short_factors[i] > 0) || !isfinite(s->short_factors[i])) return bad(where, "a short factor", s->short_factors[i]);
        h->rope_factors[i] = (float)s->short_factors[i];
    }
    double stretch = s->factor > 0 ? s->factor : h->context / original;
    h->rope_magnitude = (float)(s->attention_factor > 0 ? s->attention_factor : stretch > 1 ? sqrt(1 + log(stretch) / log(original)) : 1);
    h->original_context = (int)original;
    if (h->context > h->original_context) h->context = h->original_context;
    return SETUN_OK;
}

setun_status setun_rope_scaling_apply(setun_hparams *h, const setun_rope_scaling *s, const char *where) {
    const char *type = s->type;
    if (!*type || strcmp(type, "none") == 0 || strcmp(type, "default") == 0) return SETUN_OK;
    if (!isfinite(h->rope_theta) || h->rope_theta <= 1) return bad(where, "theta", h->rope_theta);
    if (h->rotary < 2 || h->context < 1) return bad(where, "rotary dimensions", h->rotary);
    if (!isfinite(s->factor) || !isfinite(s->attention_factor) || !isfinite(s->original_context)) return bad(where, "a number", NAN);
    if (h->family == SETUN_FAMILY_GEMMA3) /* only its global layers would be scaled; no ternary model does it */
        return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: rope scaling '%s' in a Gemma3 model is not supported; use a model without it", where, type);
    if (strcmp(type, "linear") == 0) {
        if (!(s->factor > 0)) return bad(where, "factor", s->factor);
        h->rope_scale = (float)(1 / s->factor);
        return SETUN_OK;
    }
    if (strcmp(type, "llama3") == 0) return llama3(h, s, where);
    if (strcmp(type, "yarn") == 0) return yarn(h, s, where);
    if (strcmp(type, "longrope") == 0) return longrope(h, s, where);
    return setun_fail(SETUN_ERROR_UNSUPPORTED, "%s: rope scaling '%s' is not one that Setun computes: linear, llama3, yarn, longrope", where, type);
}
