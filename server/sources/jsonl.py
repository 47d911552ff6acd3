"""JSON Lines: one signal a line, in the engine's own field names.

    {"type": "product_viewed", "event_time": 1316000000000, "identifiers": {"anonymous_id": "a1"},
     "message_id": "m1", "properties": {"product_id": "85123A"}, "context": {"device": "phone"},
     "consent": {"choice": "granted:behavioural", "basis": "explicit"}}

A line that is no signal becomes a `BadLine` and the reading goes on. Lines are read in bounded memory, however long
they are.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from tailorbird.engine.consent import Basis, parse_choice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.signals import Signal

GZIP_MAGIC = b"\x1f\x8b"
SKIP_BYTES = 1 << 20
SHOWN_BYTES_MAX = 1_024


class _Consent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    choice: str
    basis: str = str(Basis.EXPLICIT)
    notice: str = ""


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str
    event_time: int
    identifiers: dict[str, str]
    message_id: str = ""
    properties: dict[str, Any] = {}
    context: dict[str, str] = {}
    source: str = ""
    source_offset: int = -1
    consent: _Consent | None = None


_DECODER = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no signal. `line_number` counts from 1; `text` is the line, cut where it is too long."""

    line_number: int
    reason: str
    message: str
    text: str


@dataclass(frozen=True, slots=True)
class SignalLine:
    """A signal and the line it stood on, so that the engine's refusal can name it."""

    line_number: int
    signal: Signal
    text: bytes


def read_lines(path: Path, line_bytes_max: int) -> Iterator[SignalLine | BadLine]:
    """Yield every line that is not blank. The file may be compressed with gzip.

    Raises `CallerError` NO_INPUT_FILE, or DAMAGED_INPUT with the last good line when the file cannot be read to its
    end.
    """
    line_number = 0
    try:
        with open_file(path) as file:
            while line := file.readline(line_bytes_max + 1):
                line_number += 1
                if len(line) > line_bytes_max and not line.endswith(b"\n"):
                    size_bytes = len(line) + _skip_rest(file)
                    message = (
                        f"expected a line of at most limits.signal_bytes_max = {line_bytes_max} bytes, got "
                        f"{size_bytes}; split the signal, or raise the limit"
                    )
                    yield BadLine(line_number, "LINE_TOO_LONG", message, shown(line))
                elif line.strip():
                    yield _parse(line_number, line.strip())
    except FileNotFoundError:
        raise CallerError("NO_INPUT_FILE", f"expected a file of signals at {path}, found none") from None
    except (EOFError, OSError, zlib.error) as error:
        raise CallerError(
            "DAMAGED_INPUT",
            f"expected to read {path} to its end, got {error} after line {line_number}; what came before is stored; "
            "reading the whole file again once it is mended is safe where signals carry a message_id",
        ) from None


def open_file(path: Path) -> BinaryIO:
    """Open a file that may be compressed; its first bytes tell."""
    with path.open("rb") as file:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb")


def shown(line: bytes) -> str:
    """Return the beginning of a line as text; bytes that are none appear as escapes."""
    return line[:SHOWN_BYTES_MAX].decode("utf-8", "backslashreplace").rstrip("\n")


def _skip_rest(file: BinaryIO) -> int:
    """Read on to the end of the line; return how many bytes that were."""
    skipped = 0
    while part := file.readline(SKIP_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _parse(line_number: int, line: bytes) -> SignalLine | BadLine:
    try:
        line.decode("utf-8")
        parsed = _DECODER.decode(line)
        choice = None
        if parsed.consent is not None:
            choice = parse_choice(parsed.consent.choice, parsed.consent.basis)
            choice = msgspec.structs.replace(choice, notice=parsed.consent.notice)
    except UnicodeDecodeError as error:
        message = f"expected UTF-8, got a bad byte at {error.start} of the line; save the file as UTF-8"
        return BadLine(line_number, "BAD_UTF8", message, shown(line))
    except msgspec.ValidationError as error:
        # msgspec's own text: expected, got, and the path of the field.
        return BadLine(line_number, "BAD_FIELD", f"{str(error)[:1].lower()}{str(error)[1:]}", shown(line))
    except msgspec.DecodeError as error:
        return BadLine(line_number, "BAD_JSON", f"expected one JSON object a line, got: {error}", shown(line))
    except CallerError as error:
        return BadLine(line_number, error.reason, error.message, shown(line))
    signal = Signal(
        type=parsed.type,
        event_time=parsed.event_time,
        identifiers=parsed.identifiers,
        message_id=parsed.message_id,
        properties=parsed.properties,
        context=parsed.context,
        source=parsed.source,
        source_offset=parsed.source_offset,
        consent=choice,
    )
    return SignalLine(line_number, signal, line)
