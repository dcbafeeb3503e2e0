/*
 * file_internal.h - what the files of this room share: the directory that the readers fill, and the helpers they fill it with.
 * Nobody outside src/file/ includes it.
 */
#ifndef SETUN_FILE_INTERNAL_H
#define SETUN_FILE_INTERNAL_H

#include "file/file.h"

/* ---- names: a hash table over an array whose items start with a `const char *name` ---- */
typedef struct setun_names {
    uint64_t *slots;   /* 0: empty; else hash << 32 | index + 1; capacity is a power of two */
    uint32_t capacity, count;
    uint64_t seed;     /* differs between processes: nobody can write a file whose names all collide */
} setun_names;
/* Adds item `index`. If its name is there already, nothing is added and *existing is that item's index; else it is -1. */
setun_status setun_names_add(setun_names *names, const void *items, size_t stride, uint32_t index, int64_t *existing);
int64_t setun_names_find(const setun_names *names, const void *items, size_t stride, const char *name); /* -1: absent */
void setun_names_clear(setun_names *names);

/* ---- the directory ---- */
typedef enum setun_hold { SETUN_HOLD_BORROWED, SETUN_HOLD_MAPPED, SETUN_HOLD_READ } setun_hold;
typedef struct setun_shard { char *path; const uint8_t *bytes; uint64_t count; setun_hold hold; bool open; int fd; /* of a mapped file, for setun_file_copy */ } setun_shard;

typedef struct setun_beside { /* a JSON or text file beside the weights, read once */
    struct setun_beside *next;
    char *name;
    bool is_json;
    json_t *json;              /* NULL: the file is not there */
    char *text;                /* NULL: the file is not there */
    size_t length;
} setun_beside;

typedef struct setun_block { struct setun_block *next; size_t used, size; char bytes[]; } setun_block;

struct setun_file {
    setun_container container;
    char *path;                /* as given */
    char *folder;              /* where config.json lies; NULL: nothing can lie beside it (memory, GGUF) */
    setun_shard *shards;
    int shard_count, shard_capacity;
    setun_file_tensor *tensors;
    int tensor_count, tensor_capacity;
    setun_names tensor_names;
    setun_value *values;
    int value_count;
    setun_names value_names;
    setun_block *blocks;       /* names and string offsets: small things that live as long as the file */
    setun_beside *beside;
    uint64_t read_done, read_total; /* for progress, where the files are read and not mapped */
};

/* Memory that lives as long as the file, aligned for any type; NULL: out of memory. */
void *setun_file_keep(setun_file *file, size_t bytes);
char *setun_file_keep_name(setun_file *file, const char *bytes, size_t length); /* 0-terminated copy */
/* Makes room for `more` tensors; the array may move. */
setun_status setun_file_reserve_tensors(setun_file *file, uint64_t more);
/* Puts the last `count` tensors of the array into the table of names; refuses duplicates. */
setun_status setun_file_name_tensors(setun_file *file, int count);
/* Maps (or reads) one more shard. */
setun_status setun_file_add_shard(setun_file *file, const char *path, const setun_file_options *options);

/* The readers: fill the directory from one shard. */
setun_status setun_gguf_read(setun_file *file, int shard, const setun_file_options *options);
setun_status setun_safetensors_read(setun_file *file, int shard);
bool setun_safetensors_looks_like(const uint8_t *bytes, uint64_t count);
/* folder.c: finds the shards, opens them, reads them. */
setun_status setun_folder_open(setun_file *file, const setun_file_options *options);
void setun_file_free_beside(setun_file *file);

/* A name from a file must be something that can be printed, stored 0-terminated and compared: not empty, at most 65535 bytes
 * of valid UTF-8 without control characters. Returns what is wrong with it, NULL if nothing is. */
const char *setun_name_problem(const uint8_t *bytes, uint64_t length);

/* Length of the valid UTF-8 sequence at p (left >= 1), 0 if there is none: overlong forms and surrogates are invalid. */
unsigned setun_utf8_sequence(const uint8_t *p, uint64_t left);

/* Reads a regular file of at most `limit` bytes. *out_there false and OK: it does not exist. *out is 0-terminated, setun_free. */
setun_status setun_read_whole(const char *path, uint64_t limit, bool *out_there, char **out, size_t *out_length);
/* folder + "/" + name; NULL: out of memory. */
char *setun_join_path(const char *folder, const char *name);

/* Two extents sorted by offset: the directory's check for overlap. */
typedef struct setun_extent { uint64_t offset; uint32_t index; } setun_extent;
void setun_extents_sort(setun_extent *extents, size_t count);

/* ---- what the two writers share (writer_common.c): declared tensors, and their data coming in that order ---- */
typedef struct setun_declared { /* starts with the name, as setun_names wants */
    char *name;
    uint32_t type_id;
    const char *dtype;
    int rank;
    int64_t shape[SETUN_MAX_RANK];
    uint64_t bytes;
} setun_declared;

typedef struct setun_declarations {
    char *path;
    setun_declared *items;
    uint32_t count, capacity;
    setun_names names;
    bool writing;      /* the header is out */
    uint32_t current;  /* the tensor whose data comes next */
    uint64_t written;  /* bytes of it that came */
} setun_declarations;

/* Refuses bad names, ranks and dimensions, and calls after the header. */
setun_status setun_declare_check(const setun_declarations *d, const char *name, int rank, const int64_t *shape, bool zeros_allowed);
/* Adds what was checked; copies the name; refuses duplicates. */
setun_status setun_declare(setun_declarations *d, const char *name, int rank, const int64_t *shape, uint64_t bytes, setun_declared **out);
setun_status setun_declared_write(setun_declarations *d, setun_writer *out, const void *data, uint64_t bytes, uint32_t alignment);
setun_status setun_declared_check_done(const setun_declarations *d);
void setun_declarations_clear(setun_declarations *d);
/* Bytes of one element of a safetensors dtype; 0: unknown. */
unsigned setun_safetensors_dtype_bytes(const char *dtype, const char **out_name /* lives forever */);

/* Bytes of one value of this GGUF type; 0 for strings, arrays and types that do not exist. */
unsigned setun_value_bytes(uint32_t type);
const char *setun_value_type_name(uint32_t type);

#endif
