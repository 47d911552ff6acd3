"""HTTP/2 frames by hand (RFC 9113), for saying what no library would say. Headers are literals, never compressed."""

from __future__ import annotations

from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 1, 7, 8, 11
FRAME_BYTES = 9
GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it was received."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def error_code(self) -> int:
        """Return the code of a GOAWAY or RST_STREAM."""
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4], "big")


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def block(*headers: tuple[str, str]) -> bytes:
    """Return header literals without indexing."""
    parts = [b"\x00" + _text(name) + _text(value) for name, value in headers]
    return b"".join(parts)


def _text(text: str) -> bytes:
    encoded = text.encode("latin-1")
    length = len(encoded)
    if length < 127:
        return bytes([length]) + encoded
    prefix, length = b"\x7f", length - 127
    while length >= 128:
        prefix, length = prefix + bytes([length % 128 + 128]), length // 128
    return prefix + bytes([length]) + encoded


def request_block(
    path: str, *more: tuple[str, str], method: str = "POST", base: tuple[tuple[str, str], ...] = GRPC
) -> bytes:
    pseudo = ((":method", method), (":scheme", "http"), (":path", path), (":authority", "here"))
    return block(*pseudo, *base, *more)


def request(stream_id: int, path: str, *more: tuple[str, str], end: bool = False) -> bytes:
    """Return a call's headers."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream_id, request_block(path, *more))


def data(stream_id: int, payload: bytes, *, end: bool = False) -> bytes:
    """Return DATA frames of at most 16 KiB."""
    parts = [payload[at : at + 16_384] for at in range(0, len(payload), 16_384)] or [b""]
    last = len(parts) - 1
    return b"".join(
        frame(DATA, END_STREAM if end and n == last else 0, stream_id, part) for n, part in enumerate(parts)
    )


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a gRPC message behind its prefix."""
    return bytes([compressed]) + len(payload).to_bytes(4, "big") + payload


def unary(stream_id: int, path: str, payload: bytes, *more: tuple[str, str]) -> bytes:
    """Return a whole unary call."""
    return request(stream_id, path, *more) + data(stream_id, message(payload), end=True)


def hello() -> bytes:
    return PREFACE + frame(SETTINGS)


def frames_of(received: bytes) -> list[Frame]:
    """Return the whole frames in `received`."""
    found, at = [], 0
    while at + FRAME_BYTES <= len(received):
        length = int.from_bytes(received[at : at + 3], "big")
        end = at + FRAME_BYTES + length
        if end > len(received):
            break
        stream_id = int.from_bytes(received[at + 5 : at + 9], "big")
        found.append(Frame(received[at + 3], received[at + 4], stream_id, received[at + FRAME_BYTES : end]))
        at = end
    return found
