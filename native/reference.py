"""What the native kernels must compute, in the fewest lines that can be read: oracles for tests, not for production."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
