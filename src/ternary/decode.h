/*
 * decode.h - inside the ternary room: reading a few weights of a row, whatever the format. Everything public is built
 * from these. Pure functions over a setun_weight whose size has been checked (setun_weight_check).
 */
#ifndef SETUN_TERNARY_DECODE_H
#define SETUN_TERNARY_DECODE_H

#include "ternary/ternary.h"

/* Columns are read in chunks that start at a multiple of this: the longest block of any format. */
#define SETUN_DECODE_CHUNK 256

/* Shape, size of data and side tensors agree with the format; the message names the weight. */
setun_status setun_weight_check(const setun_weight *w);
static inline const char *setun_weight_label(const setun_weight *w) { return w->name ? w->name : "(unnamed)"; }

/* ---- ternary formats (decode_ternary.c) ---- */
/* Weights that share one stored scale: 32..256, or 0: a whole row or tensor does. */
int setun_decode_group(const setun_weight *w);
/* Codes as stored (3 may occur) of columns first .. first+count-1 of a row; first is a multiple of SETUN_DECODE_CHUNK. */
void setun_decode_codes(const setun_weight *w, int64_t row, int64_t first, int64_t count, uint8_t *codes);
/* The stored scale of a group (of setun_decode_group weights; group 0 of a row or tensor scale). Any float. */
float setun_decode_scale(const setun_weight *w, int64_t row, int64_t group);
/* MLX_2BIT: the stored bias of a group. */
float setun_decode_bias(const setun_weight *w, int64_t row, int64_t group);

/* ---- dense formats (decode_dense.c) ---- */
/* Values of columns first .. first+count-1 of a row; first is a multiple of SETUN_DECODE_CHUNK. */
void setun_decode_dense(const setun_weight *w, int64_t row, int64_t first, int64_t count, float *out);

/* ---- values of either kind (decode.c): count <= SETUN_DECODE_CHUNK ---- */
void setun_decode_values(const setun_weight *w, int64_t row, int64_t first, int64_t count, float *out);

/*
 * Turns stored codes of one scale's columns (all of one group; or a chunk of a row) into value + 1 with a scale >= 0: mirrors
 * codes of a negative scale, clears them under a zero scale. *out_scale is 0 where all are zero. Code 3 and odd scales are
 * errors. *out_ternary is false where an MLX group holds other values; its codes then stay as stored.
 */
setun_status setun_decode_settle(const setun_weight *w, int64_t row, int64_t column, int count, uint8_t *codes, float *out_scale, bool *out_ternary);
setun_status setun_decode_check_scale(const setun_weight *w, int64_t row, int64_t column, float scale);
setun_status setun_decode_code3(const setun_weight *w, int64_t row, int64_t column); /* the error */
/* The mean |W| of a tensor that comes in pieces (quantise.c): the same to the bit however it is cut. Start from {0}. */
typedef struct setun_absmean_sum { double lane[8]; int64_t count; } setun_absmean_sum;
void setun_absmean_add(setun_absmean_sum *sum, const float *values, int64_t count);
float setun_absmean_scale(const setun_absmean_sum *sum); /* max(mean, 1e-5) */
/* code = clamp(rint(v/scale), -1, 1) + 1 (quantise.c). */
void setun_absmean_codes(const float *values, int64_t count, float scale, uint8_t *codes);

/* Digit n of a byte of five (or four) trits, most significant first; power = 3^n. Always 0, 1 or 2. */
static inline uint8_t setun_trit(uint8_t byte, uint8_t power) { return (uint8_t)(((unsigned)(uint8_t)(byte * power) * 3u) >> 8); }

#endif
