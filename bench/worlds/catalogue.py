"""The items of the generated shop: what they are, how attractive, and in which style."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.engine.items import Item

DAY_MS = 86_400_000

CATEGORIES: tuple[str, ...] = (
    "rainwear", "swimwear", "knitwear", "coffee", "wine", "gadgets",
    "books", "garden", "running", "toys", "skincare", "kitchen",
)  # fmt: skip
_NOUNS: dict[str, tuple[str, ...]] = {
    "rainwear": ("rain jacket", "umbrella", "wellingtons", "poncho"),
    "swimwear": ("swim shorts", "swimsuit", "goggles", "beach towel"),
    "knitwear": ("jumper", "scarf", "mittens", "cardigan"),
    "coffee": ("espresso beans", "filter coffee", "moka pot", "grinder"),
    "wine": ("red wine", "white wine", "decanter", "corkscrew"),
    "gadgets": ("headphones", "charger", "keyboard", "camera"),
    "books": ("novel", "cookbook", "atlas", "thriller"),
    "garden": ("hedge shears", "seed box", "watering can", "deck chair"),
    "running": ("running shoes", "running vest", "head torch", "water bottle"),
    "toys": ("train set", "puzzle", "kite", "building bricks"),
    "skincare": ("face cream", "sun lotion", "soap", "lip balm"),
    "kitchen": ("frying pan", "chef's knife", "mixing bowl", "kettle"),
}
_BRANDS: tuple[str, ...] = (
    "Ashdown", "Birkett", "Calloway", "Dunmore", "Ellery", "Farrow", "Gilsland", "Harrow",
    "Inverley", "Jessop", "Kelmscott", "Larkfield", "Marlow", "Northam", "Oakley", "Pendle",
    "Quarry", "Rowan", "Selwood", "Thornbury", "Underhill", "Vance", "Wexcombe", "Yarrow",
)  # fmt: skip
_TAGS: tuple[str, ...] = ("sale", "gift", "organic", "bestseller")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Columns over items i: category and brand numbers, attraction (log-odds), style (i x d), price, stock, schedule.

    `start__i` and `end__i` are milliseconds since 1970, 0 open.
    """

    category__i: NDArray[np.int32]
    brand__i: NDArray[np.int32]
    attraction__i: NDArray[np.float32]
    style__id: NDArray[np.float32]
    embedding__ie: NDArray[np.float32]
    price__i: NDArray[np.float64]
    stock__i: NDArray[np.int32]
    start__i: NDArray[np.int64]
    end__i: NDArray[np.int64]
    tag__i: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.category__i)

    def on_offer__i(self, at: int) -> NDArray[np.bool_]:
        """Return which items are in stock and on schedule at `at`."""
        on_offer: NDArray[np.bool_] = (self.stock__i != 0) & (self.start__i <= at)
        on_offer &= (self.end__i == 0) | (at < self.end__i)
        return on_offer

    def item(self, index: int) -> Item:
        """Return one item as the engine takes it."""
        category, brand = CATEGORIES[self.category__i[index]], brand_name(int(self.brand__i[index]))
        nouns, tag = _NOUNS[category], int(self.tag__i[index])
        return Item(
            id=item_id(index),
            name=f"{brand} {nouns[index % len(nouns)]} no. {index}",
            attributes={"category": category, "brand": brand},
            tags=(_TAGS[tag],) if tag < len(_TAGS) else (),
            price=float(self.price__i[index]),
            currency="GBP",
            stock=int(self.stock__i[index]),
            start=int(self.start__i[index]),
            end=int(self.end__i[index]),
            embedding=tuple(self.embedding__ie[index].tolist()),
        )

    def items(self) -> Iterator[Item]:
        """Yield every item in number order."""
        return (self.item(index) for index in range(len(self)))


def draw_catalogue(
    rng: np.random.Generator,
    *,
    item_count: int,
    brand_count: int,
    style_dimension: int,
    embedding_dimension: int,
    start: int,
) -> Catalogue:
    """Return a catalogue: attraction N(0, 0.6), style 0.6 of the category's centre plus 0.8 noise, log-normal prices.

    3 % are sold out, 3 % end in the first month, 3 % begin in it. The embedding is the style, projected at random.
    """
    category__i = rng.integers(0, len(CATEGORIES), item_count, dtype=np.int32)
    centre__cd = rng.normal(0.0, 1.0, (len(CATEGORIES), style_dimension))
    style__id = 0.6 * centre__cd[category__i] + 0.8 * rng.normal(0.0, 1.0, (item_count, style_dimension))
    style__id /= np.sqrt(style_dimension)
    projection__de = rng.normal(0.0, 1.0, (style_dimension, embedding_dimension))
    luck__i, moment__i = rng.random(item_count), rng.integers(1, 31, item_count) * DAY_MS + start
    return Catalogue(
        category__i=category__i,
        brand__i=rng.integers(0, brand_count, item_count, dtype=np.int32),
        attraction__i=rng.normal(0.0, 0.6, item_count).astype(np.float32),
        style__id=style__id.astype(np.float32),
        embedding__ie=(style__id @ projection__de).astype(np.float32),
        price__i=np.round(np.exp(rng.normal(3.0, 0.8, item_count)), 2).astype(np.float64),
        stock__i=np.where(luck__i < 0.03, 0, rng.integers(5, 500, item_count)).astype(np.int32),
        start__i=np.where((luck__i >= 0.03) & (luck__i < 0.06), moment__i, 0),
        end__i=np.where((luck__i >= 0.06) & (luck__i < 0.09), moment__i, 0),
        tag__i=rng.integers(0, 3 * len(_TAGS), item_count, dtype=np.int32),
    )


def item_id(index: int) -> str:
    """Return the id of an item number: 12 bytes."""
    return f"item-{index:07d}"


def item_index(identifier: str) -> int:
    """Return the number of an item id."""
    return int(identifier.removeprefix("item-"))


def brand_name(brand: int) -> str:
    """Return a brand's name; the names repeat with a number when there are more brands than names."""
    turn, place = divmod(brand, len(_BRANDS))
    return _BRANDS[place] if turn == 0 else f"{_BRANDS[place]} {turn + 1}"
