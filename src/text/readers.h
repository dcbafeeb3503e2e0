/*
 * readers.h - what the readers and the writer of tokenizers share. Caller: from_gguf.c, from_json.c, to_gguf.c, open.c.
 */
#ifndef SETUN_TEXT_READERS_H
#define SETUN_TEXT_READERS_H

#include "text/tokenizer.h"

setun_status tokenizer_from_gguf(setun_file *file, setun_tokenizer *t);
setun_status tokenizer_from_json(const json_t *root, setun_tokenizer *t);
/* bos, eos, added beginnings and ends, from tokenizer_config.json; end tokens from generation_config.json. NULL is fine. */
setun_status tokenizer_apply_config(const json_t *config, setun_tokenizer *t);
setun_status tokenizer_apply_generation(const json_t *generation, setun_tokenizer *t);
setun_status tokenizer_set_chat(setun_tokenizer *t, const char *text, size_t length);
setun_status unigram_prepare(setun_tokenizer *t); /* the trie and the score of an unknown */

#endif
