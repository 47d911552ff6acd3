"""The local log: what a crash, a full disk and a flipped bit do to its files."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailorbird.engine.errors import Damaged, NotFound, PreconditionFailed, ResourceExhausted, Unavailable
from tailorbird.engine.log import LocalLog, LogIO
from tailorbird.engine.log_record import HEADER_BYTES
from tailorbird.engine.log_segment import SEGMENT_HEADER_BYTES
from tests.engine.log_contract import FactLogContract

FIRST = f"{0:020d}.log"


class TestLocalLog(FactLogContract):
    def open_log(self, place: Path) -> LocalLog:
        return LocalLog.open(place / "log")


class TestLocalLogOfSmallSegments(FactLogContract):
    def open_log(self, place: Path) -> LocalLog:
        return LocalLog.open(place / "log", segment_bytes=100)


def write_groups(path: Path, group_sizes: list[int], *, close: bool = True, segment_bytes: int = 1 << 20) -> list[int]:
    """Write and sync groups of records; return the file size after each. Without `close` it is as after kill -9."""
    sizes = []
    log = LocalLog.open(path, segment_bytes=segment_bytes)
    for size in group_sizes:
        log.append_group(7, [(3, b"fact %d" % (log.end + i)) for i in range(size)])
        log.sync()
        sizes.append(max(path.glob("*.log")).stat().st_size)
    if close:
        log.close()
    else:
        os.close(log._fd)
        log._fd = -1
    return sizes


def payloads(path: Path) -> list[bytes]:
    log = LocalLog.open(path, read_only=True)
    try:
        return [record.payload for record in log.read(0)]
    finally:
        log.close()


def expected(count: int) -> list[bytes]:
    return [b"fact %d" % i for i in range(count)]


def test_a_tail_torn_at_any_byte_loses_only_the_record_it_tore(tmp_path: Path) -> None:
    _, before, size = write_groups(tmp_path / "whole", [3, 1, 1], close=False)
    data = (tmp_path / "whole" / FIRST).read_bytes()
    assert len(data) == size
    for cut in range(before, size):
        path = tmp_path / f"cut{cut}"
        path.mkdir()
        (path / FIRST).write_bytes(data[:cut])
        log = LocalLog.open(path)
        assert (log.end, log.torn_bytes) == (4, cut - before)
        log.append_group(8, [(3, b"fact 4")])
        log.sync()
        log.close()
        assert payloads(path) == expected(5)


def test_a_flip_of_any_bit_that_was_synced_is_damage_and_never_a_wrong_record(tmp_path: Path) -> None:
    write_groups(tmp_path / "log", [2, 1, 2])
    file = tmp_path / "log" / FIRST
    data = file.read_bytes()
    for position in range(len(data) - HEADER_BYTES):  # The last record is the mark of the clean close.
        for bit in (0, 5, 7):
            file.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            with pytest.raises((Damaged, PreconditionFailed)) as caught:
                LocalLog.open(tmp_path / "log")
            if position >= SEGMENT_HEADER_BYTES:
                assert caught.value.reason == "DAMAGED_LOG"
                assert str(file) in caught.value.message
                assert "byte" in caught.value.message
                assert "offset" in caught.value.message
                assert "restore" in caught.value.message
            assert file.stat().st_size == len(data)


def test_a_damaged_closing_mark_costs_nothing_but_itself(tmp_path: Path) -> None:
    write_groups(tmp_path / "log", [2, 1])
    file = tmp_path / "log" / FIRST
    data = file.read_bytes()
    for position in range(len(data) - HEADER_BYTES, len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        log = LocalLog.open(tmp_path / "log")
        assert (log.end, log.torn_bytes) == (3, HEADER_BYTES)
        log.close()


def test_a_mark_damaged_before_later_records_is_damage(tmp_path: Path) -> None:
    write_groups(tmp_path / "log", [2])
    file = tmp_path / "log" / FIRST
    mark = file.stat().st_size - HEADER_BYTES
    write_groups(tmp_path / "log", [1], close=False)
    data = file.read_bytes()
    file.write_bytes(data[:mark] + b"\xff" + data[mark + 1 :])
    with pytest.raises(Damaged, match=f"at byte {mark}"):
        LocalLog.open(tmp_path / "log")


def test_a_hole_in_a_group_that_was_never_synced_is_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (synced_size,) = write_groups(path, [2], close=False)
    log = LocalLog.open(path)
    log.append_group(9, [(1, bytes(100)) for _ in range(50)])
    os.close(log._fd)
    with (path / FIRST).open("r+b") as file:
        file.seek(synced_size + 512)
        file.write(bytes(512))
    log = LocalLog.open(path)
    assert 2 < log.end < 52
    assert log.torn_bytes > 0
    log.close()


def test_damage_in_an_earlier_segment_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_groups(path, [4] * 20, segment_bytes=300)
    names = sorted(p.name for p in path.glob("*.log"))
    assert len(names) > 4
    second = path / names[1]
    data = second.read_bytes()
    for position in range(SEGMENT_HEADER_BYTES, len(data)):
        second.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        log = LocalLog.open(path, read_only=True)
        records = log.read(0)
        got: list[bytes] = []
        with pytest.raises(Damaged, match=names[1]):
            got.extend(record.payload for record in records)
        log.close()
        assert got == expected(80)[: len(got)]
    for cut in (SEGMENT_HEADER_BYTES, len(data) - 1):
        second.write_bytes(data[:cut])
        log = LocalLog.open(path, read_only=True)
        with pytest.raises(Damaged, match=names[1]):
            list(log.read(int(names[1][:20]) + 1))
        log.close()
    second.unlink()
    log = LocalLog.open(path, read_only=True)
    with pytest.raises(Damaged, match=names[0]):
        list(log.read(0))
    log.close()


def test_a_record_of_another_segment_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    write_groups(tmp_path / "one", [1, 1])
    write_groups(tmp_path / "two", [1, 1])
    one, two = (tmp_path / name / FIRST for name in ("one", "two"))
    one.write_bytes(one.read_bytes()[:SEGMENT_HEADER_BYTES] + two.read_bytes()[SEGMENT_HEADER_BYTES:])
    log = LocalLog.open(tmp_path / "one")
    assert log.end == 0
    log.close()


def test_lengths_are_never_trusted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (size,) = write_groups(path, [1], close=False)
    data = (path / FIRST).read_bytes()
    for length in (16 << 20, (16 << 20) + 1, 0xFFFFFFFF):
        head = data[:SEGMENT_HEADER_BYTES] + data[SEGMENT_HEADER_BYTES:][:4] + length.to_bytes(4, "little")
        (path / FIRST).write_bytes(head + data[len(head) :])
        log = LocalLog.open(path, read_only=True)
        assert (log.end, log.torn_bytes) == (0, size - SEGMENT_HEADER_BYTES)
        log.close()


def test_read_only_never_cuts_and_never_creates(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(NotFound, match="NO_LOG"):
        LocalLog.open(path, read_only=True)
    assert not path.exists()
    (size,) = write_groups(path, [2], close=False)
    with (path / FIRST).open("ab") as file:
        file.write(b"torn")
    log = LocalLog.open(path, read_only=True)
    assert (log.end, log.torn_bytes) == (2, 4)
    with pytest.raises(PreconditionFailed, match="LOG_READ_ONLY"):
        log.append_group(1, [(1, b"")])
    log.close()
    assert (path / FIRST).stat().st_size == size + 4


def test_another_partition_is_refused(tmp_path: Path) -> None:
    LocalLog.open(tmp_path / "log", partition=3).close()
    with pytest.raises(PreconditionFailed, match="LOG_PARTITION"):
        LocalLog.open(tmp_path / "log", partition=4)


def test_what_a_crash_left_of_a_new_segment_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_groups(path, [2])
    (path / f"{2:020d}.new").write_bytes(b"half a hea")
    assert payloads(path) == expected(2)
    log = LocalLog.open(path)
    assert log.end == 2
    log.close()
    assert not list(path.glob("*.new"))


def test_retention_drops_whole_segments_below_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_groups(path, [5] * 10, segment_bytes=300)
    bases = sorted(int(p.stem) for p in path.glob("*.log"))
    log = LocalLog.open(path, segment_bytes=300)
    assert log.drop_before(bases[2] - 1) == 1
    assert log.start == bases[1]
    with pytest.raises(PreconditionFailed, match="OFFSET_TRUNCATED"):
        log.read(0)
    assert [r.offset for r in log.read(log.start)] == list(range(bases[1], 50))
    assert log.drop_before(1_000_000) == len(bases) - 2
    assert log.start == bases[-1]
    assert log.end == 50
    log.close()
    log = LocalLog.open(path)
    assert (log.start, log.end) == (bases[-1], 50)
    log.close()


def test_a_group_is_one_write(tmp_path: Path) -> None:
    sizes: list[int] = []

    def write(fd: int, data: bytes | memoryview, position: int) -> int:
        sizes.append(len(data))
        return os.pwrite(fd, data, position)

    log = LocalLog.open(tmp_path / "log", io=LogIO(write=write))
    log.append_group(1, [(1, bytes(200))] * 1000)
    assert sizes == [1000 * (HEADER_BYTES + 200)]
    log.close()


def failing(after: int, code: int) -> Callable[[int, bytes | memoryview, int], int]:
    """Return a write that takes `after` bytes of each group's data in small bites, then fails."""
    taken = 0

    def write(fd: int, data: bytes | memoryview, position: int) -> int:
        nonlocal taken
        if taken >= after:
            raise OSError(code, os.strerror(code))
        count = os.pwrite(fd, data[:17], position)
        taken += count
        return count

    return write


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 17, 80])
def test_a_full_disk_refuses_the_group_and_keeps_the_rest(tmp_path: Path, code: int, after: int) -> None:
    path = tmp_path / "log"
    (size,) = write_groups(path, [2], close=False)
    log = LocalLog.open(path, io=LogIO(write=failing(after, code)))
    with pytest.raises(ResourceExhausted, match="DISK_FULL") as caught:
        log.append_group(1, [(1, bytes(100))] * 3)
    assert str(path / FIRST) in caught.value.message
    assert (log.end, (path / FIRST).stat().st_size) == (2, size)
    log._io = LogIO()
    assert log.append_group(1, [(3, b"fact 2")]) == 2
    log.sync()
    log.close()
    assert payloads(path) == expected(3)


def test_another_write_error_is_unavailable_and_rolled_back(tmp_path: Path) -> None:
    log = LocalLog.open(tmp_path / "log", io=LogIO(write=failing(30, errno.EIO)))
    with pytest.raises(Unavailable, match="LOG_WRITE_FAILED"):
        log.append_group(1, [(1, bytes(100))])
    assert log.end == 0
    log.close()


def test_a_failed_sync_poisons_the_log_for_good(tmp_path: Path) -> None:
    calls = 0

    def sync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        os.fdatasync(fd)

    log = LocalLog.open(tmp_path / "log", io=LogIO(sync=sync))
    log.append_group(1, [(1, b"a")])
    for _ in range(2):
        with pytest.raises(Unavailable, match="LOG_SYNC_FAILED"):
            log.sync()
    with pytest.raises(Unavailable, match="LOG_SYNC_FAILED"):
        log.append_group(1, [(1, b"b")])
    assert calls == 2
    log.close()


def test_a_rollback_that_fails_poisons_the_log(tmp_path: Path) -> None:
    def truncate(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    log = LocalLog.open(tmp_path / "log", io=LogIO(truncate=truncate))
    log.append_group(1, [(1, b"a")])
    with pytest.raises(Unavailable, match="LOG_SYNC_FAILED"):
        log.rollback_to(0)
    with pytest.raises(Unavailable, match="LOG_SYNC_FAILED"):
        log.sync()
    log.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_real_limit_of_the_system_is_a_full_disk(tmp_path: Path) -> None:
    log = LocalLog.open(tmp_path / "log")
    log.append_group(1, [(3, b"fact 0")])
    log.sync()
    with file_size_limit(4096), pytest.raises(ResourceExhausted, match="DISK_FULL"):
        log.append_group(1, [(1, bytes(500))] * 10)
    assert log.append_group(1, [(3, b"fact 1")]) == 1
    log.sync()
    log.close()
    assert payloads(tmp_path / "log") == expected(2)


def test_no_room_for_a_new_segment_is_a_full_disk_and_passes(tmp_path: Path) -> None:
    log = LocalLog.open(tmp_path / "log", segment_bytes=100)
    log.append_group(1, [(3, b"fact 0")])
    log.sync()
    with file_size_limit(10), pytest.raises(ResourceExhausted, match="DISK_FULL"):
        log.append_group(1, [(3, b"fact 1")])
    assert log.append_group(1, [(3, b"fact 1")]) == 1
    log.sync()
    log.close()
    assert payloads(tmp_path / "log") == expected(2)


KILLED = """
import os, sys
from pathlib import Path
from tailorbird.engine.log import LocalLog
log = LocalLog.open(Path(sys.argv[1]))
log.append_group(1, [(3, b"fact 0"), (3, b"fact 1")])
log.sync()
log.append_group(2, [(3, b"fact 2")])
os.kill(os.getpid(), 9)
"""


def test_kill_9_keeps_what_was_synced(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "log")], check=False).returncode == -9
    log = LocalLog.open(tmp_path / "log")
    got = [record.payload for record in log.read(0)]
    assert got == expected(len(got))
    assert len(got) >= 2
    log.close()


STEP = st.one_of(
    st.tuples(st.just("append"), st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=6)),
    st.tuples(st.sampled_from(["sync", "reopen", "rollback", "kill", "tear"]), st.integers(0, 1000)),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25), segment_bytes=st.sampled_from([100, 400, 1 << 20]))
def test_any_history_reads_back_what_was_synced_and_a_prefix_of_the_rest(
    tmp_path: Path, steps: list[tuple[str, object]], segment_bytes: int
) -> None:
    path = tmp_path / "log"
    shutil.rmtree(path, ignore_errors=True)
    log = LocalLog.open(path, segment_bytes=segment_bytes)
    model: list[tuple[int, bytes]] = []
    synced, time = 0, 0
    for step, argument in steps:
        if step == "append":
            assert isinstance(argument, list)
            time += 1
            assert log.append_group(time, argument) == len(model)
            model.extend(argument)
        elif step == "sync":
            log.sync()
            synced = len(model)
        elif step == "rollback":
            assert isinstance(argument, int)
            keep = synced + argument % (len(model) - synced + 1)
            log.rollback_to(keep)
            del model[keep:]
        else:
            assert isinstance(argument, int)
            synced_size = log._synced_size
            if step == "reopen":
                log.sync()
                synced = len(model)
                log.close()
            else:
                os.close(log._fd)
                log._fd = -1
            last = max(path.glob("*.log"))
            if step == "tear":
                size = last.stat().st_size
                os.truncate(last, synced_size + argument % (size - synced_size + 1))
            log = LocalLog.open(path, segment_bytes=segment_bytes)
            assert synced <= log.end <= len(model)
            if step != "tear":
                assert log.end == len(model)
            del model[log.end :]
            synced = len(model)
        assert [(r.offset, r.kind, r.payload) for r in log.read(0)] == [(i, k, p) for i, (k, p) in enumerate(model)]
        middle = len(model) // 2
        assert [r.offset for r in log.read(middle, 3)] == list(range(middle, min(len(model), middle + 3)))
    log.close()
