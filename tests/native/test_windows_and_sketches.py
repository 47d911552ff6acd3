"""Means, extremes, distinct counts, quantiles and windows against their brute-force twins, in any order and any merges."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native import record as native
from tailorbird.native import reference
from tailorbird.native.record import Record, RecordError, RecordLayout, RecordView
from tailorbird.native.reference import Event
from tests.native.record_layouts import ALL, SKETCHES, WINDOWS, Feature, layout_of

HOP_MS, WINDOW_MS = 100, 1_000
EXACT = (*SKETCHES, *WINDOWS)
SYMBOLS = (native.FIRST, native.DISTINCT, native.WINDOW_DISTINCT)

times = st.one_of(st.integers(0, 3_000), st.integers(-500, 500), st.integers(-(2**63), 2**63 - 1))
numbers = st.one_of(st.integers(-5, 5).map(float), st.floats(-1e6, 1e6), st.sampled_from([0.0, -0.0, 1e-12, 1e300]))
events_strategy = st.lists(
    st.builds(Event, time=times, digest=st.integers(0, ALL), value=numbers), min_size=1, max_size=60
)
near_times = st.integers(1_000_000, 1_002_500)
near_events = st.lists(st.builds(Event, time=near_times, digest=st.integers(0, ALL), value=numbers), min_size=1)
key_events = st.lists(
    st.builds(Event, time=near_times, digest=st.integers(0, ALL), value=st.integers(0, ALL)), min_size=1, max_size=60
)


def layout_for(op: int, k: int = 6, **fields: float) -> RecordLayout:
    layout = layout_of([Feature(op, k=k, window_ms=WINDOW_MS, hop_ms=HOP_MS, quantile=fields.get("quantile", 0.5))])
    layout.add_program([(0, 0, 1.0)])
    return layout


def fold(layout: RecordLayout, events: Sequence[Event]) -> Record:
    record = Record(layout)
    symbols = layout.ops[0] in SYMBOLS
    for event in events:
        value = hash(event.value) % 2**64 if symbols else event.value
        record.update(0, event.time, event.digest, (value,), ALL)
    return record


def merged_at_random(layout: RecordLayout, events: Sequence[Event], rng: random.Random) -> Record:
    order = list(events)
    rng.shuffle(order)
    records = []
    while order:
        part = rng.randint(1, len(order))
        records.append(fold(layout, order[:part]))
        del order[:part]
    while len(records) > 1:
        left = records.pop(rng.randrange(len(records)))
        left.merge(records.pop(rng.randrange(len(records))), ALL)
        records.append(left)
    return records[0]


def read(record: Record, at: int) -> tuple[float, int]:
    """Return the record's only feature as of `at`, and its status."""
    view = RecordView()
    view.load(record.layout, record.pack())
    out, status = np.zeros(1, np.float32), np.zeros(1, np.uint8)
    view.read_vector(np.zeros(1, np.int32), at, ALL, out, status)
    return float(out[0]), int(status[0])


# ---- the exact class -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", EXACT)
@given(events=st.one_of(events_strategy, near_events), seed=st.integers(0, 2**32))
def test_any_order_and_any_tree_of_merges_gives_the_same_bytes(op: int, events: list[Event], seed: int) -> None:
    layout = layout_for(op)
    folded = fold(layout, events)
    assert merged_at_random(layout, events, random.Random(seed)).pack() == folded.pack()
    assert Record.unpack(layout, folded.pack()).pack() == folded.pack()


@given(events_strategy)
def test_mean_minimum_and_maximum_equal_their_twins(events: list[Event]) -> None:
    small = [event for event in events if abs(event.value) < 1e9] or [Event(0, 0, 1.0)]
    assert fold(layout_for(native.MEAN), small).feature(0) == reference.mean(small)
    assert fold(layout_for(native.MIN), events).feature(0) == reference.minimum(events)
    assert fold(layout_for(native.MAX), events).feature(0) == reference.maximum(events)


@given(key_events)
def test_first_equals_its_twin(events: list[Event]) -> None:
    record = Record(layout_for(native.FIRST))
    for event in events:
        record.update(0, event.time, event.digest, (event.value,), ALL)
    bits, time, _ = reference.first(events)
    assert record.feature(0) == (bits, time)


# ---- distinct --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, ALL), min_size=1, max_size=200), st.integers(6, 8))
def test_distinct_registers_and_their_estimate_equal_their_twins(keys: list[int], precision: int) -> None:
    record = Record(layout_for(native.DISTINCT, precision))
    for key in keys:
        record.update(0, 5, 0, (key,), ALL)
    packed = reference.registers(precision, keys)
    assert record.feature(0) == packed
    assert read(record, 5)[0] == pytest.approx(reference.distinct_estimate(packed), abs=0.51)


@pytest.mark.parametrize("precision", [6, 7, 8])
@pytest.mark.parametrize("truth", [1, 10, 100, 1_000, 30_000])
def test_distinct_is_off_by_its_standard_error(precision: int, truth: int) -> None:
    rng = random.Random(truth)
    layout, errors = layout_for(native.DISTINCT, precision), []
    for _ in range(60 if truth < 1_000 else 12):
        record = Record(layout)
        # Dense numbers from anywhere, as items have, each met twice.
        start = rng.randrange(2**32)
        keys = tuple(range(start, start + truth))
        record.update(0, 1, 0, (keys,), ALL)
        record.update(0, 2, 0, (keys,), ALL)
        errors.append(read(record, 3)[0] / truth - 1.0)
    standard = 1.04 / math.sqrt(2**precision)
    spread = math.sqrt(sum(error * error for error in errors) / len(errors))
    assert spread <= 1.5 * standard, f"seed {truth}"
    assert abs(sum(errors) / len(errors)) <= 4 * standard / math.sqrt(len(errors)), f"seed {truth}"


def test_full_registers_are_an_estimate_too() -> None:
    record = Record(layout_for(native.DISTINCT, 6))
    record.update(0, 0, 0, (tuple(range(3_000_000)),), ALL)
    value, status = read(record, 0)
    assert status == native.FRESH
    assert 500_000 < value < 2**22


# ---- quantiles -------------------------------------------------------------------------------------------------------


@given(st.lists(numbers, min_size=1, max_size=80), st.integers(1, 12))
def test_quantile_bins_equal_their_twin(values: list[float], k: int) -> None:
    record = fold(layout_for(native.QUANTILE, k), [Event(0, 0, value) for value in values])
    assert record.feature(0) == reference.quantile_bins(k, values)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=100), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_its_bound_where_the_bins_suffice(values: list[float], q: float) -> None:
    record = fold(layout_for(native.QUANTILE, 128, quantile=q), [Event(0, 0, value) for value in values])
    truth = sorted(values)[math.floor(q * (len(values) - 1))]
    value = read(record, 0)[0]
    if len(record.feature(0)) < 128:
        assert value == pytest.approx(truth, rel=0.011)


def test_negative_values_and_zero_have_bins_of_their_own() -> None:
    values = [-8.0, -2.0, 0.0, 1e-20, 4.0]
    for q, truth in zip((0.0, 0.25, 0.5, 0.75, 1.0), [-8.0, -2.0, 0.0, 0.0, 4.0], strict=True):
        record = fold(layout_for(native.QUANTILE, 8, quantile=q), [Event(0, 0, value) for value in values])
        assert read(record, 0)[0] == pytest.approx(truth, rel=0.011)


# ---- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in WINDOWS if op != native.WINDOW_DISTINCT])
@given(events=st.one_of(events_strategy, near_events))
def test_tiles_equal_their_twin(op: int, events: list[Event]) -> None:
    events = [event for event in events if abs(event.value) < 1e9] or [Event(0, 0, 1.0)]
    of_tile = {
        native.WINDOW_COUNT: lambda tile: None,
        native.WINDOW_SUM: lambda tile: reference.sum_units(tile)[0],
        native.WINDOW_MEAN: lambda tile: reference.sum_units(tile)[0],
        native.WINDOW_MIN: reference.minimum,
        native.WINDOW_MAX: reference.maximum,
    }[op]
    tiles = reference.window_tiles(HOP_MS, WINDOW_MS, events)
    expected = [(number, len(tile), of_tile(tile)) for number, tile in tiles.items()]
    assert fold(layout_for(op), events).feature(0) == expected


@given(key_events, st.integers(6, 8))
def test_tiles_of_distinct_keys_equal_their_twin(events: list[Event], precision: int) -> None:
    record = Record(layout_for(native.WINDOW_DISTINCT, precision))
    for event in events:
        record.update(0, event.time, event.digest, (event.value,), ALL)
    tiles = reference.window_tiles(HOP_MS, WINDOW_MS, events)
    assert record.feature(0) == [
        (number, len(tile), reference.registers(precision, [int(event.value) for event in tile]))
        for number, tile in tiles.items()
    ]


@pytest.mark.parametrize("op", WINDOWS)
@given(events=near_events, later=st.integers(0, 3_000), seed=st.integers(0, 2**32))
def test_a_window_reads_what_it_covers(op: int, events: list[Event], later: int, seed: int) -> None:
    events = [event for event in events if abs(event.value) < 1e9] or [Event(1_000_000, 0, 1.0)]
    at = max(event.time for event in events) + later
    value, status = read(merged_at_random(layout_for(op), events, random.Random(seed)), at)
    covered = reference.in_window(HOP_MS, WINDOW_MS, events, at)
    # Never less than the window, never a whole hop more.
    assert {event.time for event in events if event.time >= at - WINDOW_MS} <= {event.time for event in covered}
    assert all(event.time > at - WINDOW_MS - HOP_MS for event in covered)
    if not covered and op in (native.WINDOW_MEAN, native.WINDOW_MIN, native.WINDOW_MAX):
        assert (value, status) == (0.0, native.MISSING)
        return
    units = reference.sum_units(covered)[0] if covered else 0
    keys = {hash(event.value) % 2**64 for event in covered}
    expected = {
        native.WINDOW_COUNT: lambda: len(covered),
        native.WINDOW_SUM: lambda: units / 10_000,
        native.WINDOW_MEAN: lambda: units / 10_000 / len(covered),
        native.WINDOW_MIN: lambda: reference.minimum(covered),
        native.WINDOW_MAX: lambda: reference.maximum(covered),
        native.WINDOW_DISTINCT: lambda: round(reference.distinct_estimate(reference.registers(6, keys))),
    }[op]()
    assert status == native.FRESH
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-30 if op != native.WINDOW_DISTINCT else 1)


def test_a_window_forgets_when_time_goes_on_and_a_late_event_finds_its_tile() -> None:
    record = Record(layout_for(native.WINDOW_COUNT))
    for time in (0, 950, 960, 1_900):
        record.update(0, time, 0, (1,), ALL)
    assert [read(record, at)[0] for at in (1_900, 1_999, 2_000, 2_999, 3_000)] == [3, 3, 1, 1, 0]
    record.update(0, 951, 0, (1,), ALL)  # late, still in a kept tile
    assert read(record, 1_900)[0] == 4.0
    before = record.pack()
    record.update(0, -10_000, 0, (1,), ALL)  # too late for every window
    assert record.pack() == before
    record.update(0, 10**12, 0, (1,), ALL)
    assert record.feature(0) == [(10**10 if 10**10 < 2**31 else 2**31 - 1, 1, None)]


def test_a_reader_of_the_past_does_not_see_later_tiles() -> None:
    record = Record(layout_for(native.WINDOW_SUM))
    for time, value in ((500, 1.0), (650, 2.0), (1_000, 4.0)):
        record.update(0, time, 0, (value,), ALL)
    assert read(record, 660)[0] == 3.0
    assert read(record, 510)[0] == 1.0


def test_a_mean_past_int64_stays_at_the_limit_and_says_so() -> None:
    layout = layout_for(native.MEAN)
    record = fold(layout, [Event(5, 0, 1e300)])
    assert record.flags == native.FLAG_SATURATED
    other = Record(layout)
    other.merge(record, ALL)
    assert other.flags == native.FLAG_SATURATED
    assert other.feature(0) == (reference.INT64_MAX, 1)


@pytest.mark.parametrize("absent", [math.nan, math.inf, None, []])
@pytest.mark.parametrize("op", [op for op in EXACT if op not in SYMBOLS and op != native.WINDOW_COUNT])
def test_a_value_that_is_no_number_leaves_the_record_as_it_was(op: int, absent: object) -> None:
    record = Record(layout_for(op))
    record.update(0, 5, 0, (absent,), ALL)
    assert record.feature(0) is None
    record.update(0, 5, 0, (2.0,), ALL)
    before = record.pack()
    record.update(0, 9, 9, (absent,), ALL)
    assert record.pack() == before


@pytest.mark.parametrize(
    "feature",
    [
        Feature(native.WINDOW_SUM, window_ms=0),
        Feature(native.WINDOW_SUM, hop_ms=0),
        Feature(native.WINDOW_SUM, window_ms=99, hop_ms=100),
        Feature(native.WINDOW_SUM, window_ms=9_501, hop_ms=100),
        Feature(native.WINDOW_DISTINCT, k=5),
        Feature(native.DISTINCT, k=9),
        Feature(native.QUANTILE, k=0),
        Feature(native.QUANTILE, k=129),
        Feature(native.QUANTILE, quantile=1.5),
        Feature(20),
    ],
)
def test_a_descriptor_that_cannot_be_is_refused(feature: Feature) -> None:
    with pytest.raises(RecordError, match="LAYOUT_FEATURE"):
        layout_of([feature])


def test_the_longest_window_has_96_tiles() -> None:
    layout = layout_of([Feature(native.WINDOW_COUNT, window_ms=9_500, hop_ms=100)])
    assert layout.bytes_max == (16 + 96 * 8,)


def test_a_count_in_a_window_takes_no_weight_below_zero() -> None:
    layout = layout_of([Feature(native.WINDOW_COUNT)])
    with pytest.raises(RecordError, match="whole weight of 0"):
        layout.add_program([(0, -1, -1.0)])


# ---- defaults and warming --------------------------------------------------------------------------------------------


def test_a_default_speaks_for_what_is_missing_or_stale_and_never_for_what_is_masked() -> None:
    layout = layout_of([Feature(native.COUNT, max_age_ms=10, required=1, default=7.0)])
    layout.add_program([(0, -1, 1.0)])
    record, view = Record(layout), RecordView()
    out, status = np.zeros(1, np.float32), np.zeros(1, np.uint8)
    index = np.zeros(1, np.int32)

    def read_at(at: int, mask: int) -> tuple[float, int]:
        view.load(layout, record.pack())
        view.read_vector(index, at, mask, out, status)
        return float(out[0]), int(status[0])

    assert read_at(0, ALL) == (7.0, native.DEFAULTED)
    assert read_at(0, 0) == (0.0, native.MASKED)
    record.update(0, 100, 0, (), ALL)
    assert read_at(110, ALL) == (1.0, native.FRESH)
    assert read_at(111, ALL) == (7.0, native.DEFAULTED)
    assert view.status(0, 111, ALL) == native.STALE


def test_a_warming_feature_is_kept_and_does_not_speak() -> None:
    layout = layout_of([Feature(native.COUNT, warming=True), Feature(native.COUNT)])
    layout.add_program([(0, -1, 1.0), (1, -1, 1.0)])
    record, view = Record(layout), RecordView()
    record.update(0, 5, 0, (), ALL)
    view.load(layout, record.pack())
    assert [view.status(f, 5, ALL) for f in range(2)] == [native.WARMING, native.FRESH]
    assert record.feature(0) == 1


def test_damage_under_a_fitting_checksum_never_leads_outside_the_record() -> None:
    from tests.native.test_record import sealed

    layout = layout_of([Feature(op, k=6) for op in EXACT])
    program = layout.add_program([(f, 0, 1.0) for f in range(len(EXACT))])
    rng = random.Random(11)
    record = Record(layout)
    for _ in range(30):
        record.update(program, rng.randrange(2_000), rng.getrandbits(64), (rng.randrange(1, 9),), ALL)
    whole = record.pack()
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(16, len(data))] = rng.randrange(256)
        damaged = sealed(data[: len(data) - rng.choice([0, 0, 0, rng.randint(1, 64)])])
        view = RecordView()
        try:
            view.load(layout, damaged)
        except RecordError:
            with pytest.raises(RecordError):
                Record.unpack(layout, damaged)
            continue
        again = Record.unpack(layout, damaged)
        assert again.pack() == damaged
        read(again, 2_000)
        again.merge(again.copy(), ALL)
        Record.unpack(layout, again.pack())
