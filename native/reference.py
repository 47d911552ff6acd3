"""What the native kernels must compute, in the fewest lines that can be read: oracles for tests, not for production."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailorbird.native import exp2

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)


@dataclass(frozen=True, slots=True)
class Event:
    """One value for one feature: `value` is a number, a symbol, a key or an item; `digest` is the message's, u64."""

    time: int
    digest: int
    value: float | int
    weight: float = 1.0


# ---- aggregates.h: each takes all events of a feature at once, in any order, at least one --------------------------


def count(events: Sequence[Event]) -> tuple[int, int]:
    """Return (sum of the weights, last time)."""
    return sum(int(event.weight) for event in events), max(event.time for event in events)


def sum_units(events: Sequence[Event]) -> tuple[int, int]:
    """Return (ten-thousandths, each event rounded half to even, last time)."""
    return sum(round(event.value * event.weight * 10_000.0) for event in events), max(event.time for event in events)


def last(events: Sequence[Event]) -> tuple[int, int, int]:
    """Return (bits, time, digest) of the newest by (time, digest, bits); values are the bits."""
    time, digest, bits = max((event.time, event.digest, int(event.value)) for event in events)
    return bits, time, digest


def time_since(events: Sequence[Event]) -> int:
    return max(event.time for event in events)


def decay(half_life_ms: float, since: int, until: int) -> float:
    return math.exp2(-(until - since) / half_life_ms) if until > since and half_life_ms > 0 else 1.0


def decayed(half_life_ms: float, events: Sequence[Event]) -> tuple[float, int]:
    """Return (sum of weight x value, each decayed from its time to the last, last time)."""
    ref_time = max(event.time for event in events)
    return math.fsum(e.weight * e.value * decay(half_life_ms, e.time, ref_time) for e in events), ref_time


def top_k(half_life_ms: float, k: int, events: Sequence[Event]) -> tuple[list[tuple[int, float]], int]:
    """Return ([(key, weight at the last time)] ascending by key, last time); event by event, as the kernel does."""
    weights: dict[int, float] = {}
    ref_time = events[0].time
    for event in events:
        left = decay(half_life_ms, ref_time, event.time)
        weights = {key: weight * left for key, weight in weights.items()}
        ref_time = max(ref_time, event.time)
        weight = event.weight * decay(half_life_ms, event.time, ref_time)
        weights[int(event.value)] = weights.get(int(event.value), 0.0) + weight
        if len(weights) > k:
            del weights[min(weights, key=lambda key: (weights[key], -key))]
    return sorted(weights.items()), ref_time


def last_k(k: int, events: Sequence[Event]) -> list[tuple[int, int, int]]:
    """Return [(item, upper half of the digest, time)] of the k newest distinct items, by (time, digest, item)."""
    newest: dict[int, tuple[int, int]] = {}
    for event in events:
        item = int(event.value)
        newest[item] = max(newest.get(item, (INT64_MIN, 0)), (event.time, event.digest >> 32))
    order = sorted(((time, digest, item) for item, (time, digest) in newest.items()), reverse=True)
    return [(item, digest, time) for time, digest, item in order[:k]]


def mean(events: Sequence[Event]) -> tuple[int, int]:
    """Return (ten-thousandths, count)."""
    return sum_units(events)[0], len(events)


def minimum(events: Sequence[Event]) -> float:
    return min(event.value * event.weight for event in events)


def maximum(events: Sequence[Event]) -> float:
    return max(event.value * event.weight for event in events)


def first(events: Sequence[Event]) -> tuple[int, int, int]:
    """Return (bits, time, digest) of the oldest by (time, digest, bits); values are the bits."""
    time, digest, bits = min((event.time, event.digest, int(event.value)) for event in events)
    return bits, time, digest


def scramble(key: int) -> int:
    """Return the finaliser of splitmix64."""
    x = (key + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def registers(precision: int, keys: Iterable[int]) -> bytes:
    """Return HyperLogLog's registers, two a byte, the even ones low: leading zeros plus one, at most 15."""
    ranks = [0] * 2**precision
    for key in keys:
        index, rest = divmod(scramble(key), 2 ** (64 - precision))
        ranks[index] = max(ranks[index], min(15, 64 - precision - rest.bit_length() + 1))
    return bytes(low | high << 4 for low, high in zip(ranks[::2], ranks[1::2], strict=True))


def distinct_estimate(packed: bytes) -> float:
    """Return Ertl's estimate, the sums of sigma and tau written out."""
    ranks = [half for byte in packed for half in (byte & 15, byte >> 4)]
    m = len(ranks)
    empty, full = ranks.count(0) / m, ranks.count(15) / m
    if empty == 1:
        return 0.0
    sigma = empty + sum(empty ** (2**n) * 2 ** (n - 1) for n in range(1, 64) if empty)
    root = 1 - full
    tau = (1 - root - sum((1 - root ** (2.0**-n)) ** 2 * 2.0**-n for n in range(1, 60))) / 3 if 0 < full < 1 else 0.0
    z = m * sigma + sum(ranks.count(rank) * 2.0**-rank for rank in range(1, 15)) + m * tau * 2.0**-14
    return float(m * m / (2 * math.log(2) * z))


def bin_key(value: float) -> int:
    """Return the bin of a value: 32 a doubling, from 2^-32 on; mirrored for negative ones; 0 near zero."""
    if abs(value) <= 2.0**-32:
        return 0
    number = min(math.ceil(log2_of(abs(value)) * 32), 63 * 32) + 32 * 32 + 1
    return number if value > 0 else -number


def quantile_bins(k: int, values: Iterable[float]) -> list[tuple[int, int]]:
    """Return [(bin, count)], ascending: the k highest, the lowest of them with all that is below."""
    counts = Counter(bin_key(value) for value in values)
    kept = sorted(counts)[-k:]
    low = sum(counts[key] for key in counts if key <= kept[0])
    return [(key, low if key == kept[0] else counts[key]) for key in kept]


def window_tiles(hop_ms: int, window_ms: int, events: Sequence[Event]) -> dict[int, list[Event]]:
    """Return the events of the tiles that are kept, by tile."""
    tiles: dict[int, list[Event]] = {}
    for event in events:
        tiles.setdefault(min(max(event.time // hop_ms, -(2**31)), 2**31 - 1), []).append(event)
    newest, kept = max(tiles), (window_ms - 1) // hop_ms + 2
    return {tile: tiles[tile] for tile in sorted(tiles) if tile > newest - kept}


def in_window(hop_ms: int, window_ms: int, events: Sequence[Event], at: int) -> list[Event]:
    """Return what a window covers at `at`, itself at or after the newest event."""
    start = (at - window_ms) // hop_ms * hop_ms
    return [event for event in events if start <= event.time <= at]


def saturating_add(a: int, b: int) -> int:
    """Int64 addition that stays at a limit once it is reached, the upper before the lower."""
    if INT64_MAX in (a, b):
        return INT64_MAX
    if INT64_MIN in (a, b):
        return INT64_MIN
    return min(max(a + b, INT64_MIN), INT64_MAX)


def top_at(
    half_life_ms: float, entries: Sequence[tuple[int, float]], ref_time: int, at: int
) -> list[tuple[int, float]]:
    """Return (key, weight at `at`), heaviest first, equal weights by smaller key."""
    left = decay(half_life_ms, ref_time, at)
    return [(key, weight * left) for key, weight in sorted(entries, key=lambda entry: (-entry[1], entry[0]))]


# ---- neighbours.h ----------------------------------------------------------------------------------------------------


def accumulate(
    indptr: npt.NDArray[np.uint32],
    neighbours: npt.NDArray[np.uint32],
    weights: npt.NDArray[np.float32],
    items: npt.NDArray[np.uint32],
    item_weights: npt.NDArray[np.float32],
    item_count: int,
) -> npt.NDArray[np.float32]:
    """Return the sum of the rows of `items`, each times its weight; what is not above zero is left out."""
    scores = np.zeros(item_count, np.float32)
    for item, item_weight in zip(items.tolist(), item_weights, strict=True):
        if item < len(indptr) - 1:
            row = slice(indptr[item], indptr[item + 1])
            for neighbour, weight in zip(neighbours[row].tolist(), weights[row], strict=True):
                if neighbour < item_count and item_weight * weight > 0:
                    scores[neighbour] += item_weight * weight
    return scores


def best_items(scores: npt.NDArray[np.float32], limit: int) -> list[int]:
    """Return the items scored above zero, best first, ties by smaller number, at most `limit`."""
    return sorted(np.flatnonzero(scores).tolist(), key=lambda item: (-scores[item], item))[:limit]


# ---- scoring.h -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ScoredItem:
    """One row of an `ItemTable`."""

    id: str
    live: bool = True
    stock: int = -1
    start_s: int = 0
    end_s: int = 0
    symbols: tuple[int, ...] = ()
    embedding: npt.NDArray[np.float32] | None = None
    count: float = 0.0


def lookup(items: Sequence[ScoredItem], ids: Sequence[str]) -> list[int]:
    """Return the number of each id, `UNKNOWN_ITEM` where no item has it."""
    numbers = {item.id: number for number, item in enumerate(items)}
    return [numbers.get(item_id, 0xFFFFFFFF) for item_id in ids]


def exp2_of(exponent: float) -> float:
    out = np.empty(1)
    exp2.exp2(np.array([exponent]), out)
    return float(out[0])


def log2_of(number: float) -> float:
    out = np.empty(1)
    exp2.log2(np.array([number]), out)
    return float(out[0])


def dot(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Return the sum of products over 16 lanes, the lanes added as a tree."""
    lanes = np.zeros(16, np.float32)
    products = np.zeros(-(-len(a) // 16) * 16, np.float32)
    products[: len(a)] = a * b
    for row in products.reshape(-1, 16):
        lanes += row
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def quantised(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float]:
    """Return whole numbers of at most 32,767 and the power of two that, times them, gives the values back."""
    exponent = math.frexp(float(np.max(np.abs(values), initial=0.0)))[1] - 15
    wholes = np.rint(values.astype(np.float64) * 2.0**-exponent)
    return np.clip(wholes, -32_767, 32_767).astype(np.float32), 2.0**exponent


def rank(
    items: Sequence[ScoredItem],
    candidates: Sequence[int] | None,
    k: int,
    now_s: int,
    *,
    require_stock: bool = True,
    allowed: Sequence[int] | None = None,
    excluded: Sequence[int] = (),
    scale: float = 1.0,
    total: float = 0.0,
    uniform_strength: float = 1.0,
    levels: Sequence[tuple[Mapping[int, float], float, float]] = (),
    together: Mapping[int, float] | None = None,
    together_support: float = 0.0,
    together_strength: float = 1.0,
    together_exponent: float = 0.0,
    affinities: Sequence[tuple[int, Mapping[int, float], float]] = (),
    vector: npt.NDArray[np.float32] | None = None,
    vector_log: bool = False,
    notable: float = 1.1,
) -> tuple[list[tuple[int, float, float, float, float, float, int, float, int]], int, int, int]:
    """Return what `ItemTable.rank` does; cells, co-occurrence (in the order touched) and affinities are mappings."""
    uniform = 1.0 / max(1, sum(item.live for item in items))
    if vector is not None:
        logs = [math.copysign(log2_of(1.0 + abs(x)) / 1.4426950408889634, x) for x in vector.tolist()]
        vector = np.where(np.isfinite(vector), np.array(logs, np.float32) if vector_log else vector, np.float32(0))

    def in_context(number: int) -> tuple[float, float]:
        base = estimate = (items[number].count * scale + uniform_strength * uniform) * (
            1.0 / (total + uniform_strength)
        )
        for counts, level_total, strength in levels:
            estimate = (counts.get(number, 0.0) * scale + strength * estimate) * (1.0 / (level_total + strength))
        return base, estimate

    def followed(number: int) -> float:
        score = together.get(number, 0.0) if together else 0.0
        if score > 0.0 and together_exponent != 0.0:
            score *= exp2_of(together_exponent * log2_of(in_context(number)[1] / uniform))
        return score

    q_sum = 0.0
    for number in together or ():
        q_sum += followed(number)
    q_scale = 1.0 / q_sum if q_sum > 0.0 else 0.0

    def parts(number: int) -> tuple[float, float, float, float, float, int, float, float]:
        base, estimate = in_context(number)
        after_context, share = estimate, 0.0
        if q_scale > 0.0:
            brought = together_support * (followed(number) * q_scale)
            whole = brought + together_strength * estimate
            share = brought / whole if whole > 0.0 else 0.0
            estimate = whole / (together_support + together_strength)
        blended, best_lift, best_index, vector_lift = estimate, 1.0, -1, 1.0
        for index, (attribute, lifts, other_lift) in enumerate(affinities):
            symbol = items[number].symbols[attribute]
            lift = lifts.get(symbol, other_lift) if symbol else 1.0
            if lift > best_lift:
                best_lift, best_index = lift, index
            estimate *= lift
        embedding = items[number].embedding
        if vector is not None and embedding is not None:
            mantissas, unit = quantised(embedding)
            exponent = dot(vector, mantissas) * unit
            if not math.isnan(exponent):
                vector_lift = exp2_of(min(max(exponent * 1.4426950408889634, -30.0), 30.0))
            estimate *= vector_lift
        score = min(estimate, float(np.finfo(np.float32).max)) if estimate > 0.0 else 0.0
        return base, after_context, share, blended, best_lift, best_index, vector_lift, score

    known = [c for c in dict.fromkeys(range(len(items)) if candidates is None else candidates) if c < len(items)]
    known = [number for number in known if items[number].live]
    left = [number for number in known if number not in set(excluded)]
    eligible = [
        number
        for number in left
        if (not require_stock or items[number].stock != 0)
        and items[number].start_s <= now_s
        and (items[number].end_s == 0 or now_s < items[number].end_s)
        and (allowed is None or allowed[number])
    ]
    scored = {number: parts(number) for number in eligible}
    score_sum = estimate_sum = 0.0
    for *_, blended, _, _, _, score in scored.values():
        score_sum, estimate_sum = score_sum + score, estimate_sum + blended
    normaliser = estimate_sum / score_sum if score_sum > 0.0 else 1.0
    best = sorted(eligible, key=lambda number: (-np.float32(scored[number][-1]), items[number].id.encode()))[:k]
    winners = []
    for number in best:
        base, after_context, share, _, best_lift, best_index, vector_lift, score = scored[number]
        final = float(np.float32(score * normaliser))
        strengths = [after_context / base, vector_lift, best_lift, 1.0 / (1.0 - min(share, 0.999999))]
        code = 0
        for digit in sorted(range(4), key=lambda reason: -strengths[reason]):
            code = code * 6 + digit + 1 if strengths[digit] > notable else code
        code = code or (5 if base > uniform else 0)
        winners.append((number, final, base, after_context, share, best_lift, best_index, vector_lift, code))
    return winners, len(known), len(known) - len(left), len(eligible)


def trees_total(
    roots: Sequence[int],
    nodes: Sequence[tuple[int, float, int, int, bool]],
    leaves: Sequence[float],
    row: Sequence[float],
) -> float:
    """Return the sum of trees over one row; a node is (input, threshold, left, right, missing goes left)."""
    total = 0.0
    for root in roots:
        node = root
        while node >= 0:
            column, threshold, left, right, missing_left = nodes[node]
            value = row[column]
            node = left if value <= threshold or (math.isnan(value) and missing_left) else right
        total += leaves[-1 - node]
    return total
