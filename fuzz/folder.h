/*
 * folder.h - a Hugging Face folder as one fuzz input: "FOLDER\n", then for each file one byte (its place in folder_names), its
 * length as u32 and its bytes. Used by fuzz_model.c, which unpacks it, and mutate_model.c. tools/make_fuzz_corpus.py packs it.
 */
#ifndef SETUN_FUZZ_FOLDER_H
#define SETUN_FUZZ_FOLDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FOLDER_MAGIC "FOLDER\n"
#define FOLDER_FILES 6

static const char *const folder_names[FOLDER_FILES] = {"config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"};

typedef struct folder_part { const uint8_t *data; size_t size; } folder_part; /* data NULL: the file is not there */

/* The last of two files with one name counts; a file that is cut ends the folder. False: not a folder. */
static inline bool folder_unpack(const uint8_t *data, size_t size, folder_part *parts) {
    size_t at = sizeof FOLDER_MAGIC - 1;
    memset(parts, 0, FOLDER_FILES * sizeof *parts);
    if (size < at || memcmp(data, FOLDER_MAGIC, at)) return false;
    while (size - at >= 5) {
        uint32_t length;
        unsigned which = data[at] % FOLDER_FILES;
        memcpy(&length, data + at + 1, 4);
        at += 5;
        if (length > size - at) length = (uint32_t)(size - at);
        parts[which] = (folder_part){data + at, length};
        at += length;
    }
    return true;
}

#endif
