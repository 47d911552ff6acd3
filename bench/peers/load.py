"""The load on a gRPC server, from a core of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tailorbird.engine.errors import InternalError, PreconditionFailed

FINISHED = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
COUNTS = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
MANY = 16
_SHAPES = {1: ("-c1", "-m1"), MANY: ("-c4", "-m4")}  # connections, streams on each


@dataclass(frozen=True, slots=True)
class Target:
    """A server on 127.0.0.1, the paths that are called in turn, and the message each call sends."""

    port: int
    paths: Sequence[str]
    body: bytes


def load(target: Target, *, in_flight: int, seconds: int, core: int) -> float:
    """Return the median microseconds of a call at 1 in flight, or calls a second at 16 (closed loop).

    Raises `InternalError` when a call fails, `PreconditionFailed` without h2load.
    """
    h2load = shutil.which("h2load")
    if h2load is None:
        raise PreconditionFailed(
            "NO_H2LOAD", "expected h2load on the PATH, got none; install nghttp2's tools (Debian: nghttp2-client)"
        )
    with tempfile.TemporaryDirectory(prefix="tailorbird-load-") as name:
        folder = Path(name)
        (folder / "uris").write_text("".join(f"http://127.0.0.1:{target.port}{path}\n" for path in target.paths))
        (folder / "body").write_bytes(b"\x00" + len(target.body).to_bytes(4, "big") + target.body)
        command = [
            *(h2load, *_SHAPES[in_flight], "-t1", f"-D{seconds}", f"-i{folder / 'uris'}", f"-d{folder / 'body'}"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        ]
        if in_flight == 1:
            command.append(f"--log-file={folder / 'calls.tsv'}")
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        finished, counts = FINISHED.search(done.stdout), COUNTS.search(done.stdout)
        succeeded, *others = map(int, counts.groups()) if counts is not None else (0,)
        if finished is None or not succeeded or any(others):
            raise InternalError(
                "LOAD_FAILED", f"expected h2load to end without failures, got {done.stdout}{done.stderr}"
            )
        if in_flight != 1:
            return float(finished[1])
        return float(np.median([int(line.split("\t")[2]) for line in (folder / "calls.tsv").read_text().splitlines()]))


def cores() -> tuple[int, int]:
    """Return a core for the servers and one for the load. Raises `PreconditionFailed` where there is one only."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise PreconditionFailed(
            "ONE_CORE", f"expected a core for the servers and one for the load, got {len(found)} in all"
        )
    return found[0], found[1]
