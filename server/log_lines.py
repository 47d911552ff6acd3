"""Lines on their way out: written by a thread of their own, so that no call waits for whoever reads them."""

from __future__ import annotations

import queue
import threading
from typing import TextIO

LINES_MAX = 4_096
LINE_CHARACTERS_MAX = 4_096
CLOSE_S = 2.0  # for what still waits when the process ends


class LogLines:
    """A bounded queue of lines. Past `LINES_MAX` a line is dropped, and `dropped_count` tells how many were."""

    def __init__(self, stream: TextIO, lines_max: int = LINES_MAX) -> None:
        self.dropped_count = 0
        self._stream = stream
        self._lines_max = lines_max
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tailorbird-log", daemon=True)
        self._thread.start()

    @property
    def has_room(self) -> bool:
        """Whether another line would be written."""
        return self._waiting.qsize() < self._lines_max

    def put(self, line: str) -> None:
        """Have a line written, soon, unless too many wait. From any thread; never waits."""
        if not self.has_room:
            self.dropped_count += 1
            return
        self._waiting.put(line if len(line) <= LINE_CHARACTERS_MAX else line[:LINE_CHARACTERS_MAX])

    def close(self) -> None:
        """Write what waits, for `CLOSE_S` at most; idempotent."""
        self._waiting.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        is_over = False
        while not is_over:
            lines = [self._waiting.get()]
            while not self._waiting.empty():
                lines.append(self._waiting.get())
            is_over = None in lines
            text = "".join(f"{line}\n" for line in lines if line is not None)
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # the reader has left; to say so there is nowhere
                self.dropped_count += len(lines)
