from typing import Any, final

from tailorbird.native.http2_session import ProtocolError as ProtocolError

MESSAGE: int
FAULT: int
DRAINED: int
PONG: int
INITIAL: int
DONE: int
GOAWAY: int

MESSAGE_TOO_LARGE: int
BUFFERS_FULL: int
HEADERS_TOO_LARGE: int
REFUSED_STREAM: int
CANCEL: int
PAIRS_MAX: int

def timeout_text(remaining_s: float) -> bytes: ...

@final
class ClientSession:
    def __init__(
        self,
        *,
        authority: bytes,
        scheme: bytes,
        agent: bytes,
        message_bytes_max: int,
        header_bytes_max: int,
        window_bytes: int,
        buffered_bytes_max: int,
        drain_bytes: int,
    ) -> None: ...
    @property
    def can_request(self) -> bool: ...
    @property
    def stream_count(self) -> int: ...
    @property
    def is_over(self) -> bool: ...
    def request(
        self,
        path: bytes,
        metadata: list[tuple[bytes, bytes]],
        timeout: bytes | None,
        message: bytes | None,
        *,
        single: bool,
        last: bool,
    ) -> int: ...
    def send(self, stream_id: int, message: bytes) -> bool: ...
    def end(self, stream_id: int) -> None: ...
    def cancel(self, stream_id: int) -> None: ...
    def take(self, stream_id: int) -> None: ...
    def must_wait(self, stream_id: int) -> bool: ...
    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> list[tuple[Any, ...]]: ...
    def more_events(self) -> list[tuple[Any, ...]] | tuple[()]: ...
    def pull(self, bytes_max: int) -> bytes: ...
    def ping(self) -> None: ...
    def leave(self) -> None: ...
