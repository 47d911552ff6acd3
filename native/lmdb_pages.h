/* A table of an LMDB file as one of its snapshots has it: the pages of LMDB 0.9 (MDB_DATA_VERSION 1) on a little-endian machine.
 *
 * Only reading, and only while a read transaction of the same environment holds the snapshot: then its pages are not used again.
 * Every place is checked against the file and its page before it is read, so that a damaged file is told, not followed. */
#ifndef TAILORBIRD_LMDB_PAGES_H
#define TAILORBIRD_LMDB_PAGES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    TB_LMDB_MAGIC_AT = 16, /* of a meta page, behind the page's head: magic, version, address, map size, two trees, ... */
    TB_LMDB_MAIN_AT = TB_LMDB_MAGIC_AT + 24 + 48,
    TB_LMDB_LAST_PAGE_AT = TB_LMDB_MAIN_AT + 48,
    TB_LMDB_TXN_AT = TB_LMDB_LAST_PAGE_AT + 8,
    TB_LMDB_META_END = TB_LMDB_TXN_AT + 8,
    TB_LMDB_PAGE_SIZE_AT = TB_LMDB_MAGIC_AT + 24, /* kept where the tree of free pages would have its padding */
    TB_LMDB_TREE_BYTES = 48, /* padding u32, flags u16, depth u16, three counts of pages, count of entries, root */
    TB_LMDB_TREE_FLAGS_AT = 4,
    TB_LMDB_TREE_ROOT_AT = 40,
    TB_LMDB_PAGE_FLAGS_AT = 10, /* of a page: number u64, padding u16, flags u16, where its free room begins and ends u16 */
    TB_LMDB_PAGE_LOWER_AT = 12,
    TB_LMDB_PAGE_HEAD = 16,
    TB_LMDB_NODE_HEAD = 8, /* of an entry: low and high half of a size or page, flags, size of the key */
    TB_LMDB_BRANCH = 0x01,
    TB_LMDB_LEAF = 0x02,
    TB_LMDB_OVERFLOW = 0x04,
    TB_LMDB_BIG = 0x01, /* an entry whose value has pages of its own */
    TB_LMDB_SUBTREE = 0x02,
    TB_LMDB_DEPTH_MAX = 32,
};
#define TB_LMDB_MAGIC 0xBEEFC0DEu
#define TB_LMDB_VERSION 1u
#define TB_LMDB_NO_PAGE UINT64_MAX

/* What a step of a cursor came to. */
enum { TB_LMDB_DAMAGED = -1, TB_LMDB_END = 0, TB_LMDB_FOUND = 1 };

typedef struct {
    const uint8_t *map;
    size_t page_bytes;
    uint64_t page_count; /* of the snapshot */
    uint64_t root;       /* TB_LMDB_NO_PAGE of an empty table */
} tb_lmdb_tree;

typedef struct {
    const uint8_t *data;
    size_t length;
} tb_lmdb_bytes;

/* A place in a tree: the pages from the root down, and the entry in each. */
typedef struct {
    const tb_lmdb_tree *tree;
    int depth;
    const uint8_t *pages[TB_LMDB_DEPTH_MAX];
    uint32_t at[TB_LMDB_DEPTH_MAX];
} tb_lmdb_cursor;

static inline uint16_t tb_lmdb_u16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t tb_lmdb_u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* memcmp, with the first 8 bytes, in which keys that are hashes differ, as one number. */
static inline int tb_lmdb_compare(const uint8_t *a, size_t a_length, const uint8_t *b, size_t b_length) {
    size_t common = a_length < b_length ? a_length : b_length;
    if (common >= 8) {
        uint64_t first = __builtin_bswap64(tb_lmdb_u64(a)), second = __builtin_bswap64(tb_lmdb_u64(b));
        if (first != second) return first < second ? -1 : 1;
    }
    int order = memcmp(a, b, common);
    return order != 0 ? order : (a_length > b_length) - (a_length < b_length);
}

/* A page of the snapshot that is of a kind, or NULL. */
static inline const uint8_t *tb_lmdb_page(const tb_lmdb_tree *tree, uint64_t number, unsigned kinds) {
    if (number >= tree->page_count) return NULL;
    const uint8_t *page = tree->map + number * tree->page_bytes;
    return tb_lmdb_u64(page) == number && tb_lmdb_u16(page + TB_LMDB_PAGE_FLAGS_AT) & kinds ? page : NULL;
}

static inline uint32_t tb_lmdb_entry_count(const tb_lmdb_tree *tree, const uint8_t *page) {
    size_t lower = tb_lmdb_u16(page + TB_LMDB_PAGE_LOWER_AT);
    return lower < TB_LMDB_PAGE_HEAD || lower > tree->page_bytes ? 0 : (uint32_t)(lower - TB_LMDB_PAGE_HEAD) / 2;
}

/* An entry of a page with its key inside the page, or NULL. */
static inline const uint8_t *tb_lmdb_node(const tb_lmdb_tree *tree, const uint8_t *page, uint32_t index, tb_lmdb_bytes *key) {
    size_t at = tb_lmdb_u16(page + TB_LMDB_PAGE_HEAD + 2 * index);
    if (at + TB_LMDB_NODE_HEAD > tree->page_bytes) return NULL;
    const uint8_t *node = page + at;
    key->data = node + TB_LMDB_NODE_HEAD;
    key->length = tb_lmdb_u16(node + 6);
    return at + TB_LMDB_NODE_HEAD + key->length <= tree->page_bytes ? node : NULL;
}

static inline int tb_lmdb_is_branch(const uint8_t *page) {
    return (tb_lmdb_u16(page + TB_LMDB_PAGE_FLAGS_AT) & TB_LMDB_BRANCH) != 0;
}

/* The first entry of a page whose key is not below one, from `low` on: its index, or the count of entries; -1 of a damaged page. */
static inline int64_t tb_lmdb_search(const tb_lmdb_tree *tree, const uint8_t *page, uint32_t low, const uint8_t *key, size_t length,
                                     int *is_exact) {
    uint32_t high = tb_lmdb_entry_count(tree, page);
    *is_exact = 0;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        tb_lmdb_bytes found;
        if (tb_lmdb_node(tree, page, middle, &found) == NULL) return -1;
        int order = tb_lmdb_compare(found.data, found.length, key, length);
        if (order == 0) {
            *is_exact = 1;
            return middle;
        }
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Puts the page that a branch's entry points to below it. */
static inline int tb_lmdb_descend(tb_lmdb_cursor *cursor) {
    const uint8_t *page = cursor->pages[cursor->depth - 1];
    tb_lmdb_bytes key;
    const uint8_t *node = tb_lmdb_node(cursor->tree, page, cursor->at[cursor->depth - 1], &key);
    if (node == NULL || cursor->depth == TB_LMDB_DEPTH_MAX) return TB_LMDB_DAMAGED;
    uint64_t number = tb_lmdb_u16(node) | (uint64_t)tb_lmdb_u16(node + 2) << 16 | (uint64_t)tb_lmdb_u16(node + 4) << 32;
    page = tb_lmdb_page(cursor->tree, number, TB_LMDB_BRANCH | TB_LMDB_LEAF);
    if (page == NULL || tb_lmdb_entry_count(cursor->tree, page) == 0) return TB_LMDB_DAMAGED;
    cursor->pages[cursor->depth] = page;
    cursor->at[cursor->depth++] = 0;
    return TB_LMDB_FOUND;
}

/* Moves on to the first entry of the next leaf. */
static inline int tb_lmdb_next_leaf(tb_lmdb_cursor *cursor) {
    do {
        if (--cursor->depth == 0) return TB_LMDB_END;
    } while (++cursor->at[cursor->depth - 1] >= tb_lmdb_entry_count(cursor->tree, cursor->pages[cursor->depth - 1]));
    while (tb_lmdb_is_branch(cursor->pages[cursor->depth - 1]))
        if (tb_lmdb_descend(cursor) != TB_LMDB_FOUND) return TB_LMDB_DAMAGED;
    return TB_LMDB_FOUND;
}

/* Moves to the first entry whose key is not below one; `is_exact` tells whether it is that one. After anything but FOUND the cursor
 * is nowhere. */
static inline int tb_lmdb_seek(const tb_lmdb_tree *tree, tb_lmdb_cursor *cursor, const uint8_t *key, size_t length, int *is_exact) {
    cursor->tree = tree;
    cursor->depth = *is_exact = 0;
    if (tree->root == TB_LMDB_NO_PAGE) return TB_LMDB_END;
    const uint8_t *page = tb_lmdb_page(tree, tree->root, TB_LMDB_BRANCH | TB_LMDB_LEAF);
    if (page == NULL || tb_lmdb_entry_count(tree, page) == 0) return TB_LMDB_DAMAGED;
    cursor->pages[0] = page;
    cursor->depth = 1;
    while (tb_lmdb_is_branch(page)) {
        int64_t child = tb_lmdb_search(tree, page, 1, key, length, is_exact); /* the first key of a branch stands for all below */
        if (child < 0) return TB_LMDB_DAMAGED;
        cursor->at[cursor->depth - 1] = (uint32_t)(*is_exact ? child : child - 1);
        if (tb_lmdb_descend(cursor) != TB_LMDB_FOUND) return TB_LMDB_DAMAGED;
        page = cursor->pages[cursor->depth - 1];
    }
    int64_t index = tb_lmdb_search(tree, page, 0, key, length, is_exact);
    if (index < 0) return TB_LMDB_DAMAGED;
    cursor->at[cursor->depth - 1] = (uint32_t)index;
    return index < tb_lmdb_entry_count(tree, page) ? TB_LMDB_FOUND : tb_lmdb_next_leaf(cursor);
}

/* Moves to the next entry. */
static inline int tb_lmdb_next(tb_lmdb_cursor *cursor) {
    if (cursor->depth == 0) return TB_LMDB_END;
    if (++cursor->at[cursor->depth - 1] < tb_lmdb_entry_count(cursor->tree, cursor->pages[cursor->depth - 1])) return TB_LMDB_FOUND;
    return tb_lmdb_next_leaf(cursor);
}

/* The entry a cursor is on. */
static inline int tb_lmdb_entry(const tb_lmdb_cursor *cursor, tb_lmdb_bytes *key, tb_lmdb_bytes *value) {
    const tb_lmdb_tree *tree = cursor->tree;
    if (cursor->depth == 0) return TB_LMDB_END;
    const uint8_t *page = cursor->pages[cursor->depth - 1];
    const uint8_t *node = tb_lmdb_node(tree, page, cursor->at[cursor->depth - 1], key);
    if (node == NULL) return TB_LMDB_DAMAGED;
    value->data = key->data + key->length;
    value->length = tb_lmdb_u16(node) | (size_t)tb_lmdb_u16(node + 2) << 16;
    size_t room = tree->page_bytes - (size_t)(value->data - page);
    if (tb_lmdb_u16(node + 4) & TB_LMDB_BIG) {
        if (room < 8) return TB_LMDB_DAMAGED;
        uint64_t number = tb_lmdb_u64(value->data);
        page = tb_lmdb_page(tree, number, TB_LMDB_OVERFLOW);
        if (page == NULL) return TB_LMDB_DAMAGED;
        value->data = page + TB_LMDB_PAGE_HEAD;
        room = (size_t)(tree->page_count - number) * tree->page_bytes - TB_LMDB_PAGE_HEAD;
    }
    return value->length <= room ? TB_LMDB_FOUND : TB_LMDB_DAMAGED;
}

/* Finds the tree of all tables in the snapshot of a transaction, in a map of at least two pages. Returns DAMAGED of a file of another
 * kind, END where the file has gone on and does not know that snapshot any more. */
static inline int tb_lmdb_snapshot(const uint8_t *map, size_t map_bytes, uint64_t txn, tb_lmdb_tree *tree) {
    uint32_t magic[2], page_bytes;
    memcpy(&page_bytes, map + TB_LMDB_PAGE_SIZE_AT, sizeof page_bytes);
    if (page_bytes < 512 || page_bytes > 65536 || page_bytes & (page_bytes - 1) || map_bytes < 2 * (size_t)page_bytes)
        return TB_LMDB_DAMAGED;
    for (int i = 0; i < 2; i++) {
        const volatile uint64_t *told = (const volatile uint64_t *)(const void *)(map + i * page_bytes + TB_LMDB_TXN_AT);
        const uint8_t *meta = map + i * page_bytes;
        memcpy(magic, meta + TB_LMDB_MAGIC_AT, sizeof magic);
        if (magic[0] != TB_LMDB_MAGIC || magic[1] != TB_LMDB_VERSION) return TB_LMDB_DAMAGED;
        if (*told != txn) continue;
        uint64_t root = tb_lmdb_u64(meta + TB_LMDB_MAIN_AT + TB_LMDB_TREE_ROOT_AT), last = tb_lmdb_u64(meta + TB_LMDB_LAST_PAGE_AT);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (*told != txn) continue; /* written over meanwhile */
        if (last >= map_bytes / page_bytes) return TB_LMDB_DAMAGED;
        *tree = (tb_lmdb_tree){.map = map, .page_bytes = page_bytes, .page_count = last + 1, .root = root};
        return TB_LMDB_FOUND;
    }
    return TB_LMDB_END;
}

/* Finds a table by its name in the tree of all; one of plain keys in their order, each with one value. */
static inline int tb_lmdb_table(const tb_lmdb_tree *all, const uint8_t *name, size_t length, tb_lmdb_tree *table) {
    tb_lmdb_cursor cursor;
    tb_lmdb_bytes key, value;
    int is_exact, status = tb_lmdb_seek(all, &cursor, name, length, &is_exact);
    if (status != TB_LMDB_FOUND || !is_exact) return status == TB_LMDB_DAMAGED ? TB_LMDB_DAMAGED : TB_LMDB_END;
    const uint8_t *page = cursor.pages[cursor.depth - 1];
    const uint8_t *node = tb_lmdb_node(all, page, cursor.at[cursor.depth - 1], &key);
    if (tb_lmdb_entry(&cursor, &key, &value) != TB_LMDB_FOUND || value.length != TB_LMDB_TREE_BYTES ||
        tb_lmdb_u16(node + 4) != TB_LMDB_SUBTREE || tb_lmdb_u16(value.data + TB_LMDB_TREE_FLAGS_AT) != 0)
        return TB_LMDB_DAMAGED;
    *table = *all;
    table->root = tb_lmdb_u64(value.data + TB_LMDB_TREE_ROOT_AT);
    return TB_LMDB_FOUND;
}

#endif
