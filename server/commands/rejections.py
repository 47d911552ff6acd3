"""What an import could not take, kept beside the data so that it can be mended and read again."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

FILE = "rejected.jsonl"


class Rejections:
    """Appends to DIR/rejected.jsonl, which is made with the first entry; only its owner may read it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.counts: Counter[str] = Counter()
        self._file: BinaryIO | None = None
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Rejections:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, source: Path, line_number: int | None, reason: str, message: str, text: str) -> None:
        """Count and keep one line; `line_number` is None where a signal was made of several."""
        self.counts[reason] += 1
        if self._file is None:
            self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
        entry = {"file": str(source), "line": line_number, "reason": reason, "message": message, "text": text}
        self._file.write(self._encoder.encode(entry) + b"\n")
