"""A peer's process: JSON lines there and back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tailorbird.engine.errors import PreconditionFailed

FOLDER = Path("build/peers")
VARIABLE = "TAILORBIRD_PEERS"  # where they are installed, when it is elsewhere


class PeerProcess:
    """A subject run by the interpreter of its own environment. Raises `PreconditionFailed` NO_PEER, PEER_FAILED."""

    def __init__(self, name: str, subject: Path, interpreter: Path | None = None) -> None:
        found = interpreter or Path(os.environ.get(VARIABLE, FOLDER)) / name / "bin" / "python"
        if not found.exists():
            raise PreconditionFailed(
                "NO_PEER", f"expected {name} installed at {found}, found none; run: make bench-peers"
            )
        self._name = name
        self._process = subprocess.Popen(
            [found, subject], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.kill()
            _, said = self._process.communicate()
            last = said.strip().splitlines()[-1:] or ["nothing"]
            raise PreconditionFailed(
                "PEER_FAILED", f"expected an answer of {self._name}, got an end; it said: {last[0]}"
            )
        found: dict[str, Any] = json.loads(answer)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
