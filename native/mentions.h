/* How often items are mentioned: counts by item in an open-addressed table that grows, and is used again from decision to decision. */
#ifndef TAILORBIRD_MENTIONS_H
#define TAILORBIRD_MENTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A table of more slots than this is let go of by the next decision. */
#define TB_MENTION_SLOTS_KEPT 4096

typedef struct {
    uint32_t item;
    uint32_t count; /* 0: empty */
} tb_mention_slot;

typedef struct {
    tb_mention_slot *slots;
    size_t slot_count; /* 0 or a power of two */
    size_t used;
} tb_mention_count;

static inline tb_mention_slot *tb_mention_slot_of(const tb_mention_count *counted, uint32_t item) {
    size_t at = (size_t)(((uint64_t)item * 0x9E3779B97F4A7C15u) >> 32) & (counted->slot_count - 1);
    while (counted->slots[at].count != 0 && counted->slots[at].item != item) at = (at + 1) & (counted->slot_count - 1);
    return &counted->slots[at];
}

/* Doubles the table. Returns 0 without memory. */
static inline int tb_mentions_grow(tb_mention_count *counted) {
    tb_mention_count grown = {NULL, counted->slot_count ? 2 * counted->slot_count : 256, counted->used};
    grown.slots = (tb_mention_slot *)calloc(grown.slot_count, sizeof *grown.slots);
    if (grown.slots == NULL) return 0;
    for (size_t i = 0; i < counted->slot_count; i++)
        if (counted->slots[i].count != 0) *tb_mention_slot_of(&grown, counted->slots[i].item) = counted->slots[i];
    free(counted->slots);
    *counted = grown;
    return 1;
}

/* Counts one more mention of an item. Returns 0 without memory. */
static inline int tb_mentions_add(tb_mention_count *counted, uint32_t item) {
    if (2 * (counted->used + 1) > counted->slot_count && !tb_mentions_grow(counted)) return 0;
    tb_mention_slot *slot = tb_mention_slot_of(counted, item);
    if (slot->count == 0) {
        slot->item = item;
        counted->used++;
    }
    if (slot->count != UINT32_MAX) slot->count++;
    return 1;
}

/* Forgets all counts. */
static inline void tb_mentions_clear(tb_mention_count *counted) {
    if (counted->used == 0) return;
    if (counted->slot_count > TB_MENTION_SLOTS_KEPT) {
        free(counted->slots);
        counted->slots = NULL;
        counted->slot_count = 0;
    } else {
        memset(counted->slots, 0, counted->slot_count * sizeof *counted->slots);
    }
    counted->used = 0;
}

#endif
