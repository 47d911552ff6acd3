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

    async def made() -> str:
        server, line = choice.make_server("auto", {}, ServerLimits())
        assert isinstance(server, GrpcioServer)
        await server.stop()
        return line

    line = asyncio.run(made())
    assert line.startswith("grpcio (auto: ")
    assert "libnghttp2" in line
    with pytest.raises(PreconditionFailed, match="libnghttp2-dev") as caught:
        choice.make_server("native", {}, ServerLimits())
    assert caught.value.reason == "NO_NATIVE_TRANSPORT"
