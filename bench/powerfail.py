"""`tailorbird bench powerfail`: rebuilds what power failures could have left of a run, and starts from each.

A child process runs the workload while every write and sync it makes is recorded (native/iotrace.h); its promises
stand in the record where they were given. Then, at points drawn at random, the directory is built as a failure there
could have left it (disk_model.py) and verified by a process that does nothing else. A process that dies of an image is
an unclean start.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from tailorbird.bench import crash_subject
from tailorbird.bench.crash_subject import Tally, Verdict, describe_failure, load_subject
from tailorbird.bench.disk_model import Disk
from tailorbird.bench.io_trace import Operation, TraceRecord, read_trace
from tailorbird.engine.errors import InternalError, PreconditionFailed
from tailorbird.native import build_flags, iotrace

MUSTS = crash_subject.MUSTS
ENGINE_SUBJECT = "tailorbird.bench.crash_workload"
IMAGES_PER_TRACE = 100
# LMDB keeps its reader table in a mapped file that it resets at the first opening after a boot.
MAPPED_ALLOWED = frozenset({"lock.mdb"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--images", type=int, default=1000, help="images to build and start from (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of workload, cut points and losses (default 1)")
    parser.add_argument("--quick", action="store_true", help="50 images")
    parser.add_argument("--subject", default=ENGINE_SUBJECT, help="module under test (default the engine)")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the counts of all images; each is 0 when nothing promised was lost."""
    return power_failures(args.subject, 50 if args.quick else args.images, args.seed)


def power_failures(subject: str, image_count: int, seed: int) -> dict[str, object]:
    """Verify `image_count` images of runs of `subject`, a new run for every `IMAGES_PER_TRACE` of them."""
    rng = random.Random(seed)
    tally = Tally()
    totals = {"images": 0, "images_with_losses": 0, "traces": 0, "operations": 0, "promises": 0}
    with _scratch() as scratch, Verifier(subject) as verifier:
        while totals["images"] < image_count:
            count = min(IMAGES_PER_TRACE, image_count - totals["images"])
            trace_seed = rng.getrandbits(31)
            trace, root = record(subject, trace_seed, scratch / f"trace{totals['traces']}")
            promises = [entry.data for entry in trace if entry.operation is Operation.MARK]
            verifier.set_promises(promises)
            for image in _images(trace, root, scratch / "image", count, rng):
                where = f"seed {seed}, image {totals['images']}, trace {trace_seed} cut at {image.cut}"
                verifier.verify(image.path, image.promise_count, where, tally)
                totals["images"] += 1
                totals["images_with_losses"] += image.lossy
            totals["traces"] += 1
            totals["operations"] += len(trace)
            totals["promises"] += len(promises)
            shutil.rmtree(root.parent)
    return {**totals, **tally.counts, "details": tally.details}


def record(subject: str, seed: int, scratch: Path) -> tuple[list[TraceRecord], Path]:
    """Run the workload below `scratch` under the recorder; return the trace and the directory it worked on.

    Raises `InternalError` WORKLOAD_FAILED with what the child said, TRACE_INCOMPLETE when writes escaped the recorder,
    `PreconditionFailed` NO_RECORDER outside Linux and under the address sanitizer, which wants to be loaded first.
    """
    if sys.platform != "linux" or build_flags.sanitized():
        raise PreconditionFailed("NO_RECORDER", "expected a release build on Linux; run the power failure test there")
    root, file = scratch.resolve() / "data", scratch.resolve() / "trace"
    root.mkdir(parents=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(Path(iotrace.__file__).resolve()),
        "TAILORBIRD_IOTRACE_ROOT": str(root),
        "TAILORBIRD_IOTRACE_FILE": str(file),
    }
    command = [sys.executable, "-m", "tailorbird.bench.workload_child", "trace", subject, str(root), str(seed)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise InternalError(
            "WORKLOAD_FAILED",
            f"the workload of {subject} with seed {seed} ended with {child.returncode}:\n{child.stderr}",
        )
    trace = read_trace(file)
    disk = Disk(root)
    for entry in trace:
        disk.apply(entry)
    disk.check_against_files(MAPPED_ALLOWED)
    return trace, root


@dataclass(frozen=True, slots=True)
class Image:
    """A directory as a failure before record `cut` of the trace could have left it."""

    path: Path
    cut: int
    promise_count: int
    lossy: bool


def _images(trace: Sequence[TraceRecord], root: Path, place: Path, count: int, rng: random.Random) -> Iterator[Image]:
    """Build `count` images one after the other; each is removed when the next is asked for."""
    # Right after a promise there is most to break, right before a sync ends there is most to lose: a third each.
    promised = [i + 1 for i, entry in enumerate(trace) if entry.operation is Operation.MARK]
    unsynced = [i for i, entry in enumerate(trace) if entry.operation is Operation.SYNC_END]
    everywhere = range(len(trace) + 1)
    cuts = sorted(rng.choice(rng.choice((promised, unsynced, everywhere)) or everywhere) for _ in range(count))
    disk, at, promise_count = Disk(root), 0, 0
    for cut in cuts:
        for entry in trace[at:cut]:
            disk.apply(entry)
            promise_count += entry.operation is Operation.MARK
        at = cut
        lossy = disk.write_image(place, rng)
        yield Image(place, cut, promise_count, lossy)
        shutil.rmtree(place)


@dataclass
class Verifier:
    """A process that verifies images one after the other, replaced when it dies."""

    subject: str
    _promises: list[bytes] = field(default_factory=list)
    _process: multiprocessing.process.BaseProcess | None = None
    _connection: Connection | None = None

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def set_promises(self, promises: list[bytes]) -> None:
        """Give all promises of the trace at hand."""
        self._stop()
        self._promises = promises

    def verify(self, path: Path, promise_count: int, where: str, tally: Tally) -> None:
        """Verify one image, of which the first `promise_count` promises were given before the failure."""
        if self._connection is None:
            self._connection, theirs = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(
                target=_verify_images, args=(self.subject, self._promises, theirs), daemon=True
            )
            self._process.start()
            theirs.close()
        try:
            self._connection.send((str(path), promise_count))
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            assert self._process is not None
            self._process.join()
            tally.add_unclean(where, f"the process ended with {self._process.exitcode}")
            self._stop()
            return
        if isinstance(answer, Verdict):
            tally.add(where, answer)
        else:
            tally.add_unclean(where, answer)

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join()
        self._connection = self._process = None


def _verify_images(name: str, promises: list[bytes], connection: Connection) -> None:
    subject = load_subject(name)
    while True:
        try:
            path, promise_count = connection.recv()
        except EOFError:
            return
        try:
            subject.reboot(Path(path))
            answer: Verdict | str = subject.verify(Path(path), promises[:promise_count])
        except Exception as error:
            answer = describe_failure(error)
        connection.send(answer)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Give a directory in memory where there is one: a thousand images need no disk."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 1 << 30
    with tempfile.TemporaryDirectory(prefix="tailorbird-powerfail-", dir=shared if roomy else None) as directory:
        yield Path(directory)
