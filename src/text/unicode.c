/*
 * unicode.c - UTF-8 checking and repair, normal forms C, D, KC, KD, lower case, character classes.
 * Caller: the other files of this room; setun_utf8_complete is public. Refuses to know what a token is.
 * Normal forms follow Unicode Standard Annex 15: decompose fully, order marks by combining class, compose.
 */
#include "text/unicode.h"
#include "text/unicode_tables.inc"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* ---- UTF-8 ------------------------------------------------------------------------------------------------------- */

size_t setun_utf8_put(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* The second byte of a sequence has a narrower range after E0, ED, F0, F4: no overlong forms, no surrogates, no code
 * point above 10FFFF (Unicode Standard, table 3-7). Returns the sequence's size, 0 for a byte that starts none. */
static size_t sequence_shape(uint8_t first, uint8_t *low, uint8_t *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (first < 0x80)
        return 1;
    if (first < 0xc2)
        return 0;
    if (first < 0xe0)
        return 2;
    if (first < 0xf0) {
        if (first == 0xe0)
            *low = 0xa0;
        if (first == 0xed)
            *high = 0x9f;
        return 3;
    }
    if (first < 0xf5) {
        if (first == 0xf0)
            *low = 0x90;
        if (first == 0xf4)
            *high = 0x8f;
        return 4;
    }
    return 0;
}

size_t setun_utf8_check(const char *text, size_t length, size_t *bad)
{
    const uint8_t *p = (const uint8_t *)text;
    uint8_t low, high;
    size_t size = sequence_shape(p[0], &low, &high);
    *bad = 1;
    if (size == 0)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if (i >= length || p[i] < low || p[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80;
        high = 0xbf;
    }
    return size;
}

bool setun_utf8_valid(const char *text, size_t length)
{
    for (size_t i = 0; i < length;) {
        if ((uint8_t)text[i] < 0x80) {
            i++;
            continue;
        }
        size_t bad, size = setun_utf8_check(text + i, length - i, &bad);
        if (size == 0)
            return false;
        i += size;
    }
    return true;
}

void setun_utf8_repair(const char *text, size_t length, setun_string *out)
{
    size_t good = 0; /* text[good..i) is well-formed and not appended yet */
    for (size_t i = 0; i < length;) {
        size_t bad, size = setun_utf8_check(text + i, length - i, &bad);
        if (size == 0) {
            setun_string_append(out, text + good, i - good);
            setun_string_append(out, "\xef\xbf\xbd", 3);
            i += bad;
            good = i;
        } else {
            i += size;
        }
    }
    setun_string_append(out, text + good, length - good);
}

size_t setun_utf8_complete(const char *text, size_t length)
{
    if (!text)
        return 0;
    /* Only the last three bytes can be the beginning of something longer; what is plainly broken is not held back. */
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        uint8_t byte = (uint8_t)text[length - back], low, high;
        if ((byte & 0xc0) == 0x80)
            continue;
        size_t size = sequence_shape(byte, &low, &high);
        if (size <= back)
            return length;
        if (back > 1) {
            uint8_t second = (uint8_t)text[length - back + 1];
            if (second < low || second > high)
                return length;
        }
        return length - back;
    }
    return length;
}

/* ---- classes ----------------------------------------------------------------------------------------------------- */

static bool in_ranges(const uint32_t *table, size_t count, uint32_t c)
{
    size_t low = 0, high = count / 2;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > table[2 * middle + 1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < count / 2 && c >= table[2 * low];
}

bool setun_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool setun_is_word(uint32_t c)
{
    return in_ranges(word_table, COUNT(word_table), c);
}

bool setun_is_mark(uint32_t c)
{
    return in_ranges(mark_table, COUNT(mark_table), c);
}

static uint32_t lower_case(uint32_t c)
{
    size_t count = COUNT(lower_table) / 4, low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if ((int32_t)c > lower_table[4 * middle + 1])
            low = middle + 1;
        else
            high = middle;
    }
    /* Runs of alternate letters may interleave by one (Latin Extended), so the next run may begin inside this one. */
    for (size_t i = low; i < count && i < low + 2; i++) {
        const int32_t *run = lower_table + 4 * i;
        if ((int32_t)c >= run[0] && (int32_t)c <= run[1] && ((int32_t)c - run[0]) % run[2] == 0)
            return c + (uint32_t)run[3];
    }
    return c;
}

void setun_lowercase_append(const char *text, size_t length, setun_string *out)
{
    for (size_t i = 0, size; i < length; i += size) {
        uint32_t c = utf8_decode(text + i, &size);
        if (c == 0x130) { /* the only character whose lower case is two: i with a dot above */
            setun_string_append(out, "i\xcc\x87", 3);
            continue;
        }
        char bytes[4];
        setun_string_append(out, bytes, setun_utf8_put(c < 0x80 ? (c >= 'A' && c <= 'Z' ? c + 32 : c) : lower_case(c), bytes));
    }
}

/* ---- normal forms ------------------------------------------------------------------------------------------------ */

enum { HANGUL_S = 0xac00, HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11a7, HANGUL_LS = 19, HANGUL_VS = 21, HANGUL_TS = 28 };

static uint8_t combining_class(uint32_t c)
{
    if (c < 0x300)
        return 0;
    size_t count = COUNT(combining_table) / 3, low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > combining_table[3 * middle + 1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && c >= combining_table[3 * low] ? (uint8_t)combining_table[3 * low + 2] : 0;
}

static bool find_decomposition(const uint32_t *table, size_t count, uint32_t c, const uint32_t **out, size_t *out_count)
{
    size_t low = 0, high = count / 2;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table[2 * middle] < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low >= count / 2 || table[2 * low] != c)
        return false;
    *out = decomposition_pool + (table[2 * low + 1] >> 5);
    *out_count = table[2 * low + 1] & 31;
    return true;
}

/* The composite of a starter and what follows; 0 if there is none. */
static uint32_t compose(uint32_t first, uint32_t second)
{
    if (first >= HANGUL_L && first < HANGUL_L + HANGUL_LS && second >= HANGUL_V && second < HANGUL_V + HANGUL_VS)
        return HANGUL_S + ((first - HANGUL_L) * HANGUL_VS + (second - HANGUL_V)) * HANGUL_TS;
    if (first >= HANGUL_S && first < HANGUL_S + HANGUL_LS * HANGUL_VS * HANGUL_TS && (first - HANGUL_S) % HANGUL_TS == 0 &&
        second > HANGUL_T && second < HANGUL_T + HANGUL_TS)
        return first + (second - HANGUL_T);
    size_t low = 0, high = COUNT(composition_table) / 3;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t *row = composition_table + 3 * middle;
        if (row[0] < first || (row[0] == first && row[1] < second))
            low = middle + 1;
        else
            high = middle;
    }
    if (low < COUNT(composition_table) / 3 && composition_table[3 * low] == first && composition_table[3 * low + 1] == second)
        return composition_table[3 * low + 2];
    return 0;
}

/* One character of decomposed text: its code point and combining class. */
typedef struct decomposed { uint32_t code_point; uint32_t order; } decomposed;
typedef struct decomposed_list { decomposed *items; size_t count, capacity; } decomposed_list;

static setun_status push(decomposed_list *list, uint32_t c)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        decomposed *grown = setun_realloc(list->items, capacity * sizeof *grown);
        if (!grown)
            return setun_fail_memory(capacity * sizeof *grown);
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->count++] = (decomposed){c, combining_class(c)};
    return SETUN_OK;
}

static setun_status push_decomposed(decomposed_list *list, uint32_t c, bool compatibility)
{
    if (c >= HANGUL_S && c < HANGUL_S + HANGUL_LS * HANGUL_VS * HANGUL_TS) {
        uint32_t s = c - HANGUL_S;
        SETUN_TRY(push(list, HANGUL_L + s / (HANGUL_VS * HANGUL_TS)));
        SETUN_TRY(push(list, HANGUL_V + s % (HANGUL_VS * HANGUL_TS) / HANGUL_TS));
        return s % HANGUL_TS ? push(list, HANGUL_T + s % HANGUL_TS) : SETUN_OK;
    }
    const uint32_t *parts = NULL;
    size_t count = 0;
    if (c < 0xa0 || !((compatibility && find_decomposition(compatible_table, COUNT(compatible_table), c, &parts, &count)) ||
                      find_decomposition(canonical_table, COUNT(canonical_table), c, &parts, &count)))
        return push(list, c);
    for (size_t i = 0; i < count; i++)
        SETUN_TRY(push(list, parts[i]));
    return SETUN_OK;
}

/* Stable order of each run of marks by combining class. Insertion sort would be quadratic in a run that someone made
 * long on purpose, so long runs are merged. */
static setun_status order_marks(decomposed *items, size_t count)
{
    if (count < 32) {
        for (size_t i = 1; i < count; i++) {
            decomposed one = items[i];
            size_t j = i;
            for (; j > 0 && items[j - 1].order > one.order; j--)
                items[j] = items[j - 1];
            items[j] = one;
        }
        return SETUN_OK;
    }
    /* A counting sort is stable and linear: there are 256 classes. */
    size_t starts[257] = {0};
    decomposed *sorted = setun_alloc(count * sizeof *sorted);
    if (!sorted)
        return setun_fail_memory(count * sizeof *sorted);
    for (size_t i = 0; i < count; i++)
        starts[items[i].order + 1]++;
    for (size_t i = 1; i < 257; i++)
        starts[i] += starts[i - 1];
    for (size_t i = 0; i < count; i++)
        sorted[starts[items[i].order]++] = items[i];
    memcpy(items, sorted, count * sizeof *sorted);
    setun_free(sorted);
    return SETUN_OK;
}

/* Composes in place: a mark joins the last starter unless a mark of the same or a higher class stands between. */
static size_t compose_all(decomposed *items, size_t count)
{
    size_t out = 0, starter = 0;
    bool have_starter = false;
    for (size_t i = 0; i < count; i++) {
        decomposed one = items[i];
        if (have_starter) {
            bool adjacent = out == starter + 1;
            bool blocked = !adjacent && items[out - 1].order >= one.order;
            uint32_t composite = blocked ? 0 : compose(items[starter].code_point, one.code_point);
            if (composite) {
                items[starter].code_point = composite;
                continue;
            }
        }
        if (one.order == 0) {
            starter = out;
            have_starter = true;
        }
        items[out++] = one;
    }
    return out;
}

setun_status setun_normal_form_append(setun_normal_form form, const char *text, size_t length, setun_string *out)
{
    bool compatibility = form == SETUN_NFKC || form == SETUN_NFKD;
    bool composed = form == SETUN_NFC || form == SETUN_NFKC;
    /* No character below U+0300 changes under NFC (below U+00A0: under any form), which is most text. */
    uint8_t limit = form == SETUN_NFC ? 0xcc : 0xc2;
    decomposed_list list = {0};
    setun_status status = SETUN_OK;
    size_t done = 0; /* text before this is in out */
    for (size_t i = 0; i < length && status == SETUN_OK;) {
        if ((uint8_t)text[i] < limit) {
            i += utf8_size(text[i]);
            continue;
        }
        /* The stretch to work on starts at the character before (a starter) and ends before the next plain one. */
        size_t begin = i, end = i;
        if (begin > done) {
            begin--;
            while (begin > done && ((uint8_t)text[begin] & 0xc0) == 0x80)
                begin--;
        }
        while (end < length && (uint8_t)text[end] >= limit)
            end += utf8_size(text[end]);
        setun_string_append(out, text + done, begin - done);
        list.count = 0;
        for (size_t j = begin, size; j < end && status == SETUN_OK; j += size)
            status = push_decomposed(&list, utf8_decode(text + j, &size), compatibility);
        for (size_t j = 0; j < list.count && status == SETUN_OK;) {
            size_t first = j;
            while (j < list.count && list.items[j].order != 0)
                j++;
            if (j - first > 1)
                status = order_marks(list.items + first, j - first);
            if (j < list.count)
                j++;
        }
        if (status != SETUN_OK)
            break;
        size_t count = composed ? compose_all(list.items, list.count) : list.count;
        for (size_t j = 0; j < count; j++) {
            char bytes[4];
            setun_string_append(out, bytes, setun_utf8_put(list.items[j].code_point, bytes));
        }
        done = i = end;
    }
    if (status == SETUN_OK)
        setun_string_append(out, text + done, length - done);
    setun_free(list.items);
    return status;
}
