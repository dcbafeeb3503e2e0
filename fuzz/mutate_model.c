/*
 * mutate_model.c - takes a model file apart, changes one or two things of it and puts it together again, so that what is behind
 * the header gets tried: hyper-parameters, names, types, shapes (with as much data as they ask for), numbers in the data.
 * Linked with fuzz_model.c under libFuzzer.
 */
#include "mutate.h"
#include "file/file.h"
#include "folder.h"

#define ITEMS_MOST 600
#define DATA_MOST 65536

/* A GGUF value or tensor. */
typedef struct item {
    bytes name, data;      /* value: what follows its type; tensor: its data */
    uint32_t type, rank;
    uint64_t shape[4];     /* outermost first */
    uint64_t offset;
    char dtype[12];        /* safetensors */
} item;

typedef struct parts { item values[ITEMS_MOST], tensors[ITEMS_MOST]; size_t value_count, tensor_count; } parts;

static void clear_item(item *x) {
    free(x->name.data);
    free(x->data.data);
    memset(x, 0, sizeof *x);
}

static void clear(parts *p) {
    for (size_t i = 0; i < p->value_count; i++) clear_item(&p->values[i]);
    for (size_t i = 0; i < p->tensor_count; i++) clear_item(&p->tensors[i]);
    p->value_count = p->tensor_count = 0;
}

static void copy_item(item *to, const item *from) {
    *to = *from;
    to->name = bytes_of(from->name.data, from->name.size);
    to->data = bytes_of(from->data.data, from->data.size);
}

static void set_name(item *x, const char *name) {
    x->name.size = 0;
    put(&x->name, name, strlen(name));
}

/* Removes, doubles under another name, renames: one of them; false: something else is to be done with item k. */
static bool mutate_list(item *items, size_t *count, size_t k) {
    switch (any(12)) {
    case 0:
        clear_item(&items[k]);
        memmove(items + k, items + k + 1, (*count - k - 1) * sizeof *items);
        (*count)--;
        return true;
    case 1:
        if (*count == ITEMS_MOST) return true;
        copy_item(&items[*count], &items[k]);
        set_name(&items[(*count)++], any_word());
        return true;
    case 2: {
        bytes name = items[k].name;
        size_t other = any((uint32_t)*count);
        items[k].name = items[other].name;
        items[other].name = name;
        return true;
    }
    default: return false;
    }
}

/* ---- GGUF ---- */

typedef struct reader { const uint8_t *data; size_t size, at; bool bad; } reader;

static const uint8_t *take(reader *r, uint64_t count) {
    if (r->bad || count > r->size - r->at) {
        r->bad = true;
        return (const uint8_t *)"\0\0\0\0\0\0\0";
    }
    r->at += count;
    return r->data + r->at - count;
}
static uint32_t take_u32(reader *r) { return setun_load_u32(take(r, 4)); }
static uint64_t take_u64(reader *r) { return setun_load_u64(take(r, 8)); }
static bytes take_string(reader *r) {
    uint64_t length = take_u64(r);
    const uint8_t *p = take(r, length);
    return r->bad ? (bytes){0} : bytes_of(p, length);
}

static unsigned width_of(uint32_t type) {
    static const unsigned widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < 13 ? widths[type] : 0;
}

static void skip_value(reader *r, uint32_t type) {
    if (type == SETUN_VALUE_STRING) {
        take(r, take_u64(r));
    } else if (type == SETUN_VALUE_ARRAY) {
        uint32_t element = take_u32(r);
        uint64_t count = take_u64(r);
        unsigned width = width_of(element);
        if (element == SETUN_VALUE_STRING) for (uint64_t i = 0; i < count && !r->bad; i++) take(r, take_u64(r));
        else if (!width || count > r->size) r->bad = true;
        else take(r, count * width);
    } else if (width_of(type)) {
        take(r, width_of(type));
    } else {
        r->bad = true;
    }
}

static bool read_gguf(reader *r, parts *p) {
    take(r, 8);
    uint64_t tensors = take_u64(r), values = take_u64(r);
    if (r->bad || tensors > ITEMS_MOST || values > ITEMS_MOST) return false;
    uint32_t alignment = 32;
    for (uint64_t i = 0; i < values && !r->bad; i++) {
        item *v = &p->values[p->value_count++];
        memset(v, 0, sizeof *v);
        v->name = take_string(r);
        v->type = take_u32(r);
        size_t start = r->at;
        skip_value(r, v->type);
        v->data = bytes_of(r->data + start, r->at - start);
        if (v->name.size == 17 && !memcmp(v->name.data, "general.alignment", 17) && v->data.size == 4) alignment = setun_load_u32(v->data.data);
    }
    if (alignment == 0 || alignment > 4096) alignment = 32;
    for (uint64_t i = 0; i < tensors && !r->bad; i++) {
        item *t = &p->tensors[p->tensor_count++];
        memset(t, 0, sizeof *t);
        t->name = take_string(r);
        t->rank = take_u32(r);
        if (t->rank > 4) return false;
        for (uint32_t k = 0; k < t->rank; k++) t->shape[t->rank - 1 - k] = take_u64(r);
        t->type = take_u32(r);
        t->offset = take_u64(r);
    }
    if (r->bad) return false;
    size_t data = (r->at + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < p->tensor_count; i++) {
        item *t = &p->tensors[i];
        if (data > r->size || t->offset > r->size - data) continue;
        uint64_t end = r->size - data;
        for (size_t k = 0; k < p->tensor_count; k++)
            if (p->tensors[k].offset > t->offset && p->tensors[k].offset < end) end = p->tensors[k].offset;
        t->data = bytes_of(r->data + data + t->offset, end - t->offset);
    }
    return true;
}

static void write_gguf(const parts *p, bytes *out) {
    put(out, "GGUF\3\0\0\0", 8);
    put_u64(out, p->tensor_count);
    put_u64(out, p->value_count);
    for (size_t i = 0; i < p->value_count; i++) {
        const item *v = &p->values[i];
        put_u64(out, v->name.size);
        put(out, v->name.data, v->name.size);
        put_u32(out, v->type);
        put(out, v->data.data, v->data.size);
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < p->tensor_count; i++) {
        const item *t = &p->tensors[i];
        put_u64(out, t->name.size);
        put(out, t->name.data, t->name.size);
        put_u32(out, t->rank);
        for (uint32_t k = 0; k < t->rank; k++) put_u64(out, t->shape[t->rank - 1 - k]);
        put_u32(out, t->type);
        put_u64(out, offset);
        offset += (t->data.size + 31) / 32 * 32;
    }
    for (size_t i = 0; i < p->tensor_count; i++) {
        put_zeros(out, (32 - out->size % 32) % 32);
        put(out, p->tensors[i].data.data, p->tensors[i].data.size);
    }
}

static int64_t number_of(const item *v) {
    uint64_t n = 0;
    if (width_of(v->type) && v->data.size <= 8) memcpy(&n, v->data.data, v->data.size);
    return (int64_t)n;
}

static void put_number(bytes *b, uint32_t type, int64_t old) {
    if (type == SETUN_VALUE_F32) {
        float f = (float)any_real(1);
        put(b, &f, 4);
    } else if (type == SETUN_VALUE_F64) {
        double f = any_real(1);
        put(b, &f, 8);
    } else {
        int64_t n = type == SETUN_VALUE_BOOL ? !old : any_integer(old);
        put(b, &n, width_of(type));
    }
}

static void put_text(bytes *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void mutate_array(item *v) {
    reader r = {v->data.data, v->data.size, 0, false};
    uint32_t element = take_u32(&r);
    uint64_t count = take_u64(&r), chosen = any((uint32_t)count), left_out = any(4) ? UINT64_MAX : any((uint32_t)count), twice = any(6) ? UINT64_MAX : any((uint32_t)count);
    if (any(10) == 0) left_out = chosen = UINT64_MAX;
    bytes out = {0};
    put_u32(&out, element);
    put_u64(&out, count - (left_out < count) + (twice < count && twice != left_out));
    for (uint64_t i = 0; i < count && !r.bad; i++) {
        size_t start = r.at;
        skip_value(&r, element);
        if (i == left_out) continue;
        for (int k = 0; k < 1 + (i == twice); k++) {
            if (i == chosen && element == SETUN_VALUE_STRING) put_text(&out, any_word());
            else if (i == chosen) put_number(&out, element, v->data.data[start]);
            else put(&out, v->data.data + start, r.at - start);
        }
    }
    free(v->data.data);
    v->data = out;
}

static void mutate_value(item *v) {
    if (v->type == SETUN_VALUE_ARRAY && any(10)) {
        mutate_array(v);
        return;
    }
    int64_t old = number_of(v);
    bool text = any(8) == 0 ? any(2) : v->type == SETUN_VALUE_STRING;
    v->data.size = 0;
    if (text) {
        v->type = SETUN_VALUE_STRING;
        put_text(&v->data, any_word());
        return;
    }
    if (!width_of(v->type) || any(6) == 0) {
        static const uint32_t types[] = {SETUN_VALUE_U8, SETUN_VALUE_I8, SETUN_VALUE_U16, SETUN_VALUE_I32, SETUN_VALUE_F32, SETUN_VALUE_BOOL, SETUN_VALUE_U64, SETUN_VALUE_I64, SETUN_VALUE_F64, SETUN_VALUE_U32};
        v->type = types[any(10)];
    }
    put_number(&v->data, v->type, old);
}

static void add_value(parts *p) {
    static const struct { const char *key; uint32_t type; } known[] = {
        {"prism.hadamard.version", SETUN_VALUE_U32}, {"prism.hadamard.block_size", SETUN_VALUE_U32}, {"prism.hadamard.sign_seed", SETUN_VALUE_U32}, {"setun.activation_int8", SETUN_VALUE_BOOL},
        {"setun.rope_scale", SETUN_VALUE_F32}, {"setun.projection_norm", SETUN_VALUE_BOOL}, {"setun.hidden_act", SETUN_VALUE_STRING}, {"llama.rope.scaling.type", SETUN_VALUE_STRING},
        {"llama.rope.scaling.factor", SETUN_VALUE_F32}, {"qwen3.rope.scaling.type", SETUN_VALUE_STRING}, {"tokenizer.ggml.pre", SETUN_VALUE_STRING}, {"tokenizer.chat_template", SETUN_VALUE_STRING},
        {"tokenizer.ggml.bos_token_id", SETUN_VALUE_U32}, {"tokenizer.ggml.model", SETUN_VALUE_STRING}, {"split.count", SETUN_VALUE_U16}, {"general.alignment", SETUN_VALUE_U32}, {"llama.vocab_size", SETUN_VALUE_U32},
        {"bitnet.attention.key_length", SETUN_VALUE_U32}, {"llama.rope.dimension_count", SETUN_VALUE_U32}, {"gemma3.attention.sliding_window", SETUN_VALUE_U32}, {"llama.expert_count", SETUN_VALUE_U32},
    };
    if (p->value_count == ITEMS_MOST) return;
    size_t k = any(sizeof known / sizeof known[0]);
    item *v = &p->values[p->value_count++];
    memset(v, 0, sizeof *v);
    set_name(v, known[k].key);
    v->type = known[k].type;
    if (v->type == SETUN_VALUE_STRING) put_text(&v->data, any_word());
    else put_number(&v->data, v->type, 32);
}

/* As many bytes as the type and the shape ask for, where that is known and small. */
static void fit_data(item *t) {
    uint64_t rows = 1, bytes_wanted, columns = t->rank ? t->shape[t->rank - 1] : 1;
    for (uint32_t i = 0; i + 1 < t->rank; i++)
        if (!setun_mul_ok(rows, t->shape[i], &rows)) return;
    if (rows > DATA_MOST || columns > DATA_MOST) return;
    if (setun_format_size(setun_format_from_gguf(t->type), (int64_t)rows, (int64_t)columns, &bytes_wanted) == SETUN_OK && bytes_wanted <= DATA_MOST) resize(&t->data, bytes_wanted);
}

static void mutate_gguf_tensor(item *t) {
    static const uint32_t types[] = {0, 1, 30, 2, 3, 8, 12, 14, 34, 35, 36, 42, 134, 135, 142, 143, 38, 39, 24, 26, 27, 40, 200};
    switch (any(6)) {
    case 0:
        t->type = types[any(sizeof types / sizeof types[0])];
        fit_data(t);
        break;
    case 1:
        if (t->rank) t->shape[any(t->rank)] = (uint64_t)any_integer((int64_t)t->shape[0]);
        fit_data(t);
        break;
    case 2:
        t->rank = any(5);
        for (uint32_t i = 0; i < t->rank; i++)
            if (!t->shape[i]) t->shape[i] = 1 + any(3);
        fit_data(t);
        break;
    case 3: resize(&t->data, any((uint32_t)t->data.size + 33)); break;
    default: mutate_numbers(&t->data);
    }
}

/* A number that the values and the shapes share: all of them become another. */
static void mutate_together(parts *p) {
    const item *t = &p->tensors[any((uint32_t)p->tensor_count)];
    if (!p->tensor_count || !t->rank) return;
    uint64_t from = t->shape[any(t->rank)], to = any(3) ? from + (uint64_t)any(3) * 64 - 64 : (uint64_t)any_integer((int64_t)from);
    for (size_t i = 0; i < p->value_count; i++) {
        item *v = &p->values[i];
        if (v->type == SETUN_VALUE_U32 && (uint64_t)number_of(v) == from) {
            v->data.size = 0;
            put_u32(&v->data, (uint32_t)to);
        }
    }
    for (size_t i = 0; i < p->tensor_count; i++) {
        bool changed = false;
        for (uint32_t k = 0; k < p->tensors[i].rank; k++)
            if (p->tensors[i].shape[k] == from) {
                p->tensors[i].shape[k] = to;
                changed = true;
            }
        if (changed) fit_data(&p->tensors[i]);
    }
}

static void mutate_gguf(const uint8_t *data, size_t size, bytes *out) {
    static parts p;
    reader r = {data, size, 0, false};
    if (read_gguf(&r, &p)) {
        for (uint32_t i = 0; i <= any(3); i++) {
            uint32_t what = any(10);
            if (what == 0) mutate_together(&p);
            else if (what == 1) add_value(&p);
            else if (what < 6 && p.value_count) {
                size_t k = any((uint32_t)p.value_count);
                if (!mutate_list(p.values, &p.value_count, k)) mutate_value(&p.values[k]);
            } else if (p.tensor_count) {
                size_t k = any((uint32_t)p.tensor_count);
                if (!mutate_list(p.tensors, &p.tensor_count, k)) mutate_gguf_tensor(&p.tensors[k]);
            }
        }
        write_gguf(&p, out);
    }
    clear(&p);
}

/* ---- safetensors and folders ---- */

static unsigned dtype_bytes(const char *dtype) {
    return !strcmp(dtype, "F64") || !strcmp(dtype, "I64") ? 8 : !strcmp(dtype, "F32") || !strcmp(dtype, "U32") || !strcmp(dtype, "I32") ? 4 : strstr(dtype, "16") ? 2 : 1;
}

static bool read_safetensors(const uint8_t *data, size_t size, parts *p) {
    uint64_t head = size >= 8 ? setun_load_u64(data) : UINT64_MAX;
    if (size < 8 || head > size - 8) return false;
    json_t *root = json_loadb((const char *)data + 8, head, 0, NULL), *value, *dimension;
    const char *key;
    size_t k;
    json_object_foreach(root, key, value) {
        const json_t *shape = json_object_get(value, "shape"), *offsets = json_object_get(value, "data_offsets");
        const char *dtype = json_string_value(json_object_get(value, "dtype"));
        if (!shape || !dtype || json_array_size(shape) > 4 || p->tensor_count == ITEMS_MOST) continue;
        item *t = &p->tensors[p->tensor_count++];
        memset(t, 0, sizeof *t);
        set_name(t, key);
        snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
        json_array_foreach(shape, k, dimension) t->shape[t->rank++] = (uint64_t)json_integer_value(dimension);
        uint64_t begin = (uint64_t)json_integer_value(json_array_get(offsets, 0)), end = (uint64_t)json_integer_value(json_array_get(offsets, 1));
        if (begin <= end && end <= size - 8 - head) t->data = bytes_of(data + 8 + head + begin, end - begin);
    }
    json_decref(root);
    return p->tensor_count > 0;
}

static void write_safetensors(const parts *p, bytes *out) {
    json_t *root = json_object();
    uint64_t at = 0;
    for (size_t i = 0; i < p->tensor_count; i++) {
        const item *t = &p->tensors[i];
        json_t *shape = json_array();
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)t->name.size, (const char *)t->name.data);
        for (uint32_t k = 0; k < t->rank; k++) json_array_append_new(shape, json_integer((json_int_t)t->shape[k]));
        json_object_set_new(root, name, json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->dtype, "shape", shape, "data_offsets", (json_int_t)at, (json_int_t)(at + t->data.size)));
        at += t->data.size;
    }
    bytes head = {0};
    put_json(&head, root);
    json_decref(root);
    while (head.size % 8) put(&head, " ", 1);
    put_u64(out, head.size);
    put(out, head.data, head.size);
    free(head.data);
    for (size_t i = 0; i < p->tensor_count; i++) put(out, p->tensors[i].data.data, p->tensors[i].data.size);
}

static void fit_safetensor(item *t) {
    uint64_t count = dtype_bytes(t->dtype);
    for (uint32_t k = 0; k < t->rank; k++)
        if (!setun_mul_ok(count, t->shape[k], &count)) return;
    if (count <= DATA_MOST) resize(&t->data, count);
}

static void mutate_safetensor(item *t) {
    static const char *const dtypes[] = {"F32", "F16", "BF16", "U8", "I8", "U32", "F64", "I64", "F8_E4M3", "BOOL"};
    switch (any(5)) {
    case 0: snprintf(t->dtype, sizeof t->dtype, "%s", dtypes[any(10)]); break;
    case 1:
        if (t->rank) t->shape[any(t->rank)] = (uint64_t)any_integer((int64_t)t->shape[0]);
        break;
    case 2:
        t->rank = any(5);
        for (uint32_t i = 0; i < t->rank; i++)
            if (!t->shape[i]) t->shape[i] = any(3);
        break;
    default: mutate_numbers(&t->data); return;
    }
    if (any(8)) fit_safetensor(t);
}

static bool mutate_safetensors(const uint8_t *data, size_t size, bytes *out, uint64_t from, uint64_t to) {
    static parts p;
    bool good = read_safetensors(data, size, &p);
    if (good && from != to) {
        for (size_t i = 0; i < p.tensor_count; i++) {
            item *t = &p.tensors[i];
            for (uint32_t k = 0; k < t->rank; k++) {
                if (t->shape[k] == from) t->shape[k] = to;
                else if (k == 0 && t->shape[k] * 4 == from) t->shape[k] = to / 4; /* packed rows */
            }
            fit_safetensor(t);
        }
    } else if (good) {
        size_t k = any((uint32_t)p.tensor_count);
        if (!mutate_list(p.tensors, &p.tensor_count, k)) mutate_safetensor(&p.tensors[k]);
    }
    if (good) write_safetensors(&p, out);
    clear(&p);
    return good;
}

static void put_part(bytes *out, unsigned which, const void *data, size_t size) {
    uint8_t c = (uint8_t)which;
    put(out, &c, 1);
    put_u32(out, (uint32_t)size);
    put(out, data, size);
}

static void mutate_folder(folder_part *parts_of, bytes *out) {
    uint32_t dice = any(20), target = dice < 7 ? 0 : dice < 11 ? 1 : dice < 16 ? 2 : dice < 18 ? 6 : 3 + any(3);
    uint64_t from = 0, to = 0;
    if (target == 6) { /* a hyper-parameter and the shapes that follow it */
        json_t *config = json_loadb((const char *)parts_of[0].data, parts_of[0].size, 0, NULL), *value;
        const char *key;
        uint32_t seen = 0;
        json_object_foreach(config, key, value)
            if (json_is_integer(value) && any(++seen) == 0) from = (uint64_t)json_integer_value(value);
        to = any(3) ? from + (uint64_t)any(5) * 4 - 8 : (uint64_t)any_integer((int64_t)from);
        json_decref(config);
    }
    put(out, FOLDER_MAGIC, sizeof FOLDER_MAGIC - 1);
    for (unsigned i = 0; i < FOLDER_FILES; i++) {
        const folder_part *part = &parts_of[i];
        if (!part->data && (i != target || i < 3)) continue;
        if (i == target && any(30) == 0) continue; /* the file is gone */
        bytes changed = {0};
        if (i == 2 && (target == 2 || target == 6) && part->data && mutate_safetensors(part->data, part->size, &changed, from, to)) {
        } else if (i == 0 && target == 6) {
            json_t *config = json_loadb((const char *)part->data, part->size, 0, NULL);
            if (config) json_replace_number(config, (int64_t)from, (int64_t)to);
            put_json(&changed, config);
            json_decref(config);
        } else if (i == target) {
            size_t room = part->size + 4096;
            changed.data = calloc(1, room);
            if (!changed.data) abort();
            if (part->size) memcpy(changed.data, part->data, part->size);
            changed.size = i == 2 || i == 5 ? LLVMFuzzerMutate(changed.data, part->size, room) : mutate_json_text(changed.data, part->size, room);
        } else {
            put(&changed, part->data, part->size);
        }
        put_part(out, i, changed.data, changed.size);
        free(changed.data);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    folder_part files[FOLDER_FILES];
    bytes out = {0};
    any_seed(seed);
    if (any(12) == 0) return LLVMFuzzerMutate(data, size, most);
    if (folder_unpack(data, size, files)) mutate_folder(files, &out);
    else if (size > 24 && !memcmp(data, "GGUF", 4)) mutate_gguf(data, size, &out);
    else (void)mutate_safetensors(data, size, &out, 0, 0);
    if (out.size == 0 || out.size > most) {
        free(out.data);
        return LLVMFuzzerMutate(data, size, most);
    }
    memcpy(data, out.data, out.size);
    size = out.size;
    free(out.data);
    return size;
}
