"""Item ids, context cells and the ranking of candidates against their twins in Python."""

from __future__ import annotations

import string
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.native import hashing, reference
from tailorbird.native.history import CHUNK_HEADER_BYTES
from tailorbird.native.reference import ScoredItem
from tailorbird.native.scoring import UNKNOWN_ITEM, CellTable, ItemTable, Prior

SEED = 20_261_124
NOW_S = 1_000_000
DIMENSION = 18  # more than one row of 16 lanes, and not a multiple of it


def u32(*numbers: int) -> npt.NDArray[np.uint32]:
    return np.array(numbers, np.uint32)


def f64(*numbers: float) -> npt.NDArray[np.float64]:
    return np.array(numbers, np.float64)


def f32(*numbers: float) -> npt.NDArray[np.float32]:
    return np.array(numbers, np.float32)


def table_of(items: Sequence[ScoredItem], attribute_count: int = 0, dimension: int = 0) -> ItemTable:
    table = ItemTable(attribute_count, dimension)
    for number, item in enumerate(items):
        table.put(number, item.id, item.live, item.stock, item.start_s, item.end_s, item.symbols, item.embedding)
    table.set_counts(np.arange(len(items), dtype=np.uint32), f64(*(item.count for item in items)))
    return table


def cell_of(counts: dict[int, float]) -> CellTable:
    cell = CellTable()
    cell.set_counts(u32(*counts), f64(*counts.values()))
    return cell


def shelf(count: int) -> list[ScoredItem]:
    """Return items a, b, c, ... of which each is more counted than the next."""
    return [ScoredItem(string.ascii_lowercase[n], count=float(count - n)) for n in range(count)]


def ranked(
    table: ItemTable,
    candidates: npt.NDArray[np.uint32] | Sequence[str] | None,
    k: int,
    now_s: int,
    *,
    excluded: Iterable[int] = (),
    together: npt.NDArray[np.float32] | None = None,
    touched: npt.NDArray[np.uint32] | None = None,
    **named: Any,
) -> Any:
    """Return what the twin does: (item, score, what it was made of, reason code) of each winner, and the counts."""
    parts = np.full((max(1, k), 5), np.nan)
    prior = Prior(
        **{name: named.pop(name) for name in ("scale", "total", "uniform_strength", "levels") if name in named}
    )
    strengths = [
        named.pop(f"together_{name}", usual) for name, usual in (("support", 0.0), ("strength", 1.0), ("exponent", 0.0))
    ]
    if together is not None:
        named["together"] = together, touched if touched is not None else u32(), *strengths
    table.begin()
    table.exclude(excluded)
    winners, numbers, *counts, unknown = table.rank(candidates, k, now_s, prior, parts=parts, **named)
    assert numbers == tuple(winner[0] for winner in winners)
    if candidates is None or isinstance(candidates, np.ndarray):
        assert unknown == 0
    else:
        assert unknown == table.lookup(candidates)[1]
    for number, item_id, *_ in winners:
        assert item_id == table.id(number)
    whole = [
        (number, score, base, in_context, share, lift, affinity_index, vector_lift, code)
        for (number, _, score, code, affinity_index), (base, in_context, share, lift, vector_lift) in zip(
            winners, parts[: len(winners)].tolist(), strict=True
        )
    ]
    return (whole, *counts)


def order(winners: list[tuple[Any, ...]]) -> list[int]:
    return [winner[0] for winner in winners]


# ---- ids -------------------------------------------------------------------------------------------------------------

IDS = st.one_of(
    st.text(st.sampled_from("ab"), max_size=20),
    st.text(max_size=8).filter(lambda text: text.isprintable()),
    st.sampled_from(["", "\0", "\0\0", "é", "日本語の商品名です", "x" * 15, "x" * 16, "x" * 17, "x" * 1_024]),
)


@given(ids=st.lists(IDS, unique=True, max_size=40), asked=st.lists(IDS, max_size=40))
@example(ids=[], asked=[""])
def test_lookup_equals_its_twin(ids: list[str], asked: list[str]) -> None:
    items = [ScoredItem(item_id) for item_id in ids]
    table = table_of(items)
    numbers, unknown = table.lookup([*ids, *asked])
    assert numbers.tolist() == reference.lookup(items, [*ids, *asked])
    assert unknown == numbers.tolist().count(UNKNOWN_ITEM)
    assert [table.id(number) for number in range(len(ids))] == ids


@pytest.mark.parametrize("length", range(19))
def test_ids_of_one_length_that_differ_in_one_byte_are_told_apart(length: int) -> None:
    ids = ["x" * at + "y" + "x" * (length - at - 1) for at in range(length)] + ["x" * length]
    table = table_of([ScoredItem(item_id) for item_id in ids])
    assert table.lookup(ids)[0].tolist() == list(range(len(ids)))
    assert table.lookup(["x" * (length + 1), "x" * length + "\0"])[1] == 2


def colliding_pair() -> tuple[str, str]:
    """Return two ASCII ids of 64 bytes with one XXH64 hash: its rounds can be undone, so one is solved for."""
    p1, p2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F
    mask = 2**64 - 1
    inverse_p2 = pow(p2, -1, 2**64)

    def rotate(x: int, by: int) -> int:
        return ((x << by) | (x >> (64 - by))) & mask

    random = np.random.default_rng(SEED)
    while True:
        first, other, second = (bytes(random.integers(97, 123, 8).tolist()) for _ in range(3))
        a, b, c = (int.from_bytes(word, "little") for word in (first, other, second))
        one, two = (rotate(p1 + p2 + x * p2 & mask, 31) * p1 & mask for x in (a, b))
        last = (c + (one - two) * inverse_p2 & mask).to_bytes(8, "little")
        if max(last) < 128:
            break
    middle = b"same-bytes-in-all-other-".decode()
    return first.decode() + middle + second.decode() + middle, other.decode() + middle + last.decode() + middle


def test_ids_with_the_same_hash_are_told_apart() -> None:
    one, other = colliding_pair()
    assert one != other
    assert len(one) == len(other) == 64
    assert hashing.xxh64(one.encode()) == hashing.xxh64(other.encode())
    table = table_of([ScoredItem(one)])
    assert table.lookup([other]) == (UNKNOWN_ITEM, 1)
    table.put(1, other, True, -1, 0, 0, (), None)
    assert table.lookup([other, one])[0].tolist() == [1, 0]


def test_thousands_of_items_keep_everything_while_the_table_grows() -> None:
    random = np.random.default_rng(SEED)
    count = 5_000
    embeddings = random.standard_normal((count, 3)).astype(np.float32)
    items = [
        ScoredItem(f"{n}" + "-" * (3 * n % 25), True, n % 7 - 1, n, 0, (n + 1, 2 * n + 1), embeddings[n], float(n))
        for n in range(count)
    ]
    table = table_of(items, 2, 3)
    assert (table.count, table.live_count) == (count, count)
    assert table.lookup([item.id for item in items])[0].tolist() == list(range(count))
    assert table.lookup([item.id + "!" for item in items])[1] == count
    assert table.attribute(0).tolist() == list(range(1, count + 1))
    assert table.symbol(1, 4_321) == 8_643
    assert table.counts().tolist() == [float(n) for n in range(count)]
    vector = f32(0.1, -0.2, 0.3)
    expected = reference.rank(items, None, 20, 4_000, vector=vector)
    assert ranked(table, None, 20, 4_000, vector=vector) == expected


def test_an_item_that_left_and_came_back_keeps_its_number() -> None:
    table = table_of(shelf(3))
    table.put(1, "b", False, -1, 0, 0, (), None)
    assert (table.count, table.live_count) == (3, 2)
    assert table.live().tolist() == [1, 0, 1]
    assert order(ranked(table, None, 5, NOW_S)[0]) == [0, 2]
    assert ranked(table, u32(1), 5, NOW_S) == ([], 0, 0, 0)
    table.put(1, "b", True, 3, 0, 0, (), None)
    assert (table.count, table.live_count) == (3, 3)
    assert order(ranked(table, None, 5, NOW_S)[0]) == [0, 1, 2]


def test_numbers_are_dense_and_never_given_to_another_id() -> None:
    table = table_of(shelf(2))
    with pytest.raises(ValueError, match="next 2, got 3"):
        table.put(3, "d", True, -1, 0, 0, (), None)
    with pytest.raises(ValueError, match="expected id 'b' at number 1, got 'c'"):
        table.put(1, "c", True, -1, 0, 0, (), None)
    assert table.count == 2


def test_an_id_that_is_no_text_is_unknown() -> None:
    table = table_of(shelf(2))
    assert table.lookup(["a", "\ud800", "b"])[0].tolist() == [0, UNKNOWN_ITEM, 1]
    with pytest.raises(TypeError):
        table.lookup([b"a"])  # type: ignore[list-item]


# ---- cells -----------------------------------------------------------------------------------------------------------

COUNTS = st.one_of(st.sampled_from([0.0, 1.0, 1.0, 2.0, 1e-300, 1e300]), st.floats(0, 1e9))


@given(
    changes=st.lists(st.tuples(st.integers(0, 60), COUNTS), max_size=80),
    asked=st.lists(st.integers(0, 2**32 - 1), max_size=5),
)
def test_a_cell_holds_what_was_last_set(changes: list[tuple[int, float]], asked: list[int]) -> None:
    cell, expected = CellTable(), dict(changes)
    cell.set_counts(u32(*(item for item, _ in changes)), f64(*(count for _, count in changes)))
    questions = [*expected, *asked]
    assert cell.counts(u32(*questions)).tolist() == [expected.get(item, 0.0) for item in questions]
    items, counts = cell.entries()
    assert list(zip(items.tolist(), counts.tolist(), strict=True)) == sorted(
        (item, count) for item, count in expected.items() if count
    )
    assert len(cell) == len(items)


@pytest.mark.parametrize("step", [1, 3, 1_000])
def test_a_cell_that_turns_dense_holds_the_same(step: int) -> None:
    random = np.random.default_rng(SEED)
    cell, expected = CellTable(), {}
    for start in range(0, 6_000, 500):
        items = (random.permutation(500) + start).astype(np.uint32) * step
        counts = random.random(500)
        cell.set_counts(items, counts)
        expected.update(zip(items.tolist(), counts.tolist(), strict=True))
    last = 2**22  # far behind everything known: of a dense cell it would be the only one
    cell.set_counts(u32(0, last), f64(7.0, 9.0))
    expected |= {0: 7.0, last: 9.0}
    items, found = cell.entries()
    assert dict(zip(items.tolist(), found.tolist(), strict=True)) == expected
    assert cell.counts(u32(0, last, last + 1, 2**32 - 1)).tolist() == [7.0, 9.0, 0.0, 0.0]
    table = table_of(shelf(4))
    levels = {n: expected.get(n, 0.0) for n in range(4)}
    assert ranked(table, None, 4, NOW_S, levels=((cell, 50.0, 3.0),)) == reference.rank(
        shelf(4), None, 4, NOW_S, levels=[(levels, 50.0, 3.0)]
    )


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -1.0])
def test_a_count_that_is_none_is_refused_whole(count: float) -> None:
    cell, table = CellTable(), table_of(shelf(2))
    with pytest.raises(ValueError, match="expected counts finite and not negative, got"):
        cell.set_counts(u32(1, 2), f64(1.0, count))
    assert len(cell) == 0
    with pytest.raises(ValueError, match="expected counts finite and not negative, got"):
        table.set_counts(u32(0), f64(count))


# ---- ranking ---------------------------------------------------------------------------------------------------------

LIFTS = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 1e-6, 1e6, 1e300])
VALUES = st.sampled_from(
    [0.0, 1.0, -1.0, 0.125, 3.5, -20.0, 1e30, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]
)
EMBEDDED = st.sampled_from([0.0, 1.0, -1.0, 0.5, 0.1, 1e5, 3e38])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[ScoredItem], int]:
    attribute_count = draw(st.integers(0, 2))
    dimension = draw(st.sampled_from([0, 1, DIMENSION]))
    ids = draw(st.lists(st.text(st.sampled_from("abé"), max_size=3), unique=True, max_size=12))
    items = [
        ScoredItem(
            item_id,
            draw(st.sampled_from([True, True, True, False])),
            draw(st.sampled_from([-1, -1, 0, 5])),
            draw(st.sampled_from([0, 0, NOW_S, NOW_S + 1])),
            draw(st.sampled_from([0, 0, NOW_S, NOW_S + 1])),
            tuple(draw(st.integers(0, 3)) for _ in range(attribute_count)),
            np.array([draw(EMBEDDED) for _ in range(dimension)], np.float32) if draw(st.booleans()) else None,
            draw(COUNTS),
        )
        for item_id in ids
    ]
    for item in items:
        if dimension and item.embedding is None:
            item.embedding = np.zeros(dimension, np.float32)
        elif not dimension:
            item.embedding = None
    return items, dimension


@st.composite
def questions(draw: st.DrawFn, item_count: int, attribute_count: int, dimension: int) -> dict[str, Any]:
    numbers = st.integers(0, item_count + 2)
    strengths = st.sampled_from([1e-3, 1.0, 20.0, 5_000.0])
    totals = st.sampled_from([0.0, 1.0, 1e6])
    scores = st.sampled_from([1e-45, 0.25, 0.5, 0.5, 3e38, float("inf")])
    few = max(0, item_count - 1)
    return {
        "require_stock": draw(st.booleans()),
        "allowed": draw(st.none() | st.lists(st.integers(0, 1), min_size=item_count, max_size=item_count)),
        "excluded": draw(st.lists(numbers, max_size=item_count)),
        "scale": draw(st.sampled_from([1.0, 0.5, 1e-9])),
        "total": draw(totals),
        "uniform_strength": draw(strengths),
        "levels": [
            (draw(st.dictionaries(numbers, COUNTS, max_size=6)), draw(totals), draw(strengths))
            for _ in range(draw(st.integers(0, 2)))
        ],
        "together": draw(st.none() | st.dictionaries(st.integers(0, few), scores, max_size=item_count)),
        "together_support": draw(st.sampled_from([0.0, 0.5, 40.0])),
        "together_strength": draw(strengths),
        "together_exponent": draw(st.sampled_from([0.0, 0.25, 1.0])),
        "affinities": [
            (attribute, draw(st.dictionaries(st.integers(1, 3), LIFTS, max_size=2)), draw(LIFTS))
            for attribute in range(attribute_count)
        ],
        "vector": draw(st.none() | st.lists(VALUES, min_size=dimension, max_size=dimension)) if dimension else None,
        "vector_log": draw(st.booleans()),
    }


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[ScoredItem], int, list[int] | None, int, dict[str, Any]]:
    items, dimension = draw(worlds())
    attribute_count = len(items[0].symbols) if items else 0
    candidates = draw(st.none() | st.lists(st.integers(0, len(items) + 2) | st.just(UNKNOWN_ITEM), max_size=20))
    asked = draw(questions(len(items), attribute_count, dimension))
    if not items:
        asked["together"] = None
    return items, dimension, candidates, draw(st.integers(1, 15)), asked


@given(ranking=rankings())
def test_rank_equals_its_twin_bit_for_bit(
    ranking: tuple[list[ScoredItem], int, list[int] | None, int, dict[str, Any]],
) -> None:
    items, dimension, candidates, k, asked = ranking
    table = table_of(items, len(items[0].symbols) if items else 0, dimension)
    native = dict(asked)
    if asked["vector"] is not None:
        asked["vector"] = native["vector"] = f32(*asked["vector"])
    together = asked["together"]
    if together is not None:
        asked["together"] = {item: float(np.float32(score)) for item, score in together.items()}
        native["together"] = np.zeros(len(items), np.float32)
        native["touched"] = u32(*together)
        for item, score in together.items():
            native["together"][item] = score
    native["allowed"] = None if asked["allowed"] is None else np.array(asked["allowed"], np.uint8)
    native["levels"] = tuple((cell_of(counts), total, strength) for counts, total, strength in asked["levels"])
    native["affinities"] = tuple(
        (attribute, np.array([*lifts], np.uint64), f64(*lifts.values()), other)
        for attribute, lifts, other in asked["affinities"]
    )
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        expected = reference.rank(items, candidates, k, NOW_S, **asked)
    found = ranked(table, None if candidates is None else u32(*candidates), k, NOW_S, **native)
    assert found == expected
    assert all(score >= 0.0 for _, score, *_ in found[0])
    again = ranked(table, None if candidates is None else u32(*candidates), k, NOW_S, **native)
    assert again == found
    if candidates is not None:
        ids = [items[number].id if number < len(items) else "nobody's" for number in candidates]
        assert ranked(table, ids, k, NOW_S, **native) == found


def test_equal_scores_stand_in_the_order_of_their_id_bytes() -> None:
    ids = ["b", "a", "é", "", "ab", "a\0", "x" * 17, "x" * 16, "日"]
    table = table_of([ScoredItem(item_id) for item_id in ids])
    winners = ranked(table, None, len(ids), NOW_S)[0]
    assert [ids[number] for number in order(winners)] == sorted(ids, key=str.encode)
    assert [ids[number] for number in order(ranked(table, None, 3, NOW_S)[0])] == sorted(ids, key=str.encode)[:3]


def test_nothing_is_ranked_when_all_are_excluded_or_refused() -> None:
    table, everything = table_of(shelf(5)), np.arange(5, dtype=np.uint32)
    assert ranked(table, None, 3, NOW_S, excluded=everything) == ([], 5, 5, 0)
    assert ranked(table, everything, 3, NOW_S, allowed=np.zeros(5, np.uint8)) == ([], 5, 0, 0)
    assert ranked(table, u32(), 3, NOW_S) == ([], 0, 0, 0)
    assert ranked(ItemTable(0, 0), None, 3, NOW_S) == ([], 0, 0, 0)


def test_every_candidate_is_returned_when_k_is_larger() -> None:
    winners, candidates, excluded, eligible = ranked(table_of(shelf(5)), u32(3, 3, 1, 99, 1), 65_536, NOW_S)
    assert (order(winners), candidates, excluded, eligible) == ([1, 3], 2, 0, 2)


def test_a_further_ranking_meets_nothing_again_and_keeps_what_is_excluded() -> None:
    table = table_of(shelf(5))
    table.begin()
    table.exclude([0])
    first, _, *counts = table.rank(["b", "a", "b"], 3, NOW_S, Prior())
    assert ([winner[1] for winner in first], counts) == (["b"], [2, 1, 1, 0])
    second, _, *counts = table.rank(u32(0, 1, 2), 3, NOW_S, Prior())
    assert ([winner[1] for winner in second], counts) == (["c"], [1, 0, 1, 0])
    table.begin()
    assert [winner[1] for winner in table.rank(None, 2, NOW_S, Prior())[0]] == ["a", "b"]


@given(
    entries=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6),
    since_s=st.integers(0, 9),
)
def test_a_list_chunk_excludes_what_is_new_enough(entries: list[tuple[int, int]], since_s: int) -> None:
    table = table_of(shelf(8))
    table.begin()
    table.exclude_listed(bytes(CHUNK_HEADER_BYTES) + b"".join(struct.pack("<II", *entry) for entry in entries), since_s)
    left = {winner[0] for winner in table.rank(None, 8, NOW_S, Prior())[0]}
    assert left == set(range(8)) - {item for item, time_s in entries if time_s >= since_s}


@pytest.mark.parametrize("size", [0, 7, 9, 23])
def test_a_chunk_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"expected chunks of 8 bytes and 8 an entry, got {size} bytes"):
        table_of(shelf(1)).exclude_listed(bytes(size), 0)


def test_thousands_of_candidates_by_id_are_ranked_as_by_number() -> None:
    random = np.random.default_rng(SEED)
    count = 3_000
    embeddings = random.standard_normal((count, 20)).astype(np.float32)
    items = [ScoredItem(f"{n}" + "x" * (n % 20), embedding=embeddings[n], count=float(n % 7)) for n in range(count)]
    table, vector = table_of(items, dimension=20), random.standard_normal(20).astype(np.float32)
    numbers = random.integers(0, count, 5_000).astype(np.uint32)
    by_number = ranked(table, numbers, 100, NOW_S, vector=vector)
    assert by_number == reference.rank(items, numbers.tolist(), 100, NOW_S, vector=vector)
    assert ranked(table, [items[number].id for number in numbers.tolist()], 100, NOW_S, vector=vector) == by_number


def test_scores_are_shares_of_one_whatever_lifts_them() -> None:
    table = table_of([ScoredItem(letter, symbols=(1 + n % 3,)) for n, letter in enumerate("abcdef")], 1)
    lifted = ((0, np.array([1, 2], np.uint64), f64(9.0, 1e200), 0.25),)
    assert sum(score for _, score, *_ in ranked(table, None, 6, NOW_S, affinities=lifted)[0]) == pytest.approx(1.0)
    together = f32(0, 0, 0.75, 0, 0, 0)
    winners = ranked(table, None, 6, NOW_S, together=together, touched=u32(2), together_support=5.0)[0]
    assert sum(score for _, score, *_ in winners) == pytest.approx(1.0)
    assert winners[0][0] == 2


def test_co_occurrence_that_says_nothing_leaves_the_scores_alone() -> None:
    table, zeros = table_of(shelf(3)), np.zeros(3, np.float32)
    plain = ranked(table, None, 3, NOW_S)
    assert ranked(table, None, 3, NOW_S, together=zeros, touched=u32(), together_support=9.0) == plain
    assert ranked(table, None, 3, NOW_S, together=zeros, touched=u32(1), together_support=9.0) == plain


def test_a_vector_that_overflows_neither_wins_nor_breaks_the_order() -> None:
    items = [ScoredItem(letter, embedding=f32(x, y)) for letter, x, y in (("a", 3e38, -3e38), ("b", 1, 0), ("c", 0, 0))]
    table = table_of(items, 0, 2)
    winners = ranked(table, None, 3, NOW_S, vector=f32(3e38, 3e38))[0]
    assert order(winners) == [1, 0, 2]
    assert [winner[7] for winner in winners] == [2.0**30, 1.0, 1.0]
    absent = ranked(table, None, 3, NOW_S, vector=f32(float("nan"), float("inf")))[0]
    assert [winner[7] for winner in absent] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"k": 0}, "k from 1 to 65536, got 0"),
        ({"k": 65_537}, "k from 1 to 65536, got 65537"),
        ({"allowed": np.ones(2, np.uint8)}, "`allowed` for 3 items, got 2"),
        ({"together": np.ones(2, np.float32)}, "scores for 3 items, got 2"),
        ({"vector": f32(1.0)}, "a vector of 2 values, got 1"),
        ({"scale": float("nan")}, "scale finite and not negative, got nan"),
        ({"total": -1.0}, "total finite and not negative, got -1.0"),
        ({"uniform_strength": 0.0}, "uniform_strength above 0, got 0.0"),
        ({"together": np.zeros(3, np.float32), "together_strength": 0.0}, "strength of the parent above 0, got 0.0"),
        (
            {"together": np.zeros(3, np.float32), "together_exponent": float("inf")},
            "popularity exponent finite and not negative, got inf",
        ),
        ({"levels": ((CellTable(), 1.0, 0.0),)}, "strengths of levels above 0, got 0.0"),
        ({"levels": ((CellTable(), float("nan"), 1.0),)}, "totals of levels finite and not negative, got nan"),
        ({"levels": ((CellTable(), 1.0, 1.0),) * 9}, "at most 8 levels, got 9"),
        ({"affinities": ((0, u32().astype(np.uint64), f64(), 1.0),) * 9}, "at most 8 affinities, got more"),
        ({"affinities": ((1, u32().astype(np.uint64), f64(), 1.0),)}, "an attribute index below 1, .* attribute 1"),
        ({"affinities": ((0, np.ones(1, np.uint64), f64(), 1.0),)}, "one lift per key .* got 1 keys, 0 lifts"),
        (
            {"affinities": ((0, np.ones(1, np.uint64), f64(float("nan")), 1.0),)},
            "lifts finite and not negative, got nan",
        ),
        ({"affinities": ((0, u32().astype(np.uint64), f64(), -1.0),)}, "lifts finite and not negative, got -1.0"),
    ],
)
def test_what_does_not_fit_is_refused(named: dict[str, Any], message: str) -> None:
    items = [ScoredItem(letter, symbols=(1,), embedding=f32(0, 0)) for letter in "abc"]
    table = table_of(items, 1, 2)
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        ranked(table, None, **{"k": 2, "now_s": NOW_S, **named})


def test_a_missing_cell_or_column_is_refused() -> None:
    table = table_of([ScoredItem("a", symbols=(1,))], 1)
    with pytest.raises(TypeError, match=r"expected a CellTable in levels\[0\], got None"):
        ranked(table, None, 2, NOW_S, levels=((None, 1.0, 1.0),))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected keys and lifts in affinities\[0\], got None"):
        ranked(table, None, 2, NOW_S, affinities=((0, None, None, 1.0),))  # type: ignore[arg-type]


def test_items_that_do_not_fit_the_table_are_refused() -> None:
    table = ItemTable(1, 2)
    with pytest.raises(ValueError, match="expected 1 symbols, got 0, for item 'a'"):
        table.put(0, "a", True, -1, 0, 0, (), None)
    with pytest.raises(ValueError, match="expected 2 embedding values, got 1, for item 'a'"):
        table.put(0, "a", True, -1, 0, 0, (1,), f32(1.0))
    with pytest.raises(ValueError, match="expected finite embedding values, got nan at 1, for item 'a'"):
        table.put(0, "a", True, -1, 0, 0, (1,), f32(1.0, float("nan")))
    assert table.count == 0
    with pytest.raises(ValueError, match="as many counts as items = 1, got 0"):
        table.set_counts(u32(0), f64())
    with pytest.raises(ValueError, match="as many counts as items = 1, got 0"):
        CellTable().set_counts(u32(0), f64())
    with pytest.raises(IndexError, match="expected item numbers below 0, got 0 at 0"):
        table.set_counts(u32(0), f64(1.0))
    with pytest.raises(IndexError, match="expected an item number below 0, got 0"):
        table.id(0)
    with pytest.raises(IndexError, match="expected an attribute below 1 and an item below 0, got 0 and 0"):
        table.symbol(0, 0)
    with pytest.raises(ValueError, match=r"expected 0\.\.64 attributes and 0\.\.4096 dimensions, got 65 and 0"):
        ItemTable(65, 0)


@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20),
    vector=st.lists(st.floats(-8, 8, width=32), min_size=20, max_size=20),
)
def test_stored_embeddings_are_near_the_given_ones(values: list[float], vector: list[float]) -> None:
    embedding = f32(*values)
    wholes, unit = reference.quantised(embedding)
    largest = float(np.max(np.abs(embedding)))
    assert np.max(np.abs(wholes.astype(np.float64) * unit - embedding)) <= largest * 2.0**-15
    asked = f32(*vector[: len(values)])
    table = table_of([ScoredItem("a", embedding=embedding)], dimension=len(values))
    parts = np.empty((1, 5))
    table.rank(None, 1, NOW_S, Prior(), vector=asked, parts=parts)
    exponent = float(np.dot(asked.astype(np.float64), embedding.astype(np.float64)))
    error = 20 * 8 * largest * 2.0**-14

    def lift(log_odds: float) -> float:
        return float(2.0 ** min(30.0, max(-30.0, log_odds * 1.4426950408889634)))

    assert lift(exponent - error) * 0.999 <= parts[0, 4] <= lift(exponent + error) * 1.001
