"""Items: what can be recommended. Products, articles, offers and messages alike."""

from __future__ import annotations

import msgspec
import numpy as np

from tailorbird.engine.configuration import Configuration
from tailorbird.engine.errors import CallerError

ITEM_ID_BYTES_MAX = 1_024


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


def check_item_id(item_id: str) -> None:
    """Raise `CallerError` BAD_ITEM for an id that the catalogue cannot hold."""
    try:
        size = len(item_id.encode())
    except UnicodeEncodeError:
        raise CallerError(
            "BAD_ITEM", f"expected an item id of valid text, got a lone surrogate, in {item_id[:60]!r}"
        ) from None
    if not 0 < size <= ITEM_ID_BYTES_MAX:
        raise CallerError(
            "BAD_ITEM", f"expected an item id of 1 to {ITEM_ID_BYTES_MAX} bytes, got {size} bytes, in {item_id[:60]!r}"
        )


def check_item(item: Item, configuration: Configuration) -> None:
    """Raise `CallerError` BAD_ITEM for what the catalogue cannot hold."""

    def refuse(expected: str, got: object) -> CallerError:
        return CallerError("BAD_ITEM", f"expected {expected}, got {got!r}, in item {item.id[:60]!r}")

    check_item_id(item.id)
    for name in item.attributes:
        if name not in configuration.attributes:
            raise refuse(f"attributes of {configuration.attributes} (declare more under `attributes:`)", name)
    limit = configuration.limits.field_bytes_max
    for text in (item.name, item.currency, *item.attributes.values(), *item.tags):
        if len(text) > limit:
            raise refuse(f"texts of at most limits.field_bytes_max = {limit}", f"{len(text)} characters")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise refuse("valid text", "a lone surrogate") from None
    if not -1 <= item.stock < 2**31:
        raise refuse("stock from -1 (not counted) to 2147483647", item.stock)
    if not 0 <= item.start <= 4_294_967_294_000 or not 0 <= item.end <= 4_294_967_294_000:
        raise refuse("start and end as milliseconds since 1970, before 2106", (item.start, item.end))
    if not np.isfinite(item.price):
        raise refuse("a finite price", item.price)
    if item.embedding and len(item.embedding) != configuration.embedding_dimension:
        raise refuse(f"an embedding of embedding_dimension = {configuration.embedding_dimension}", len(item.embedding))
    if item.embedding and not all(np.isfinite(value) and abs(value) < 1e6 for value in item.embedding):
        raise refuse("finite embedding values below 1e6", "one that is not")
