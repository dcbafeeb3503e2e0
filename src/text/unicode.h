/*
 * unicode.h - UTF-8 and the few Unicode facts tokenizers need: normal forms, lower case, white space, word characters.
 * Caller: the other files of this room. Tables come from tools/make_unicode_tables.py. Knows nothing of tokens.
 */
#ifndef SETUN_TEXT_UNICODE_H
#define SETUN_TEXT_UNICODE_H

#include "base/base.h"

/* Code point at text[0..length), length >= 1, of well-formed UTF-8; *size receives its bytes. */
static inline uint32_t utf8_decode(const char *text, size_t *size)
{
    const uint8_t *p = (const uint8_t *)text;
    if (p[0] < 0x80) { *size = 1; return p[0]; }
    if (p[0] < 0xe0) { *size = 2; return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f); }
    if (p[0] < 0xf0) { *size = 3; return (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f); }
    *size = 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

/* Bytes of the well-formed character that begins with this byte. */
static inline size_t utf8_size(char first)
{
    uint8_t byte = (uint8_t)first;
    return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

size_t setun_utf8_put(uint32_t code_point, char out[4]);
/* Length of the well-formed sequence at text; 0 if it is not one, and *bad then says how many bytes one U+FFFD stands
 * for (the longest prefix of a well-formed sequence, at least 1: the rule of the Unicode standard, D93b, and of Python). */
size_t setun_utf8_check(const char *text, size_t length, size_t *bad);
bool setun_utf8_valid(const char *text, size_t length);
/* Appends text with every ill-formed part replaced by U+FFFD. */
void setun_utf8_repair(const char *text, size_t length, setun_string *out);

typedef enum setun_normal_form { SETUN_NFC, SETUN_NFD, SETUN_NFKC, SETUN_NFKD } setun_normal_form;
/* Appends the normal form of well-formed text. MEMORY is the only error. */
setun_status setun_normal_form_append(setun_normal_form form, const char *text, size_t length, setun_string *out);
/* Appends each character's own lower case (no context: a final sigma becomes the ordinary one). */
void setun_lowercase_append(const char *text, size_t length, setun_string *out);
bool setun_is_space(uint32_t code_point);     /* property White_Space */
bool setun_is_word(uint32_t code_point);      /* Alphabetic, Mark, decimal digit, connector, join control */
bool setun_is_mark(uint32_t code_point);      /* general category M */

#endif
