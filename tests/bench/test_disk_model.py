"""The disk that forgets: what was synced is always there, what was not may be anything in between."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from tailorbird.bench.disk_model import SECTOR_BYTES, Disk
from tailorbird.bench.io_trace import Operation, TraceRecord

ROOT = Path("/data")
FILE, DIRECTORY = (1, 3), (1, 4)


def entry(
    operation: Operation, handle: tuple[int, int] = FILE, a: int = 0, b: int = 0, data: bytes = b""
) -> TraceRecord:
    return TraceRecord(operation, handle, a, b, data)


def opened(path: str = "/data/file", flags: int = os.O_CREAT | os.O_RDWR) -> TraceRecord:
    return entry(Operation.OPEN, a=flags, data=path.encode())


OPEN_DIRECTORY = entry(Operation.OPEN, DIRECTORY, a=os.O_RDONLY, data=b"/data")


def synced(handle: tuple[int, int] = FILE) -> list[TraceRecord]:
    return [entry(Operation.SYNC, handle, a=1), entry(Operation.SYNC_END, handle, a=1)]


def images(tmp_path: Path, trace: list[TraceRecord], count: int = 300) -> list[dict[str, bytes]]:
    """Return the files of many images at the end of `trace`."""
    disk = Disk(ROOT)
    for record in trace:
        disk.apply(record)
    found = []
    for seed in range(count):
        target = tmp_path / "image"
        disk.write_image(target, random.Random(seed))
        found.append({p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()})
        shutil.rmtree(target)
    return found


def test_synced_bytes_under_a_synced_name_are_in_every_image(tmp_path: Path) -> None:
    trace = [OPEN_DIRECTORY, opened(), entry(Operation.WRITE, data=b"kept"), *synced(), *synced(DIRECTORY)]
    assert all(image == {"file": b"kept"} for image in images(tmp_path, trace))


def test_a_name_that_no_directory_sync_followed_may_be_missing(tmp_path: Path) -> None:
    trace = [opened(), entry(Operation.WRITE, data=b"kept"), *synced()]
    found = images(tmp_path, trace)
    assert {} in found
    assert {"file": b"kept"} in found
    assert len({str(image) for image in found}) == 2


def test_only_what_was_written_before_a_sync_began_is_durable_when_it_ends(tmp_path: Path) -> None:
    begin, end = synced()
    late = entry(Operation.WRITE, a=4, data=b"late")
    trace = [OPEN_DIRECTORY, opened(), *synced(DIRECTORY), entry(Operation.WRITE, data=b"kept"), begin, late, end]
    found = {image["file"] for image in images(tmp_path, trace)}
    assert found == {b"kept", b"keptlate", b"kept\0\0\0\0"}
    unfinished = {image["file"] for image in images(tmp_path, trace[:-1])}
    assert b"" in unfinished


def test_a_later_write_may_be_there_without_an_earlier_one(tmp_path: Path) -> None:
    trace = [OPEN_DIRECTORY, opened(), *synced(DIRECTORY)]
    trace += [entry(Operation.WRITE, data=b"one"), entry(Operation.WRITE, a=3, data=b"two")]
    found = {image["file"] for image in images(tmp_path, trace)}
    assert {b"", b"one", b"onetwo", b"\0\0\0two"} <= found


def test_a_write_is_torn_at_sectors_of_the_file(tmp_path: Path) -> None:
    start = 100
    data = bytes([1]) * (SECTOR_BYTES - start) + bytes([2]) * SECTOR_BYTES + bytes([3]) * 50
    trace = [OPEN_DIRECTORY, opened(), *synced(DIRECTORY), entry(Operation.WRITE, a=start, data=data)]
    seen = set()
    for image in images(tmp_path, trace):
        content = image["file"].ljust(start + len(data), b"\0")
        pieces = content[start:SECTOR_BYTES], content[SECTOR_BYTES : 2 * SECTOR_BYTES], content[2 * SECTOR_BYTES :]
        assert all(len(set(piece)) == 1 for piece in pieces)
        seen.add(tuple(piece[0] for piece in pieces))
    assert len(seen) == 8


def test_renames_and_removals_are_kept_in_order(tmp_path: Path) -> None:
    trace = [OPEN_DIRECTORY, opened("/data/new"), entry(Operation.WRITE, data=b"x"), *synced(), *synced(DIRECTORY)]
    trace += [entry(Operation.RENAME, data=b"/data/new\0/data/name"), entry(Operation.MKDIR, data=b"/data/folder")]
    trace += [
        entry(Operation.RENAME, data=b"/data/name\0/data/folder/name"),
        entry(Operation.UNLINK, data=b"/data/folder/name"),
    ]
    found = {tuple(image) for image in images(tmp_path, trace)}
    assert found == {("new",), ("name",), ("folder/name",), ()}


def test_a_write_through_o_dsync_is_durable_by_itself(tmp_path: Path) -> None:
    trace = [OPEN_DIRECTORY, opened(flags=os.O_CREAT | os.O_RDWR | os.O_DSYNC), *synced(DIRECTORY)]
    trace += [entry(Operation.WRITE, data=b"through")]
    assert all(image == {"file": b"through"} for image in images(tmp_path, trace))


def test_truncation_and_allocation_are_kept_or_not(tmp_path: Path) -> None:
    trace = [OPEN_DIRECTORY, opened(), entry(Operation.WRITE, data=b"123456"), *synced(), *synced(DIRECTORY)]
    found = {image["file"] for image in images(tmp_path, [*trace, entry(Operation.TRUNCATE, a=2)])}
    assert found == {b"123456", b"12"}
    found = {image["file"] for image in images(tmp_path, [*trace, entry(Operation.ALLOCATE, a=4, b=4)])}
    assert found == {b"123456", b"123456\0\0"}
