"""Snapshots: the newest whole one takes the place of a lost state, a bad one is passed over, the log decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tailorbird.engine.errors import Damaged
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Status
from tests.engine.shops import assert_replays_to_the_same, open_shop, signal, views

Harm = Callable[[Path], object]


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, str, tuple[int, int]]:
    """Return a closed shop with snapshots after its first and second view, its state's hash after a third, and where
    the snapshots stand in the log.
    """
    positions = []
    with open_shop(tmp_path) as engine:
        engine.put_items([Item(id="mug"), Item(id="cup")])
        for message_id in ("a", "b"):
            engine.ingest([signal(message_id)])
            positions.append(engine.position)
            engine.snapshot()
        engine.ingest([signal("c")])
        whole = engine.state_hash()
    first, second = positions
    return tmp_path / "shop", whole, (first, second)


def lose_state(directory: Path) -> None:
    for path in (directory / "state").iterdir():
        path.unlink()


def snapshots(directory: Path) -> list[Path]:
    """Return the folders of the snapshots, oldest first."""
    return sorted((directory / "snapshots").iterdir())


def change_manifest(snapshot: Path, **changes: object) -> None:
    path = snapshot / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_data(size: Callable[[int], int]) -> Harm:
    def harm(snapshot: Path) -> None:
        data = snapshot / "data.mdb"
        data.write_bytes(data.read_bytes()[: size(data.stat().st_size)])

    return harm


def flip_bit(snapshot: Path) -> None:
    data = bytearray((snapshot / "data.mdb").read_bytes())
    data[len(data) // 2] ^= 1
    (snapshot / "data.mdb").write_bytes(data)


HARMS: dict[str, tuple[Harm, str]] = {
    "last byte missing": (cut_data(lambda size: size - 1), "bytes, got "),
    "half missing": (cut_data(lambda size: size // 2), "bytes, got "),
    "all missing": (cut_data(lambda size: 0), "bytes, got 0"),
    "file missing": (lambda snapshot: (snapshot / "data.mdb").unlink(), "No such file"),
    "one bit flipped": (flip_bit, "its checksum does not fit"),
    "manifest missing": (lambda snapshot: (snapshot / "manifest.json").unlink(), "No such file"),
    "manifest truncated": (lambda snapshot: (snapshot / "manifest.json").write_text('{"format": "tai'), ""),
    "manifest of a wrong type": (lambda snapshot: (snapshot / "manifest.json").write_text("[1]"), ""),
    "manifest of another release": (lambda snapshot: change_manifest(snapshot, format="tailorbird data 9"), "format"),
}


def test_a_lost_state_is_restored_from_the_newest_snapshot_and_the_log_after_it(
    tmp_path: Path, shop: tuple[Path, str, tuple[int, int]]
) -> None:
    directory, whole, (_, second) = shop
    lose_state(directory)
    with open_shop(tmp_path) as engine:
        assert f"restored the state from the snapshot at {second}" in engine.recovery
        assert engine.state_hash() == whole
        assert views(engine) == 3.0
        assert engine.ingest([signal("b")]).outcomes[0].status is Status.DUPLICATE
    assert_replays_to_the_same(tmp_path)


@pytest.mark.parametrize("name", HARMS)
def test_a_truncated_or_damaged_snapshot_is_told_and_an_older_one_serves(
    tmp_path: Path, shop: tuple[Path, str, tuple[int, int]], name: str
) -> None:
    directory, whole, (first, _) = shop
    harm, said = HARMS[name]
    newest = snapshots(directory)[-1]
    harm(newest)
    lose_state(directory)
    with open_shop(tmp_path) as engine:
        told, restored, *_ = engine.recovery
        assert f"expected a whole snapshot in {newest}" in told
        assert said in told
        assert restored == f"restored the state from the snapshot at {first}"
        assert engine.state_hash() == whole
        assert views(engine) == 3.0


@pytest.mark.parametrize("name", HARMS)
def test_without_a_whole_snapshot_the_log_alone_serves(
    tmp_path: Path, shop: tuple[Path, str, tuple[int, int]], name: str
) -> None:
    directory, whole, _ = shop
    for snapshot in snapshots(directory):
        HARMS[name][0](snapshot)
    lose_state(directory)
    with open_shop(tmp_path) as engine:
        assert "rebuilding the state from the whole log" in engine.recovery
        assert engine.state_hash() == whole
        assert views(engine) == 3.0


def test_a_snapshot_of_more_than_the_log_holds_is_passed_over(
    tmp_path: Path, shop: tuple[Path, str, tuple[int, int]]
) -> None:
    directory, whole, (first, _) = shop
    newest = snapshots(directory)[-1]
    newest.rename(newest.with_name(f"{10_000:020d}"))
    lose_state(directory)
    with open_shop(tmp_path) as engine:
        assert any("snapshot 10000 is outside the log" in note for note in engine.recovery)
        assert f"restored the state from the snapshot at {first}" in engine.recovery
        assert engine.state_hash() == whole


def test_a_bad_snapshot_changes_nothing_for_a_state_that_is_whole(
    tmp_path: Path, shop: tuple[Path, str, tuple[int, int]]
) -> None:
    directory, whole, _ = shop
    for snapshot in snapshots(directory):
        flip_bit(snapshot)
    with open_shop(tmp_path) as engine:
        assert engine.recovery == []
        assert engine.state_hash() == whole
        with pytest.raises(Damaged, match=r"DAMAGED_SNAPSHOT.*checksum.*an older one or the log serves"):
            engine.directory.check_snapshot(snapshots(directory)[-1])
