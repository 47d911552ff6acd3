"""Which transport serves, with and without the native one's kernel, and that it is said."""

from __future__ import annotations

import asyncio

import pytest

from tailorbird.engine.errors import PreconditionFailed
from tailorbird.server.transport import ServerLimits, choice
from tailorbird.server.transport.grpcio import GrpcioServer


def test_auto_takes_the_native_one_where_it_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_native", lambda: True)
    assert choice.chosen("auto") == ("native", "native (auto: its kernel is there)")
    assert choice.chosen("native")[0] == "native"
    assert choice.chosen("grpcio") == ("grpcio", "grpcio (asked for)")


def test_without_the_kernel_auto_is_grpcio_and_native_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_native", lambda: False)

    async def made() -> tuple[choice.Server, str]:
        return choice.make_server("auto", {}, ServerLimits())  # as the service does, on its event loop

    server, line = asyncio.run(made())
    assert isinstance(server, GrpcioServer)
    assert line.startswith("grpcio (auto: ")
    assert "libnghttp2" in line
    with pytest.raises(PreconditionFailed, match="libnghttp2-dev") as caught:
        choice.make_server("native", {}, ServerLimits())
    assert caught.value.reason == "NO_NATIVE_TRANSPORT"
