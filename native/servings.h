/* What was served and may not be served again yet: servings in the order they came, found by the fragment they belong to.
 *
 * Servings stand one behind the other in one block, each with the place of the one before it of the same fragment; a hash table
 * has the place of each fragment's newest. Places count the bytes of all servings that ever were, so that forgetting the oldest
 * only moves `start`: what lies before it is not there. */
#ifndef TAILORBIRD_SERVINGS_H
#define TAILORBIRD_SERVINGS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TB_FRAGMENT_BYTES 16
#define TB_NOWHERE UINT64_MAX
#define TB_SERVED_ITEMS_MAX 65536

/* As stored and logged; behind it the numbers of the items. Keys are keyed hashes: any 8 bytes of one are a hash of it. */
typedef struct {
    uint8_t fragment[TB_FRAGMENT_BYTES];
    int64_t at; /* ms since 1970 */
    uint32_t placement;
    uint32_t item_count;
} tb_serving;

_Static_assert(sizeof(tb_serving) == 32, "a serving is stored as it stands");

typedef struct {
    uint64_t before; /* place of the fragment's serving before this one */
    tb_serving serving;
} tb_served;

typedef struct {
    uint8_t fragment[TB_FRAGMENT_BYTES];
    uint64_t newest; /* place of the newest serving, TB_NOWHERE: empty */
} tb_served_slot;

typedef struct {
    uint8_t *block;
    size_t room;
    uint64_t block_start; /* place of the block's first byte */
    uint64_t start;       /* of the oldest serving kept */
    uint64_t end;
    size_t count;
    tb_served_slot *slots;
    size_t slot_count; /* 0 or a power of two */
    size_t slots_used; /* also by fragments all of whose servings are gone */
} tb_served_log;

static inline size_t tb_served_bytes(uint32_t item_count) {
    return sizeof(tb_served) + ((size_t)item_count * sizeof(uint32_t) + 7) / 8 * 8;
}

static inline tb_served *tb_served_at(const tb_served_log *log, uint64_t place) {
    return (tb_served *)(void *)(log->block + (place - log->block_start));
}

static inline const uint32_t *tb_served_items(const tb_served *served) { return (const uint32_t *)(const void *)(served + 1); }

static inline tb_served_slot *tb_served_slot_of(const tb_served_log *log, const uint8_t *fragment) {
    uint64_t at;
    memcpy(&at, fragment, sizeof at);
    for (at &= log->slot_count - 1;; at = (at + 1) & (log->slot_count - 1)) {
        tb_served_slot *slot = &log->slots[at];
        if (slot->newest == TB_NOWHERE || memcmp(slot->fragment, fragment, TB_FRAGMENT_BYTES) == 0) return slot;
    }
}

/* Asks for what `tb_served_newest` reads first. */
static inline void tb_served_prefetch(const tb_served_log *log, const uint8_t *fragment) {
    uint64_t at;
    if (log->count == 0) return;
    memcpy(&at, fragment, sizeof at);
    __builtin_prefetch(&log->slots[at & (log->slot_count - 1)], 0, 3);
}

/* The place of a fragment's newest serving, TB_NOWHERE without one. */
static inline uint64_t tb_served_newest(const tb_served_log *log, const uint8_t *fragment) {
    if (log->count == 0) return TB_NOWHERE;
    uint64_t place = tb_served_slot_of(log, fragment)->newest;
    return place != TB_NOWHERE && place >= log->start ? place : TB_NOWHERE;
}

/* Asks for a serving and its first items; TB_NOWHERE is none. */
static inline void tb_served_prefetch_at(const tb_served_log *log, uint64_t place) {
    if (place == TB_NOWHERE) return;
    __builtin_prefetch(tb_served_at(log, place), 0, 3);
    __builtin_prefetch((const uint8_t *)tb_served_at(log, place) + 64, 0, 3);
}

/* The place of the serving before one of the same fragment, TB_NOWHERE without one; it is asked for. */
static inline uint64_t tb_served_before(const tb_served_log *log, uint64_t place) {
    uint64_t before = tb_served_at(log, place)->before;
    if (before == TB_NOWHERE || before < log->start) return TB_NOWHERE;
    tb_served_prefetch_at(log, before);
    return before;
}

/* Makes room in the table for one more fragment, leaving out those that are gone. Returns 0 without memory. */
static inline int tb_served_make_slot(tb_served_log *log) {
    if (log->slot_count != 0 && 2 * (log->slots_used + 1) <= log->slot_count) return 1;
    size_t live = 0, count = 64;
    for (size_t i = 0; i < log->slot_count; i++) live += log->slots[i].newest != TB_NOWHERE && log->slots[i].newest >= log->start;
    while (count < 4 * (live + 1)) count *= 2;
    tb_served_log fresh = *log;
    fresh.slots = (tb_served_slot *)malloc(count * sizeof *fresh.slots);
    if (fresh.slots == NULL) return 0;
    fresh.slot_count = count;
    fresh.slots_used = live;
    for (size_t i = 0; i < count; i++) fresh.slots[i].newest = TB_NOWHERE;
    for (size_t i = 0; i < log->slot_count; i++)
        if (log->slots[i].newest != TB_NOWHERE && log->slots[i].newest >= log->start)
            *tb_served_slot_of(&fresh, log->slots[i].fragment) = log->slots[i];
    free(log->slots);
    *log = fresh;
    return 1;
}

/* Makes room for `bytes` more at the end: what is forgotten gives way first. Returns 0 without memory. */
static inline int tb_served_make_room(tb_served_log *log, size_t bytes) {
    size_t kept = (size_t)(log->end - log->start);
    if ((size_t)(log->end - log->block_start) + bytes <= log->room) return 1;
    if (log->start != log->block_start) {
        memmove(log->block, log->block + (log->start - log->block_start), kept);
        log->block_start = log->start;
    }
    if (kept + bytes > log->room / 2) { /* so that moving stays rare beside adding */
        size_t room = 2 * (kept + bytes) + 4096;
        uint8_t *block = (uint8_t *)realloc(log->block, room);
        if (block == NULL) return kept + bytes <= log->room;
        log->block = block;
        log->room = room;
    }
    return 1;
}

/* Adds a serving; `items` need no alignment. Returns 0 without memory. */
static inline int tb_served_add(tb_served_log *log, const tb_serving *serving, const void *items) {
    size_t bytes = tb_served_bytes(serving->item_count);
    if (!tb_served_make_slot(log) || !tb_served_make_room(log, bytes)) return 0;
    tb_served_slot *slot = tb_served_slot_of(log, serving->fragment);
    if (slot->newest == TB_NOWHERE) {
        log->slots_used++;
        memcpy(slot->fragment, serving->fragment, TB_FRAGMENT_BYTES);
    }
    tb_served *served = tb_served_at(log, log->end);
    served->before = slot->newest;
    served->serving = *serving;
    if (serving->item_count != 0) memcpy(served + 1, items, serving->item_count * sizeof(uint32_t));
    slot->newest = log->end;
    log->end += bytes;
    log->count++;
    return 1;
}

/* Forgets the oldest serving; there must be one. */
static inline void tb_served_drop(tb_served_log *log) {
    log->start += tb_served_bytes(tb_served_at(log, log->start)->serving.item_count);
    log->count--;
}

/* Reads the packed serving at *at, below end, and moves *at behind it. Returns 0 where there is none. */
static inline int tb_serving_read(const uint8_t **at, const uint8_t *end, tb_serving *serving, const void **items) {
    if ((size_t)(end - *at) < sizeof *serving) return 0;
    memcpy(serving, *at, sizeof *serving);
    *at += sizeof *serving;
    if (serving->item_count > TB_SERVED_ITEMS_MAX || (size_t)(end - *at) < serving->item_count * sizeof(uint32_t)) return 0;
    *items = *at;
    *at += serving->item_count * sizeof(uint32_t);
    return 1;
}

/* Bytes a serving takes when packed. */
static inline size_t tb_serving_bytes(const tb_served *served) {
    return sizeof(tb_serving) + served->serving.item_count * sizeof(uint32_t);
}

/* Writes the servings from one place to another, packed. */
static inline void tb_served_pack(const tb_served_log *log, uint64_t place, uint64_t end, uint8_t *out) {
    while (place < end) {
        const tb_served *served = tb_served_at(log, place);
        memcpy(out, &served->serving, tb_serving_bytes(served));
        out += tb_serving_bytes(served);
        place += tb_served_bytes(served->serving.item_count);
    }
}

#endif
