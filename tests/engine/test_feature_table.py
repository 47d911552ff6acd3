"""Features read by name, of many people: every aggregate against brute force, formulas, defaults, money, pushed values."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.engine import Engine, Item, Signal
from tailorbird.engine.compiled import compile_configuration
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import CallerError, ConfigurationError, NotFound, Unavailable
from tailorbird.engine.profile import FeatureStatus
from tailorbird.engine.pushes import PushedRow
from tailorbird.engine.signals import Status
from tests.engine.shops import DAY, START, Clock, assert_replays_to_the_same, open_shop, signal

HOUR = 3_600_000
NOW = START + 40 * DAY
FRESH, STALE, MISSING, WARMING, DEFAULTED, MASKED = FeatureStatus
LOCAL = "limits: {map_bytes: 134217728}\n"


def declared(*lines: str, more: str = "") -> str:
    return "version: 1\n" + LOCAL + more + "features:\n" + "".join(f"  - {{{line}}}\n" for line in lines)


def apply(engine: Engine, *signals: Signal) -> None:
    outcomes = engine.ingest(signals).outcomes
    assert {outcome.status for outcome in outcomes} == {Status.APPLIED}, outcomes


def order(
    number: int, at: int, revenue: float, *, who: str = "v1", kind: str = "order_completed", **more: Any
) -> Signal:
    properties = {"revenue": revenue, "products": [{"product_id": "mug"}], **more}
    return signal(f"o{number}", kind, at, who={"anonymous_id": who}, **properties)


# ---- every aggregate against brute force -----------------------------------------------------------------------------

Order = tuple[int, float, str]  # time, revenue, coupon


def within(orders: list[Order], window_ms: int, hop_ms: int) -> list[Order]:
    start = (NOW - window_ms) // hop_ms * hop_ms
    return [found for found in orders if start <= found[0] <= NOW]


def near(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


WEEK = 7 * DAY
ORACLES: dict[str, tuple[str, Callable[[list[Order]], float], float]] = {
    "count": ("aggregate: count", len, 0),
    "sum": ("aggregate: sum(revenue)", lambda o: sum(r for _, r, _ in o), 1e-9),
    "mean": ("aggregate: mean(revenue)", lambda o: statistics.fmean(r for _, r, _ in o), 1e-9),
    "min": ("aggregate: min(revenue)", lambda o: min(r for _, r, _ in o), 0),
    "max": ("aggregate: max(revenue)", lambda o: max(r for _, r, _ in o), 0),
    "first": ("aggregate: first(revenue)", lambda o: min(o)[1], 0),
    "last": ("aggregate: last(revenue)", lambda o: max(o)[1], 0),
    "since": ("aggregate: time_since", lambda o: (NOW - max(o)[0]) / 1000, 0),
    "distinct": ("aggregate: distinct(coupon)", lambda o: len({c for *_, c in o}), 0.3),
    "median": ("aggregate: quantile(revenue)", lambda o: near([r for _, r, _ in o], 0.5), 0.0111),
    "high": ('aggregate: "quantile(revenue, q=0.9)"', lambda o: near([r for _, r, _ in o], 0.9), 0.0111),
    "fading": (
        'aggregate: "decayed_count(half_life=10d)"',
        lambda o: sum(2 ** ((t - NOW) / DAY / 10) for t, *_ in o),
        1e-9,
    ),
    "fading_sum": (
        'aggregate: "decayed_sum(revenue, half_life=10d)"',
        lambda o: sum(r * 2 ** ((t - NOW) / DAY / 10) for t, r, _ in o),
        1e-9,
    ),
    "count_7d": ("aggregate: count, window: 7d", lambda o: len(within(o, WEEK, DAY)), 0),
    "sum_7d": ("aggregate: sum(revenue), window: 7d", lambda o: sum(r for _, r, _ in within(o, WEEK, DAY)), 1e-9),
    "mean_20d": (
        "aggregate: mean(revenue), window: 20d, hop: 5d",
        lambda o: statistics.fmean(r for _, r, _ in within(o, 20 * DAY, 5 * DAY)),
        1e-9,
    ),
    "min_20d": ("aggregate: min(revenue), window: 20d", lambda o: min(r for _, r, _ in within(o, 20 * DAY, DAY)), 0),
    "max_20d": ("aggregate: max(revenue), window: 20d", lambda o: max(r for _, r, _ in within(o, 20 * DAY, DAY)), 0),
    "distinct_20d": (
        "aggregate: distinct(coupon), window: 20d",
        lambda o: len({c for *_, c in within(o, 20 * DAY, DAY)}),
        0.5,
    ),
    "hours": ("aggregate: count, window: 12h", lambda o: len(within(o, 12 * HOUR, HOUR)), 0),
}


@pytest.mark.parametrize("seed", range(4))
def test_every_aggregate_equals_brute_force_over_late_events_and_joined_devices(tmp_path: Path, seed: int) -> None:
    """Two devices of one person, whose events come in any order, and who is told to be one in the middle of them."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    orders: list[Order] = [
        (
            NOW - round(rng.expovariate(1 / (8 * DAY))) - rng.randrange(2),
            rng.randrange(1, 50_000) / 100,
            f"c{rng.randrange(9)}",
        )
        for _ in range(120)
    ]
    orders += [(NOW - HOUR, 12.5, "c1"), (NOW, 3.0, "c2")]
    orders = list({time: (time, revenue, coupon) for time, revenue, coupon in orders}.values())
    rng.shuffle(orders)
    # Ties in time are broken by digest, which brute force cannot know: there are none.
    lines = [f"name: {name}, signal: order_completed, {text}" for name, (text, *_) in ORACLES.items()]
    lines = [f"{line}, store: lists" if "distinct" in line or "quantile" in line else line for line in lines]
    with open_shop(tmp_path, declared(*lines), clock=Clock(NOW)) as engine:
        for number, (time, revenue, coupon) in enumerate(orders):
            apply(engine, order(number, time, revenue, who=f"v{number % 2}", coupon=coupon))
            if number == len(orders) // 2:
                engine.link(("anonymous_id", "v0"), ("user_id", "u"))
                engine.link(("anonymous_id", "v1"), ("user_id", "u"))
        found = engine.get_features("user_id", ["u"], at=NOW)
        assert set(found.statuses.ravel().tolist()) == {FRESH}
        for name, (_, oracle, error) in ORACLES.items():
            expected = oracle(orders)
            assert math.isclose(found.column(name)[0], expected, rel_tol=error or 1e-15), (
                name,
                found.column(name),
                expected,
            )
        assert found.completeness.tolist() == [1.0]
    assert_replays_to_the_same(tmp_path)


def test_windows_move_on_without_events(tmp_path: Path) -> None:
    text = declared("name: today, signal: page_viewed, aggregate: count, window: 1d")
    with open_shop(tmp_path, text, clock=Clock(NOW)) as engine:
        apply(engine, *(signal(f"p{n}", "page_viewed", START + n * HOUR) for n in range(6)))
        read = [
            engine.get_features("anonymous_id", ["v1"], at=START + h * HOUR).values[0, 0] for h in (5, 24, 27, 28, 60)
        ]
        assert read == [6.0, 6.0, 3.0, 2.0, 0.0]


# ---- many people, statuses -------------------------------------------------------------------------------------------


def test_people_and_strangers_have_a_row_each(tmp_path: Path) -> None:
    text = declared(
        "name: pages, signal: page_viewed, aggregate: count, max_age: 1d",
        "name: latest, signal: product_viewed, aggregate: last(product_id)",
        "name: favourite, signal: product_viewed, aggregate: 'decayed_top_k(category, k=3, half_life=1d)'",
        "name: recent, signal: product_viewed, aggregate: 'last_k(product_id, k=3)'",
        "name: cups, signal: product_viewed, aggregate: last(category)",
        "name: visits, signal: page_viewed, aggregate: count, default: -1",
    )
    text = text.replace("  - {name: latest, signal: product_viewed, aggregate: last(product_id)}\n", "")
    with open_shop(tmp_path, text + "attributes: [category]\n") as engine:
        engine.put_items(
            [Item(id="mug", attributes={"category": "cups"}), Item(id="pan", attributes={"category": "pans"})]
        )
        apply(engine, signal("a", "page_viewed", START), signal("b", at=START + 1, product_id="mug"))
        apply(engine, signal("c", at=START, who={"anonymous_id": "v2"}, product_id="pan"))
        found = engine.get_features("anonymous_id", ["v1", "nobody", "v2", "null"], at=START + HOUR)
        assert found.names == ("pages", "favourite", "recent", "cups", "visits")
        assert found.known.tolist() == [True, False, True, False]
        assert found.statuses.tolist() == [
            [FRESH, FRESH, FRESH, FRESH, FRESH],
            [MISSING, MISSING, MISSING, MISSING, DEFAULTED],
            [MISSING, FRESH, FRESH, FRESH, DEFAULTED],
            [MISSING, MISSING, MISSING, MISSING, DEFAULTED],
        ]
        assert found.column("visits").tolist() == [1.0, -1.0, -1.0, -1.0]
        assert found.texts == {"cups": ["cups", None, "pans", None]}
        assert found.weighted["recent"] == [(("mug", 3599.999),), None, (("pan", 3600.0),), None]
        assert [None if keys is None else keys[0][0] for keys in found.weighted["favourite"]] == [
            "cups",
            None,
            "pans",
            None,
        ]
        assert found.ages_ms[:, 0].tolist() == [HOUR, -1, -1, -1]
        assert found.completeness.tolist() == [1.0, 0.0, 0.6, 0.0]
        assert (found.at, found.position) == (START + HOUR, engine.position)
        later = engine.get_features("anonymous_id", ["v1"], ["pages"], at=START + 2 * DAY)
        assert (later.statuses.tolist(), later.ages_ms.tolist()) == ([[STALE]], [[2 * DAY]])
        assert np.isnan(later.values).all()


def test_consent_masks_values_ages_and_defaults(tmp_path: Path) -> None:
    text = declared(
        "name: spent, signal: order_completed, aggregate: sum(revenue), default: 0",
        "name: month, signal: order_completed, aggregate: sum(revenue), window: 90d, store: lists",
        "name: doubled, formula: 2 * spent, default: 1",
        "name: pages, signal: page_viewed, aggregate: count",
    )
    with open_shop(tmp_path, text) as engine:
        apply(engine, order(1, START, 5.0), signal("p", "page_viewed"))
        engine.set_consent({"anonymous_id": "v1"}, parse_choice("denied:transactional"))
        found = engine.get_features("anonymous_id", ["v1"], at=START + 1)
        assert found.statuses.tolist() == [[MASKED, MASKED, MASKED, FRESH]]
        assert np.isnan(found.values[0, :3]).all()
        assert found.ages_ms.tolist() == [[-1, -1, -1, 1]]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    text = declared("name: pages, signal: page_viewed, aggregate: count").replace(
        "}\n", ", features_people_max: 3}\n", 1
    )
    with open_shop(tmp_path, text) as engine:
        with pytest.raises(NotFound, match=r"UNKNOWN_FEATURE: expected a feature of pages; got 'page'"):
            engine.get_features("anonymous_id", ["v1"], ["page"])
        with pytest.raises(CallerError, match="BATCH_TOO_LARGE: .*features_people_max = 3 people, got 4"):
            engine.get_features("anonymous_id", ["v"] * 4)
        with pytest.raises(CallerError, match="UNKNOWN_NAMESPACE"):
            engine.get_features("shoe_size", ["44"])
        with pytest.raises(Unavailable, match="POSITION_NOT_REACHED"):
            engine.get_features("anonymous_id", ["v1"], min_position=engine.position + 1)
        assert engine.get_features("anonymous_id", []).values.shape == (0, 1)


# ---- formulas --------------------------------------------------------------------------------------------------------


def test_formulas_are_computed_from_what_they_read(tmp_path: Path) -> None:
    text = declared(
        "name: average, formula: 'ratio(spent, orders)'",
        "name: loyal, formula: 'clamp(orders / 10, 0, 1) * sqrt(abs(-average))'",
        "name: spent, signal: order_completed, aggregate: sum(revenue)",
        "name: orders, signal: order_completed, aggregate: count",
        "name: pages, signal: page_viewed, aggregate: count",
        "name: per_page, formula: orders / pages, default: 7",
        "name: nothing, formula: orders / (pages - pages)",
    )
    with open_shop(tmp_path, text) as engine:
        apply(engine, order(1, START, 8.0), order(2, START + 5, 24.0), order(3, START, 4.0, who="v2"))
        apply(engine, signal("p", "page_viewed", START - 7))
        found = engine.get_features(
            "anonymous_id", ["v1", "v2", "v3"], ["loyal", "average", "per_page", "nothing"], at=START + 9
        )
        assert found.statuses.tolist() == [
            [FRESH, FRESH, FRESH, MISSING],
            [FRESH, FRESH, DEFAULTED, MISSING],
            [MISSING, MISSING, DEFAULTED, MISSING],
        ]
        assert found.values[:2, :3].tolist() == [[0.8, 16.0, 2.0], [0.2, 4.0, 7.0]]
        assert found.ages_ms[:, :3].tolist() == [[4, 4, 16], [9, 9, -1], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("lines", "reason", "said"),
    [
        (("name: a, formula: b + 1", "name: b, formula: 2 * a"), "CYCLIC_FEATURES", "the cycle a -> b -> a"),
        (("name: a, formula: a",), "CYCLIC_FEATURES", "a -> a"),
        (("name: a, formula: b + 1",), "UNKNOWN_FEATURE", "got 'b'"),
        (("name: a, formula: '2 *'",), "BAD_FORMULA", "expected a number, a feature or a function"),
        (("name: a, formula: 'exec(1)'",), "BAD_FORMULA", "a function of ratio, min"),
        (("name: a, formula: 'min(1)'",), "BAD_FORMULA", "in feature 'a'"),
        (("name: a, formula: '1', signal: page_viewed",), "BAD_FORMULA", "or signal, got both"),
        ((f"name: a, formula: '{'(' * 40}1{')' * 40}'",), "BAD_FORMULA", "at most 32 levels"),
        (
            ("name: t, signal: page_viewed, aggregate: last(name)", "name: a, formula: t + 1"),
            "BAD_FORMULA",
            "one number",
        ),
        (("name: a, signal: page_viewed, aggregate: count, window: 100d, hop: 1d",), "BAD_WINDOW", "1 to 95 hops"),
        (("name: a, signal: page_viewed, aggregate: time_since, window: 1d",), "BAD_WINDOW", "a window only for count"),
        (("name: a, signal: page_viewed, aggregate: count, hop: 1d",), "BAD_WINDOW", "a window for the hop"),
        (("name: a, signal: page_viewed, aggregate: last(name), default: 1",), "BAD_DEFAULT", "one number"),
        (("name: a, signal: page_viewed, aggregate: count, default: .inf",), "BAD_DEFAULT", "finite"),
        (("name: a, signal: page_viewed, aggregate: count, version: 0",), "BAD_VERSION", "at least 1"),
        (
            ("name: a, signal: page_viewed, aggregate: 'distinct(name, precision=12)'",),
            "BAD_AGGREGATE",
            "precision from 6",
        ),
        (("name: a, signal: order_completed, aggregate: 'quantile(revenue, q=2)'",), "BAD_AGGREGATE", "q from 0 to 1"),
        (("name: a, signal: page_viewed, aggregate: count", "name: a, formula: '1'"), "DUPLICATE_NAME", "'a'"),
        (("name: a, pushed: number",), "BAD_AGGREGATE", "`pushed` and a category"),
        (
            ("name: a, pushed: text, signal: order_completed, aggregate: last(revenue)",),
            "BAD_AGGREGATE",
            "beside `last` of a text",
        ),
        (
            ("name: a, compute: batch, signal: page_viewed, aggregate: last(name)",),
            "BAD_AGGREGATE",
            "expected a number",
        ),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(lines: tuple[str, ...], reason: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compile_configuration(declared(*lines), 1, 1)
    assert (caught.value.reason, said in caught.value.message) == (reason, True), caught.value


def test_lists_too_large_name_what_takes_the_room() -> None:
    lines = [f"name: f{n}, signal: page_viewed, aggregate: distinct(name), window: 90d" for n in range(6)]
    with pytest.raises(ConfigurationError) as caught:
        compile_configuration(declared(*lines), 1, 1)
    assert (caught.value.reason, "f0 3" in caught.value.message) == ("LISTS_TOO_LARGE", True), caught.value


# ---- money -----------------------------------------------------------------------------------------------------------

SPENT = "name: spent, signal: [order_completed, order_refunded], aggregate: sum(revenue)"


def spent(engine: Engine) -> float:
    return float(engine.get_features("anonymous_id", ["v1"], ["spent"]).values[0, 0])


def test_money_is_converted_by_declared_rates_and_never_mixed(tmp_path: Path) -> None:
    money = "money: {currency: EUR, rates: {GBP: 1.2, JPY: 0.0061}}\n"
    with open_shop(tmp_path, declared(SPENT, more=money)) as engine:
        apply(
            engine, order(1, START, 10.0, currency="EUR"), order(2, START, 10.0, currency="GBP"), order(3, START, 1.0)
        )
        apply(engine, order(4, START, 1_234.0, currency="JPY"))  # 7.5274 EUR, 7.53 in cents
        assert spent(engine) == 10.0 + 12.0 + 1.0 + 7.53
        apply(engine, order(5, START, 4.0, kind="order_refunded", currency="GBP"))
        assert spent(engine) == 30.53 - 4.8
        apply(engine, order(6, START, -2.0, kind="order_refunded"))
        assert round(spent(engine), 4) == 23.73
        (outcome,) = engine.ingest([order(7, START, 9.0, currency="USD")]).outcomes
        assert (outcome.status, outcome.reason) == (Status.REJECTED, "NO_RATE")
        assert "EUR, GBP, JPY, got 'USD'" in outcome.message
    assert_replays_to_the_same(tmp_path)


def test_without_a_declared_currency_the_first_one_is_kept(tmp_path: Path) -> None:
    with open_shop(tmp_path, declared(SPENT)) as engine:
        apply(engine, order(1, START, 10.0), order(2, START, 5.0, currency="SEK"), order(3, START, 5.0, currency="SEK"))
        (outcome,) = engine.ingest([order(4, START, 9.0, currency="USD")]).outcomes
        assert (outcome.reason, "{currency: SEK, rates" in outcome.message) == ("NO_RATE", True), outcome
        assert spent(engine) == 20.0
    with open_shop(tmp_path, declared(SPENT)) as engine:
        assert engine.ingest([order(4, START, 9.0, currency="USD")]).outcomes[0].reason == "NO_RATE"
    assert_replays_to_the_same(tmp_path)


@pytest.mark.parametrize(
    "money",
    ["{rates: {GBP: 1.2}}", "{currency: euro}", "{currency: EUR, rates: {GBP: 0}}", "{currency: EUR, rates: {EUR: 1}}"],
)
def test_money_that_cannot_be_is_refused(money: str) -> None:
    with pytest.raises(ConfigurationError, match="BAD_MONEY"):
        compile_configuration(declared(SPENT, more=f"money: {money}\n"), 1, 1)


# ---- pushed values ---------------------------------------------------------------------------------------------------

PUSHED = declared(
    "name: risk, pushed: number, category: transactional, max_age: 10d",
    "name: tier, pushed: text, signal: identified, aggregate: last(account_type)",
    "name: worth, signal: order_completed, aggregate: sum(revenue), window: 90d, compute: batch",
    "name: twice, formula: worth * 2",
)


def row(person: str, at: int, **values: float | str) -> PushedRow:
    return PushedRow(person, values, at)


def test_pushed_values_are_features_like_others(tmp_path: Path) -> None:
    everything = parse_choice("granted:all")
    with open_shop(tmp_path, PUSHED) as engine:
        report = engine.push_features(
            "user_id",
            [row("u1", START, risk=0.25, tier="gold", worth=80.0), row("u2", START, risk=0.5)],
            consent=everything,
        )
        assert [outcome.status for outcome in report.outcomes] == [Status.APPLIED] * 2
        found = engine.get_features("user_id", ["u1", "u2"], at=START + DAY)
        np.testing.assert_array_equal(found.values[:, [0, 2, 3]], [[0.25, 80.0, 160.0], [0.5, np.nan, np.nan]])
        assert found.texts["tier"] == ["gold", None]
        assert found.ages_ms[0].tolist() == [DAY] * 4
        assert engine.get_features("user_id", ["u2"], ["risk"], at=START + 11 * DAY).statuses.tolist() == [[STALE]]
        assert engine.profile({"user_id": "u1"}).last_seen == 0
    assert_replays_to_the_same(tmp_path)


def test_a_late_batch_never_replaces_a_fresher_value(tmp_path: Path) -> None:
    everything = parse_choice("granted:all")
    with open_shop(tmp_path, PUSHED) as engine:

        def tier() -> str | None:
            return engine.get_features("user_id", ["u1"], ["tier"], at=START + DAY).texts["tier"][0]

        apply(engine, signal("i", "identified", START + 5, who={"user_id": "u1"}, account_type="silver"))
        engine.push_features("user_id", [row("u1", START, tier="gold")], consent=everything)
        assert tier() == "silver"
        report = engine.push_features("user_id", [row("u1", START + 6, tier="gold")])
        assert tier() == "gold"
        again = engine.push_features("user_id", [row("u1", START + 6, tier="gold")])
        assert [r.outcomes[0].status for r in (report, again)] == [Status.APPLIED, Status.DUPLICATE]
        apply(engine, signal("j", "identified", START + 7, who={"user_id": "u1"}, account_type="bronze"))
        assert tier() == "bronze"


def test_a_push_is_admitted_like_an_event(tmp_path: Path) -> None:
    with open_shop(tmp_path, PUSHED) as engine:
        with pytest.raises(NotFound, match="UNKNOWN_FEATURE: expected a feature of .*risk.*; got 'rsik'"):
            engine.push_features("user_id", [row("u1", START, rsik=1.0)])
        with pytest.raises(CallerError, match="NOT_PUSHED: .*got 'twice'"):
            engine.push_features("user_id", [row("u1", START, twice=1.0)])
        report = engine.push_features(
            "user_id",
            [
                row("u1", START, risk=0.5),
                row("u1", START, risk="high"),
                row("u1", START, risk=math.nan),
                row("null", START, risk=1),
            ],
        )
        assert [outcome.status for outcome in report.outcomes] == [
            Status.WITHHELD, Status.REJECTED, Status.REJECTED, Status.REJECTED
        ]  # fmt: skip
        assert [outcome.reason for outcome in report.outcomes] == [
            "NO_CONSENT", "WRONG_TYPE", "WRONG_TYPE", "REFUSED_VALUE"
        ]  # fmt: skip


# ---- what goes wrong outside -----------------------------------------------------------------------------------------


def test_texts_past_their_limit_are_counted_but_not_remembered(tmp_path: Path) -> None:
    text = declared(
        "name: latest, signal: page_viewed, aggregate: last(name)",
        "name: names, signal: page_viewed, aggregate: distinct(name)",
        "name: most, signal: page_viewed, aggregate: 'decayed_top_k(name, k=3, half_life=1d)'",
    ).replace("map_bytes: 134217728", "map_bytes: 134217728, symbols_max: 2")
    with open_shop(tmp_path, text) as engine:
        apply(engine, *(signal(f"p{n}", "page_viewed", START + n, name=f"page {n}") for n in range(40)))
        found = engine.get_features("anonymous_id", ["v1"], at=START + 50)
        assert (found.texts["latest"][0] or "").startswith("#"), "the last came after the limit"
        assert found.column("names")[0] == pytest.approx(40, rel=0.3)
        assert len(found.weighted["most"][0] or ()) == 3
        assert engine.writer.applier.state.head.symbols == 2
    assert_replays_to_the_same(tmp_path)


def test_a_clock_that_jumps_moves_no_event(tmp_path: Path) -> None:
    text = declared(
        "name: pages, signal: page_viewed, aggregate: count",
        "name: hour, signal: page_viewed, aggregate: count, window: 1h",
        "name: since, signal: page_viewed, aggregate: time_since",
    )
    clock = Clock(START)
    with open_shop(tmp_path, text, clock=clock) as engine:
        for number, jump in enumerate((0, -3 * DAY, 2 * DAY, -DAY, 400 * DAY, -400 * DAY)):
            clock.now = START + jump
            apply(engine, signal(f"p{number}", "page_viewed", START - number * 60_000))
            assert engine.get_features("anonymous_id", ["v1"], ["pages"]).values[0, 0] == number + 1
        clock.now = START
        found = engine.get_features("anonymous_id", ["v1"])
        assert found.values.tolist() == [[6.0, 6.0, 0.0]]
        apply(
            engine, signal("future", "page_viewed", START + 500 * DAY)
        )  # clamped to the log's own time, which never goes back
        assert engine.latest_event_time <= START + 400 * DAY + 5 * 60_000
    assert_replays_to_the_same(tmp_path)
