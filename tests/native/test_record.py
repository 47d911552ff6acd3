"""Records as stored and as read: round trips, damage, masks, staleness, upgrades, layouts that cannot be."""

from __future__ import annotations

import math
import random
import struct

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.native import record as native
from tailorbird.native import reference
from tailorbird.native.record import Record, RecordError, RecordLayout, RecordView
from tests.native.record_layouts import ALL, EVERY_KIND, Feature, layout_of, layout_with_program

HEADER_BYTES = 88


def random_record(layout: RecordLayout, rng: random.Random, event_count: int = 12) -> Record:
    record = Record(layout)
    record.fragment_id = rng.randbytes(16)
    record.granted, record.denied, record.restricted = rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(64)
    record.first_seen, record.last_seen, record.consent_time = 1_000, 2_000, -5
    for _ in range(event_count):
        slots = tuple(rng.choice([None, rng.randrange(9), rng.randrange(2**32)]) for _ in range(layout.feature_count))
        record.update(0, rng.randrange(10_000), rng.getrandbits(64), slots, ALL)
    return record


def read(view: RecordView, indices: list[int], at: int, mask: int = ALL) -> tuple[list[float], list[int]]:
    out = np.full(len(indices), 7.0, np.float32)
    status = np.full(len(indices), 7, np.uint8)
    view.read_vector(np.array(indices, np.int32), at, mask, out, status)
    return out.tolist(), status.tolist()


def view_of(record: Record) -> RecordView:
    view = RecordView()
    view.load(record.layout, record.pack())
    return view


# ---- stored form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature_count", [0, 1, 7, 63, 64, 65, 200])
def test_a_record_survives_packing_whatever_is_present(feature_count: int) -> None:
    layout = layout_with_program([Feature(EVERY_KIND[f % 7]) for f in range(feature_count)])
    rng = random.Random(feature_count)
    for event_count in (0, 1, 2, 30):
        record = random_record(layout, rng, event_count)
        data = record.pack()
        again = Record.unpack(layout, data)
        assert again.pack() == data == record.copy().pack()
        assert [again.feature(f) for f in range(feature_count)] == [record.feature(f) for f in range(feature_count)]
        used = sum(record.bytes_used(f) for f in range(feature_count))
        assert len(data) == HEADER_BYTES + (feature_count + 63) // 64 * 8 + used <= layout.packed_bytes_max


def test_the_stored_bytes_are_as_documented() -> None:
    layout = layout_of([Feature(op) for op in EVERY_KIND], version=258)
    program = layout.add_program([(0, -1, 3.0), (2, 0, 1.0), (5, 1, 1.5), (6, 1, 1.0)])
    record = Record(layout)
    record.partition, record.member_count, record.key_id = 2, 3, 4
    record.fragment_id = bytes(range(16))
    record.granted, record.denied, record.restricted, record.explicit = 5, 6, 7, ALL
    record.first_seen, record.last_seen, record.consent_time = 8, 9, -10
    record.update(program, 1_000, 0xAABBCCDD_00000011, (2.5, 77), ALL)
    body = bytes(range(16)) + struct.pack("<4Q3q", 5, 6, 7, ALL, 8, 9, -10) + struct.pack("<Q", 0b1100101)
    body += struct.pack("<qq", 3, 1_000)
    body += struct.pack("<dqQ", 2.5, 1_000, 0xAABBCCDD_00000011)
    body += struct.pack("<IIqQd", 1, 0, 1_000, 77, 1.5)
    body += struct.pack("<IIIIq", 1, 0, 77, 0xAABBCCDD, 1_000)
    front = struct.pack("<4BHHI", 1, 0, 0, 2, 258, 3, 4)
    checksum = xxhash.xxh64_intdigest(body, seed=xxhash.xxh64_intdigest(front)) & 0xFFFFFFFF
    assert record.pack() == front + struct.pack("<I", checksum) + body
    assert native.stored_layout_version(record.pack()) == 258


def test_a_head_of_64_features_fits_its_1900_bytes() -> None:
    kinds = [native.COUNT] * 30 + [native.SUM] * 8 + [native.LAST] * 6 + [native.TIME_SINCE] * 8 + [native.DECAYED] * 10
    layout = layout_of([*map(Feature, kinds), Feature(native.TOP_K, k=16), Feature(native.LAST_K, k=16)])
    assert layout.packed_bytes_max < 1_900


def test_header_fields_keep_what_they_are_given() -> None:
    record = Record(layout_of([]))
    view = view_of(record)
    for name, value in [
        ("partition", 255),
        ("member_count", 65_535),
        ("key_id", 2**32 - 1),
        ("fragment_id", b"x" * 16),
    ]:
        setattr(record, name, value)
    for name in ("granted", "denied", "restricted", "explicit"):
        setattr(record, name, ALL)
    for name in ("first_seen", "last_seen", "consent_time"):
        setattr(record, name, -(2**63))
    view.load(record.layout, record.pack())
    again = Record.unpack(record.layout, record.pack())
    for reader in (record, view, again):
        assert (reader.partition, reader.member_count, reader.key_id) == (255, 65_535, 2**32 - 1)
        assert (reader.granted, reader.denied, reader.restricted, reader.explicit) == (ALL,) * 4
        assert (reader.first_seen, reader.last_seen, reader.consent_time) == (-(2**63),) * 3
        assert reader.fragment_id == b"x" * 16
    with pytest.raises(AttributeError, match="read-only"):
        view.granted = 0
    with pytest.raises(OverflowError):
        record.granted = -1
    with pytest.raises(RecordError, match="16 bytes, got 2"):
        record.fragment_id = b"ab"


def test_every_single_bit_flip_and_every_cut_is_refused() -> None:
    layout = layout_with_program([Feature(op) for op in EVERY_KIND])
    data = random_record(layout, random.Random(3)).pack()
    view = RecordView()
    for place in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(RecordError):
            Record.unpack(layout, damaged)
        with pytest.raises(RecordError):
            view.load(layout, damaged)
    for length in range(len(data)):
        with pytest.raises(RecordError):
            Record.unpack(layout, data[:length])
    with pytest.raises(RecordError):
        Record.unpack(layout, data + bytes(8))
    with pytest.raises(RecordError, match="RECORD_LONG"):
        view.load(layout, data + bytes(10_000))


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    layout = layout_with_program([Feature(op) for op in EVERY_KIND])
    with pytest.raises(RecordError):
        Record.unpack(layout, data)
    with pytest.raises(RecordError):
        RecordView().load(layout, data)


def sealed(data: bytes | bytearray) -> bytes:
    """Return the bytes with a checksum that fits, as a faulty writer would leave them."""
    front, body = bytes(data[:12]), bytes(data[16:])
    checksum = xxhash.xxh64_intdigest(body, seed=xxhash.xxh64_intdigest(front)) & 0xFFFFFFFF
    return front + struct.pack("<I", checksum) + body


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 64),
)
def test_damage_under_a_fitting_checksum_never_leads_outside_the_record(
    seed: int, patches: list[tuple[int, int]], cut: int
) -> None:
    layout = layout_with_program([Feature(op) for op in EVERY_KIND])
    data = bytearray(random_record(layout, random.Random(seed)).pack())
    for place, byte in patches:
        data[16 + place % (len(data) - 16)] = byte
    damaged = sealed(data[: len(data) - cut])
    view = RecordView()
    try:
        view.load(layout, damaged)
    except RecordError:
        with pytest.raises(RecordError):
            Record.unpack(layout, damaged)
        return
    record = Record.unpack(layout, damaged)
    assert record.pack() == damaged
    read(view, list(range(7)), 5_000)
    record.merge(record.copy(), ALL)
    Record.unpack(layout, record.pack())


@pytest.mark.parametrize(
    ("place", "bytes_", "reason"),
    [
        (0, b"\x02", "RECORD_FORMAT"),
        (2, b"\x01", "RECORD_ALGORITHM"),
        (4, b"\x09", "RECORD_LAYOUT"),
        (88, b"\x80", "RECORD_BITMAP"),
        (96, struct.pack("<d", math.nan), "RECORD_BLOCK"),
        (112, struct.pack("<I", 0), "RECORD_BLOCK"),
        (112, struct.pack("<I", 5), "RECORD_BLOCK"),
        (116, b"\x01", "RECORD_BLOCK"),
        (128, struct.pack("<Q", 9), "RECORD_BLOCK"),
        (136, struct.pack("<d", math.inf), "RECORD_BLOCK"),
    ],
)
def test_a_refusal_names_what_is_wrong_and_where(place: int, bytes_: bytes, reason: str) -> None:
    layout = layout_with_program([Feature(native.DECAYED), Feature(native.TOP_K)])
    record = Record(layout)
    record.update(0, 5, 0, (1.0, [3, 8]), ALL)
    data = bytearray(record.pack())
    data[place : place + len(bytes_)] = bytes_
    with pytest.raises(RecordError, match=reason) as caught:
        Record.unpack(layout, sealed(data))
    assert caught.value.reason == reason
    assert str(place if reason not in ("RECORD_BITMAP", "RECORD_BLOCK") else "") in str(caught.value)


# ---- consent, merge, upgrade ---------------------------------------------------------------------------------------


def test_only_features_whose_bits_are_granted_are_updated_and_merged() -> None:
    layout = layout_of([Feature(native.COUNT, admit=0b01), Feature(native.COUNT, admit=0b11), Feature(native.COUNT)])
    program = layout.add_program([(0, -1, 1.0), (1, -1, 1.0), (2, -1, 1.0)])
    record = Record(layout)
    record.update(program, 0, 0, (), 0b01)
    assert [record.feature(f) for f in range(3)] == [1, None, 1]
    record.update(program, 0, 0, (), 0b11)
    other = Record(layout)
    other.merge(record, 0b10)
    assert [other.feature(f) for f in range(3)] == [None, None, 2]
    other.merge(record, ALL)
    assert [other.feature(f) for f in range(3)] == [2, 1, 4]


def test_merge_takes_first_and_last_seen_and_leaves_consent() -> None:
    layout = layout_of([])
    left, right = Record(layout), Record(layout)
    right.first_seen, right.last_seen, right.granted, right.member_count = 50, 90, 1, 4
    left.merge(right, ALL)
    assert (left.first_seen, left.last_seen, left.granted, left.member_count) == (50, 90, 0, 0)
    left.merge(Record(layout), ALL)
    assert (left.first_seen, left.last_seen) == (50, 90)
    right.first_seen, right.last_seen = 40, 80
    left.merge(right, ALL)
    assert (left.first_seen, left.last_seen) == (40, 90)


def test_records_of_other_layouts_do_not_merge() -> None:
    with pytest.raises(RecordError, match="RECORD_LAYOUT"):
        Record(layout_of([Feature(native.COUNT)])).merge(Record(layout_of([Feature(native.SUM)])), ALL)
    Record(layout_of([Feature(native.SUM, admit=1)])).merge(Record(layout_of([Feature(native.SUM)])), ALL)


def test_cleared_features_are_absent_and_leave_no_bytes() -> None:
    layout = layout_with_program([Feature(op) for op in EVERY_KIND])
    record = random_record(layout, random.Random(1))
    record.clear_feature(0)
    assert record.feature(0) is None
    assert record.bytes_used(0) == 0
    assert record.feature(5) is not None
    record.clear_features()
    assert [record.feature(f) for f in range(7)] == [None] * 7
    assert record.first_seen == 1_000
    assert len(record.pack()) == HEADER_BYTES + 8


def test_an_upgrade_carries_features_to_their_new_places() -> None:
    old = layout_with_program([Feature(op, k=4) for op in EVERY_KIND])
    record = random_record(old, random.Random(5), 30)
    new = layout_of([Feature(op, k=k) for k in (4, 2) for op in reversed(EVERY_KIND)] + [Feature(native.COUNT)], 2)
    mapping = np.array([*range(6, -1, -1), *range(6, -1, -1), -1], np.int32)
    upgraded = record.upgraded(new, mapping)
    assert (upgraded.layout_version, upgraded.fragment_id, upgraded.denied) == (2, record.fragment_id, record.denied)
    for place in range(7):
        assert upgraded.feature(place) == record.feature(6 - place)
    top, recent = record.feature(5), record.feature(6)
    heaviest = sorted(top, key=lambda entry: (-entry[1], entry[0]))[:2]
    assert upgraded.feature(8) == sorted(heaviest)
    assert upgraded.feature(7) == recent[:2]
    assert upgraded.feature(14) is None
    assert Record.unpack(new, upgraded.pack()).pack() == upgraded.pack()


@pytest.mark.parametrize("mapping", [[], [0, 0], [7], [-2], [1]])
def test_an_upgrade_that_fits_no_layout_is_refused(mapping: list[int]) -> None:
    record = Record(layout_of([Feature(native.COUNT), Feature(native.SUM)]))
    with pytest.raises(RecordError, match="UPGRADE_MAPPING"):
        record.upgraded(layout_of([Feature(native.COUNT)], 2), np.array(mapping, np.int32))


# ---- decision-time reading -----------------------------------------------------------------------------------------


def test_a_vector_holds_each_feature_as_a_number_as_of_the_decision() -> None:
    layout = layout_with_program([Feature(op) for op in EVERY_KIND])
    record = Record(layout)
    record.update(0, 10_000, 1, (1, 12.5, 3.25, 1, 8.0, 4, 5), ALL)
    values, status = read(view_of(record), [0, 1, 2, 3, 4, 5, 6, 0], 12_000)
    assert values == [1.0, 12.5, 3.25, 2.0, 2.0, 0.0, 0.0, 1.0]
    assert status == [0, 0, 0, 0, 0, native.MISSING, native.MISSING, 0]
    values, _ = read(view_of(record), [3, 4], 9_000)  # decided before the event: no negative age, no growth
    assert values == [0.0, 8.0]


def test_masked_and_stale_and_missing_features_read_as_zero_and_say_so() -> None:
    features = [Feature(native.COUNT, required=0b10, max_age_ms=100), Feature(native.COUNT, required=0b10)]
    layout = layout_of(features)
    layout.add_program([(0, -1, 5.0)])
    record = Record(layout)
    record.update(0, 1_000, 0, (), ALL)
    view = view_of(record)
    assert read(view, [0, 1], 1_100, 0b11) == ([5.0, 0.0], [native.FRESH, native.MISSING])
    assert read(view, [0, 1], 1_101, 0b11) == ([0.0, 0.0], [native.STALE, native.MISSING])
    assert read(view, [0, 1], 1_100, 0b01) == ([0.0, 0.0], [native.MASKED, native.MASKED])
    assert [view.status(0, at, 0b10) for at in (0, 1_100, 1_101)] == [native.FRESH, native.FRESH, native.STALE]
    assert [view.age(0, 1_250), view.age(0, 0), view.age(1, 0)] == [250, 0, -1]


def test_a_last_value_of_symbols_is_read_as_bits() -> None:
    layout = layout_of([Feature(native.LAST, required=1), Feature(native.COUNT)])
    layout.add_program([(0, 0, 1.0)])
    record = Record(layout)
    record.update(0, 0, 0, (ALL,), ALL)
    view = view_of(record)
    assert view.symbol(0, 5, 1) == ALL
    assert view.symbol(0, 5, 0) is None
    assert read(view, [0], 5) == ([0.0], [native.MISSING])  # all bits set is no number
    with pytest.raises(RecordError, match="FEATURE_KIND"):
        view.symbol(1, 5, 1)


def test_numbers_past_float32_are_clamped() -> None:
    layout = layout_with_program([Feature(native.LAST), Feature(native.DECAYED)])
    record = Record(layout)
    record.update(0, 0, 0, (-1e300, 1e300), ALL)
    largest = float(np.finfo(np.float32).max)
    assert read(view_of(record), [0, 1], 0) == ([-largest, largest], [0, 0])


@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 20_000))
def test_top_and_recent_give_the_best_first(seed: int, room: int, at: int) -> None:
    layout = layout_with_program([Feature(native.TOP_K, k=8), Feature(native.LAST_K, k=8)])
    rng = random.Random(seed)
    record = Record(layout)
    for _ in range(rng.randrange(40)):
        record.update(0, rng.randrange(4) * 1000, rng.getrandbits(64), (rng.randrange(12), rng.randrange(12)), ALL)
    view = view_of(record)
    keys, weights = np.zeros(room, np.uint64), np.zeros(room, np.float32)
    items, times = np.zeros(room, np.uint32), np.zeros(room, np.int64)
    count = view.top(0, at, ALL, keys, weights)
    entries = record.feature(0) or []
    newest = at - view.age(0, at) if at >= 3000 else 3000
    if at >= 3000:
        expected = reference.top_at(1000.0, entries, newest, at)[:room]
        assert weights[:count].tolist() == pytest.approx([weight for _, weight in expected], rel=1e-6, abs=1e-38)
        assert keys[:count].tolist() == [key for key, _ in expected]
    assert count == min(room, len(entries))
    count = view.recent(1, at, ALL, items, times)
    assert list(zip(items[:count].tolist(), times[:count].tolist(), strict=True)) == (record.feature(1) or [])[:room]


def test_recent_items_past_the_maximum_age_are_left_out() -> None:
    layout = layout_with_program([Feature(native.LAST_K, max_age_ms=100, required=1)])
    record = Record(layout)
    for time in (0, 50, 150):
        record.update(0, time, 0, (time,), ALL)
    view = view_of(record)
    items, times = np.zeros(4, np.uint32), np.zeros(4, np.int64)
    assert view.recent(0, 150, 1, items, times) == 2
    assert items[:2].tolist() == [150, 50]
    assert view.recent(0, 251, 1, items, times) == 0
    assert view.recent(0, 150, 0, items, times) == 0
    with pytest.raises(RecordError, match="FEATURE_KIND"):
        view.top(0, 0, 0, np.zeros(1, np.uint64), np.zeros(1, np.float32))


def test_a_view_reads_unaligned_bytes_and_keeps_them_past_their_buffer() -> None:
    layout = layout_with_program([Feature(op) for op in EVERY_KIND])
    data = random_record(layout, random.Random(9)).pack()
    view = RecordView()
    expected = None
    for shift in range(8):
        buffer = bytearray(bytes(shift) + data)
        view.load(layout, memoryview(buffer)[shift:])
        assert Record.unpack(layout, memoryview(buffer)[shift:]).pack() == data
        buffer[:] = bytes(len(buffer))
        expected = expected or read(view, list(range(7)), 20_000)
        assert read(view, list(range(7)), 20_000) == expected


def test_a_view_changes_layouts_and_forgets_a_record_that_was_refused() -> None:
    small, large = layout_with_program([Feature(native.COUNT)]), layout_with_program([Feature(native.SUM)] * 100, 2)
    view = RecordView()
    empty: npt.NDArray[np.float32] = np.zeros(0, np.float32)
    view.read_vector(np.zeros(0, np.int32), 0, 0, empty, np.zeros(0, np.uint8))
    assert (view.layout, view.granted) == (None, 0)
    for layout in (small, large, small):
        record = Record(layout)
        record.update(0, 0, 0, (1.0,) * layout.feature_count, ALL)
        view.load(layout, record.pack())
        assert read(view, [layout.feature_count - 1], 0) == ([1.0], [0])
    with pytest.raises(RecordError, match="RECORD_LAYOUT"):
        view.load(large, Record(small).pack())
    with pytest.raises(IndexError):
        view.age(0, 0)
    with pytest.raises(IndexError):
        read(view, [0], 0)
    view.load(small, Record(small).pack())
    assert read(view, [0], 0) == ([0.0], [native.MISSING])


@pytest.mark.parametrize("index", [-1, 7, 2**31 - 1])
def test_a_feature_that_is_not_there_is_an_index_error(index: int) -> None:
    record = Record(layout_with_program([Feature(op) for op in EVERY_KIND]))
    view = view_of(record)
    with pytest.raises(IndexError):
        read(view, [0, index], 0)
    for call in (record.feature, record.bytes_used, record.clear_feature, lambda at: view.age(at, 0)):
        with pytest.raises(IndexError):
            call(index)


def test_arrays_of_different_lengths_are_refused() -> None:
    view = view_of(Record(layout_of([Feature(native.COUNT)])))
    with pytest.raises(ValueError, match="expected 1 places"):
        view.read_vector(np.zeros(1, np.int32), 0, 0, np.zeros(2, np.float32), np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="expected 1 places"):
        view.read_vector(np.zeros(1, np.int32), 0, 0, np.zeros(1, np.float32), np.zeros(0, np.uint8))


# ---- layouts and programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "feature",
    [
        Feature(0),
        Feature(20),
        Feature(native.TOP_K, k=0),
        Feature(native.TOP_K, k=native.TOP_K_MAX + 1),
        Feature(native.LAST_K, k=native.LAST_K_MAX + 1),
        Feature(native.DECAYED, half_life_ms=math.nan),
        Feature(native.DECAYED, half_life_ms=math.inf),
        Feature(native.DECAYED, half_life_ms=-1.0),
        Feature(native.COUNT, max_age_ms=-1),
    ],
)
def test_a_descriptor_that_does_not_exist_is_refused(feature: Feature) -> None:
    with pytest.raises(RecordError, match="LAYOUT_FEATURE: feature 1"):
        layout_of([Feature(native.COUNT), feature])


def test_a_layout_past_its_limits_is_refused() -> None:
    with pytest.raises(RecordError, match="LAYOUT_VERSION"):
        layout_of([], version=65_536)
    with pytest.raises(RecordError, match="LAYOUT_FEATURES"):
        layout_of([Feature(native.COUNT)] * (native.FEATURES_MAX + 1))
    largest = layout_with_program([Feature(native.LAST_K, k=100)] * native.FEATURES_MAX)
    assert Record.unpack(largest, Record(largest).pack()).feature(native.FEATURES_MAX - 1) is None


def test_the_fingerprint_tells_what_decides_the_bytes() -> None:
    base = Feature(native.TOP_K)
    prints = {layout_of([base]).fingerprint, layout_of([base, base]).fingerprint, layout_of([base], 2).fingerprint}
    prints |= {layout_of([Feature(native.LAST_K)]).fingerprint, layout_of([Feature(native.TOP_K, k=5)]).fingerprint}
    prints.add(layout_of([Feature(native.TOP_K, half_life_ms=5.0)]).fingerprint)
    assert len(prints) == 6
    assert layout_of([Feature(native.TOP_K, required=1, admit=2, max_age_ms=3)]).fingerprint in prints


@pytest.mark.parametrize(
    "entry", [(2, -1, 1.0), (-1, -1, 1.0), (1, -1, 1.0), (0, -2, 1.0), (0, 0, 0.5), (0, 0, math.nan), (1, 0, math.inf)]
)
def test_a_program_entry_that_fits_no_feature_is_refused(entry: tuple[int, int, float]) -> None:
    layout = layout_of([Feature(native.COUNT), Feature(native.LAST)])
    with pytest.raises(RecordError, match="PROGRAM_ENTRY"):
        layout.add_program([(0, -1, 1.0), entry])
    assert layout.program_count == 0
    assert layout.add_program([(0, -1, 1.0)]) == 0
    assert layout.add_program([]) == 1


def test_an_unknown_program_and_a_missing_slot_are_refused() -> None:
    layout = layout_with_program([Feature(native.SUM)])
    record = Record(layout)
    for program in (-1, 1):
        with pytest.raises(IndexError):
            record.update(program, 0, 0, (), ALL)
    with pytest.raises(RecordError, match="SLOT_MISSING"):
        record.update(0, 0, 0, (), ALL)
