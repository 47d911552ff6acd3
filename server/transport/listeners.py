"""Where a transport listens, and the files of its TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from tailorbird.engine.errors import CallerError

BACKLOG = 1_024
UNIX, INHERITED = "unix:", "fd:"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate chain and its key, and for mutual TLS whom clients must be certified by."""

    certificate: Path
    key: Path
    client_authorities: Path | None = None

    def contents(self) -> tuple[bytes, bytes, bytes | None]:
        """Return certificate, key and client authorities. Raises `CallerError` BAD_TLS_FILES."""
        self.context()
        authorities = None if self.client_authorities is None else self.client_authorities.read_bytes()
        return self.certificate.read_bytes(), self.key.read_bytes(), authorities

    def context(self) -> ssl.SSLContext:
        """Return a context made of what the files hold now. Raises `CallerError` BAD_TLS_FILES."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            if self.client_authorities is not None:
                context.load_verify_locations(self.client_authorities)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            named = ", ".join(str(path) for path in self._paths())
            raise CallerError(
                "BAD_TLS_FILES",
                f"expected PEM files of a certificate chain, its key without a password, and authorities, got {named}: "
                f"{error}; check --tls-certificate, --tls-key and --tls-client-authorities",
            ) from None
        return context

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when a file is replaced; a missing one counts as changed."""
        stamps = []
        for path in self._paths():
            try:
                found = path.stat()
                stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)

    def _paths(self) -> list[Path]:
        return [path for path in (self.certificate, self.key, self.client_authorities) if path is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """TLS, or None for plain connections; whether other processes may listen on the same port beside this one."""

    tls: TlsFiles | None = None
    reuse_port: bool = False


PLAIN = ListenOptions()


def listen_failed(address: str, error: object) -> CallerError:
    """Return the error for an address that cannot be had."""
    return CallerError(
        "LISTEN_FAILED",
        f"expected a free address to listen on, got {address}: {error}; choose another with --listen",
    )


def bound(address: str, *, reuse_port: bool) -> list[socket.socket]:
    """Return listening sockets for `host:port` (every address of the host, all on one port), `unix:PATH` or `fd:N`, a
    listening socket this process was started with. Raises OSError."""
    if address.startswith(UNIX):
        sockets = [_bound_unix(address.removeprefix(UNIX))]
    elif address.startswith(INHERITED):
        sockets = [_inherited(int(address.removeprefix(INHERITED)))]
    else:
        sockets = _bound_tcp(address, reuse_port)
    for each in sockets:
        each.setblocking(False)
    return sockets


def _bound_tcp(address: str, reuse_port: bool) -> list[socket.socket]:
    host, _, port_text = address.rpartition(":")
    host, port = host.strip("[]"), int(port_text)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, where in dict.fromkeys(found):
            listener = socket.create_server(
                (str(where[0]), port),
                family=family,
                backlog=BACKLOG,
                reuse_port=reuse_port,
                dualstack_ipv6=where[0] == "::",
            )
            sockets.append(listener)
            port = listener.getsockname()[1]
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _bound_unix(path: str) -> socket.socket:
    """Listen on a path; a socket there that nobody answers on is left from a process that was killed, and replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):
                os.unlink(path)
        listener.bind(path)
        # Whoever may write to it reads every profile.
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def _inherited(number: int) -> socket.socket:
    listener = socket.socket(fileno=os.dup(number))
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.close()
        raise OSError("no listening socket")
    return listener


def _no_password() -> str:
    raise ValueError("the key has a password")
