/*
 * prepare_head.c - memory for the small copy of a vocabulary projection (shortlist.h), or the copy that a packed file holds. Caller: prepare.c, which
 * holds the weight's lock. Rows are copied by head_parts.c; what the copy is used for is steps_head.c's business.
 */
#include "backend/cpu/cpu.h"
#include "backend/cpu/shortlist.h"

/* Big enough to be worth it, small enough for the bounds. */
static bool weight_fits(const setun_weight *w)
{
    return !setun_weight_is_ternary(w) && w->rows >= CPU_HEAD_ROWS_LEAST && w->rows <= INT32_MAX && w->columns >= 1 && w->columns <= CPU_HEAD_COLUMNS_MOST;
}

bool cpu_shortlist_fits(const setun_plan *plan, int index)
{
    const setun_step *step = &plan->steps[index];
    if (plan->head.mode == SETUN_HEAD_FULL || index != plan->step_count - 1 || step->kind != SETUN_STEP_LINEAR) return false;
    if (step->weight_count != 1 || step->gated || step->bias[0] || step->residual >= 0) return false;
    const setun_slot *x = &plan->slots[step->input[0]], *out = &plan->slots[step->output[0]];
    const setun_weight *w = step->weight[0];
    /* The scores' order must be the logits' order, and nothing may over- or underflow on the way. */
    if (!(step->factor >= 0x1p-30f && step->factor <= 0x1p+30f)) return false;
    return x->dtype == SETUN_F32 && out->place == SETUN_PLACE_OUTPUT && out->shape.rank == 2 && out->shape.dim[0] == SETUN_DIM_OUTPUTS && weight_fits(w);
}

void cpu_shortlist_free(cpu_shortlist *s)
{
    if (!s) return;
    if (s->in_file) {
        setun_free(s);
        return;
    }
    setun_free_huge(s->first, (size_t)s->high_bytes);
    setun_free_huge(s->low, (size_t)s->low_bytes);
    setun_free_huge(s->scales, (size_t)s->scale_bytes);
    setun_free(s);
}

static setun_status add_plane(uint64_t bytes, uint8_t **plane, uint64_t *plane_bytes)
{
    *plane = setun_alloc_huge((size_t)bytes);
    if (!*plane) return setun_fail_memory((size_t)bytes);
    *plane_bytes = bytes;
    return SETUN_OK;
}

/* Sizes of the parts: rows < 2^31 and columns <= 2^16, so no product here passes 2^48. */
typedef struct part_sizes { uint64_t high, low, scales, numbers; } part_sizes;
static part_sizes sizes_of(const cpu_shortlist *s)
{
    uint64_t rows = (uint64_t)s->rows, padded = (uint64_t)s->padded;
    return (part_sizes){rows * padded / 2, 2 * rows * s->bit_bytes, cpu_align(rows * s->scale_stride), cpu_align(rows * sizeof(float))};
}

/* The arrays behind the scales. */
enum { NUMBERS = 7, NUMBERS_BEFORE = 5, NUMBERS_FIRST = 4 /* of older layouts */ };
static void set_numbers(cpu_shortlist *s, const part_sizes *size)
{
    uint8_t *at = s->scales + size->scales;
    float **const array[NUMBERS] = {&s->unit, &s->error4, &s->error5, &s->error6, &s->norm, &s->unit2, &s->error2};
    for (int i = 0; i < NUMBERS; i++, at += size->numbers) *array[i] = (float *)(void *)at;
}

static void set_planes(cpu_shortlist *s)
{
    s->second = s->first + s->rows * (s->padded / 4);
}

/* The planes that the model's own file holds. *out_found false: it has none for this weight. Planes are read, never written, where they lie. */
static setun_status find_in_file(const setun_model *model, const setun_weight *weight, cpu_shortlist *s, bool *out_found)
{
    *out_found = false;
    if (!model || setun_model_head(model) != weight) return SETUN_OK;
    static const char *const names[3] = {SETUN_SHORTLIST_HIGH, SETUN_SHORTLIST_LOW, SETUN_SHORTLIST_SCALES};
    const part_sizes size = sizes_of(s);
    const uint64_t bytes[3] = {size.high, size.low, size.scales + NUMBERS * size.numbers};
    const setun_file_tensor *t[3];
    for (int i = 0; i < 3; i++) {
        t[i] = setun_file_find_tensor(model->file, names[i]);
        if (!t[i]) return SETUN_OK;
    }
    if (t[2]->format == SETUN_FORMAT_I8 && (t[2]->bytes == size.scales + NUMBERS_BEFORE * size.numbers || t[2]->bytes == size.scales + NUMBERS_FIRST * size.numbers)) {
        setun_log(model->context, SETUN_LOG_WARNING, "%s: the copy of '%s' in it is of an older layout and is made anew in memory; convert the model again to have it in the file", setun_file_path(model->file), weight->name);
        return SETUN_OK;
    }
    for (int i = 0; i < 3; i++)
        if (t[i]->format != SETUN_FORMAT_I8 || t[i]->bytes != bytes[i])
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s' has %llu bytes; the copy of '%s' that it is part of takes %llu: convert the model again", setun_file_path(model->file), names[i],
                              (unsigned long long)t[i]->bytes, weight->name, (unsigned long long)bytes[i]);
    if ((uintptr_t)t[2]->data % sizeof(float)) return SETUN_OK; /* an odd place for floats: the planes are made anew */
    s->first = (uint8_t *)(uintptr_t)t[0]->data;
    set_planes(s);
    s->low = (uint8_t *)(uintptr_t)t[1]->data;
    s->scales = (uint8_t *)(uintptr_t)t[2]->data;
    set_numbers(s, &size);
    for (int64_t row = 0; row < s->rows; row++) /* errors may be infinite */
        if (!(s->unit[row] >= 0 && s->unit[row] < INFINITY && s->error4[row] >= 0 && s->error5[row] >= 0 && s->error6[row] >= 0 && s->norm[row] >= 0 && s->unit2[row] >= 0 &&
              s->unit2[row] < INFINITY && s->error2[row] >= 0))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%s', row %lld: a bound is negative or no number: the file is corrupt", setun_file_path(model->file), names[2], (long long)row);
    s->high_bytes = bytes[0];
    s->low_bytes = bytes[1];
    s->scale_bytes = bytes[2];
    atomic_init(&s->high_rows, s->rows);
    atomic_init(&s->low_rows, s->rows);
    s->in_file = *out_found = true;
    return SETUN_OK;
}

static setun_status create(const setun_context *context, const setun_model *model, const setun_weight *weight, bool coarse, cpu_shortlist *s)
{
    uint64_t rows = (uint64_t)weight->rows, padded = (uint64_t)(weight->columns + 255) / 256 * 256;
    s->rows = weight->rows;
    s->columns = weight->columns;
    s->padded = (int64_t)padded;
    s->scale_stride = (size_t)((padded + 511) / 512 * 16);
    s->bit_bytes = 4 * s->scale_stride;
    atomic_init(&s->whole, false);
    atomic_init(&s->high_rows, 0);
    atomic_init(&s->low_rows, 0);
    atomic_init(&s->making, false);
    if (model && weight->mapped) s->file = model->file;
    if (rows * padded > SIZE_MAX / 8) return setun_fail_memory(SIZE_MAX);
    bool found;
    SETUN_TRY(find_in_file(model, weight, s, &found));
    if (found) return SETUN_OK;
    const part_sizes size = sizes_of(s);
    SETUN_TRY(add_plane(size.high, &s->first, &s->high_bytes));
    set_planes(s);
    if (!coarse) SETUN_TRY(add_plane(size.low, &s->low, &s->low_bytes));
    SETUN_TRY(add_plane(size.scales + NUMBERS * size.numbers, &s->scales, &s->scale_bytes));
    set_numbers(s, &size);
    return cpu_head_is_large(weight) ? SETUN_OK : cpu_shortlist_finish(context, weight, coarse, s);
}

setun_status cpu_shortlist_build(const setun_context *context, const setun_model *model, const setun_weight *weight, bool coarse, cpu_shortlist **shortlist)
{
    cpu_shortlist *s = *shortlist;
    if (s && (coarse || s->low)) return SETUN_OK;
    if (s) { /* plans that run now look at the other parts only */
        SETUN_TRY(add_plane(sizes_of(s).low, &s->low, &s->low_bytes));
        setun_status status = cpu_head_is_large(weight) ? SETUN_OK : cpu_shortlist_finish(context, weight, false, s);
        if (status == SETUN_OK) return SETUN_OK;
        setun_free_huge(s->low, (size_t)s->low_bytes);
        s->low = NULL;
        s->low_bytes = 0;
        return status;
    }
    s = setun_calloc(1, sizeof *s);
    if (!s) return setun_fail_memory(sizeof *s);
    setun_status status = create(context, model, weight, coarse, s);
    if (status != SETUN_OK) {
        cpu_shortlist_free(s);
        return status;
    }
    *shortlist = s;
    return SETUN_OK;
}

setun_status setun_head_planes_make(setun_model *model, setun_head_planes *out)
{
    memset(out, 0, sizeof *out);
    const setun_weight *head = setun_model_head(model);
    if (!head || !weight_fits(head)) return SETUN_OK;
    SETUN_TRY(cpu_shortlist_build(model->context, model, head, false, &out->owner));
    SETUN_TRY(cpu_shortlist_finish(model->context, head, false, out->owner));
    const cpu_shortlist *s = out->owner;
    out->count = 3;
    out->name[0] = SETUN_SHORTLIST_HIGH;
    out->name[1] = SETUN_SHORTLIST_LOW;
    out->name[2] = SETUN_SHORTLIST_SCALES;
    const void *const data[3] = {s->first, s->low, s->scales};
    const part_sizes size = sizes_of(s);
    const int64_t rows[3] = {s->rows, s->rows, 1}, columns[3] = {s->padded / 2, (int64_t)(2 * s->bit_bytes), (int64_t)(size.scales + NUMBERS * size.numbers)};
    for (int i = 0; i < 3; i++) {
        out->data[i] = data[i];
        out->rows[i] = rows[i];
        out->columns[i] = columns[i];
    }
    return SETUN_OK;
}

void setun_head_planes_free(setun_head_planes *planes)
{
    cpu_shortlist_free(planes->owner);
    memset(planes, 0, sizeof *planes);
}
