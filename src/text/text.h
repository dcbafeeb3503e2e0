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
void setun_tokenizer_destroy(setun_tokenizer *tokenizer);
/* convert: writes this tokenizer as tokenizer.ggml.* and tokenizer.chat_template into a GGUF. An error where GGUF has no word for it. */
setun_status setun_tokenizer_to_gguf(const setun_tokenizer *tokenizer, setun_gguf_writer *writer);

#endif
