/*
 * text.h - floor 1: tokenizers (byte-level BPE, SentencePiece BPE and unigram) and chat templates.
 * Reads its vocabulary through the file room. Caller: model, the API. Knows nothing of weights.
 */
#ifndef SETUN_TEXT_H
#define SETUN_TEXT_H

#include "file/file.h"

/* The public setun_tokenizer functions live in this room (encode, decode, piece, ...; chat). Internal constructors: */
/* From a GGUF's tokenizer.ggml.* or a folder's tokenizer.json + tokenizer_config.json (+ chat_template.jinja). The tokenizer keeps
 * no pointer into file unless it says so. *out = NULL and SETUN_OK where the file carries no tokenizer. */
setun_status setun_tokenizer_from_file(setun_file *file, setun_tokenizer **out);
setun_status setun_tokenizer_from_json(const json_t *tokenizer_json, const json_t *tokenizer_config, const char *chat_template, size_t chat_template_length, const char *name, setun_tokenizer **out);
/* The same with every part that a folder may have; NULL where one is missing. All borrowed, nothing is kept. */
typedef struct setun_tokenizer_parts {
    const json_t *tokenizer;   /* tokenizer.json, needed */
    const json_t *config;      /* tokenizer_config.json */
    const json_t *generation;  /* generation_config.json: its eos_token_id list ends an answer */
    const char *chat_template; /* chat_template.jinja; else the config's chat_template counts */
    size_t chat_template_length;
    const char *name;          /* for messages */
} setun_tokenizer_parts;
setun_status setun_tokenizer_from_parts(const setun_tokenizer_parts *parts, setun_tokenizer **out);
void setun_tokenizer_destroy(setun_tokenizer *tokenizer);
/* convert: writes this tokenizer as tokenizer.ggml.* and tokenizer.chat_template into a GGUF. An error where GGUF has no word for it. */
setun_status setun_tokenizer_to_gguf(const setun_tokenizer *tokenizer, setun_gguf_writer *writer);
/* convert: the same as a folder's tokenizer.json and tokenizer_config.json (with the chat template), 0-terminated, setun_free. UNSUPPORTED for
 * vocabularies ranked by scores (SentencePiece, unigram) and the few steps that it cannot spell. */
setun_status setun_tokenizer_to_json(const setun_tokenizer *tokenizer, char **out_tokenizer_json, char **out_tokenizer_config_json);

#endif
