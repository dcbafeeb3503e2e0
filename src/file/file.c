/*
 * file.c - the directory of named tensors and values: opens and maps the files, finds out what they are, looks names up.
 * Callers: model, text, inspect, convert. Refuses to know what the tensors are for.
 *
 * Mapped files are mapped MAP_PRIVATE and read-only. A file that another program shortens while it is mapped takes the
 * pages away from under us (SIGBUS): no reader of mapped files can prevent that, `no_map` is the way out.
 */
#define _GNU_SOURCE
#include "file/file_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_CHUNK ((size_t)8 << 20)
#define BLOCK_BYTES ((size_t)64 << 10)

/* ---- names ---- */

static uint64_t mix(uint64_t a, uint64_t b) {
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint32_t hash_name(uint64_t seed, const char *name) {
    size_t length = strlen(name);
    uint64_t h = seed ^ length;
    for (; length >= 8; name += 8, length -= 8) h = mix(h ^ setun_load_u64(name), 0x9e3779b97f4a7c15u);
    uint64_t tail = 0;
    memcpy(&tail, name, length);
    h = mix(h ^ tail, 0xd6e8feb86659fd93u);
    return (uint32_t)(mix(h, seed | 1) >> 32);
}

static const char *name_of(const void *items, size_t stride, uint32_t index) {
    return *(const char *const *)(const void *)((const char *)items + stride * index);
}

/* The slot that holds the name, or the empty one where it would go. */
static uint32_t probe(const setun_names *names, const void *items, size_t stride, const char *name, uint32_t hash) {
    uint32_t mask = names->capacity - 1;
    for (uint32_t i = hash & mask;; i = (i + 1) & mask) {
        uint64_t slot = names->slots[i];
        if (!slot) return i;
        if ((uint32_t)(slot >> 32) == hash && !strcmp(name_of(items, stride, (uint32_t)slot - 1), name)) return i;
    }
}

static setun_status names_grow(setun_names *names) {
    setun_names bigger = *names;
    if (names->capacity > UINT32_MAX / 2) return setun_fail_memory(SIZE_MAX);
    bigger.capacity = names->capacity ? names->capacity * 2 : 64;
    bigger.slots = setun_calloc(bigger.capacity, sizeof *bigger.slots);
    if (!bigger.slots) return SETUN_ERROR_MEMORY;
    if (!names->capacity) {
        double now = setun_seconds();
        uint64_t bits;
        memcpy(&bits, &now, sizeof bits);
        bigger.seed = mix(bits ^ (uint64_t)(uintptr_t)bigger.slots, 0x2545f4914f6cdd1du ^ (uint64_t)(uintptr_t)&now) ^ (uint64_t)getpid();
    }
    uint32_t mask = bigger.capacity - 1;
    for (uint32_t i = 0; i < names->capacity; i++) {
        if (!names->slots[i]) continue;
        uint32_t at = (uint32_t)(names->slots[i] >> 32) & mask;
        while (bigger.slots[at]) at = (at + 1) & mask;
        bigger.slots[at] = names->slots[i];
    }
    setun_free(names->slots);
    *names = bigger;
    return SETUN_OK;
}

setun_status setun_names_add(setun_names *names, const void *items, size_t stride, uint32_t index, int64_t *existing) {
    *existing = -1;
    if (names->count + 1 > names->capacity / 2) SETUN_TRY(names_grow(names));
    const char *name = name_of(items, stride, index);
    uint32_t hash = hash_name(names->seed, name);
    uint32_t slot = probe(names, items, stride, name, hash);
    if (names->slots[slot]) {
        *existing = (int64_t)(uint32_t)names->slots[slot] - 1;
        return SETUN_OK;
    }
    names->slots[slot] = (uint64_t)hash << 32 | (index + 1);
    names->count++;
    return SETUN_OK;
}

int64_t setun_names_find(const setun_names *names, const void *items, size_t stride, const char *name) {
    if (!names->capacity || !name) return -1;
    uint64_t slot = names->slots[probe(names, items, stride, name, hash_name(names->seed, name))];
    return slot ? (int64_t)(uint32_t)slot - 1 : -1;
}

void setun_names_clear(setun_names *names) {
    setun_free(names->slots);
    memset(names, 0, sizeof *names);
}

unsigned setun_utf8_sequence(const uint8_t *p, uint64_t left) {
    uint8_t c = p[0];
    if (c < 0x80) return 1;
    unsigned n = c >= 0xc2 && c <= 0xdf ? 2 : c >= 0xe0 && c <= 0xef ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    if (!n || n > left) return 0;
    for (unsigned k = 1; k < n; k++)
        if ((p[k] & 0xc0) != 0x80) return 0;
    /* overlong forms, surrogates, beyond U+10FFFF */
    if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f) || (c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] > 0x8f)) return 0;
    return n;
}

const char *setun_name_problem(const uint8_t *bytes, uint64_t length) {
    if (!length) return "is empty";
    if (length > 65535) return "is longer than 65535 bytes";
    for (uint64_t i = 0; i < length;) {
        if (bytes[i] < 0x20 || bytes[i] == 0x7f) return "has a control character in it";
        unsigned n = setun_utf8_sequence(bytes + i, length - i);
        if (!n) return "is not valid UTF-8";
        i += n;
    }
    return NULL;
}

/* ---- small memory that lives as long as the file ---- */

void *setun_file_keep(setun_file *file, size_t bytes) {
    if (bytes > SIZE_MAX / 2) { setun_fail_memory(bytes); return NULL; }
    bytes = (bytes + 15) & ~(size_t)15;
    setun_block *block = file->blocks;
    if (!block || block->size - block->used < bytes) {
        size_t size = bytes > BLOCK_BYTES / 4 ? bytes : BLOCK_BYTES;
        setun_block *fresh = setun_alloc(sizeof *fresh + size);
        if (!fresh) return NULL;
        fresh->used = 0;
        fresh->size = size;
        if (block && size == bytes) { /* a big one: keep filling the current block afterwards */
            fresh->next = block->next;
            block->next = fresh;
        } else {
            fresh->next = block;
            file->blocks = fresh;
        }
        block = fresh;
    }
    void *memory = block->bytes + block->used;
    block->used += bytes;
    return memory;
}

char *setun_file_keep_name(setun_file *file, const char *bytes, size_t length) {
    char *copy = setun_file_keep(file, length + 1);
    if (!copy) return NULL;
    memcpy(copy, bytes, length);
    copy[length] = 0;
    return copy;
}

/* ---- the directory ---- */

setun_status setun_file_reserve_tensors(setun_file *file, uint64_t more) {
    uint64_t need = (uint64_t)file->tensor_count + more;
    if (need > INT_MAX / 2) return setun_fail(SETUN_ERROR_FORMAT, "%s: %" PRIu64 " tensors are more than any model has; the file is corrupt", file->path, need);
    if (need <= (uint64_t)file->tensor_capacity) return SETUN_OK;
    setun_file_tensor *tensors = setun_realloc(file->tensors, (size_t)need * sizeof *tensors);
    if (!tensors) return SETUN_ERROR_MEMORY;
    file->tensors = tensors;
    file->tensor_capacity = (int)need;
    return SETUN_OK;
}

setun_status setun_file_name_tensors(setun_file *file, int count) {
    for (int i = file->tensor_count - count; i < file->tensor_count; i++) {
        int64_t existing;
        SETUN_TRY(setun_names_add(&file->tensor_names, file->tensors, sizeof *file->tensors, (uint32_t)i, &existing));
        if (existing < 0) continue;
        const setun_file_tensor *a = &file->tensors[existing], *b = &file->tensors[i];
        if (a->shard != b->shard)
            return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor '%.200s' is also in %s; keep one of the two files", file->shards[b->shard].path, b->name, file->shards[a->shard].path);
        return setun_fail(SETUN_ERROR_FORMAT, "%s: tensor name '%.200s' occurs twice, as tensor %" PRId64 " and tensor %d; the file is corrupt", file->shards[b->shard].path, b->name, existing, i);
    }
    return SETUN_OK;
}

static int compare_extents(const void *left, const void *right) {
    const setun_extent *a = left, *b = right;
    if (a->offset != b->offset) return a->offset < b->offset ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

void setun_extents_sort(setun_extent *extents, size_t count) {
    for (size_t i = 1; i < count; i++)
        if (extents[i].offset < extents[i - 1].offset) {
            qsort(extents, count, sizeof *extents, compare_extents);
            return;
        }
}

/* ---- reading from disk ---- */

char *setun_join_path(const char *folder, const char *name) {
    size_t a = strlen(folder), b = strlen(name);
    char *path = setun_alloc(a + b + 2);
    if (!path) return NULL;
    memcpy(path, folder, a);
    if (a && folder[a - 1] != '/') path[a++] = '/';
    memcpy(path + a, name, b + 1);
    return path;
}

/* Opens a regular file; looks before opening, since opening a pipe would wait for its other end. */
static setun_status open_regular(const char *path, bool *out_there, int *out_fd, uint64_t *out_bytes) {
    struct stat st;
    *out_there = true;
    if (stat(path, &st)) {
        if (errno == ENOENT || errno == ENOTDIR) *out_there = false;
        return setun_fail(SETUN_ERROR_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) return setun_fail(SETUN_ERROR_IO, "%s: is not a regular file", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st)) {
        int problem = errno;
        if (fd >= 0) close(fd);
        return setun_fail(SETUN_ERROR_IO, "%s: cannot open: %s", path, strerror(problem));
    }
    if ((uint64_t)st.st_size > SIZE_MAX / 2) {
        close(fd);
        return setun_fail(SETUN_ERROR_IO, "%s: is too large for this machine's addresses", path);
    }
    *out_fd = fd;
    *out_bytes = (uint64_t)st.st_size;
    return SETUN_OK;
}

/* Reads exactly `bytes` bytes from the start. file NULL: no progress. */
static setun_status read_bytes(int fd, const char *path, uint8_t *into, uint64_t bytes, setun_file *file, const setun_file_options *options) {
    for (uint64_t at = 0; at < bytes;) {
        size_t want = bytes - at < READ_CHUNK ? (size_t)(bytes - at) : READ_CHUNK;
        ssize_t got = pread(fd, into + at, want, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return setun_fail(SETUN_ERROR_IO, "%s: cannot read at byte %" PRIu64 ": %s", path, at, strerror(errno));
        if (got == 0) return setun_fail(SETUN_ERROR_IO, "%s: ended at byte %" PRIu64 " while %" PRIu64 " were expected; is another program still writing it?", path, at, bytes);
        at += (uint64_t)got;
        if (!file) continue;
        file->read_done += (uint64_t)got;
        if (options && options->progress && !options->progress(options->progress_user, "bytes", file->read_done, file->read_total))
            return setun_fail(SETUN_ERROR_CANCELLED, "%s: reading was stopped", path);
    }
    return SETUN_OK;
}

setun_status setun_read_whole(const char *path, uint64_t limit, bool *out_there, char **out, size_t *out_length) {
    *out = NULL;
    *out_length = 0;
    int fd;
    uint64_t bytes;
    setun_status status = open_regular(path, out_there, &fd, &bytes);
    if (status != SETUN_OK) return *out_there ? status : SETUN_OK;
    char *text = NULL;
    if (bytes > limit) status = setun_fail(SETUN_ERROR_FORMAT, "%s: has %" PRIu64 " bytes, the limit for such a file is %" PRIu64, path, bytes, limit);
    else if (!(text = setun_alloc((size_t)bytes + 1))) status = SETUN_ERROR_MEMORY;
    else status = read_bytes(fd, path, (uint8_t *)text, bytes, NULL, NULL);
    close(fd);
    if (status != SETUN_OK) {
        setun_free(text);
        return status;
    }
    text[bytes] = 0;
    *out = text;
    *out_length = (size_t)bytes;
    return SETUN_OK;
}

static setun_status append_shard(setun_file *file, const char *path, setun_shard **out) {
    if (file->shard_count == file->shard_capacity) {
        int capacity = file->shard_capacity ? file->shard_capacity * 2 : 1;
        setun_shard *shards = setun_realloc(file->shards, (size_t)capacity * sizeof *shards);
        if (!shards) return SETUN_ERROR_MEMORY;
        file->shards = shards;
        file->shard_capacity = capacity;
    }
    setun_shard *shard = &file->shards[file->shard_count];
    memset(shard, 0, sizeof *shard);
    shard->path = setun_strdup(path);
    if (!shard->path) return SETUN_ERROR_MEMORY;
    file->shard_count++;
    *out = shard;
    return SETUN_OK;
}

setun_status setun_file_add_shard(setun_file *file, const char *path, const setun_file_options *options) {
    int fd;
    uint64_t bytes;
    bool there;
    setun_shard *shard;
    SETUN_TRY(append_shard(file, path, &shard));
    SETUN_TRY(open_regular(path, &there, &fd, &bytes));
    setun_status status = SETUN_OK;
    if (!bytes) {
        status = setun_fail(SETUN_ERROR_FORMAT, "%s: is empty; download it again", path);
    } else if (options && options->no_map) {
        if (file->read_total < file->read_done + bytes) file->read_total = file->read_done + bytes;
        uint8_t *memory = setun_alloc_aligned((size_t)bytes, 64);
        if (memory) {
            shard->bytes = memory;
            shard->count = bytes;
            shard->hold = SETUN_HOLD_READ;
            status = read_bytes(fd, path, memory, bytes, file, options);
        } else {
            status = setun_fail(SETUN_ERROR_MEMORY, "%s: no memory for its %" PRIu64 " bytes; open it mapped instead", path, bytes);
        }
    } else {
        void *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            status = setun_fail(SETUN_ERROR_IO, "%s: cannot map its %" PRIu64 " bytes: %s; open it without mapping", path, bytes, strerror(errno));
        } else {
            shard->bytes = map;
            shard->count = bytes;
            shard->hold = SETUN_HOLD_MAPPED;
            shard->open = true;
            shard->fd = fd;
        }
    }
    if (!shard->open) close(fd);
    return status;
}

/* ---- opening ---- */

/* What it might be instead, from its first bytes: the common mistakes have names. */
static setun_status refuse_container(const char *path, const uint8_t *bytes, uint64_t count) {
    static const struct { const char *magic; unsigned length; const char *is; } known[] = {
        {"version https://git-lfs", 23, "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"},
        {"PK\x03\x04", 4, "is a zip archive, probably a PyTorch checkpoint (.bin, .pt); convert it to safetensors"},
        {"\x80\x02", 2, "is a Python pickle, probably a PyTorch checkpoint; convert it to safetensors"},
        {"tjgg", 4, "is in the GGJT format from before GGUF; get a GGUF version of the model"},
        {"fmgg", 4, "is in the GGMF format from before GGUF; get a GGUF version of the model"},
        {"lmgg", 4, "is in the GGML format from before GGUF; get a GGUF version of the model"},
        {"FUGG", 4, "is a big-endian GGUF file; get the little-endian one"},
        {"\x93NUMPY", 6, "is a NumPy array; convert the model to safetensors or GGUF"},
        {"\x89HDF", 4, "is an HDF5 file; convert the model to safetensors or GGUF"},
        {"<!DOCTYPE", 9, "is a web page, not a model; the download went wrong"},
        {"<html", 5, "is a web page, not a model; the download went wrong"},
        {"\x1f\x8b", 2, "is compressed with gzip; unpack it first"},
        {"\x28\xb5\x2f\xfd", 4, "is compressed with zstd; unpack it first"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (count >= known[i].length && !memcmp(bytes, known[i].magic, known[i].length))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: %s", path, known[i].is);
    char hex[16 * 3 + 1] = "";
    for (uint64_t i = 0; i < count && i < 16; i++) snprintf(hex + i * 3, 4, "%02x ", bytes[i]);
    return setun_fail(SETUN_ERROR_FORMAT, "%s: is neither GGUF nor safetensors (magic at byte 0: %s); give a .gguf file, a .safetensors file or a Hugging Face folder", path, hex);
}

static setun_status read_single(setun_file *file, const setun_file_options *options) {
    const setun_shard *shard = &file->shards[0];
    if (shard->count >= 4 && !memcmp(shard->bytes, "GGUF", 4)) {
        file->container = SETUN_GGUF;
        return setun_gguf_read(file, 0, options);
    }
    if (setun_safetensors_looks_like(shard->bytes, shard->count)) {
        file->container = SETUN_SAFETENSORS;
        return setun_safetensors_read(file, 0);
    }
    return refuse_container(shard->path, shard->bytes, shard->count);
}

static setun_status create_file(const char *path, setun_file **out) {
    setun_file *file = setun_calloc(1, sizeof *file);
    if (!file) return SETUN_ERROR_MEMORY;
    file->path = setun_strdup(path);
    if (!file->path) {
        setun_free(file);
        return SETUN_ERROR_MEMORY;
    }
    *out = file;
    return SETUN_OK;
}

static setun_status open_path(setun_file *file, const setun_file_options *options) {
    struct stat st;
    if (!stat(file->path, &st) && S_ISDIR(st.st_mode)) {
        file->container = SETUN_SAFETENSORS;
        file->folder = setun_strdup(file->path);
        return file->folder ? setun_folder_open(file, options) : SETUN_ERROR_MEMORY;
    }
    SETUN_TRY(setun_file_add_shard(file, file->path, options));
    SETUN_TRY(read_single(file, options));
    if (file->container == SETUN_SAFETENSORS) {
        const char *slash = strrchr(file->path, '/');
        file->folder = !slash ? setun_strdup(".") : setun_strndup(file->path, slash == file->path ? 1 : (size_t)(slash - file->path));
        if (!file->folder) return SETUN_ERROR_MEMORY;
    }
    return SETUN_OK;
}

setun_status setun_file_open(const char *path, const setun_file_options *options, setun_file **out) {
    *out = NULL;
    if (!path || !*path) return setun_fail(SETUN_ERROR_ARGUMENT, "no path was given; give a .gguf file, a .safetensors file or a Hugging Face folder");
    const char *layout = options ? options->i2s_layout : NULL;
    if (layout && strcmp(layout, "128x32") && strcmp(layout, "64x16") && strcmp(layout, "row4"))
        return setun_fail(SETUN_ERROR_ARGUMENT, "I2_S layout '%s' is unknown; it is one of 128x32, 64x16, row4", layout);
    setun_file *file;
    SETUN_TRY(create_file(path, &file));
    setun_status status = open_path(file, options);
    if (status != SETUN_OK) {
        setun_file_close(file);
        return status;
    }
    *out = file;
    return SETUN_OK;
}

setun_status setun_file_open_memory(const void *bytes, size_t count, const char *name, setun_file **out) {
    *out = NULL;
    setun_file *file;
    setun_shard *shard;
    SETUN_TRY(create_file(name, &file));
    setun_status status = append_shard(file, name, &shard);
    if (status == SETUN_OK) {
        shard->bytes = bytes;
        shard->count = count;
        shard->hold = SETUN_HOLD_BORROWED;
        status = count ? read_single(file, NULL) : setun_fail(SETUN_ERROR_FORMAT, "%s: is empty", name);
    }
    if (status != SETUN_OK) {
        setun_file_close(file);
        return status;
    }
    *out = file;
    return SETUN_OK;
}

void setun_file_close(setun_file *file) {
    if (!file) return;
    for (int i = 0; i < file->shard_count; i++) {
        setun_shard *shard = &file->shards[i];
        if (shard->hold == SETUN_HOLD_MAPPED) munmap((void *)(uintptr_t)shard->bytes, (size_t)shard->count);
        if (shard->hold == SETUN_HOLD_READ) setun_free_aligned((void *)(uintptr_t)shard->bytes);
        if (shard->open) close(shard->fd);
        setun_free(shard->path);
    }
    setun_free(file->shards);
    setun_free(file->tensors);
    setun_free(file->values);
    setun_names_clear(&file->tensor_names);
    setun_names_clear(&file->value_names);
    setun_file_free_beside(file);
    for (setun_block *block = file->blocks; block;) {
        setun_block *next = block->next;
        setun_free(block);
        block = next;
    }
    setun_free(file->folder);
    setun_free(file->path);
    setun_free(file);
}

/* ---- looking things up ---- */

setun_container setun_file_container(const setun_file *file) { return file->container; }
const char *setun_file_path(const setun_file *file) { return file->path; }

uint64_t setun_file_bytes(const setun_file *file) {
    uint64_t bytes = 0;
    for (int i = 0; i < file->shard_count; i++) bytes += file->shards[i].count;
    return bytes;
}

int setun_file_shard_count(const setun_file *file) { return file->shard_count; }
const char *setun_file_shard_path(const setun_file *file, int shard) { return shard >= 0 && shard < file->shard_count ? file->shards[shard].path : NULL; }
uint64_t setun_file_shard_bytes(const setun_file *file, int shard) { return shard >= 0 && shard < file->shard_count ? file->shards[shard].count : 0; }

int setun_file_tensor_count(const setun_file *file) { return file->tensor_count; }

const setun_file_tensor *setun_file_tensor_at(const setun_file *file, int index) {
    return index >= 0 && index < file->tensor_count ? &file->tensors[index] : NULL;
}

const setun_file_tensor *setun_file_find_tensor(const setun_file *file, const char *name) {
    int64_t index = setun_names_find(&file->tensor_names, file->tensors, sizeof *file->tensors, name);
    return index < 0 ? NULL : &file->tensors[index];
}

int setun_file_value_count(const setun_file *file) { return file->value_count; }

const setun_value *setun_file_value_at(const setun_file *file, int index) {
    return index >= 0 && index < file->value_count ? &file->values[index] : NULL;
}

const setun_value *setun_file_find_value(const setun_file *file, const char *key) {
    int64_t index = setun_names_find(&file->value_names, file->values, sizeof *file->values, key);
    return index < 0 ? NULL : &file->values[index];
}

/* ---- the map ---- */

static const setun_shard *shard_of(const setun_file *file, const void *data) {
    uintptr_t at = (uintptr_t)data;
    for (int i = 0; i < file->shard_count; i++) {
        uintptr_t start = (uintptr_t)file->shards[i].bytes;
        if (at >= start && at - start < file->shards[i].count) return &file->shards[i];
    }
    return NULL;
}

bool setun_file_is_mapped(const setun_file *file, const void *data) {
    const setun_shard *shard = shard_of(file, data);
    return shard && shard->hold == SETUN_HOLD_MAPPED;
}

void setun_file_will_need(const setun_file *file, const void *data, size_t bytes) {
    const setun_shard *shard = shard_of(file, data);
    if (!shard || shard->hold != SETUN_HOLD_MAPPED || !bytes) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = (uintptr_t)data, end = (uintptr_t)shard->bytes + (uintptr_t)shard->count;
    uintptr_t to = bytes < end - from ? from + bytes : end;
    from &= ~(page - 1);
    (void)posix_madvise((void *)from, to - from, POSIX_MADV_WILLNEED); /* advice: a refusal changes nothing */
}

void setun_file_drop(const setun_file *file, const void *data, size_t bytes) {
    const setun_shard *shard = shard_of(file, data);
    if (!shard || shard->hold != SETUN_HOLD_MAPPED || !bytes) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = (uintptr_t)data, end = (uintptr_t)shard->bytes + (uintptr_t)shard->count;
    uintptr_t to = bytes < end - from ? from + bytes : end;
    from &= ~(page - 1);
#ifdef MADV_DONTNEED
    (void)madvise((void *)from, to - from, MADV_DONTNEED); /* the map is private and never written: nothing is lost */
#endif
}

void setun_file_drop_header(const setun_file *file) {
    for (int i = 0; i < file->shard_count; i++) {
        const uint8_t *start = file->shards[i].bytes;
        uint64_t first = file->shards[i].count;
        for (int j = 0; j < file->tensor_count; j++) {
            const uint8_t *data = file->tensors[j].data;
            if (data >= start && (uint64_t)(data - start) < first) first = (uint64_t)(data - start);
        }
        setun_file_drop(file, start, (size_t)first);
    }
}

bool setun_file_copy(const setun_file *file, const void *data, size_t bytes, void *out) {
    const setun_shard *shard = shard_of(file, data);
    if (!shard || !shard->open) return false;
    uint64_t at = (uint64_t)((const uint8_t *)data - shard->bytes);
    if (bytes > shard->count - at) return false;
    for (uint8_t *to = out; bytes > 0;) {
        ssize_t got = pread(shard->fd, to, bytes, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        to += got;
        at += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return true;
}
