/* Sawtooth windows: totals per hop of time ("tile"), of which a reader adds up those its window touches.

   A window of length w read at `at` covers from the start of the tile in which `at` - w falls up to `at`: never less
   than w, at most one hop more, and every event up to `at` is in it at once. Tiles that no reader at or after the newest
   event can need are dropped, which makes the bytes independent of the order of events and merges. A reader of the past
   sees what is left: whole tiles up to its own. */
#ifndef TAILORBIRD_WINDOWS_H
#define TAILORBIRD_WINDOWS_H

#include <string.h>

#include "hyperloglog.h"
#include "saturating.h"

enum { TB_TILES_MAX = 96 };
enum { TB_TILE_COUNT, TB_TILE_SUM, TB_TILE_MIN, TB_TILE_MAX, TB_TILE_DISTINCT };

typedef struct {
    int64_t hop_ms;
    int64_t window_ms;
    uint32_t tiles;       /* at most kept */
    uint32_t entry_bytes; /* of a tile */
    uint32_t precision;   /* of DISTINCT */
    uint8_t kind;
} tb_hops;

typedef struct { uint32_t n; uint32_t zero; int64_t last_time; uint8_t entries[]; } tb_window; /* ascending tiles */
typedef struct {
    int32_t tile;
    uint32_t count; /* COUNT: that is all; SUM: values, also of MEAN */
} tb_tile;
typedef struct { tb_tile tile; int64_t units; } tb_sum_tile;
typedef struct { tb_tile tile; double value; } tb_extreme_tile;
typedef struct { tb_tile tile; uint8_t registers[]; } tb_distinct_tile;

static inline uint32_t tb_tile_bytes(uint8_t kind, uint32_t precision) {
    switch (kind) {
    case TB_TILE_COUNT: return sizeof(tb_tile);
    case TB_TILE_DISTINCT: return sizeof(tb_tile) + tb_register_bytes(precision);
    default: return sizeof(tb_sum_tile);
    }
}

/* The tile a time falls in; times beyond 2^31 hops from 1970 are in the last one. */
static inline int32_t tb_tile_at(int64_t hop_ms, int64_t time) {
    int64_t tile = time / hop_ms - (time % hop_ms < 0);
    return tile > INT32_MAX ? INT32_MAX : tile < INT32_MIN ? INT32_MIN : (int32_t)tile;
}

static inline tb_tile *tb_window_tile(const tb_hops *hops, const tb_window *block, uint32_t i) {
    return (tb_tile *)(void *)(block->entries + (size_t)i * hops->entry_bytes);
}

static inline void tb_tile_clear(const tb_hops *hops, tb_tile *tile) {
    memset(tile, 0, hops->entry_bytes);
    if (hops->kind == TB_TILE_MIN)
        ((tb_extreme_tile *)(void *)tile)->value = DBL_MAX;
    else if (hops->kind == TB_TILE_MAX)
        ((tb_extreme_tile *)(void *)tile)->value = -DBL_MAX;
}

/* The tile of that number, made when it is not there; NULL when it is past. */
static inline tb_tile *tb_window_place(const tb_hops *hops, tb_window *block, int32_t number) {
    size_t size = hops->entry_bytes;
    uint32_t place = block->n;
    if (block->n != 0) {
        int64_t newest = tb_window_tile(hops, block, block->n - 1)->tile;
        if (number <= newest - (int64_t)hops->tiles)
            return NULL;
        if (number > newest) { /* time goes on: what falls out of every window goes */
            uint32_t gone = 0;
            while (gone < block->n && tb_window_tile(hops, block, gone)->tile <= number - (int64_t)hops->tiles)
                gone++;
            block->n -= gone;
            place = block->n;
            memmove(block->entries, block->entries + gone * size, block->n * size);
        } else {
            while (place > 0 && tb_window_tile(hops, block, place - 1)->tile >= number)
                place--;
            if (tb_window_tile(hops, block, place)->tile == number)
                return tb_window_tile(hops, block, place);
        }
    }
    memmove(block->entries + (place + 1) * size, block->entries + place * size, (block->n - place) * size);
    tb_tile *fresh = tb_window_tile(hops, block, place);
    tb_tile_clear(hops, fresh);
    fresh->tile = number;
    block->n++;
    return fresh;
}

static inline void tb_tile_merge(const tb_hops *hops, tb_tile *into, const tb_tile *from) {
    into->count = tb_saturating_add_u32(into->count, from->count);
    switch (hops->kind) {
    case TB_TILE_SUM: {
        int64_t *units = &((tb_sum_tile *)(void *)into)->units;
        *units = tb_saturating_add(*units, ((const tb_sum_tile *)(const void *)from)->units);
        break;
    }
    case TB_TILE_MIN:
    case TB_TILE_MAX: {
        double *value = &((tb_extreme_tile *)(void *)into)->value;
        double other = ((const tb_extreme_tile *)(const void *)from)->value;
        if (hops->kind == TB_TILE_MIN ? other < *value : other > *value)
            *value = other;
        break;
    }
    case TB_TILE_DISTINCT:
        tb_registers_merge(hops->precision, ((tb_distinct_tile *)(void *)into)->registers,
                           ((const tb_distinct_tile *)(const void *)from)->registers);
        break;
    }
}

static inline tb_tile *tb_window_at(const tb_hops *hops, tb_window *block, int64_t time) {
    if (time > block->last_time)
        block->last_time = time;
    return tb_window_place(hops, block, tb_tile_at(hops->hop_ms, time));
}

static inline void tb_window_count(const tb_hops *hops, tb_window *block, uint32_t amount, int64_t time) {
    tb_tile *tile = tb_window_at(hops, block, time);
    if (tile != NULL)
        tile->count = tb_saturating_add_u32(tile->count, amount);
}

/* `value` finite, and no negative zero. */
static inline void tb_window_value(const tb_hops *hops, tb_window *block, double value, int64_t time) {
    tb_tile *tile = tb_window_at(hops, block, time);
    if (tile == NULL)
        return;
    if (hops->kind == TB_TILE_SUM) {
        tb_sum_tile other = {{0, 1}, tb_sum_units(value)};
        tb_tile_merge(hops, tile, &other.tile);
    } else {
        tb_extreme_tile other = {{0, 1}, value};
        tb_tile_merge(hops, tile, &other.tile);
    }
}

static inline void tb_window_key(const tb_hops *hops, tb_window *block, uint64_t key, int64_t time) {
    tb_tile *tile = tb_window_at(hops, block, time);
    if (tile == NULL)
        return;
    tile->count = tb_saturating_add_u32(tile->count, 1);
    tb_registers_add(hops->precision, ((tb_distinct_tile *)(void *)tile)->registers, key);
}

static inline void tb_window_merge(const tb_hops *hops, tb_window *into, const tb_window *from) {
    if (from->last_time > into->last_time)
        into->last_time = from->last_time;
    for (uint32_t i = from->n; i-- > 0;) { /* newest first: what is past for the result is never put in */
        const tb_tile *other = tb_window_tile(hops, from, i);
        tb_tile *tile = tb_window_place(hops, into, other->tile);
        if (tile != NULL)
            tb_tile_merge(hops, tile, other);
    }
}

/* Add up into `total`, cleared and large enough for one tile, what a window read at `at` covers. */
static inline void tb_window_total(const tb_hops *hops, const tb_window *block, int64_t at, tb_tile *total) {
    int64_t start = at < INT64_MIN + hops->window_ms ? INT64_MIN : at - hops->window_ms;
    int32_t first = tb_tile_at(hops->hop_ms, start), last = tb_tile_at(hops->hop_ms, at);
    for (uint32_t i = 0; i < block->n; i++) {
        const tb_tile *tile = tb_window_tile(hops, block, i);
        if (tile->tile >= first && tile->tile <= last)
            tb_tile_merge(hops, total, tile);
    }
}

#endif
