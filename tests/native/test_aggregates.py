"""Every aggregate against its brute-force twin: late events, equal times, ties, any order, any tree of merges."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native import record as native
from tailorbird.native import reference
from tailorbird.native.record import Record, RecordLayout
from tailorbird.native.reference import Event
from tests.native.record_layouts import ALL, Feature, layout_of

EXACT = (native.COUNT, native.SUM, native.LAST, native.TIME_SINCE, native.LAST_K)
HALF_LIFE_MS = 1000.0

# Few distinct times, digests and values, so that late events and ties are the rule.
events_strategy = st.lists(
    st.builds(
        Event,
        time=st.one_of(st.integers(0, 5), st.integers(0, 20_000), st.integers(-(2**63), 2**63 - 1)),
        digest=st.one_of(st.integers(0, 3), st.integers(0, 3).map(lambda high: high << 32), st.integers(0, ALL)),
        value=st.integers(0, 6),
        weight=st.sampled_from([1.0, 2.0, 3.0]),
    ),
    min_size=1,
    max_size=40,
)
# Near each other in time, so that weights do not vanish.
near_events = st.lists(
    st.builds(
        Event,
        time=st.integers(1_000_000, 1_010_000),
        digest=st.integers(0, ALL),
        value=st.integers(0, 9),
        weight=st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    ),
    min_size=1,
    max_size=60,
)


def one_feature(op: int, k: int = 4) -> RecordLayout:
    """Return a layout of one feature whose program w reads slot 0 with the weight w / 2."""
    layout = layout_of([Feature(op, k=k, half_life_ms=HALF_LIFE_MS)])
    for half_weight in range(17):
        whole = op == native.COUNT and half_weight % 2
        layout.add_program([] if whole else [(0, 0, half_weight / 2)])
    return layout


def fold(layout: RecordLayout, events: Sequence[Event]) -> Record:
    record = Record(layout)
    for event in events:
        record.update(int(event.weight * 2), event.time, event.digest, (event.value,), ALL)
    return record


def merged_at_random(layout: RecordLayout, events: Sequence[Event], rng: random.Random) -> Record:
    """Return the record of a random tree of merges over the events in a random order."""
    order = list(events)
    rng.shuffle(order)
    records = []
    while order:
        part = rng.randint(1, len(order))
        records.append(fold(layout, order[:part]))
        del order[:part]
    while len(records) > 1:
        left = records.pop(rng.randrange(len(records)))
        right = records.pop(rng.randrange(len(records)))
        left.merge(right, ALL)
        records.append(left)
    return records[0]


@given(events_strategy)
def test_count_equals_its_twin(events: list[Event]) -> None:
    record = fold(one_feature(native.COUNT), events)
    assert record.feature(0) == reference.count(events)[0]


@given(events_strategy, st.lists(st.floats(-1e9, 1e9), min_size=40, max_size=40))
def test_sum_equals_its_twin(events: list[Event], values: list[float]) -> None:
    events = [Event(e.time, e.digest, value, e.weight) for e, value in zip(events, values, strict=False)]
    assert fold(one_feature(native.SUM), events).feature(0) == reference.sum_units(events)[0]


@pytest.mark.parametrize(("value", "units"), [(0.03125, 312), (0.09375, 938), (-0.03125, -312), (0.29, 2900)])
def test_sum_rounds_half_to_even_at_the_fourth_decimal(value: float, units: int) -> None:
    record = Record(one_feature(native.SUM))
    record.update(2, 0, 0, (value,), ALL)
    assert record.feature(0) == units == round(value * 10_000)


@given(events_strategy)
def test_last_equals_its_twin(events: list[Event]) -> None:
    bits, time, _ = reference.last(events)
    assert fold(one_feature(native.LAST), events).feature(0) == (bits, time)


@given(events_strategy)
def test_time_since_equals_its_twin(events: list[Event]) -> None:
    assert fold(one_feature(native.TIME_SINCE), events).feature(0) == reference.time_since(events)


@given(events_strategy, st.integers(1, 8))
def test_last_k_equals_its_twin(events: list[Event], k: int) -> None:
    expected = [(item, time) for item, _, time in reference.last_k(k, events)]
    assert fold(one_feature(native.LAST_K, k), events).feature(0) == expected


@pytest.mark.parametrize("op", EXACT)
@given(events=events_strategy, seed=st.integers(0, 2**32))
def test_exact_aggregates_give_equal_bytes_in_any_order_and_any_tree_of_merges(
    op: int, events: list[Event], seed: int
) -> None:
    layout = one_feature(op, k=3)
    assert merged_at_random(layout, events, random.Random(seed)).pack() == fold(layout, events).pack()


@pytest.mark.parametrize("op", [native.DECAYED, native.TOP_K])
@given(events=events_strategy, cut=st.integers(0, 40))
def test_bounded_aggregates_give_equal_bytes_for_the_same_sequence(op: int, events: list[Event], cut: int) -> None:
    layout = one_feature(op, k=3)
    results = []
    for _ in range(2):
        record = fold(layout, events[:cut])
        record.merge(fold(layout, events[cut:]), ALL)
        results.append(record.pack())
    assert results[0] == results[1]


@given(near_events)
def test_a_decayed_sum_keeps_its_error_bound(events: list[Event]) -> None:
    value, ref_time = fold(one_feature(native.DECAYED), events).feature(0)
    expected, expected_time = reference.decayed(HALF_LIFE_MS, events)
    assert ref_time == expected_time
    # The twin's own powers are off by an ulp each, which the +1 covers.
    assert abs(Fraction(value) - Fraction(expected)) <= (len(events) + 1) * Fraction(2) ** -50 * Fraction(expected)


@given(near_events, st.integers(0, 2**32))
def test_merged_decayed_sums_keep_the_error_bound(events: list[Event], seed: int) -> None:
    value, _ = merged_at_random(one_feature(native.DECAYED), events, random.Random(seed)).feature(0)
    expected, _ = reference.decayed(HALF_LIFE_MS, events)
    assert value == pytest.approx(expected, rel=(2 * len(events) + 1) * 2.0**-50)


def test_ten_thousand_decays_keep_the_error_bound() -> None:
    rng = random.Random(7)
    time = 0
    events = []
    for _ in range(10_000):
        time += rng.randint(0, 3)
        events.append(Event(time - rng.randint(0, 2), 0, 1, 1.0))
    value, _ = fold(one_feature(native.DECAYED), events).feature(0)
    expected, _ = reference.decayed(HALF_LIFE_MS, events)
    assert value == pytest.approx(expected, rel=10_001 * 2.0**-50)
    assert value == pytest.approx(expected, rel=1e-13)  # what it really is


@given(near_events, st.integers(1, 6))
def test_top_k_equals_its_twin(events: list[Event], k: int) -> None:
    # Times apart by whole half-lives make every weight exact, and ties real.
    events = [Event(e.time // 1000 * 1000, e.digest, e.value, e.weight) for e in events]
    got = fold(one_feature(native.TOP_K, k), events).feature(0)
    expected, _ = reference.top_k(HALF_LIFE_MS, k, events)
    assert got == expected


@given(near_events, st.integers(0, 2**32))
def test_top_k_with_room_for_all_keys_is_a_decayed_sum_per_key(events: list[Event], seed: int) -> None:
    got = dict(merged_at_random(one_feature(native.TOP_K, 10), events, random.Random(seed)).feature(0))
    ref_time = max(event.time for event in events)
    for key in {int(event.value) for event in events}:
        terms = [e.weight * reference.decay(HALF_LIFE_MS, e.time, ref_time) for e in events if e.value == key]
        assert got.pop(key) == pytest.approx(math.fsum(terms), rel=(2 * len(events) + 1) * 2.0**-50)
    assert not got


@given(near_events, st.integers(1, 5), st.integers(0, 2**32))
def test_top_k_never_overstates_a_weight_nor_keeps_more_than_k(events: list[Event], k: int, seed: int) -> None:
    entries = merged_at_random(one_feature(native.TOP_K, k), events, random.Random(seed)).feature(0)
    truth = dict(reference.top_k(HALF_LIFE_MS, 100, events)[0])
    assert len(entries) == min(k, len(truth)) or len(entries) < len(truth)
    assert 1 <= len(entries) <= k
    assert [key for key, _ in entries] == sorted({key for key, _ in entries})
    for key, weight in entries:
        assert weight <= truth[key] * (1 + 1e-12)


def test_of_equal_weights_a_full_top_k_gives_up_the_larger_key() -> None:
    keys = [5, ALL, 1, 9, 0]
    for order in (keys, keys[::-1]):
        record = fold(one_feature(native.TOP_K, 3), [Event(10, 0, key) for key in order])
        assert record.feature(0) == [(0, 1.0), (1, 1.0), (5, 1.0)]


def test_merging_two_full_top_k_keeps_the_heaviest_of_both() -> None:
    layout = one_feature(native.TOP_K, 64)
    left = fold(layout, [Event(0, 0, key, key % 8 + 0.5) for key in range(0, 128, 2)])
    right = fold(layout, [Event(0, 0, key, key % 8 + 0.5) for key in range(1, 128, 2)])
    left.merge(right, ALL)
    heaviest = sorted(range(128), key=lambda key: (-(key % 8), key))[:64]
    assert left.feature(0) == [(key, key % 8 + 0.5) for key in sorted(heaviest)]


@pytest.mark.parametrize("op", [native.SUM, native.DECAYED, native.LAST])
@pytest.mark.parametrize("absent", [math.nan, math.inf, -math.inf, None, [], (math.nan, None)])
def test_a_value_that_is_no_number_leaves_the_record_as_it_was(op: int, absent: object) -> None:
    layout = one_feature(op)
    record = Record(layout)
    record.update(2, 5, 0, (absent,), ALL)
    assert record.feature(0) is None
    assert record.pack() == Record(layout).pack()
    record.update(2, 5, 0, (1.5,), ALL)
    before = record.pack()
    record.update(2, 9, 9, (absent,), ALL)
    assert record.pack() == before


def test_an_integer_beyond_floats_is_absent_from_a_sum() -> None:
    record = Record(one_feature(native.SUM))
    record.update(2, 5, 0, (10**400,), ALL)
    assert record.feature(0) is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("op", [native.SUM, native.COUNT])
def test_a_total_past_int64_stays_at_the_limit_and_says_so(op: int, sign: int) -> None:
    layout = layout_of([Feature(op)])
    huge = layout.add_program([(0, -1, sign * 9e14)])
    back = layout.add_program([(0, -1, -sign * 9e14)])
    record = Record(layout)
    record.update(huge, 0, 0, (), ALL)
    if op == native.COUNT:
        assert record.feature(0) == sign * 900_000_000_000_000
        for _ in range(20):
            record.merge(record.copy(), ALL)
    else:
        record.update(huge, 0, 0, (), ALL)
    limit = reference.INT64_MAX if sign == 1 else reference.INT64_MIN
    assert record.feature(0) == limit
    assert record.flags == native.FLAG_SATURATED
    record.update(back, 0, 0, (), ALL)
    assert record.feature(0) == limit
    assert Record.unpack(layout, record.pack()).flags == native.FLAG_SATURATED
    other = Record(layout)
    other.merge(record, ALL)
    assert other.flags == native.FLAG_SATURATED


def test_saturating_twin_agrees_at_both_limits() -> None:
    assert reference.saturating_add(reference.INT64_MAX, reference.INT64_MIN) == reference.INT64_MAX
    assert reference.saturating_add(reference.INT64_MIN, 5) == reference.INT64_MIN
    assert reference.saturating_add(reference.INT64_MAX - 1, 5) == reference.INT64_MAX


def test_huge_weights_stay_finite() -> None:
    layout = layout_of([Feature(native.DECAYED), Feature(native.TOP_K)])
    program = layout.add_program([(0, -1, 1e308), (1, 0, 1e308)])
    record = Record(layout)
    for _ in range(4):
        record.update(program, 0, 0, (1,), ALL)
    other = record.copy()
    other.merge(record, ALL)
    assert math.isfinite(other.feature(0)[0])
    assert math.isfinite(other.feature(1)[0][1])
    assert Record.unpack(layout, other.pack()).pack() == other.pack()


def test_several_values_of_one_event_all_count() -> None:
    layout = layout_of([Feature(op) for op in (native.SUM, native.DECAYED, native.TOP_K, native.LAST_K, native.COUNT)])
    program = layout.add_program([(0, 0, 2.0), (1, 0, 1.0), (2, 1, 3.0), (3, 1, 1.0), (4, 1, 1.0)])
    record = Record(layout)
    record.update(program, 7, 1 << 40, ((1.5, 2.5, None), [4, 9, 4]), ALL)
    assert record.feature(0) == 80_000
    assert record.feature(1) == (4.0, 7)
    assert record.feature(2) == [(4, 6.0), (9, 3.0)]
    assert record.feature(3) == [(9, 7), (4, 7)]
    assert record.feature(4) == 3


def test_a_half_life_of_zero_never_decays() -> None:
    layout = layout_of([Feature(native.DECAYED, half_life_ms=0.0)])
    program = layout.add_program([(0, -1, 1.0)])
    record = Record(layout)
    for time in (-(2**63), 0, 2**63 - 1):
        record.update(program, time, 0, (), ALL)
    assert record.feature(0) == (3.0, 2**63 - 1)


@pytest.mark.parametrize(
    ("op", "value", "error"),
    [
        (native.TOP_K, -1, OverflowError),
        (native.TOP_K, 2**64, OverflowError),
        (native.TOP_K, "shoes", TypeError),
        (native.LAST_K, 2**32, OverflowError),
        (native.LAST, 2**64, OverflowError),
        (native.SUM, "1.5", TypeError),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(op: int, value: object, error: type[Exception]) -> None:
    record = Record(one_feature(op))
    with pytest.raises(error):
        record.update(2, 0, 0, (value,), ALL)
    assert record.feature(0) is None
