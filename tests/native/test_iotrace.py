"""The recorder sees every way this project writes files, and says so in order."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tailorbird.bench.disk_model import Disk
from tailorbird.bench.io_trace import Operation, TraceRecord, read_trace
from tailorbird.bench.powerfail import MAPPED_ALLOWED
from tailorbird.engine.errors import Damaged, InternalError
from tailorbird.native import build_flags, iotrace

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or build_flags.sanitized(), reason="the recorder is preloaded: Linux, no sanitizer"
)


def run_recorded(scratch: Path, program: str) -> tuple[list[TraceRecord], Path]:
    root = scratch.resolve() / "data"
    root.mkdir()
    environment = {
        **os.environ,
        "LD_PRELOAD": iotrace.__file__,
        "TAILORBIRD_IOTRACE_ROOT": str(root),
        "TAILORBIRD_IOTRACE_FILE": str(scratch / "trace"),
    }
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(root)], env=environment, check=True)
    return read_trace(scratch / "trace"), root


def replayed(trace: list[TraceRecord], root: Path) -> Disk:
    disk = Disk(root)
    for entry in trace:
        disk.apply(entry)
    return disk


PYTHON_CALLS = """
import os, shutil, sys
from pathlib import Path
from tailorbird.native import iotrace
assert iotrace.active()
root = Path(sys.argv[1])
os.chdir(root)
iotrace.mark(b"begin")
(root / "a").mkdir()
os.mkdir("relative")
fd = os.open("a/one", os.O_RDWR | os.O_CREAT)
os.write(fd, b"0123456789")
os.pwrite(fd, b"ab", 4)
os.writev(fd, [b"x" * 3, b"", b"y" * 4])
os.pwritev(fd, [b"P", b"Q"], 20)
os.lseek(fd, 1, 0)
os.write(fd, b"z")
os.ftruncate(fd, 21)
os.posix_fallocate(fd, 0, 600)
os.fsync(fd)
os.fdatasync(fd)
os.close(fd)
with open("a/two", "w") as file:
    file.write("text")
    file.write(" and more")
with open("a/two", "a") as file:
    file.write("!")
with open("a/two", "r+b") as file:
    file.truncate(3)
shutil.copyfile("a/one", "a/copy")
os.rename("a/two", "relative/two")
os.replace("a/copy", "a/one")
(root / "gone").write_bytes(b"gone")
os.unlink("gone")
os.mkdir("empty")
os.rmdir("empty")
os.rename("relative", "renamed")
with open("/dev/null", "wb") as file:
    file.write(b"elsewhere")
iotrace.mark(b"end")
"""


def test_what_python_does_to_files_is_in_the_trace(tmp_path: Path) -> None:
    trace, root = run_recorded(tmp_path, PYTHON_CALLS)
    replayed(trace, root).check_against_files(frozenset())
    assert [entry.data for entry in trace if entry.operation is Operation.MARK] == [b"begin", b"end"]
    assert trace[0].operation is trace[-1].operation is Operation.MARK
    assert {entry.operation for entry in trace} == set(Operation) - {Operation.MAPPED}
    assert not any(b"elsewhere" in entry.data for entry in trace)


LMDB_COMMITS = """
import sys
from pathlib import Path
import lmdb
from tailorbird.native import iotrace
path = Path(sys.argv[1])
env = lmdb.open(str(path), map_size=1 << 30, metasync=False, max_dbs=4, {options})
tables = [env.open_db(b"t%d" % i) for i in range(3)]
for n in range(40):
    with env.begin(write=True) as txn:
        for i in range(n * 7):
            txn.put(b"%d" % (i * 31 % 97), bytes([n]) * (50 + i * 11), db=tables[i % 3])
    iotrace.mark(b"%d" % n)
env.close()
"""


def test_every_write_of_lmdb_is_in_the_trace_and_synced_before_its_commit_returns(tmp_path: Path) -> None:
    trace, root = run_recorded(tmp_path, LMDB_COMMITS.replace("{options}", ""))
    disk = Disk(root)
    for entry in trace:
        disk.apply(entry)
    disk.check_against_files(MAPPED_ALLOWED)
    last_write = last_sync = -1
    for number, entry in enumerate(trace):
        if entry.operation is Operation.WRITE:
            last_write = number
        elif entry.operation is Operation.SYNC_END:
            last_sync = number
        elif entry.operation is Operation.MARK and entry.data != b"0":
            # With metasync off only the meta page, one small write, follows the last sync.
            unsynced = [e for e in trace[last_sync:number] if e.operation is Operation.WRITE]
            assert len(unsynced) <= 1
            assert all(len(e.data) < 4096 for e in unsynced)
    assert last_write > 0


def test_a_writable_mapping_is_told_because_it_cannot_be_followed(tmp_path: Path) -> None:
    trace, root = run_recorded(tmp_path, LMDB_COMMITS.replace("{options}", "writemap=True"))
    with pytest.raises(InternalError, match="TRACE_INCOMPLETE"):
        replayed(trace, root).check_against_files(MAPPED_ALLOWED)


THREADS = """
import os, sys, threading
def work(name):
    fd = os.open(sys.argv[1] + "/shared", os.O_RDWR | os.O_CREAT)
    for i in range(300):
        os.pwrite(fd, bytes([name]) * 64, i * 8)
        if i % 50 == 0:
            os.fdatasync(fd)
    os.close(fd)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def test_writes_of_several_threads_are_recorded_in_the_order_they_were_made(tmp_path: Path) -> None:
    trace, root = run_recorded(tmp_path, THREADS)
    replayed(trace, root).check_against_files(frozenset())
    assert sum(entry.operation is Operation.WRITE for entry in trace) == 1200


def test_a_write_that_escaped_the_trace_is_noticed(tmp_path: Path) -> None:
    trace, root = run_recorded(tmp_path, PYTHON_CALLS)
    copied = max((entry for entry in trace if entry.operation is Operation.WRITE), key=lambda entry: len(entry.data))
    trace.remove(copied)
    with pytest.raises(InternalError, match="TRACE_INCOMPLETE"):
        replayed(trace, root).check_against_files(frozenset())


def test_a_cut_trace_is_refused(tmp_path: Path) -> None:
    trace, root = run_recorded(tmp_path, PYTHON_CALLS)
    file = tmp_path / "trace"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Damaged, match="DAMAGED_TRACE"):
        read_trace(file)
    assert replayed(trace, root).write_image(tmp_path / "image", random.Random(1)) in (True, False)


def test_without_preloading_nothing_is_recorded() -> None:
    assert not iotrace.active()
    with pytest.raises(RuntimeError, match="LD_PRELOAD"):
        iotrace.mark(b"")
