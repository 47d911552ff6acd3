"""Items: what can be recommended. Products, articles, offers and messages alike."""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One catalogue item, replaced whole by a put.

    `attributes` map declared attribute names to values (`category`, `brand`, ...). `price` is in the currency's major unit.
    `stock` of -1 is not counted; 0 is sold out. The item may be offered from `start` up to but not including `end`
    (milliseconds since 1970 UTC; 0 is open). `embedding` has the configured dimension, or is
    empty; decisions read each value to 2^-15 of the largest.
    """

    id: str
    name: str = ""
    attributes: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    price: float = 0.0
    currency: str = ""
    stock: int = -1
    start: int = 0
    end: int = 0
    embedding: tuple[float, ...] = ()
