"""`tailorbird bench crash`: kills a process that is writing, starts the next on what it left, and checks the promises.

The children tell their promises through a pipe (workload_child.py), so what the parent read before or after the kill
had been promised. Each child first verifies everything promised to its forerunners on the same directory, then works on
until it is killed: at a random moment of its work or, one time in eight, of its start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tailorbird.bench import crash_subject
from tailorbird.bench.crash_subject import Tally, Verdict
from tailorbird.bench.powerfail import ENGINE_SUBJECT
from tailorbird.bench.workload_child import pack_frames, split_frames
from tailorbird.engine.errors import InternalError

MUSTS = crash_subject.MUSTS
KILLS_PER_DIRECTORY = 20  # Verifying replays the whole log, so directories do not grow without end.
WORK_SECONDS_MAX = 0.6
START_SECONDS_MAX = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--kills", type=int, default=200, help="how often to kill -9 (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of workloads and moments (default 1)")
    parser.add_argument("--quick", action="store_true", help="20 kills")
    parser.add_argument("--subject", default=ENGINE_SUBJECT, help="module under test (default the engine)")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the counts of all kills; each is 0 when no promise was broken."""
    return crashes(args.subject, 20 if args.quick else args.kills, args.seed)


def crashes(subject: str, kill_count: int, seed: int) -> dict[str, object]:
    """Kill `kill_count` children of `subject`, and verify after each."""
    rng = random.Random(seed)
    tally = Tally()
    kills = starts = promise_count = 0
    while kills < kill_count:
        with tempfile.TemporaryDirectory(prefix="tailorbird-crash-") as directory:
            promises: list[bytes] = []
            here = min(KILLS_PER_DIRECTORY, kill_count - kills)
            # One start more than kills: what the last one left is verified too.
            for number in range(here + 1):
                where = f"seed {seed}, start {starts}"
                child = _Child(subject, Path(directory), rng.getrandbits(31), promises)
                starts += 1
                early = number < here and rng.random() < 0.125
                if early:
                    child.read_for(rng.uniform(0, 0.5), until=b"")
                else:
                    child.read_for(START_SECONDS_MAX, until=b"VE")
                    if number < here and child.answer()[0] == b"V":
                        child.read_for(rng.uniform(0, WORK_SECONDS_MAX), until=b"")
                child.kill()
                kind, data = child.answer()
                if kind == b"V":
                    tally.add(where, Verdict(**json.loads(data)))
                elif kind == b"E":
                    tally.add_unclean(where, data.decode())
                elif not early:
                    tally.add_unclean(where, f"no verdict within {START_SECONDS_MAX:.0f} s, exit status {child.status}")
                promises += child.promises()
            kills += here
            promise_count += len(promises)
    if promise_count == 0:
        raise InternalError(
            "WORKLOAD_FAILED", f"no child of {subject} promised anything before it was killed; {tally.details}"
        )
    return {"kills": kills, "starts": starts, "promises": promise_count, **tally.counts, "details": tally.details}


@dataclass
class _Child:
    """One process that verifies and works until it is killed."""

    subject: str
    directory: Path
    seed: int
    earlier_promises: list[bytes]
    status: int | None = None
    _stream: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "tailorbird.bench.workload_child", "pipe"]
        command += [self.subject, str(self.directory), str(self.seed)]
        with tempfile.TemporaryFile() as notes:
            notes.write(pack_frames(self.earlier_promises))
            notes.seek(0)
            self._process = subprocess.Popen(command, stdin=notes, stdout=subprocess.PIPE, bufsize=0)

    def read_for(self, seconds: float, until: bytes) -> None:
        """Read what the child says for a time, or until it has said a frame of one of the kinds `until`."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self._process.stdout], [], [], left)
            if not readable:
                return
            said = os.read(self._process.stdout.fileno(), 1 << 16)
            if not said:
                return
            self._stream += said
            if until and self.answer()[0] in (until[:1], until[1:]):
                return

    def kill(self) -> None:
        """Kill -9, and read what had been said before."""
        self._process.kill()
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            self._stream += stdout.read()
        self.status = self._process.wait()

    def answer(self) -> tuple[bytes, bytes]:
        """Return the frame that ended verifying, or an empty one."""
        return next((frame for frame in split_frames(bytes(self._stream)) if frame[0] in (b"V", b"E")), (b"", b""))

    def promises(self) -> list[bytes]:
        """Return what the child promised."""
        return [data for kind, data in split_frames(bytes(self._stream)) if kind == b"A"]
