/*
 * shortlist.h - the small copy of a vocabulary projection and what may be said of it. Made by prepare_head.c, used by steps_head.c; the
 * kernels (…_shortlist.c) share its constants. docs/architecture.md, "The head", has the proof.
 *
 * A row w of the projection is copied as w' = unit * scale[block] * (code - middle) / 4 with codes of 6 bits, middle 31.5, and blocks of 32
 * columns. The high 4 bits alone say unit * scale * (high - 7.5), the middle of the four values that the last 2 bits part; 5 bits, the middle of two.
 * They lie in four planes, of 2, 2, 1 and 1 bits. For each row and precision from 4 bits on
 * the norm of w - w' is known (rounded up), so |x.w - x.w'| <= |x| |w - w'| bounds the true logit from both sides. 2 bits prove nothing; they say which rows
 * are worth a look where no proof is asked for.
 */
#ifndef SETUN_SHORTLIST_H
#define SETUN_SHORTLIST_H

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include <math.h>

struct cpu_run;

enum {
    CPU_HEAD_TOP_MAX = 256,     /* more rows are wanted: the full product */
    CPU_HEAD_ROWS_LEAST = 4096, /* smaller vocabularies aren't worth a copy */
    CPU_HEAD_COLUMNS_MOST = 65536, /* the bounds' constants hold up to here */
    CPU_HEAD_EXTRA_MAX = 1024,  /* rows a request may name */
    CPU_HEAD_TWO_COLUMNS = 1024, /* from here on 2 bits alone leave few rows over: scores' errors fall with the root of the columns, good logits don't */
    CPU_HEAD_TWO_TOKENS = 4,    /* and with up to so many output rows at once: more of them want most of the rows together */
    CPU_HEAD_TWO_MORE = 6,      /* rows beyond those wanted that are computed for the threshold then: the best by 2 bits may be none of the best */
    CPU_HEAD_TOKENS = 16,       /* output rows that share one pass over the planes */
    CPU_HEAD_CHUNK = 256,       /* rows of the projection that a worker takes at once */
    CPU_HEAD_READ_ROWS = 16,    /* of them, whose exact form it reads at once */
    CPU_HEAD_PARTS = 4,         /* a large copy is made in so many parts, one with each pick */
    CPU_HEAD_RESIDENT_BYTES = 64 << 20 /* a projection up to here may become resident row by row, and is copied at once; the rows of larger ones are copied from the file */
};

typedef struct cpu_shortlist {
    int64_t rows, columns, padded; /* padded: columns up to a multiple of 256 */
    size_t scale_stride;        /* blocks of a row */
    uint8_t *first, *second;    /* [rows, padded / 4] each, one behind the other, see kernels.def */
    uint8_t *low;               /* fifth bits [rows, bit_bytes], then the sixth; NULL: 4 bits only */
    size_t bit_bytes;           /* 4 * scale_stride */
    uint8_t *scales;            /* [rows, scale_stride] */
    float *unit;                /* [rows] */
    float *error4, *error5, *error6; /* [rows] at least |w - w'|; infinite: this row is always computed */
    float *norm;                /* [rows] at least |w| and |w'| */
    float *unit2, *error2;      /* [rows] of 2 bits: such that a score is right on average; |w - w'|, not rounded up */
    uint64_t high_bytes, low_bytes, scale_bytes; /* scale_bytes: the seven arrays too, which lie behind the scales */
    const setun_file *file;     /* the exact rows lie in its map; NULL: elsewhere */
    bool in_file;               /* the planes too: nothing of this is owned */
    atomic_bool whole;          /* somebody computed every row: they are resident */
    /* What is there so far, from row 0 on: of the scales, the numbers and the first two planes; of the last two, never more. One run at a time makes the next part (it
     * holds `making`) and says so at its end; others use what was there when they began. */
    atomic_int_fast64_t high_rows, low_rows;
    atomic_bool making;
    bool asked;                 /* by `making`'s holder: somebody picked before. The first pick makes nothing: it may be the only one */
} cpu_shortlist;

/* Squared norms of rows outside these are left to the exact product: nothing then over- or underflows in the scores. */
#define SETUN_SHORTLIST_LEAST 0x1p-60f
#define SETUN_SHORTLIST_MOST 0x1p+80f
/* unit = largest |w| * UNIT, scale = ceil(block's largest |w| * CEILING / unit), which is 255 at most. A block's |w| is then below 8 * unit * scale
 * by a thousandth, so that a code rounded to nearest lies in 0..63 without a clamp. */
#define SETUN_SHORTLIST_UNIT 4.911535e-4f    /* (1 + 2^-9) / 2040 */
#define SETUN_SHORTLIST_CEILING 0x1.004p-3f  /* (1 + 2^-10) / 8 */

/*
 * numbers: unit, errors of 4, 5 and 6 bits, norm. weight: sum over blocks of columns * scale^2.
 * norm: |w_i| <= 8 unit scale and |w'_i| <= 7.875 unit scale. errors: the kernels' float sums of squared differences are off by less
 * than 2^-12 of themselves (at most 4096 + 4 additions a lane), and each difference by four roundings of |w'_i|.
 * w2, the row by 2 bits, is too short or too long by what rounding did along w: times |w|^2 / w.w2 it is not, and what is left of the error is across w, so
 * that a row's own direction in x is no error. squares: |w|^2; dot: w.w2, squares2: |w2|^2, w2 of steps of 4 * unit * scale.
 */
static inline void setun_shortlist_bounds(float unit, uint32_t weight, float squares4, float squares5, float squares6, float squares, float dot, float squares2, float *numbers)
{
    const float factor = squares / dot, left = factor * factor * squares2 - squares;
    float norm = 8.0f * unit * sqrtf((float)weight) * (1.0f + 0x1p-18f);
    numbers[0] = unit;
    numbers[1] = sqrtf(squares4) * (1.0f + 0x1p-10f) + norm * 0x1p-19f;
    numbers[2] = sqrtf(squares5) * (1.0f + 0x1p-10f) + norm * 0x1p-19f;
    numbers[3] = sqrtf(squares6) * (1.0f + 0x1p-10f) + norm * 0x1p-19f;
    numbers[4] = norm;
    const bool usable = dot > 0.0f && factor * unit < 0x1p+60f;
    numbers[5] = usable ? 4.0f * factor * unit : 0.0f;
    numbers[6] = !usable ? INFINITY : left > 0.0f ? sqrtf(left) : 0.0f;
}

/* Is this step, the tape's last, a vocabulary projection that a shortlist serves? */
bool cpu_shortlist_fits(const setun_plan *plan, int index);
/* Memory for the planes, the low one too unless coarse, or for what is missing. A small weight's are made; a large one's are made by the first picks, part by
 * part, or by cpu_shortlist_finish. The weight's lock is held. model: whose file the weight lies in, or NULL. */
setun_status cpu_shortlist_build(const setun_context *context, const setun_model *model, const setun_weight *weight, bool coarse, cpu_shortlist **shortlist);
setun_status cpu_shortlist_finish(const setun_context *context, const setun_weight *weight, bool coarse, cpu_shortlist *s);
bool cpu_head_is_large(const setun_weight *weight); /* its copy is made part by part, and its rows are copied from the file */
void cpu_shortlist_free(cpu_shortlist *shortlist); /* NULL is fine */
/* Rows of the weight's own form, copied out of the file or where they lie; those as f32, zero from the last column to `padded`. False: unreadable. */
const uint8_t *cpu_head_rows(const cpu_shortlist *s, const setun_weight *weight, int64_t row, int count, size_t row_bytes, bool copy, uint8_t *buffer);
bool cpu_head_row_f32(const setun_kernels *kernels, const cpu_shortlist *s, const setun_weight *weight, const uint8_t *rows, int64_t row, int index, float *values);
/* Puts a row's copy in its place, what of it is wanted. spare: padded / 2 + 9 * scale_stride bytes. */
void cpu_shortlist_put(const setun_kernels *kernels, cpu_shortlist *s, int64_t row, const float *values, bool high, bool low, uint8_t *spare);
/* Around a run that may pick: which rows the copy has, and which this run adds to it. */
void cpu_head_begin(struct cpu_run *run);
void cpu_head_end(struct cpu_run *run);
void cpu_force_head_parts(int parts); /* tests: every projection is a large one, and copied in so many parts; 0: as usual */
static inline uint64_t cpu_shortlist_bytes(const cpu_shortlist *s) { return s->high_bytes + s->low_bytes + s->scale_bytes; }
/* Scratch of one worker; used by prepare. */
uint64_t cpu_head_scratch(const setun_plan *plan, const setun_step *step);

#endif
