"""What the service says on standard error: a line an event, as JSON or as text, and nothing in it about a person.

Of an exception a line has the type, our reason and the frames, never its text or a value: texts repeat what was sent. A
library's message is cut to the words that are the same every time.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import StrEnum
from traceback import walk_tb
from types import TracebackType
from typing import TextIO

import msgspec

from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.log_lines import LogLines

LEVELS = ("debug", "info", "warning", "error")
OURS = "tailorbird"
WITHHELD = "(the text of a library, withheld)"
FIELD_CHARACTERS_MAX = 300
FRAMES_MAX = 20
FOLDERS_TOLD = 3  # of a source's path: where somebody's home is tells who they are
# The same line again: so many in a window are written, the others counted in the next one that is.
REPEATS_MAX = 10
REPEATS_WINDOW_S = 10.0
REPEATING_MAX = 1_000

Field = str | int | float | bool | None | list[str]
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class LogFormat(StrEnum):
    """How a line is written."""

    JSON = "json"
    TEXT = "text"


def format_for(choice: str, stream: TextIO) -> LogFormat:
    """Return the format of that name; for an empty one text on a terminal, JSON elsewhere."""
    return LogFormat(choice) if choice else LogFormat.TEXT if stream.isatty() else LogFormat.JSON


def rendered(
    form: LogFormat, moment_s: float, level: str, logger: str, message: str, fields: Mapping[str, Field]
) -> str:
    """Return one line without its end; times are RFC 3339 in UTC."""
    whole_s = int(moment_s)
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole_s))}.{int((moment_s - whole_s) * 1_000):03d}Z"
    told = {name: _clipped(value) for name, value in fields.items()}
    if form is LogFormat.JSON:
        known = {"time": stamp, "level": level, "logger": logger, "message": message}
        return msgspec.json.encode({**known, **told}).decode()
    parts = [stamp, level, f"{logger}:", message]
    parts += [f"{name}={msgspec.json.encode(value).decode()}" for name, value in told.items()]
    return " ".join(parts).replace("\n", " ")


def exception_fields(error: BaseException, trace: TracebackType | None = None) -> dict[str, Field]:
    """Return what may be told of an exception: its type, reason, what caused it, and the frames, outermost first."""
    fields: dict[str, Field] = {"error": type(error).__name__}
    if isinstance(error, TailorbirdError):
        fields["reason"] = error.reason
    if (cause := error.__cause__ or error.__context__) is not None:
        fields["caused_by"] = _named(cause)
    frames = [
        f"{'/'.join(frame.f_code.co_filename.split('/')[-FOLDERS_TOLD:])}:{line} {frame.f_code.co_name}"
        for frame, line in walk_tb(trace or error.__traceback__)
    ]
    if frames:
        fields["frames"] = frames[-FRAMES_MAX:]
    return fields


def record_message(record: logging.LogRecord) -> str:
    """Return the text of a record: ours with exceptions in it named alone, a library's only as far as it is constant."""
    if record.name.partition(".")[0] == OURS:
        if not record.args or isinstance(record.args, Mapping):
            return record.getMessage()
        return str(record.msg) % tuple(
            _named(value) if isinstance(value, BaseException) else value for value in record.args
        )
    if not isinstance(record.msg, str):
        return WITHHELD
    if record.args:
        return record.msg
    # asyncio's begin with words of its own; reprs of callbacks, tasks and what they were given follow.
    return record.msg.partition("\n")[0].partition("(")[0].partition("<")[0] if record.name == "asyncio" else WITHHELD


def record_fields(record: logging.LogRecord) -> dict[str, Field]:
    """Return the named fields of a record: what `extra` gave ours, and its exception."""
    fields: dict[str, Field] = {}
    if record.name.partition(".")[0] == OURS:
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        fields |= exception_fields(record.exc_info[1], record.exc_info[2])
    return fields


class RepeatLimit:
    """Lets a line pass `REPEATS_MAX` times in a window; the next that passes tells how many did not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int, int], tuple[float, int]] = OrderedDict()  # window's end, count in it

    def pass_count(self, name: str, line: int, level: int) -> int:
        """Return -1 for a line that is held back, else how many like it were since the last that passed."""
        now_s, key = self._clock(), (name, line, level)
        with self._lock:
            ends_s, count = self._seen.pop(key, (0.0, 0))
            held_back = max(0, count - REPEATS_MAX)
            if now_s >= ends_s:
                ends_s, count = now_s + REPEATS_WINDOW_S, 0
            else:
                held_back = 0
            self._seen[key] = ends_s, count + 1
            while len(self._seen) > REPEATING_MAX:
                self._seen.popitem(last=False)
            return held_back if count < REPEATS_MAX else -1


class LineWriter:
    """Writes lines in one form, each in the name of the process where there are several."""

    def __init__(self, lines: LogLines, form: LogFormat, process: str = "") -> None:
        self._lines = lines
        self._form = form
        self._process: dict[str, Field] = {"process": process} if process else {}
        self._dropped_count_told = 0

    def write(self, moment_s: float, level: str, logger: str, message: str, fields: Mapping[str, Field]) -> None:
        """Have a line written, soon; never waits."""
        self._lines.put(rendered(self._form, moment_s, level, logger, message, {**self._process, **fields}))
        dropped_count = self._lines.dropped_count
        if dropped_count != self._dropped_count_told and self._lines.has_room:
            self._dropped_count_told = dropped_count
            told = {**self._process, "dropped_count": dropped_count}
            message = "lines were dropped: whoever reads them was slow"
            self._lines.put(rendered(self._form, moment_s, "WARNING", __name__, message, told))

    def close(self) -> None:
        """Write what waits."""
        self._lines.close()


class LineHandler(logging.Handler):
    """Turns records into lines."""

    def __init__(self, writer: LineWriter, repeats: RepeatLimit | None = None) -> None:
        super().__init__()
        self._writer = writer
        self._repeats = repeats or RepeatLimit()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; one that cannot be written is told by its place alone."""
        held_back = self._repeats.pass_count(record.name, record.lineno, record.levelno)
        if held_back < 0:
            return
        try:
            message, fields = record_message(record), record_fields(record)
        except Exception:  # a wrong format string must neither be silent nor show its values
            message, fields = f"a line of {os.path.basename(record.pathname)}:{record.lineno} could not be written", {}
        if held_back:
            fields["held_back_count"] = held_back
        self._writer.write(record.created, record.levelname, record.name, message, fields)


class Logging(LineWriter):
    """The process's logging while it serves; `close` writes what waits and puts back what was there."""

    def __init__(self, form: LogFormat, level: str, stream: TextIO, process: str = "") -> None:
        super().__init__(LogLines(stream), form, process)
        # grpcio's core writes to standard error by itself, addresses of callers among it; whoever wants that says so.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        self._handler = LineHandler(self)
        root = logging.getLogger()
        self._former = root.level, list(root.handlers), sys.excepthook, threading.excepthook, sys.unraisablehook
        root.handlers[:] = [self._handler]
        root.setLevel(level.upper())
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda found: _log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)
        sys.unraisablehook = lambda found: _log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)

    def close(self) -> None:
        """Write what waits, and log as before."""
        root = logging.getLogger()
        level, handlers, sys.excepthook, threading.excepthook, sys.unraisablehook = self._former
        root.handlers[:] = handlers
        root.setLevel(level)
        super().close()


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return
    found = (kind, error or kind(), trace)
    logging.getLogger(OURS).critical("an exception that nobody caught", exc_info=found)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__} {error.reason}" if isinstance(error, TailorbirdError) else type(error).__name__


def _clipped(value: Field) -> Field:
    if isinstance(value, str) and len(value) > FIELD_CHARACTERS_MAX:
        return value[:FIELD_CHARACTERS_MAX] + "..."
    return value
