"""Where a transport listens: TLS and mutual TLS, Unix sockets, shared ports, inherited sockets."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
import uvloop

from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.serve import add_arguments, tls_files
from tailorbird.server.transport import CallContext, ConnectionLimits, HandlerTable, ServerLimits, Unary
from tailorbird.server.transport.grpcio import GrpcioServer
from tailorbird.server.transport.listeners import PLAIN, ListenOptions, TlsFiles
from tests.http2_frames import hello

LONG_S = 30.0
# Looked after often, so that a change of files is soon seen.
LIMITS = ServerLimits(grace_s=0.2, connection=ConnectionLimits(keepalive_answer_s=0.1, handshake_s=1.0))
Make = Callable[[ListenOptions], Any]


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


TABLE: HandlerTable = {"/t.S/Echo": Unary(echo)}


def native(options: ListenOptions) -> Any:
    pytest.importorskip("tailorbird.native.http2", reason="libnghttp2 was missing when the kernels were built")
    from tailorbird.server.transport.native import NativeServer

    return NativeServer(TABLE, LIMITS, options)


@pytest.fixture(params=["grpcio", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    return native if request.param == "native" else lambda options: GrpcioServer(TABLE, LIMITS, options)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    def runs(main: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(main, LONG_S))

    return runs


class Authority:
    """An authority whose certificates are files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = trustme.CA()
        self.root_pem = self._root.cert_pem.bytes()

    def issue(self, *, mutual: bool = False) -> TlsFiles:
        """Write a new certificate for localhost over the former."""
        issued = self._root.issue_cert("localhost", "127.0.0.1")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        self._write("server.pem", chain)
        self._write("server.key", issued.private_key_pem.bytes())
        self._write("clients.pem", self.root_pem)
        paths = [self._folder / name for name in ("server.pem", "server.key", "clients.pem")]
        return TlsFiles(paths[0], paths[1], paths[2] if mutual else None)

    def credentials(self, *, known: bool = False) -> grpc.ChannelCredentials:
        if not known:
            return grpc.ssl_channel_credentials(self.root_pem)
        issued = self._root.issue_cert("client@example.test")
        return grpc.ssl_channel_credentials(
            self.root_pem, issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
        )

    def _write(self, name: str, content: bytes) -> None:
        new = self._folder / f"{name}.new"
        new.write_bytes(content)
        new.replace(self._folder / name)


async def call(channel: grpc.aio.Channel, timeout_s: float = LONG_S) -> Any:
    async with channel:
        return await channel.unary_unary("/t.S/Echo")(b"a", timeout=timeout_s)


def certificate_at(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), LONG_S) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True) or b""


def test_tls_is_served_and_plain_callers_are_not(make: Make, run: Callable[[Any], None], tmp_path: Path) -> None:
    async def main() -> None:
        authority = Authority(tmp_path)
        server = make(ListenOptions(tls=authority.issue()))
        port = await server.start("127.0.0.1:0")
        channel = grpc.aio.secure_channel(f"localhost:{port}", authority.credentials())
        async with channel:
            echo_call = channel.unary_unary("/t.S/Echo")
            assert await echo_call(b"x" * 100_000, timeout=LONG_S) == b"x" * 100_000
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(grpc.aio.insecure_channel(f"127.0.0.1:{port}"), 1.0)
            assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello())
            assert b"HTTP" not in await reader.read()
            writer.close()
            assert await echo_call(b"b", timeout=LONG_S) == b"b"
        await server.stop()

    run(main())


def test_a_tls_caller_on_the_plain_port_is_turned_away_alone(make: Make, run: Callable[[Any], None]) -> None:
    async def main() -> None:
        server = make(PLAIN)
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await channel.unary_unary("/t.S/Echo")(b"a") == b"a"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.get_running_loop().run_in_executor(None, certificate_at, port)
            assert await channel.unary_unary("/t.S/Echo")(b"b") == b"b"
        await server.stop()

    run(main())


def test_mutual_tls_takes_only_callers_with_a_certificate(
    make: Make, run: Callable[[Any], None], tmp_path: Path
) -> None:
    async def main() -> None:
        authority = Authority(tmp_path)
        server = make(ListenOptions(tls=authority.issue(mutual=True)))
        target = f"localhost:{await server.start('127.0.0.1:0')}"
        assert await call(grpc.aio.secure_channel(target, authority.credentials(known=True))) == b"a"
        with pytest.raises(grpc.aio.AioRpcError):
            await call(grpc.aio.secure_channel(target, authority.credentials()), 1.0)
        await server.stop()

    run(main())


def test_http_2_over_tls_must_be_agreed_on(run: Callable[[Any], None], tmp_path: Path) -> None:
    async def main() -> None:
        server = native(ListenOptions(tls=Authority(tmp_path).issue()))
        port = await server.start("127.0.0.1:0")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(hello())
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await server.stop()

    run(main())


def test_new_tls_files_are_taken_without_a_restart_and_bad_ones_are_not(
    make: Make, run: Callable[[Any], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        authority = Authority(tmp_path)
        files = authority.issue()
        server = make(ListenOptions(tls=files))
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.secure_channel(f"localhost:{port}", authority.credentials()) as channel:
            assert await channel.unary_unary("/t.S/Echo")(b"a", timeout=LONG_S) == b"a"
            first = await loop.run_in_executor(None, certificate_at, port)
            authority.issue()
            while (second := await loop.run_in_executor(None, certificate_at, port)) == first:
                await asyncio.sleep(0.05)
            files.key.write_bytes(b"nonsense")
            while "cannot be used" not in caplog.text:
                # The native transport looks by the clock, grpcio at each handshake.
                assert await loop.run_in_executor(None, certificate_at, port) == second
            assert await loop.run_in_executor(None, certificate_at, port) == second
            # Certificate and key are replaced one after the other, and what lies between does not fit.
            authority.issue()
            while await loop.run_in_executor(None, certificate_at, port) == second:
                await asyncio.sleep(0.05)
            # The connection from before goes on.
            assert await channel.unary_unary("/t.S/Echo")(b"b", timeout=LONG_S) == b"b"
        await server.stop()

    run(main())


@pytest.mark.parametrize("broken", ["certificate", "key", "missing"])
def test_bad_tls_files_are_named(make: Make, tmp_path: Path, broken: str) -> None:
    files = Authority(tmp_path).issue()
    if broken == "missing":
        files.key.unlink()
    else:
        getattr(files, broken).write_bytes(b"nonsense")

    async def main() -> None:
        with pytest.raises(CallerError, match=r"server\.pem") as caught:
            await make(ListenOptions(tls=files)).start("127.0.0.1:0")
        assert caught.value.reason == "BAD_TLS_FILES"

    asyncio.run(main())


def test_a_unix_socket_is_served_and_removed(make: Make, run: Callable[[Any], None], tmp_path: Path) -> None:
    async def main() -> None:
        address = f"unix:{tmp_path}/socket"
        server = make(PLAIN)
        assert await server.start(address) == 0
        assert await call(grpc.aio.insecure_channel(address)) == b"a"
        await server.stop()
        assert not (tmp_path / "socket").exists()

    run(main())


def test_a_unix_socket_left_behind_is_replaced_and_a_live_one_or_a_file_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path.as_posix())
        server = native(PLAIN)
        await server.start(f"unix:{path}")
        assert path.stat().st_mode & 0o777 == 0o600
        (tmp_path / "file").write_text("kept")
        for taken in (path, tmp_path / "file"):
            with pytest.raises(CallerError) as caught:
                await native(PLAIN).start(f"unix:{taken}")
            assert caught.value.reason == "LISTEN_FAILED"
        assert await call(grpc.aio.insecure_channel(f"unix:{path}")) == b"a"
        await server.stop()
        assert (tmp_path / "file").read_text() == "kept"

    asyncio.run(main())


def test_several_servers_share_a_port_where_all_say_so(make: Make, run: Callable[[Any], None]) -> None:
    async def main() -> None:
        first, second = make(ListenOptions(reuse_port=True)), make(ListenOptions(reuse_port=True))
        port = await first.start("127.0.0.1:0")
        assert await second.start(f"127.0.0.1:{port}") == port
        await first.stop()
        assert await call(grpc.aio.insecure_channel(f"127.0.0.1:{port}")) == b"a"
        await second.stop()

    run(main())


def test_an_inherited_socket_is_served_by_all_who_have_it(run: Callable[[Any], None]) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            servers = [native(PLAIN) for _ in range(2)]
            ports = [await server.start(f"fd:{listener.fileno()}") for server in servers]
            assert ports == [listener.getsockname()[1]] * 2
            await servers[0].stop()
            assert await call(grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}")) == b"a"
            await servers[1].stop()

    run(main())


def test_an_inherited_unix_socket_outlives_a_server_that_stops(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.as_posix())
            listener.listen()
            for _ in range(2):
                server = native(PLAIN)
                await server.start(f"fd:{listener.fileno()}")
                assert await call(grpc.aio.insecure_channel(f"unix:{path}")) == b"a"
                await server.stop()

    asyncio.run(main())


def test_what_is_no_listening_socket_is_a_clear_error(make: Make) -> None:
    async def main() -> None:
        number = os.open(os.devnull, os.O_RDONLY)
        try:
            for address in (f"fd:{number}", "fd:999999"):
                with pytest.raises(CallerError) as caught:
                    await make(PLAIN).start(address)
                assert caught.value.reason == "LISTEN_FAILED"
        finally:
            os.close(number)

    asyncio.run(main())


def test_serve_takes_tls_files_together_and_none_alone(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue(mutual=True)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    named = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    assert tls_files(parser.parse_args([])) is None
    assert tls_files(parser.parse_args(named)) == TlsFiles(files.certificate, files.key)
    assert tls_files(parser.parse_args([*named, "--tls-client-authorities", str(files.client_authorities)])) == files
    for part in (named[:2], named[2:], ["--tls-client-authorities", str(files.client_authorities)]):
        with pytest.raises(CallerError) as caught:
            tls_files(parser.parse_args(part))
        assert caught.value.reason == "BAD_TLS_FILES"
