from typing import Any, final

from tailorbird.native.http2_session import ProtocolError as ProtocolError
from tailorbird.native.http2_session import percent_encoded as percent_encoded

CALL: int
MESSAGE: int
END: int
RESET: int
FAULT: int
DRAINED: int
PONG: int

WRONG_METHOD: int
WRONG_CONTENT_TYPE: int
UNKNOWN_PATH: int
HEADERS_TOO_LARGE: int
BAD_TIMEOUT: int
BAD_METADATA: int
UNKNOWN_ENCODING: int
MESSAGE_TOO_LARGE: int
BAD_FRAMING: int
BAD_COMPRESSION: int
WRONG_COUNT: int
BUFFERS_FULL: int

@final
class Intake:
    calls: int
    calls_max: int
    size_bytes: int
    bytes_max: int
    refused_count: int
    call_ns: int
    def __init__(
        self, calls_max: int, bytes_max: int, status: tuple[int, bytes, list[tuple[bytes, bytes]]]
    ) -> None: ...
    def leave(self, size_bytes: int) -> None: ...

@final
class ServerSession:
    def __init__(
        self,
        methods: dict[bytes, tuple[bool, Any]],
        intake: Intake | None = None,
        *,
        message_bytes_max: int,
        streams_max: int,
        header_bytes_max: int,
        window_bytes: int,
        buffered_bytes_max: int,
        drain_bytes: int,
        continuations_max: int,
        resets_per_s_max: int,
        settings_per_s_max: int,
        pings_per_s_max: int,
        idle_frames_per_s_max: int,
        window_updates_per_s_max: int,
    ) -> None: ...
    @property
    def stream_count(self) -> int: ...
    @property
    def is_over(self) -> bool: ...
    @property
    def is_calmed(self) -> bool: ...
    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> list[tuple[Any, ...]]: ...
    def more_events(self) -> list[tuple[Any, ...]] | tuple[()]: ...
    def take(self, stream_id: int) -> None: ...
    def answer(self, stream_id: int, message: bytes) -> None: ...
    def announce(self, stream_id: int, initial: list[tuple[bytes, bytes]]) -> None: ...
    def send(self, stream_id: int, message: bytes) -> bool: ...
    def must_wait(self, stream_id: int) -> bool: ...
    def finish(
        self,
        stream_id: int,
        code: int,
        message: bytes | None = None,
        trailers: list[tuple[bytes, bytes]] | None = None,
    ) -> None: ...
    def refuse(self, stream_id: int, http_status: int, code: int, message: bytes) -> None: ...
    def pull(self, bytes_max: int) -> bytes: ...
    def ping(self) -> None: ...
    def has(self, stream_id: int) -> bool: ...
    def announce_end(self) -> None: ...
    def refuse_new(self) -> None: ...
    def terminate(self, is_peers_fault: bool) -> None: ...
