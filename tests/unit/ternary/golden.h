/* Reads the files that tools/make_format_goldens.py writes. */
#ifndef SETUN_TEST_FORMAT_GOLDEN_H
#define SETUN_TEST_FORMAT_GOLDEN_H
#include "ternary/ternary.h"
#include <stdlib.h>

typedef struct golden {
    uint8_t *file;
    setun_weight weight;
    const uint8_t *decoded; /* float [rows, columns], not aligned */
    const uint8_t *values;  /* float [rows, columns] or NULL */
    const uint8_t *encoded; /* weight.bytes or NULL */
} golden;

static inline bool golden_read(const char *name, setun_format format, golden *g) {
    char path[1024];
    snprintf(path, sizeof path, "%s/formats/%s.bin", SETUN_TEST_GOLDEN, name);
    memset(g, 0, sizeof *g);
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    g->file = malloc((size_t)size);
    bool ok = fread(g->file, 1, (size_t)size, f) == (size_t)size && memcmp(g->file, "SGOLD1\0\0", 8) == 0;
    fclose(f);
    if (!ok) return false;
    const uint8_t *p = g->file + 8;
    setun_weight *w = &g->weight;
    w->name = name;
    w->format = format;
    w->rows = (int32_t)setun_load_u32(p);
    w->columns = (int32_t)setun_load_u32(p + 4);
    w->group_size = (int)setun_load_u32(p + 8);
    bool source = setun_load_u32(p + 12) != 0;
    w->bytes = setun_load_u32(p + 16);
    size_t scales = setun_load_u32(p + 20), biases = setun_load_u32(p + 24), floats = (size_t)(w->rows * w->columns) * 4;
    w->tensor_scale = setun_load_f32(p + 28);
    w->data = p + 32;
    w->scales = scales ? w->data + w->bytes : NULL;
    w->biases = biases ? w->data + w->bytes + scales : NULL;
    w->scales_format = SETUN_FORMAT_F16;
    g->decoded = w->data + w->bytes + scales + biases;
    g->values = source ? g->decoded + floats : NULL;
    g->encoded = source ? g->values + floats : NULL;
    return true;
}

static const struct { const char *file; setun_format format; } golden_formats[] = {
    {"f32", SETUN_FORMAT_F32}, {"f16", SETUN_FORMAT_F16}, {"bf16", SETUN_FORMAT_BF16}, {"q8_0", SETUN_FORMAT_Q8_0}, {"q4_0", SETUN_FORMAT_Q4_0},
    {"q4_1", SETUN_FORMAT_Q4_1}, {"q4_k", SETUN_FORMAT_Q4_K}, {"q6_k", SETUN_FORMAT_Q6_K}, {"tq1_0", SETUN_FORMAT_TQ1_0}, {"tq2_0", SETUN_FORMAT_TQ2_0},
    {"i2_s", SETUN_FORMAT_I2_S}, {"i2_s-64x16", SETUN_FORMAT_I2_S_64}, {"i2_s-row4", SETUN_FORMAT_I2_S_ROW4}, {"iq1_bn", SETUN_FORMAT_IQ1_BN},
    {"iq2_bn", SETUN_FORMAT_IQ2_BN}, {"q2_0", SETUN_FORMAT_Q2_0}, {"pq2_0", SETUN_FORMAT_PQ2_0}, {"ptq1_0", SETUN_FORMAT_PTQ1_0},
    {"hf", SETUN_FORMAT_HF_2BIT}, {"mlx-2bit", SETUN_FORMAT_MLX_2BIT}, {"mlx-2bit-dense", SETUN_FORMAT_MLX_2BIT}};
#define GOLDEN_FORMATS (sizeof golden_formats / sizeof *golden_formats)

#endif
