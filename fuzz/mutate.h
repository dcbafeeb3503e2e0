/*
 * mutate.h - what the structure-aware mutators share: random numbers, growing bytes, and JSON changed in one place. Linked with
 * libFuzzer only; an allocation that fails ends the program.
 */
#ifndef SETUN_FUZZ_MUTATE_H
#define SETUN_FUZZ_MUTATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);

/* ---- random ---- */

static uint64_t mutate_state;
static inline uint32_t any(uint32_t below) { /* 0 .. below-1 */
    mutate_state = mutate_state * 6364136223846793005u + 1442695040888963407u;
    return below ? (uint32_t)((mutate_state >> 33) % below) : 0;
}
static inline void any_seed(unsigned seed) { mutate_state = seed * 0x9e3779b97f4a7c15u + 1; }

/* A number in the place of `old`: near it, or one that has broken programs before. */
static inline int64_t any_integer(int64_t old) {
    static const int64_t known[] = {0, 1, -1, 2, 3, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 4096, 65535, 65536, 1 << 20, 1 << 24, INT32_MAX, INT32_MIN, (int64_t)1 << 31, UINT32_MAX, (int64_t)1 << 32, (int64_t)1 << 56, INT64_MAX, INT64_MIN};
    switch (any(6)) {
    case 0: return (int64_t)((uint64_t)old + 1);
    case 1: return (int64_t)((uint64_t)old - 1);
    case 2: return (int64_t)((uint64_t)old * 2);
    case 3: return old / 2;
    default: return known[any(sizeof known / sizeof known[0])];
    }
}

static inline double any_real(double old) {
    static const double known[] = {0, 1, -1, 0.5, 1e-5, 1e-30, 1e-40, 1e-310, 1e30, 1e39, 1e300, -1e300, 10000, 500000};
    return any(3) ? known[any(sizeof known / sizeof known[0])] : old * (any(2) ? 2 : 0.5);
}

/* Words that mean something in some file. */
static const char *const mutate_words[] = {
    "llama", "bitnet", "bitnet-b1.58", "bitnet-25", "qwen2", "qwen3", "gemma3", "minicpm", "LlamaForCausalLM", "BitNetForCausalLM", "BitnetForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3Model",
    "Gemma3TextModel", "Gemma3ForCausalLM", "MiniCPMForCausalLM", "silu", "relu2", "gelu_pytorch_tanh", "linear", "llama3", "yarn", "longrope", "default", "none", "bitlinear", "autobitlinear", "offline", "online",
    "bitnet", "gpt2", "t5", "llama-bpe", "qwen2", "smollm", "default", "BPE", "Unigram", "ByteLevel", "Metaspace", "Split", "Sequence", "Isolated", "Removed", "NFC", "NFKC", "Lowercase", "Prepend", "Replace", "Strip",
    "Precompiled", "TemplateProcessing", "\xe2\x96\x81", "<0x41>", "<unk>", "<s>", "", " ", "a b", "\xc4\xa0", "(?:", "(a+)+$", "\\p{L}+", "{{", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages[0] }}",
    "normalized-sylvester-walsh-hadamard", "input-last-dimension", "identity", "random", "token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight",
    "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "blk.0.attn_sub_norm.weight", "blk.4095.attn_q.weight", "blk.2147483648.attn_q.weight", "rope_freqs.weight", "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.up_proj.weight_scale", "model.layers.0.mlp.up_proj.scales", "model.layers.0.mlp.up_proj.norm.weight", "lm_head.weight", "model.norm.weight",
};
static inline const char *any_word(void) { return mutate_words[any(sizeof mutate_words / sizeof mutate_words[0])]; }

/* ---- bytes ---- */

typedef struct bytes { uint8_t *data; size_t size, capacity; } bytes;

static inline void put(bytes *b, const void *data, size_t size) {
    if (b->size + size > b->capacity) {
        b->capacity = 2 * (b->size + size) + 64;
        b->data = realloc(b->data, b->capacity);
        if (!b->data) abort();
    }
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}
static inline void put_u32(bytes *b, uint32_t v) { put(b, &v, 4); }
static inline void put_u64(bytes *b, uint64_t v) { put(b, &v, 8); }
static inline void put_zeros(bytes *b, size_t count) { while (count--) put(b, "", 1); }
/* As many bytes as wanted, by repeating what there is. */
static inline void resize(bytes *b, size_t size) {
    size_t old = b->size;
    if (old == 0) put_zeros(b, size);
    while (b->size < size) {
        uint8_t c = b->data[b->size % old];
        put(b, &c, 1);
    }
    b->size = size;
}
static inline bytes bytes_of(const void *data, size_t size) {
    bytes b = {0};
    put(&b, data, size);
    return b;
}

/* Numbers that no weight should be, and small changes. */
static inline void mutate_numbers(bytes *b) {
    static const uint32_t known[] = {0x7fc00000, 0x7f800000, 0xff800000, 0, 0x80000000, 1, 0x7f7fffff, 0x3f800000, 0x7c007c00, 0x7e007e00, 0xffffffff};
    if (b->size < 4) return;
    size_t at = any((uint32_t)(b->size - 3));
    if (any(2)) memcpy(b->data + (at & ~(size_t)3), &known[any(sizeof known / sizeof known[0])], 4);
    else b->data[at] = (uint8_t)any(256);
}

/* ---- JSON ---- */

typedef struct json_place { json_t *parent, *value; const char *key; size_t index; } json_place;
typedef struct json_places { json_place *items; size_t count, capacity; } json_places;

static inline void json_collect(json_t *parent, json_places *p, int depth) {
    const char *key;
    size_t index;
    json_t *value;
    if (depth > 30) return;
    bool list = json_is_array(parent);
    for (int pass = 0; pass < 2; pass++) { /* all of this level, then what lies deeper */
        if (list) {
            json_array_foreach(parent, index, value) {
                if (pass) { json_collect(value, p, depth + 1); continue; }
                if (p->count == p->capacity && !(p->items = realloc(p->items, (p->capacity = 2 * p->capacity + 64) * sizeof *p->items))) abort();
                p->items[p->count++] = (json_place){parent, value, NULL, index};
            }
        } else {
            json_object_foreach(parent, key, value) {
                if (pass) { json_collect(value, p, depth + 1); continue; }
                if (p->count == p->capacity && !(p->items = realloc(p->items, (p->capacity = 2 * p->capacity + 64) * sizeof *p->items))) abort();
                p->items[p->count++] = (json_place){parent, value, key, 0};
            }
        }
    }
}

static inline json_t *any_json(const json_t *old) {
    char text[300];
    switch (any(12)) {
    case 0: return json_null();
    case 1: return json_boolean(any(2));
    case 2: return json_integer(any_integer(json_integer_value(old)));
    case 3: return json_real(any_real(json_number_value(old)));
    case 4: return json_string(any_word());
    case 5: return json_pack("[i, s, b]", (int)any(300), any_word(), 1);
    case 6: return json_pack("{s:i, s:s}", "type", (int)any(9), "content", any_word());
    case 7: return json_pack("[O, O]", old, old);
    case 8: return json_pack("{s:O}", any_word(), old);
    default: break;
    }
    if (json_is_integer(old)) return json_integer(any_integer(json_integer_value(old)));
    if (json_is_real(old)) return json_real(any_real(json_real_value(old)));
    if (json_is_boolean(old)) return json_boolean(!json_is_true(old));
    if (json_is_string(old)) {
        size_t length = json_string_length(old);
        if (length > 250) length = 250;
        memcpy(text, json_string_value(old), length);
        for (size_t i = 0; i < length; i++)
            if (any((uint32_t)length + 1) == 0) text[i] = (char)(0x20 + any(95));
        if (any(4) == 0) length = any((uint32_t)length + 1);
        json_t *s = json_stringn(text, length);
        return s ? s : json_string(any_word());
    }
    return json_string(any_word());
}

/* Changes one place; false where there is none. */
static inline bool json_mutate(json_t *root) {
    json_places p = {0};
    json_collect(root, &p, 0);
    if (p.count) {
        const json_place *place = &p.items[any((uint32_t)p.count)], *other = &p.items[any((uint32_t)p.count)];
        json_t *value = any(5) == 0 ? json_deep_copy(other->value) : any_json(place->value);
        bool remove = any(8) == 0, more = any(8) == 0;
        if (place->key) {
            char key[200];
            strncpy(key, place->key, sizeof key - 1);
            key[sizeof key - 1] = 0;
            if (remove) json_object_del(place->parent, key);
            else json_object_set(place->parent, more ? any_word() : key, value);
        } else if (remove) {
            json_array_remove(place->parent, place->index);
        } else if (more) {
            json_array_insert(place->parent, place->index, value);
        } else {
            json_array_set(place->parent, place->index, value);
        }
        json_decref(value);
    }
    free(p.items);
    return p.count > 0;
}

/* Every whole number `from` becomes `to`. */
static inline void json_replace_number(json_t *root, int64_t from, int64_t to) {
    json_places p = {0};
    json_collect(root, &p, 0);
    for (size_t i = 0; i < p.count; i++)
        if (json_is_integer(p.items[i].value) && json_integer_value(p.items[i].value) == from) json_integer_set(p.items[i].value, to);
    free(p.items);
}

static inline void put_json(bytes *b, const json_t *json) {
    char *text = json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY);
    if (text) put(b, text, strlen(text));
    free(text);
}

/* JSON text changed in one to three places; text that is none is left to libFuzzer. */
static inline size_t mutate_json_text(uint8_t *data, size_t size, size_t most) {
    json_t *root = any(5) ? json_loadb((const char *)data, size, 0, NULL) : NULL;
    if (!root) return LLVMFuzzerMutate(data, size, most);
    for (uint32_t i = 0; i <= any(3); i++)
        if (!json_mutate(root)) break;
    bytes out = {0};
    put_json(&out, root);
    json_decref(root);
    if (out.size && out.size <= most) {
        memcpy(data, out.data, out.size);
        size = out.size;
    }
    free(out.data);
    return size;
}

#endif
