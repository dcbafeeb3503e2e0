/*
 * file.h - floor 1: GGUF and safetensors as a directory of named tensors and metadata. Maps the file, copies nothing.
 * Refuses to know what a transformer is. Caller: model, text (tokenizer metadata), convert, inspect.
 */
#ifndef SETUN_FILE_H
#define SETUN_FILE_H

#include "ternary/ternary.h"
#include <jansson.h>

typedef enum setun_container { SETUN_GGUF, SETUN_SAFETENSORS } setun_container;

typedef struct setun_file_tensor {
    const char *name;
    setun_format format;     /* UNKNOWN: type_id says which */
    uint32_t type_id;        /* GGUF type id; 0 for safetensors */
    int rank;
    int64_t shape[SETUN_MAX_RANK]; /* outermost first (GGUF's order reversed) */
    uint64_t offset, bytes;  /* within the shard's file */
    const uint8_t *data;     /* bounds were checked */
    int shard;
    const char *type_name;   /* the type in words, also where Setun does not read it: "i2_s", "q5_k", "F8_E4M3"; never NULL */
} setun_file_tensor;

/* GGUF metadata value types, as in the file. */
typedef enum setun_value_type { SETUN_VALUE_U8, SETUN_VALUE_I8, SETUN_VALUE_U16, SETUN_VALUE_I16, SETUN_VALUE_U32, SETUN_VALUE_I32, SETUN_VALUE_F32,
    SETUN_VALUE_BOOL, SETUN_VALUE_STRING, SETUN_VALUE_ARRAY, SETUN_VALUE_U64, SETUN_VALUE_I64, SETUN_VALUE_F64 } setun_value_type;

typedef struct setun_value {
    const char *key;         /* owned by the file, 0-terminated */
    setun_value_type type;
    setun_value_type element; /* ARRAY: type of the elements (arrays of arrays are refused) */
    uint64_t count;          /* ARRAY: elements; STRING: bytes */
    const uint8_t *data;     /* into the map: the raw value, string bytes, or array elements; bounds were checked for all of it */
    const uint32_t *string_offsets; /* ARRAY of STRING: [count] offset of element i's 8-byte length, relative to data */
} setun_value;

typedef struct setun_file setun_file;

typedef struct setun_file_options { const char *i2s_layout; bool no_map; setun_progress_fn progress; void *progress_user; } setun_file_options;

/* path: .gguf, .safetensors, or a folder with config.json. Content decides, not the name's ending. Checks everything
 * once: magic, version (GGUF 2, 3), counts against the file's size, every offset, overlap, alignment, dims, duplicate names, UTF-8 keys. */
setun_status setun_file_open(const char *path, const setun_file_options *options, setun_file **out);
void setun_file_close(setun_file *file);
/* From memory (fuzzers, tests); bytes are borrowed. */
setun_status setun_file_open_memory(const void *bytes, size_t count, const char *name, setun_file **out);

setun_container setun_file_container(const setun_file *file);
const char *setun_file_path(const setun_file *file);
uint64_t setun_file_bytes(const setun_file *file);            /* all shards */
int setun_file_tensor_count(const setun_file *file);
const setun_file_tensor *setun_file_tensor_at(const setun_file *file, int index);
const setun_file_tensor *setun_file_find_tensor(const setun_file *file, const char *name); /* hashed; NULL if absent */

int setun_file_value_count(const setun_file *file);           /* GGUF only */
const setun_value *setun_file_value_at(const setun_file *file, int index);
const setun_value *setun_file_find_value(const setun_file *file, const char *key);
/* Convert any numeric type that holds the value exactly. v NULL (absent): false, no message. Wrong type, value that does not
 * fit, index past the end: false and a message that names the key, so a caller that has v != NULL returns SETUN_ERROR_FORMAT. */
bool setun_value_i64(const setun_value *v, int64_t *out);
bool setun_value_f64(const setun_value *v, double *out);
bool setun_value_bool(const setun_value *v, bool *out);
bool setun_value_string(const setun_value *v, const char **out, size_t *out_length); /* not 0-terminated */
bool setun_value_string_at(const setun_value *v, uint64_t index, const char **out, size_t *out_length); /* array of strings */
bool setun_value_i64_at(const setun_value *v, uint64_t index, int64_t *out); /* any integer or bool element type */
bool setun_value_f64_at(const setun_value *v, uint64_t index, double *out);

/* Safetensors folder: parsed JSON beside the weights; NULL if that file is not there. name: "config.json", "tokenizer.json",
 * "tokenizer_config.json", "generation_config.json". Lazy, so one thread at a time; lives as long as the file. A file that is there but broken is an error. */
setun_status setun_file_json(setun_file *file, const char *name, const json_t **out);
/* A small text file beside the weights ("chat_template.jinja"); NULL if absent. */
setun_status setun_file_text(setun_file *file, const char *name, const char **out, size_t *out_length);
/* JSON read with Setun's limits (size <= 256 MiB, depth, duplicate keys refused) and messages with line and column. */
setun_status setun_json_load(const char *path, json_t **out);
setun_status setun_json_parse(const char *text, size_t length, const char *name, json_t **out);

/* The files that hold the weights: 1, or the shards of a folder in the order of setun_file_tensor.shard. */
int setun_file_shard_count(const setun_file *file);
const char *setun_file_shard_path(const setun_file *file, int shard);
uint64_t setun_file_shard_bytes(const setun_file *file, int shard);

/* Is this range of memory inside the file's map? For `explain`. */
bool setun_file_is_mapped(const setun_file *file, const void *data);
/* Reads ahead / drops: advisory. */
void setun_file_will_need(const setun_file *file, const void *data, size_t bytes);
/* Gives the pages of this range back: they stay in the system's cache, are no longer this process's, and can be read again. */
void setun_file_drop(const setun_file *file, const void *data, size_t bytes);
/* The same for what lies before the tensors: names, hyper-parameters, the vocabulary. */
void setun_file_drop_header(const setun_file *file);
/* Copies a range of the map by reading the file, so that none of its pages becomes resident. False: it isn't mapped, or the file cannot be read. */
bool setun_file_copy(const setun_file *file, const void *data, size_t bytes, void *out);

/* ---- writing ----
 * create, add values and declare tensors in any order, begin_data, write_tensor, commit. The file appears under its name at commit.
 * commit and abort end the writer, commit also when it fails. Calls out of this order are SETUN_ERROR_STATE. Names and
 * sizes are checked against the same rules as when reading. */
typedef struct setun_gguf_writer setun_gguf_writer;
setun_status setun_gguf_writer_create(const char *path, bool overwrite, uint32_t alignment /* 0: 32 */, setun_gguf_writer **out);
setun_status setun_gguf_add_string(setun_gguf_writer *w, const char *key, const char *text, size_t length);
setun_status setun_gguf_add_u32(setun_gguf_writer *w, const char *key, uint32_t v);
setun_status setun_gguf_add_f32(setun_gguf_writer *w, const char *key, float v);
setun_status setun_gguf_add_bool(setun_gguf_writer *w, const char *key, bool v);
setun_status setun_gguf_add_strings(setun_gguf_writer *w, const char *key, const char *const *texts, const size_t *lengths, uint64_t count);
setun_status setun_gguf_add_i32s(setun_gguf_writer *w, const char *key, const int32_t *values, uint64_t count);
setun_status setun_gguf_add_f32s(setun_gguf_writer *w, const char *key, const float *values, uint64_t count);
/* As it is in the file it was read from. general.alignment is skipped: the writer has its own. */
setun_status setun_gguf_copy_value(setun_gguf_writer *w, const setun_value *v);
/* Declares a tensor; order of declaration is the order of data. */
setun_status setun_gguf_add_tensor(setun_gguf_writer *w, const char *name, setun_format format, int rank, const int64_t *shape, uint64_t bytes);
setun_status setun_gguf_begin_data(setun_gguf_writer *w);  /* writes the header */
setun_status setun_gguf_write_tensor(setun_gguf_writer *w, const void *data, uint64_t bytes); /* may come in pieces; pads at the tensor's end */
setun_status setun_gguf_commit(setun_gguf_writer *w);      /* all declared data must have come */
void setun_gguf_abort(setun_gguf_writer *w);

typedef struct setun_safetensors_writer setun_safetensors_writer;
setun_status setun_safetensors_writer_create(const char *path, bool overwrite, setun_safetensors_writer **out);
/* A pair of strings for __metadata__, where "format": "pt" (which transformers wants) is always written. */
setun_status setun_safetensors_add_metadata(setun_safetensors_writer *w, const char *key, const char *text);
setun_status setun_safetensors_add_tensor(setun_safetensors_writer *w, const char *name, const char *dtype /* "U8","F32","BF16",.. */, int rank, const int64_t *shape, uint64_t bytes);
setun_status setun_safetensors_begin_data(setun_safetensors_writer *w);
setun_status setun_safetensors_write_tensor(setun_safetensors_writer *w, const void *data, uint64_t bytes);
setun_status setun_safetensors_commit(setun_safetensors_writer *w);
void setun_safetensors_abort(setun_safetensors_writer *w);

#endif
