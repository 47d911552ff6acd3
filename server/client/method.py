"""A method of the API as both faces of the client call it: its path, its types, and what of a call is the same in both."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tailorbird.client.exchange import Start
from tailorbird.client.options import ChannelOptions
from tailorbird.client.retries import Attempts, Budget
from tailorbird.native.http2_client import PAIRS_MAX

Q = TypeVar("Q")
A = TypeVar("A")
Pairs = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """A path, and how its messages are written and read."""

    path: str
    write: Callable[[Q], bytes]
    read: Callable[[bytes], A]

    @classmethod
    def raw(
        cls, path: str, write: Callable[[Any], bytes] | None, read: Callable[[bytes], Any] | None
    ) -> Method[Any, Any]:
        """Return a method as generated stubs name it: what is not given is bytes as they are."""
        return Method(path, write or bytes, read or bytes)


class StubFaces(ABC):
    """A channel as generated stubs use it: the four kinds of call by the names grpcio gives them."""

    @abstractmethod
    def unary(self, method: Method[Any, Any]) -> Any: ...

    @abstractmethod
    def server_stream(self, method: Method[Any, Any]) -> Any: ...

    @abstractmethod
    def client_stream(self, method: Method[Any, Any]) -> Any: ...

    @abstractmethod
    def bidirectional(self, method: Method[Any, Any]) -> Any: ...

    def unary_unary(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """Return the callable of a method with one request and one answer; without serializers it takes bytes."""
        return self.unary(Method.raw(path, request_serializer, response_deserializer))

    def unary_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """The same with many answers."""
        return self.server_stream(Method.raw(path, request_serializer, response_deserializer))

    def stream_unary(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """The same with many requests."""
        return self.client_stream(Method.raw(path, request_serializer, response_deserializer))

    def stream_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """The same with many of both."""
        return self.bidirectional(Method.raw(path, request_serializer, response_deserializer))


class Calls:
    """What the calls of one channel share."""

    def __init__(self, options: ChannelOptions) -> None:
        self.options = options
        self.budget = Budget(options.retry)
        self._rng = random.Random()
        self._metadata = [(b"authorization", f"Bearer {options.key}".encode())] if options.key else []

    def start(
        self,
        method: Method[Any, Any],
        message: bytes | None,
        metadata: Pairs | None,
        timeout_s: float | None,
        *,
        has_one_answer: bool,
    ) -> tuple[Start, Attempts]:
        """Return what a call's attempts begin with, and their count. Raises `ValueError` for metadata that cannot be sent."""
        pairs = self._metadata
        if metadata:
            pairs = pairs + [wire_pair(name, value) for name, value in metadata]
            if len(pairs) > PAIRS_MAX:
                raise ValueError(
                    f"expected at most {PAIRS_MAX} pairs of metadata, the key's included, got {len(pairs)}"
                )
        if timeout_s is None and has_one_answer:
            timeout_s = self.options.timeout_s
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        start = Start(method.path.encode(), pairs, deadline_s, message, has_one_answer)
        return start, Attempts(self.options.retry, self.budget, deadline_s, self._rng)


def wire_pair(name: str, value: str | bytes) -> tuple[bytes, bytes]:
    """Return a pair of metadata in bytes. Raises `ValueError` for what HTTP/2 or gRPC forbids."""
    if not name or name != name.lower() or name.startswith(("grpc-", ":")) or not _is_token(name):
        raise ValueError(
            f"expected a name of metadata in a-z 0-9 - _ . that gRPC does not keep for itself, got {name!r}"
        )
    if name.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(f"expected bytes as the value of {name}, got {type(value).__name__}")
        return name.encode(), value
    text = value if isinstance(value, str) else value.decode("latin-1")
    if not all(" " <= character <= "~" for character in text):
        raise ValueError(f"expected printable ASCII as the value of {name}, got another character; name it {name}-bin")
    return name.encode(), text.encode()


def _is_token(name: str) -> bool:
    return all(character.isascii() and (character.isalnum() or character in "-_.") for character in name)
