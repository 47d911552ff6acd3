"""Servers in processes of their own, on one core, for as long as a block of code runs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tailorbird.engine.errors import InternalError

_END_S, _START_S = 30.0, 120.0
_TOLD_CHARS = 2_000


@contextlib.contextmanager
def server_that_tells(command: Sequence[str | Path], core: int) -> Iterator[Any]:
    """Run a server on one core until the block ends; yield the line of JSON it begins with. Its standard input then ends.

    The yielded dict also has the pipes: `commands`, its standard input, and `answers`, its standard output.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            try:
                found = json.loads(pipe_of(process.stdout).readline())
            except json.JSONDecodeError:
                raise InternalError(
                    "SERVER_FAILED", f"expected {command[0]} to tell its port, got nothing{told(errors)}"
                ) from None
            yield {**found, "commands": pipe_of(process.stdin), "answers": pipe_of(process.stdout)}
        finally:
            pipe_of(process.stdin).close()
            end(process)
            pipe_of(process.stdout).close()


@contextlib.contextmanager
def server_at(command: Sequence[str | Path], port: int, core: int) -> Iterator[None]:
    """Run a server on one core until the block ends, which begins when `port` can be connected to. SIGTERM ends it."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            deadline = time.monotonic() + _START_S
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise InternalError(
                        "SERVER_FAILED", f"expected {command[0]} to listen on port {port}, got nothing{told(errors)}"
                    )
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            end(process)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def end(process: subprocess.Popen[Any]) -> None:
    """Wait for a process that was told to end, and kill it when it does not."""
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def told(errors: IO[bytes]) -> str:
    """Return the end of what a process wrote to its standard error."""
    # Not seek and read: the process writes where the shared offset is.
    text = os.pread(errors.fileno(), os.fstat(errors.fileno()).st_size, 0).decode(errors="replace").strip()
    return f"; it says: {text[-_TOLD_CHARS:]}" if text else ""


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def pipe_of(pipe: IO[str] | None) -> IO[str]:
    """Return a process's pipe, which was asked for when it was started."""
    assert pipe is not None
    return pipe
