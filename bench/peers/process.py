"""Peers as processes of their own, in which subject.py times what it is told to."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.servers import end, pipe_of, told
from tailorbird.engine.errors import InternalError, PreconditionFailed

_SUBJECT = Path(__file__).with_name("subject.py")


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
            pipe_of(self._process.stdin).close()
        end(self._process)
        pipe_of(self._process.stdout).close()
        self._errors.close()

    def _exchange(self, request: dict[str, object]) -> dict[str, Any]:
        try:
            stdin = pipe_of(self._process.stdin)
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = pipe_of(self._process.stdout).readline()
            answer = json.loads(line)
        except (BrokenPipeError, json.JSONDecodeError):
            raise self._fault("expected an answer of one line of JSON, got none") from None
        if not isinstance(answer, dict) or "error" in answer:
            raise self._fault(f"expected an answer, got {answer}")
        return answer

    def _fault(self, what: str) -> InternalError:
        return InternalError("PEER_FAILED", f"{what}, from {self._name}{told(self._errors)}")


def installed(path: Path) -> Path:
    """Return a file that `make bench-peers` makes. Raises `PreconditionFailed` where it is missing."""
    if not path.exists():
        raise PreconditionFailed(
            "NO_PEERS", f"expected the peers, got no {path}; run `make bench-peers` in the checkout"
        )
    return path
