"""Catalogue items in."""

from __future__ import annotations

from tailorbird.engine.items import Item
from tailorbird.server.messages.pairs import unique_pairs
from tailorbird.v1 import catalog_service_pb2


def item_from(message: catalog_service_pb2.Item) -> Item:
    """Return the engine's item. Raises `CallerError` DUPLICATE_NAME for an attribute given twice."""
    attributes = ((attribute.name, attribute.value) for attribute in message.attributes)
    return Item(
        id=message.id,
        name=message.name,
        attributes=unique_pairs(attributes, f"attributes of item {message.id[:64]!r}"),
        tags=tuple(message.tags),
        price=message.price,
        currency=message.currency,
        stock=message.stock if message.HasField("stock") else -1,
        start=message.start_ms,
        end=message.end_ms,
        embedding=tuple(message.embedding),
    )
