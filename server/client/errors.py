"""How a call failed."""

from __future__ import annotations

import grpc

Metadata = tuple[tuple[str, str | bytes], ...]

REASON_KEY = "tailorbird-reason"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class CallError(grpc.RpcError):
    """A call's status other than OK, with the faces of grpcio's own errors. `reason` is the machine's word for it, or ""."""

    def __init__(self, code: int, details: str, initial: Metadata = (), trailing: Metadata = ()) -> None:
        self._code = CODES.get(code, grpc.StatusCode.UNKNOWN)
        self._details = details
        self._initial, self._trailing = initial, trailing
        super().__init__(f"{self._code.name}: {details}")

    @property
    def reason(self) -> str:
        """The service's reason, stable across releases, such as NO_SUCH_PLACEMENT; "" where none came."""
        for name, value in self._trailing:
            if name == REASON_KEY and isinstance(value, str):
                return value
        return ""

    def code(self) -> grpc.StatusCode:
        """Return the status code."""
        return self._code

    def details(self) -> str:
        """Return the text for people."""
        return self._details

    def initial_metadata(self) -> Metadata:
        """Return what came ahead of the answer."""
        return self._initial

    def trailing_metadata(self) -> Metadata:  # type: ignore[override]
        """Return what came behind it."""
        return self._trailing
