"""What `bench quality` asks, and how answers are judged: questions from real orders on both sides of a cut.

    known       customers on both sides; sought is what they bought after the cut and never before
    anonymous   every basket after the cut of 4 to 40 distinct products, whoever bought it: its first half in the file's
                order is given, the second sought
    cold        the same second halves, nothing given but country and time
    abroad      those of the cold from another country than the most frequent one

NDCG@10 has binary gain and its ideal cut at 10; recall@20 is hits / min(20, sought). Cancelled lines, charges and zero
prices are no purchases: the source leaves them out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorbird.engine.signals import Signal
from tailorbird.server.sources import online_retail

DAY_MS = 86_400_000
POPULARITY_DAYS = 30
BASKET_ITEMS_MIN, BASKET_ITEMS_MAX = 4, 40


@dataclass(frozen=True, slots=True)
class Order:
    """One basket: `items` distinct, in the file's order; `customer` is empty for a guest."""

    time: int
    customer: str
    country: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KnownQuestion:
    """A customer, the country of the last order before the cut, what was bought by then, and what is sought."""

    customer: str
    country: str
    bought: frozenset[str]
    sought: frozenset[str]


@dataclass(frozen=True, slots=True)
class BasketQuestion:
    """Half a basket and the other half; `abroad` when its country is not the most frequent one of all questions."""

    time: int
    country: str
    given: tuple[str, ...]
    sought: frozenset[str]
    abroad: bool


@dataclass(frozen=True, slots=True)
class Questions:
    """All questions at one cut (ms), and the items bought in the days before it, most often first."""

    cut: int
    known: tuple[KnownQuestion, ...]
    baskets: tuple[BasketQuestion, ...]
    popular: tuple[str, ...]


def order_of(signal: Signal) -> Order | None:
    """Return the order a signal of the source tells of, None for a refund."""
    if signal.type != "order_completed":
        return None
    return Order(
        signal.event_time,
        signal.identifiers.get("crm_id", ""),
        signal.context.get("country", ""),
        tuple(dict.fromkeys(product["product_id"] for product in signal.properties["products"])),
    )


def read_orders(paths: Iterable[Path]) -> list[Order]:
    """Return the orders of files of the online-retail format, in their order."""
    signals = (signal for path in paths for batch in online_retail.read(path) for signal in batch.signals)
    return [order for order in map(order_of, signals) if order is not None]


def questions_of(before: Sequence[Order], after: Sequence[Order], cut: int) -> Questions:
    """Return what is asked at the cut about the orders after it; ties of popularity fall by item id."""
    recent = Counter(item for order in before if order.time >= cut - POPULARITY_DAYS * DAY_MS for item in order.items)
    popular = tuple(sorted(recent, key=lambda item: (-recent[item], item)))
    return Questions(cut, tuple(_known(before, after)), tuple(_baskets(after)), popular)


def _known(before: Sequence[Order], after: Sequence[Order]) -> Iterable[KnownQuestion]:
    bought: dict[str, set[str]] = {}
    countries: dict[str, str] = {}
    for order in before:
        bought.setdefault(order.customer, set()).update(order.items)
        countries[order.customer] = order.country
    later: dict[str, set[str]] = {}
    for order in after:
        later.setdefault(order.customer, set()).update(order.items)
    for customer in sorted(bought.keys() & later.keys() - {""}):
        sought = later[customer] - bought[customer]
        if sought:
            yield KnownQuestion(customer, countries[customer], frozenset(bought[customer]), frozenset(sought))


def _baskets(after: Sequence[Order]) -> Iterable[BasketQuestion]:
    asked = [order for order in after if BASKET_ITEMS_MIN <= len(order.items) <= BASKET_ITEMS_MAX]
    frequency = Counter(order.country for order in asked)
    home = min(frequency, key=lambda country: (-frequency[country], country), default="")
    for order in asked:
        half = len(order.items) // 2
        given, sought = order.items[:half], frozenset(order.items[half:])
        yield BasketQuestion(order.time, order.country, given, sought, order.country != home)


def ndcg10(ranked: Sequence[str], sought: Collection[str]) -> float:
    """Return NDCG@10 of items best first; `sought` is not empty."""
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(ranked[:10]) if item in sought)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(sought))))


def recall20(ranked: Sequence[str], sought: Collection[str]) -> float:
    """Return the share of the sought among the 20 best, of at most 20; `sought` is not empty."""
    return sum(item in sought for item in ranked[:20]) / min(20, len(sought))


def without(ranked: Iterable[str], excluded: Collection[str], count: int = 20) -> list[str]:
    """Return the first `count` items that are not excluded."""
    kept = []
    for item in ranked:
        if item not in excluded:
            kept.append(item)
            if len(kept) == count:
                break
    return kept
