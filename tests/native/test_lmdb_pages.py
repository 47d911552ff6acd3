"""Tables read from an LMDB file's pages, LMDB itself as the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.native.lmdb_pages import LmdbFile, LmdbTable

MAP_BYTES = 1 << 26
NAME = b"table"
Opened = tuple[lmdb.Environment, LmdbFile]


def opened(path: Path) -> Opened:
    environment = lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=4, lib_version=0, sync=False)
    environment.open_db(NAME)
    return environment, LmdbFile(path / "data.mdb", MAP_BYTES)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Opened]:
    environment, file = opened(tmp_path)
    yield environment, file
    environment.close()


def put(environment: lmdb.Environment, entries: dict[bytes, bytes]) -> None:
    with environment.begin(write=True) as txn:
        for key, value in entries.items():
            txn.put(key, value, db=environment.open_db(NAME, txn=txn))


def table_of(file: LmdbFile, txn: lmdb.Transaction[bytes]) -> LmdbTable:
    table = file.table(txn.id(), NAME)
    assert table is not None
    return table


def random_entries(seed: int, count: int, value_bytes_max: int) -> dict[bytes, bytes]:
    rng = random.Random(seed)
    return {
        rng.randbytes(rng.choice((1, 7, 8, 9, 17, 200))): rng.randbytes(rng.randint(0, value_bytes_max))
        for _ in range(count)
    }


KEYS = st.binary(min_size=1, max_size=24) | st.integers(0, 300).map(lambda number: b"prefix-of-many-" + b"%d" % number)


@settings(max_examples=60)
@given(
    entries=st.dictionaries(KEYS, st.binary(max_size=5_000), max_size=60), asked=st.lists(KEYS, min_size=1, max_size=20)
)
def test_finds_what_lmdb_finds(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[bytes, bytes], asked: list[bytes]
) -> None:
    environment, file = opened(tmp_path_factory.mktemp("pages"))
    put(environment, entries)
    with environment, environment.begin() as txn:
        table, held = table_of(file, txn), sorted(entries.items())
        for key in (*asked, *entries):
            assert table.get(key) == entries.get(key)
            assert table.entries(key, 3) == [entry for entry in held if entry[0] >= key][:3]


@pytest.mark.parametrize("value_bytes_max", [0, 100, 3_000])
def test_reads_deep_trees_in_order(pair: Opened, value_bytes_max: int) -> None:
    environment, file = pair
    entries = random_entries(5, 6_000, value_bytes_max)
    put(environment, entries)
    with environment.begin() as txn:
        table = table_of(file, txn)
        assert txn.stat(environment.open_db(NAME, txn=txn))["depth"] >= 2
        assert table.entries(b"\0", 10_000) == sorted(entries.items())
        assert all(table.get(key) == value for key, value in entries.items())
        assert table.get(b"\xff" * 300) is None
        assert table.entries(b"\xff" * 300, 1) == []


def test_a_table_stays_of_its_snapshot_while_the_transaction_is_open(pair: Opened) -> None:
    environment, file = pair
    before = random_entries(1, 2_000, 300)
    put(environment, before)
    with environment.begin() as txn:
        table = table_of(file, txn)
        for seed in range(2, 12):  # every page that may be used again would be
            put(environment, dict.fromkeys(before, b"changed" * seed))
        assert table.entries(b"\0", 10_000) == sorted(before.items())
        assert file.table(txn.id(), NAME) is None, "the file tells the last two snapshots only"
    with environment.begin() as txn:
        assert table_of(file, txn).get(min(before)) == b"changed" * 11


def test_the_snapshot_before_the_last_can_still_be_found(pair: Opened) -> None:
    environment, file = pair
    put(environment, {b"key": b"before"})
    with environment.begin() as txn:
        put(environment, {b"key": b"after"})
        assert table_of(file, txn).get(b"key") == b"before"


def test_sees_what_was_written_after_it_was_mapped(pair: Opened) -> None:
    environment, file = pair
    for seed in range(5):
        put(environment, entries := random_entries(seed, 1_000, 2_000))
        with environment.begin() as txn:
            assert all(table_of(file, txn).get(key) == value for key, value in entries.items())


def test_an_empty_table_has_nothing_and_an_unknown_one_is_none(pair: Opened) -> None:
    environment, file = pair
    with environment.begin() as txn:
        assert table_of(file, txn).get(b"key") is None
        assert table_of(file, txn).entries(b"\0", 5) == []
        assert file.table(txn.id(), b"other") is None


def test_tables_of_other_kinds_are_refused(pair: Opened) -> None:
    environment, file = pair
    environment.open_db(b"several", dupsort=True)
    put(environment, {})
    with environment.begin(write=True) as txn:
        txn.put(b"plain", b"value")
    for name in (b"several", b"plain"):
        with environment.begin() as txn, pytest.raises(ValueError, match=r"LMDB data file of version 0\.9"):
            file.table(txn.id(), name)


def test_files_that_are_not_lmdb_0_9_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LmdbFile(tmp_path / "data.mdb", MAP_BYTES)
    (tmp_path / "data.mdb").write_bytes(b"short")
    with pytest.raises(ValueError, match="of two pages at least"):
        LmdbFile(tmp_path / "data.mdb", MAP_BYTES)
    (tmp_path / "data.mdb").write_bytes(bytes(1 << 16))
    with pytest.raises(ValueError, match=r"version 0\.9"):
        LmdbFile(tmp_path / "data.mdb", MAP_BYTES).table(1, NAME)
    other = tmp_path / "other"
    with lmdb.open(str(other), map_size=MAP_BYTES, max_dbs=4, lib_version=1, sync=False) as environment:
        environment.open_db(NAME)
    with pytest.raises(ValueError, match=r"version 0\.9"):
        LmdbFile(other / "data.mdb", MAP_BYTES).table(1, NAME)


def _anywhere(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _a_page_head(rng: random.Random, data: bytearray) -> None:
    data[4096 * rng.randrange(len(data) // 4096) + rng.randrange(48)] = rng.randrange(256)


def _a_page(rng: random.Random, data: bytearray) -> None:
    at = 4096 * rng.randrange(2, len(data) // 4096)
    data[at : at + 4096] = rng.randbytes(4096)


@pytest.mark.parametrize("damage", [_anywhere, _a_page_head, _a_page])
def test_damaged_files_are_told_or_read_but_never_followed(
    tmp_path: Path, damage: Callable[[random.Random, bytearray], None]
) -> None:
    environment, _ = opened(tmp_path)
    entries = random_entries(9, 1_500, 600)
    put(environment, entries)
    with environment.begin() as txn:
        newest = txn.id()
    environment.close()
    whole, keys = (tmp_path / "data.mdb").read_bytes(), list(entries)
    told = 0
    for seed in range(300):
        rng = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 20)):
            damage(rng, damaged)
        (tmp_path / "data.mdb").write_bytes(damaged)
        try:
            table = LmdbFile(tmp_path / "data.mdb", len(whole)).table(newest, NAME)
            if table is not None:
                table.entries(b"\0", 3_000)
                for key in keys[:20]:
                    table.get(key)
        except ValueError:
            told += 1
    assert told, "no damage was noticed"
