"""The built-in e-commerce vocabulary: Segment's event names in snake case, and what each event means to the engine.

A signal type says which data type it is (and so which consent it needs), which properties it has, and whether its items
enter one of the person's lists. Properties that are not declared are kept in the log as they came, within the limits.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from tailorbird.engine.consent import DataType


class Kind(StrEnum):
    """The kinds of property values. `item` is an item id; `products` a list of product lines; `money` an amount in the
    event's `currency`, in units of it, that sums convert."""

    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    ITEM = "item"
    PRODUCTS = "products"
    MONEY = "money"


class ItemList(StrEnum):
    """The lists of items kept per person."""

    BOUGHT = "bought"
    SHOWN = "shown"
    SERVED = "served"


class SignalType(msgspec.Struct, frozen=True):
    """One declared signal type."""

    name: str
    category: DataType
    properties: dict[str, Kind]
    required: tuple[str, ...] = ()
    adds_to: ItemList | None = None
    refunds: bool = False  # its amounts of money are taken back, whatever their sign
    pushes: bool = False  # it brings values of features, computed elsewhere, and is no sign of life


def push_type(category: DataType) -> str:
    """Return the name of the signal type that brings values of a category's features."""
    return f"{category.name.lower()}_features_pushed"


# The fields of a product line, in `products` or, for events about one product, beside the event's own properties.
PRODUCT_FIELDS = {
    "product_id": Kind.ITEM,
    "sku": Kind.STRING,
    "name": Kind.STRING,
    "category": Kind.STRING,
    "brand": Kind.STRING,
    "variant": Kind.STRING,
    "price": Kind.MONEY,
    "quantity": Kind.INTEGER,
    "position": Kind.INTEGER,
    "coupon": Kind.STRING,
}
_ORDER_FIELDS = {
    "order_id": Kind.STRING,
    "total": Kind.MONEY,
    "revenue": Kind.MONEY,
    "shipping": Kind.MONEY,
    "tax": Kind.MONEY,
    "discount": Kind.MONEY,
    "coupon": Kind.STRING,
    "currency": Kind.STRING,
    "products": Kind.PRODUCTS,
}
_LIST_FIELDS = {"list_id": Kind.STRING, "category": Kind.STRING, "products": Kind.PRODUCTS}
_PAGE_FIELDS = {
    "name": Kind.STRING,
    "category": Kind.STRING,
    "path": Kind.STRING,
    "title": Kind.STRING,
    "url": Kind.STRING,
    "referrer": Kind.STRING,
}
_PROMOTION_FIELDS = {
    "promotion_id": Kind.STRING,
    "creative": Kind.STRING,
    "name": Kind.STRING,
    "position": Kind.STRING,
}
_CHECKOUT_FIELDS = {
    "checkout_id": Kind.STRING,
    "step": Kind.INTEGER,
    "shipping_method": Kind.STRING,
    "payment_method": Kind.STRING,
    "order_id": Kind.STRING,
}

_B, _C, _T, _P, _D = (
    DataType.BEHAVIOURAL,
    DataType.CONTEXTUAL,
    DataType.TRANSACTIONAL,
    DataType.PREFERENCE,
    DataType.DEMOGRAPHIC,
)

_TYPES = (
    SignalType("page_viewed", _B, _PAGE_FIELDS),
    SignalType("screen_viewed", _B, _PAGE_FIELDS),
    SignalType("products_searched", _B, {"query": Kind.STRING}, ("query",)),
    SignalType("product_list_viewed", _B, _LIST_FIELDS),
    SignalType("product_list_filtered", _B, _LIST_FIELDS),
    SignalType("promotion_viewed", _B, _PROMOTION_FIELDS),
    SignalType("promotion_clicked", _B, _PROMOTION_FIELDS),
    SignalType("product_clicked", _B, PRODUCT_FIELDS, ("product_id",)),
    SignalType("product_viewed", _B, PRODUCT_FIELDS, ("product_id",)),
    SignalType("product_added", _B, PRODUCT_FIELDS, ("product_id",)),
    SignalType("product_removed", _B, PRODUCT_FIELDS, ("product_id",)),
    SignalType("cart_viewed", _B, {"cart_id": Kind.STRING, "products": Kind.PRODUCTS}),
    SignalType("checkout_started", _B, _ORDER_FIELDS),
    SignalType("checkout_step_viewed", _B, _CHECKOUT_FIELDS),
    SignalType("checkout_step_completed", _B, _CHECKOUT_FIELDS),
    SignalType("payment_info_entered", _B, _CHECKOUT_FIELDS),
    SignalType("coupon_entered", _B, {"coupon_id": Kind.STRING, "order_id": Kind.STRING}),
    SignalType("coupon_applied", _B, {"coupon_id": Kind.STRING, "discount": Kind.MONEY}),
    SignalType("product_shared", _B, {**PRODUCT_FIELDS, "share_via": Kind.STRING}, ("product_id",)),
    SignalType("items_shown", _B, {"placement": Kind.STRING, "products": Kind.PRODUCTS}, ("products",), ItemList.SHOWN),
    SignalType("recommendation_clicked", _B, {**PRODUCT_FIELDS, "decision_id": Kind.STRING}, ("product_id",)),
    SignalType("logged_out", _B, {}),
    SignalType(
        "context_observed",
        _C,
        {
            "device": Kind.STRING,
            "country": Kind.STRING,
            "city": Kind.STRING,
            "weather": Kind.STRING,
            "temperature": Kind.NUMBER,
            "referrer": Kind.STRING,
        },
    ),
    SignalType("order_completed", _T, _ORDER_FIELDS, ("products",), ItemList.BOUGHT),
    SignalType("order_updated", _T, _ORDER_FIELDS),
    SignalType("order_refunded", _T, _ORDER_FIELDS, refunds=True),
    SignalType("order_cancelled", _T, _ORDER_FIELDS, refunds=True),
    SignalType("product_added_to_wishlist", _P, {**PRODUCT_FIELDS, "wishlist_id": Kind.STRING}, ("product_id",)),
    SignalType("product_removed_from_wishlist", _P, {**PRODUCT_FIELDS, "wishlist_id": Kind.STRING}, ("product_id",)),
    SignalType(
        "product_reviewed",
        _P,
        {**PRODUCT_FIELDS, "rating": Kind.NUMBER, "review_body": Kind.STRING},
        ("product_id",),
    ),
    SignalType(
        "preferences_updated",
        _P,
        {"channel": Kind.STRING, "frequency": Kind.STRING, "newsletter": Kind.BOOLEAN, "language": Kind.STRING},
    ),
    SignalType(
        "identified",
        _D,
        {
            "age": Kind.NUMBER,
            "age_band": Kind.STRING,
            "gender": Kind.STRING,
            "language": Kind.STRING,
            "city": Kind.STRING,
            "country": Kind.STRING,
            "account_type": Kind.STRING,
        },
    ),
)

ECOMMERCE: dict[str, SignalType] = {signal_type.name: signal_type for signal_type in _TYPES}
