/*
 * folder.c - a Hugging Face folder: which safetensors files hold the weights, and the JSON and text files beside them.
 * Caller: file.c; model and text ask for the JSON. Refuses to know what the JSON means.
 */
#include "file/file_internal.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>

#define SHARDS_MAX 10000
#define TEXT_BYTES_MAX ((uint64_t)16 << 20)
#define INDEX_NAME "model.safetensors.index.json"

/* ---- which files ---- */

/* File names in the order in which they are opened; items start with the name, as setun_names wants. */
typedef struct shard_list { char **items; uint32_t count, capacity; setun_names names; } shard_list;

static void list_clear(shard_list *list) {
    for (uint32_t i = 0; i < list->count; i++) setun_free(list->items[i]);
    setun_free(list->items);
    setun_names_clear(&list->names);
}

/* Adds a name that is not in the list yet. */
static setun_status list_add(shard_list *list, const char *name) {
    int64_t existing;
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : 16;
        char **items = setun_realloc(list->items, capacity * sizeof *items);
        if (!items) return SETUN_ERROR_MEMORY;
        list->items = items;
        list->capacity = capacity;
    }
    char *copy = setun_strdup(name);
    if (!copy) return SETUN_ERROR_MEMORY;
    list->items[list->count] = copy;
    setun_status status = setun_names_add(&list->names, list->items, sizeof *list->items, list->count, &existing);
    if (status != SETUN_OK || existing >= 0) setun_free(copy);
    else list->count++;
    return status;
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static bool ends_with(const char *name, const char *ending) {
    size_t a = strlen(name), b = strlen(ending);
    return a > b && !strcmp(name + a - b, ending);
}

/* Every *.safetensors of the folder, by name. *gguf: some .gguf file that lies there, for the message. */
static setun_status list_folder(const char *folder, shard_list *list, char **gguf) {
    *gguf = NULL;
    DIR *directory = opendir(folder);
    if (!directory) return setun_fail(SETUN_ERROR_IO, "%s: cannot list the folder: %s", folder, strerror(errno));
    setun_status status = SETUN_OK;
    for (struct dirent *entry; status == SETUN_OK && (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') continue;
        if (ends_with(entry->d_name, ".safetensors")) status = list_add(list, entry->d_name);
        else if (ends_with(entry->d_name, ".gguf") && !*gguf && !(*gguf = setun_strdup(entry->d_name))) status = SETUN_ERROR_MEMORY;
        if (list->count > SHARDS_MAX) status = setun_fail(SETUN_ERROR_FORMAT, "%s: has more than %d .safetensors files", folder, SHARDS_MAX);
    }
    closedir(directory);
    /* the table of names is not asked again, so its indices may go stale */
    if (status == SETUN_OK && list->count > 1) qsort(list->items, list->count, sizeof *list->items, compare_names);
    return status;
}

/* A shard's name comes from a file: it must not lead out of the folder. */
static bool plain_file_name(const json_t *value) {
    if (!json_is_string(value)) return false;
    const char *name = json_string_value(value);
    return !setun_name_problem((const uint8_t *)name, json_string_length(value)) && name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\') && strlen(name) <= 255;
}

static setun_status list_index(const char *path, const json_t *index, shard_list *list) {
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || !json_object_size(map)) return setun_fail(SETUN_ERROR_FORMAT, "%s: weight_map is missing, empty or not an object", path);
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value) {
        if (!plain_file_name(value)) return setun_fail(SETUN_ERROR_FORMAT, "%s: weight_map gives tensor '%.150s' something that is not the name of a file in the folder", path, tensor);
        SETUN_TRY(list_add(list, json_string_value(value)));
        if (list->count > SHARDS_MAX) return setun_fail(SETUN_ERROR_FORMAT, "%s: weight_map names more than %d files", path, SHARDS_MAX);
    }
    return SETUN_OK;
}

/* What the index promises must be there, and where it says. */
static setun_status check_index(const setun_file *file, const char *path, const json_t *index, const shard_list *list) {
    const char *tensor;
    json_t *value;
    json_object_foreach(json_object_get(index, "weight_map"), tensor, value) {
        const char *shard = json_string_value(value);
        const setun_file_tensor *t = setun_file_find_tensor(file, tensor);
        if (!t || strcmp(list->items[t->shard], shard))
            return setun_fail(SETUN_ERROR_FORMAT, "%s: weight_map says that tensor '%.150s' is in %s, but it is %s; the folder mixes files of different downloads", path, tensor, shard, t ? "elsewhere" : "not there");
    }
    return SETUN_OK;
}

static bool is_there(const char *path) {
    struct stat st;
    return !stat(path, &st);
}

static setun_status open_shards(setun_file *file, const shard_list *list, const setun_file_options *options) {
    /* sizes first: progress wants the total */
    for (uint32_t i = 0; i < list->count; i++) {
        char *path = setun_join_path(file->folder, list->items[i]);
        if (!path) return SETUN_ERROR_MEMORY;
        struct stat st;
        if (!stat(path, &st) && st.st_size > 0) file->read_total += (uint64_t)st.st_size;
        setun_free(path);
    }
    for (uint32_t i = 0; i < list->count; i++) {
        char *path = setun_join_path(file->folder, list->items[i]);
        if (!path) return SETUN_ERROR_MEMORY;
        setun_status status = setun_file_add_shard(file, path, options);
        setun_free(path);
        SETUN_TRY(status);
        SETUN_TRY(setun_safetensors_read(file, file->shard_count - 1));
    }
    return SETUN_OK;
}

static setun_status find_and_open(setun_file *file, const setun_file_options *options, shard_list *list, const char *index_path, const char *single_path) {
    if (is_there(single_path)) {
        SETUN_TRY(list_add(list, "model.safetensors"));
        return open_shards(file, list, options);
    }
    if (is_there(index_path)) {
        json_t *index;
        SETUN_TRY(setun_json_load(index_path, &index));
        setun_status status = list_index(index_path, index, list);
        if (status == SETUN_OK) status = open_shards(file, list, options);
        if (status == SETUN_OK) status = check_index(file, index_path, index, list);
        json_decref(index);
        return status;
    }
    char *gguf;
    setun_status status = list_folder(file->folder, list, &gguf);
    if (status == SETUN_OK && !list->count) {
        if (gguf) status = setun_fail(SETUN_ERROR_IO, "%s: the folder has no .safetensors file; to use the GGUF file in it, give its path: %s/%s", file->folder, file->folder, gguf);
        else status = setun_fail(SETUN_ERROR_IO, "%s: the folder has no .safetensors file; give a .gguf file, a .safetensors file or a Hugging Face folder", file->folder);
    }
    setun_free(gguf);
    return status == SETUN_OK ? open_shards(file, list, options) : status;
}

setun_status setun_folder_open(setun_file *file, const setun_file_options *options) {
    shard_list list = {0};
    char *index_path = setun_join_path(file->folder, INDEX_NAME);
    char *single_path = setun_join_path(file->folder, "model.safetensors");
    setun_status status = index_path && single_path ? find_and_open(file, options, &list, index_path, single_path) : SETUN_ERROR_MEMORY;
    setun_free(index_path);
    setun_free(single_path);
    list_clear(&list);
    return status;
}

/* ---- files beside the weights ---- */

static setun_status read_beside(const char *path, bool is_json, setun_beside *entry) {
    bool there;
    SETUN_TRY(setun_read_whole(path, is_json ? (uint64_t)256 << 20 : TEXT_BYTES_MAX, &there, &entry->text, &entry->length));
    if (!there || !is_json) return SETUN_OK;
    setun_status status = setun_json_parse(entry->text, entry->length, path, &entry->json);
    setun_free(entry->text);
    entry->text = NULL;
    return status;
}

/* The entry for this file, read if it was not yet; *out NULL: there is nothing beside these weights. */
static setun_status get_beside(setun_file *file, const char *name, bool is_json, const setun_beside **out) {
    *out = NULL;
    if (!file->folder) return SETUN_OK;
    if (!*name || strchr(name, '/')) return setun_fail(SETUN_ERROR_ARGUMENT, "'%s' is not the name of a file", name);
    for (setun_beside *entry = file->beside; entry; entry = entry->next)
        if (entry->is_json == is_json && !strcmp(entry->name, name)) {
            *out = entry;
            return SETUN_OK;
        }
    setun_beside *entry = setun_calloc(1, sizeof *entry);
    char *path = setun_join_path(file->folder, name);
    if (entry) entry->name = setun_strdup(name);
    setun_status status = entry && path && entry->name ? read_beside(path, is_json, entry) : SETUN_ERROR_MEMORY;
    setun_free(path);
    if (status != SETUN_OK) {
        if (entry) setun_free(entry->name);
        setun_free(entry);
        return status;
    }
    entry->is_json = is_json;
    entry->next = file->beside;
    file->beside = entry;
    *out = entry;
    return SETUN_OK;
}

setun_status setun_file_json(setun_file *file, const char *name, const json_t **out) {
    const setun_beside *entry;
    *out = NULL;
    SETUN_TRY(get_beside(file, name, true, &entry));
    if (entry) *out = entry->json;
    return SETUN_OK;
}

setun_status setun_file_text(setun_file *file, const char *name, const char **out, size_t *out_length) {
    const setun_beside *entry;
    *out = NULL;
    *out_length = 0;
    SETUN_TRY(get_beside(file, name, false, &entry));
    if (entry && entry->text) {
        *out = entry->text;
        *out_length = entry->length;
    }
    return SETUN_OK;
}

void setun_file_free_beside(setun_file *file) {
    for (setun_beside *entry = file->beside; entry;) {
        setun_beside *next = entry->next;
        if (entry->json) json_decref(entry->json);
        setun_free(entry->text);
        setun_free(entry->name);
        setun_free(entry);
        entry = next;
    }
    file->beside = NULL;
}
