"""The processes that crash tests start: `python -m tailorbird.bench.workload_child trace|pipe SUBJECT PATH SEED`.

`trace` runs the subject's workload once and puts its promises into the trace of the recorder it was started under.
`pipe` verifies first, then runs workloads until it is killed; it reads the promises of earlier processes from standard
input and writes frames to standard output: a letter, a u32 length, data. S: verifying begins. V: verdict as JSON.
E: the start failed, and how. A: a promise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from struct import Struct

from tailorbird.bench.crash_subject import CrashSubject, describe_failure, load_subject
from tailorbird.native import iotrace

FRAME = Struct("<cI")


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("trace", "pipe"))
    parser.add_argument("subject")
    parser.add_argument("path", type=Path)
    parser.add_argument("seed", type=int)
    given = parser.parse_args(arguments)
    subject = load_subject(given.subject)
    if given.mode == "trace":
        subject.run_workload(given.path, given.seed, iotrace.mark)
        return 0
    return _run_in_pipe(subject, given.path, given.seed)


def _run_in_pipe(subject: CrashSubject, path: Path, seed: int) -> int:
    send = _sender(os.dup(1))
    os.dup2(2, 1)  # What the subject prints must not end up between frames.
    send(b"S", b"")
    try:
        verdict = subject.verify(path, read_frames(sys.stdin.buffer.read()))
    except Exception as error:
        send(b"E", describe_failure(error).encode())
        return 1
    send(b"V", json.dumps(asdict(verdict)).encode())
    while True:
        subject.run_workload(path, seed, lambda note: send(b"A", note))
        seed += 1


def _sender(fd: int) -> Callable[[bytes, bytes], None]:
    def send(kind: bytes, data: bytes) -> None:
        frame = FRAME.pack(kind, len(data)) + data
        while frame:
            frame = frame[os.write(fd, frame) :]

    return send


def pack_frames(notes: list[bytes]) -> bytes:
    """Return promises as one stream of A frames."""
    return b"".join(FRAME.pack(b"A", len(note)) + note for note in notes)


def split_frames(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Return the whole frames of a stream; a kill may have cut the last."""
    frames, at = [], 0
    while at + FRAME.size <= len(stream):
        kind, length = FRAME.unpack_from(stream, at)
        at += FRAME.size + length
        if at > len(stream):
            break
        frames.append((kind, stream[at - length : at]))
    return frames


def read_frames(stream: bytes) -> list[bytes]:
    """Return the data of a stream's frames."""
    return [data for _, data in split_frames(stream)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
