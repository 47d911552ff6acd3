"""Lines of a plain or gzipped UTF-8 file, with the place of whatever cannot be read."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import xxhash

from tailorbird.engine.errors import CallerError

LINE_BYTES_MAX = 10 * 1024**2
_HEAD_BYTES = 64 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


class TextLines:
    """The lines of a file, each with its line end, decoded one at a time.

    `line` is the number of the last line given, from 1. Iteration raises `CallerError` DAMAGED_FILE for gzip data that
    is truncated or fails its check, BAD_UTF8 for bytes that are none, LINE_TOO_LONG past `LINE_BYTES_MAX`; each names
    the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0

    def __iter__(self) -> Iterator[str]:
        offset = 0
        with _open(self.path) as file:
            while True:
                try:
                    raw = file.readline(LINE_BYTES_MAX + 1)
                except (EOFError, OSError, zlib.error) as error:
                    raise CallerError(
                        "DAMAGED_FILE",
                        f"expected whole gzip data, got: {error}, in {self.path} after line {self.line} (byte {offset} "
                        "unpacked); every line before was read; fetch the file again and repeat the command, "
                        "nothing is stored twice",
                    ) from None
                if not raw:
                    return
                if len(raw) > LINE_BYTES_MAX:
                    raise CallerError(
                        "LINE_TOO_LONG",
                        f"expected lines of at most {LINE_BYTES_MAX} bytes, got a longer one, in {self.path} line "
                        f"{self.line + 1} (byte {offset}); every line before was read; mend the file and "
                        "repeat the command",
                    )
                try:
                    text = raw.decode()
                except UnicodeDecodeError as error:
                    raise CallerError(
                        "BAD_UTF8",
                        f"expected UTF-8, got byte 0x{raw[error.start]:02x}, in {self.path} line {self.line + 1} (byte "
                        f"{offset + error.start} unpacked); every line before was read; convert the file, "
                        "for example with `iconv -t UTF-8`, and repeat the command, nothing is stored twice",
                    ) from None
                offset += len(raw)
                self.line += 1
                yield text


def source_name(name: str, path: Path) -> str:
    """Return `name:` and a hash of the first two lines.

    A file that was cut off, damaged further down, or has grown since keeps its name, so that the engine's high-water
    mark refuses what it has had; two files that differ in their first order do not share one. Raises `CallerError`
    NO_SUCH_FILE.
    """
    digest = xxhash.xxh3_64()
    try:
        with _open(path) as file:
            for _ in range(2):
                digest.update(file.readline(LINE_BYTES_MAX))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        pass  # Reading the lines will tell where.
    except OSError as error:
        raise CallerError("NO_SUCH_FILE", f"expected a readable file, got {path}: {error.strerror}; check it") from None
    return f"{name}:{digest.hexdigest()}"


def _open(path: Path) -> BinaryIO:
    # A buffer around the GzipFile would lose the good lines before the damage.
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")
