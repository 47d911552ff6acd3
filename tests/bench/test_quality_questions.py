"""The questions of `bench quality`, on orders few enough to be seen through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tailorbird.bench.quality_questions import (
    DAY_MS,
    Order,
    ndcg10,
    order_of,
    questions_of,
    read_orders,
    recall20,
    without,
)
from tailorbird.engine.signals import Signal

CUT = 100 * DAY_MS


def order(day: int, customer: str, items: str, country: str = "GB") -> Order:
    return Order(day * DAY_MS, customer, country, tuple(items))


def test_known_customers_are_asked_for_what_they_never_bought_before() -> None:
    before = [order(1, "one", "ab", "FR"), order(2, "one", "c", "DE"), order(3, "two", "a"), order(4, "", "xyz")]
    after = [
        order(101, "one", "ad"),
        order(102, "one", "e"),
        order(103, "two", "a"),
        order(104, "new", "a"),
        order(105, "", "q"),
    ]
    (question,) = questions_of(before, after, CUT).known
    assert (question.customer, question.country) == ("one", "DE")
    assert question.bought == set("abc")
    assert question.sought == set("de")


def test_baskets_of_4_to_40_items_are_halved_in_their_order() -> None:
    letters = "".join(chr(0x4E00 + number) for number in range(41))
    after = [
        order(101, "", "abc"),
        order(102, "one", "bcade", "FR"),
        order(103, "", letters[:40]),
        order(104, "", letters),
    ]
    first, second = questions_of([], after, CUT).baskets
    assert (first.given, first.sought, first.country, first.time) == (("b", "c"), set("ade"), "FR", 102 * DAY_MS)
    assert (len(second.given), len(second.sought)) == (20, 20)


def test_abroad_is_any_country_but_the_most_frequent() -> None:
    after = [order(101, "", "abcd", country) for country in ("FR", "GB", "GB", "DE")]
    assert [question.abroad for question in questions_of([], after, CUT).baskets] == [True, False, False, True]


def test_popularity_counts_orders_of_30_days_and_ties_fall_by_id() -> None:
    before = [order(60, "", "zzz"), order(60, "", "z"), order(71, "", "cab"), order(99, "", "cb")]
    assert questions_of(before, [], CUT).popular == ("b", "c", "a")


def test_measures_of_known_rankings() -> None:
    assert ndcg10("abc", {"a"}) == 1.0
    assert ndcg10("abc", {"b", "z"}) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg10([str(n) for n in range(30)], {str(n) for n in range(30)}) == 1.0
    assert ndcg10("", {"a"}) == 0.0
    assert ndcg10([str(n) for n in range(30)], {"10"}) == 0.0
    assert recall20([str(n) for n in range(30)], {"19", "20"}) == 0.5
    assert recall20([str(n) for n in range(30)], {str(n) for n in range(30)}) == 1.0


def test_excluded_items_leave_room_for_the_next() -> None:
    assert without("abcdef", {"a", "c"}, 3) == ["b", "d", "e"]


def test_refunds_are_no_orders() -> None:
    refund = Signal(type="order_refunded", event_time=1, identifiers={"crm_id": "1"}, properties={"products": []})
    assert order_of(refund) is None


def test_orders_are_read_from_the_real_file(data_dir: Path) -> None:
    orders = read_orders([data_dir / "online-retail" / "transactions-2010-12-to-2011-09.csv.gz"])
    assert len(orders) > 14_000
    cut = 1_312_156_800_000  # 2011-08-01
    asked = questions_of([o for o in orders if o.time < cut], [o for o in orders if o.time >= cut], cut)
    assert len(asked.known) > 1_000
    assert len(asked.baskets) > 2_000
    assert 0 < sum(question.abroad for question in asked.baskets) < len(asked.baskets) // 4
