"""Peers as processes of their own: what is timed in them (subject.py), and servers of theirs."""

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
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.engine.errors import InternalError, PreconditionFailed

_SUBJECT = Path(__file__).with_name("subject.py")
_END_S, _START_S = 30.0, 120.0
_TOLD_CHARS = 2_000


class Peer:
    """A subject in its own process and environment. Attributes tell its `versions`, `settings` and `facts`.

    Raises `InternalError` when the process ends, or tells an error.
    """

    def __init__(self, python: Path, module: Path, options: dict[str, object]) -> None:
        self._name = module.stem
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        # Isolated: neither our PYTHONPATH nor the user's packages are the peer's.
        self._process = subprocess.Popen(
            [str(python), "-I", "-W", "ignore", str(_SUBJECT), str(module)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            ready = self._exchange(options).get("ready")
            if not isinstance(ready, dict):
                raise self._fault(f"expected it to be ready, got {ready}")
        except BaseException:
            self.close()
            raise
        self.versions: dict[str, str] = ready["versions"]
        self.settings: str = ready["settings"]
        self.facts: dict[str, str] = ready["facts"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def time(self, operation: str, call_count: int, seed: int) -> NDArray[np.int64]:
        """Return the nanoseconds of each of `call_count` calls, timed in the peer's process."""
        spent_ns = self._exchange({"operation": operation, "calls": call_count, "seed": seed}).get("spent_ns")
        if not isinstance(spent_ns, list) or len(spent_ns) != call_count:
            raise self._fault(f"expected the times of {call_count} calls of {operation}, got {spent_ns}")
        return np.array(spent_ns, dtype=np.int64)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        end(self._process)
        _pipe(self._process.stdout).close()
        self._errors.close()

    def _exchange(self, request: dict[str, object]) -> dict[str, Any]:
        try:
            stdin = _pipe(self._process.stdin)
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = _pipe(self._process.stdout).readline()
            answer = json.loads(line)
        except (BrokenPipeError, json.JSONDecodeError):
            raise self._fault("expected an answer of one line of JSON, got none") from None
        if not isinstance(answer, dict) or "error" in answer:
            raise self._fault(f"expected an answer, got {answer}")
        return answer

    def _fault(self, what: str) -> InternalError:
        return InternalError("PEER_FAILED", f"{what}, from {self._name}{told(self._errors)}")


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
                found = json.loads(_pipe(process.stdout).readline())
            except json.JSONDecodeError:
                raise InternalError(
                    "SERVER_FAILED", f"expected {command[0]} to tell its port, got nothing{told(errors)}"
                ) from None
            yield {**found, "commands": _pipe(process.stdin), "answers": _pipe(process.stdout)}
        finally:
            _pipe(process.stdin).close()
            end(process)
            _pipe(process.stdout).close()


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


def installed(path: Path) -> Path:
    """Return a file that `make bench-peers` makes. Raises `PreconditionFailed` where it is missing."""
    if not path.exists():
        raise PreconditionFailed(
            "NO_PEERS", f"expected the peers, got no {path}; run `make bench-peers` in the checkout"
        )
    return path


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


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
