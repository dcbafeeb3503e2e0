/*
 * trie.c - a trie of byte strings whose edges live in one hash table, and the small growing lists of this room.
 * Caller: added tokens (longest match) and unigram (all prefixes). Knows nothing of text.
 */
#include "text/tokenizer.h"

static setun_status grow_slots(trie *t)
{
    uint64_t slots = t->slots ? t->slots * 2 : 256;
    uint64_t *keys = setun_calloc(slots, sizeof *keys);
    uint32_t *children = setun_alloc(slots * sizeof *children);
    if (!keys || !children) {
        setun_free(keys);
        setun_free(children);
        return setun_fail_memory(slots * (sizeof *keys + sizeof *children));
    }
    for (uint64_t i = 0; i < t->slots; i++) {
        if (!t->keys[i])
            continue;
        uint64_t j = trie_hash(t->keys[i]) & (slots - 1);
        while (keys[j])
            j = (j + 1) & (slots - 1);
        keys[j] = t->keys[i];
        children[j] = t->children[i];
    }
    setun_free(t->keys);
    setun_free(t->children);
    t->keys = keys;
    t->children = children;
    t->slots = slots;
    return SETUN_OK;
}

static setun_status new_node(trie *t)
{
    if (t->nodes == t->capacity) {
        uint32_t capacity = t->capacity ? t->capacity * 2 : 64;
        if (capacity >= 1u << 31)
            return setun_fail(SETUN_ERROR_UNSUPPORTED, "the vocabulary's texts are too long in all");
        int32_t *grown = setun_realloc(t->values, capacity * sizeof *grown);
        if (!grown)
            return setun_fail_memory(capacity * sizeof *grown);
        t->values = grown;
        t->capacity = capacity;
    }
    t->values[t->nodes++] = -1;
    return SETUN_OK;
}

setun_status trie_add(trie *t, const char *text, size_t length, int32_t value)
{
    if (!t->nodes)
        SETUN_TRY(new_node(t));
    if (!t->slots)
        SETUN_TRY(grow_slots(t));
    uint32_t node = 0;
    for (size_t i = 0; i < length; i++) {
        uint32_t child = trie_step(t, node, (uint8_t)text[i]);
        if (child == TRIE_NONE) {
            if ((uint64_t)t->nodes * 2 > t->slots) /* one edge a node: at most half full */
                SETUN_TRY(grow_slots(t));
            child = t->nodes;
            SETUN_TRY(new_node(t));
            uint64_t key = ((uint64_t)node << 8 | (uint8_t)text[i]) + 1, j = trie_hash(key) & (t->slots - 1);
            while (t->keys[j])
                j = (j + 1) & (t->slots - 1);
            t->keys[j] = key;
            t->children[j] = child;
        }
        node = child;
    }
    t->values[node] = value;
    return SETUN_OK;
}

void trie_clear(trie *t)
{
    setun_free(t->keys);
    setun_free(t->children);
    setun_free(t->values);
    memset(t, 0, sizeof *t);
}

/* A list's next capacity; NULL and a message when there is no memory. */
static void *grow(void *items, size_t *capacity, size_t size)
{
    size_t larger = *capacity ? *capacity * 2 : 64;
    void *grown = setun_realloc(items, larger * size);
    if (grown)
        *capacity = larger;
    else
        setun_fail_memory(larger * size);
    return grown;
}

setun_status id_list_push(id_list *list, int32_t id)
{
    if (list->count == list->capacity) {
        int32_t *grown = grow(list->items, &list->capacity, sizeof *grown);
        if (!grown)
            return SETUN_ERROR_MEMORY;
        list->items = grown;
    }
    list->items[list->count++] = id;
    return SETUN_OK;
}

setun_status span_list_push(span_list *list, size_t start, size_t end)
{
    if (list->count == list->capacity) {
        text_span *grown = grow(list->items, &list->capacity, sizeof *grown);
        if (!grown)
            return SETUN_ERROR_MEMORY;
        list->items = grown;
    }
    list->items[list->count++] = (text_span){(uint32_t)start, (uint32_t)end};
    return SETUN_OK;
}

setun_status added_push(setun_tokenizer *t, added_token one)
{
    added_set *set = &t->added;
    if (set->count == set->capacity) {
        added_token *grown = grow(set->items, &set->capacity, sizeof *grown);
        if (!grown)
            return SETUN_ERROR_MEMORY;
        set->items = grown;
    }
    set->items[set->count++] = one;
    return SETUN_OK;
}
