"""`tailorbird serve`: the engine over gRPC."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Collection
from pathlib import Path

import uvloop

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError
from tailorbird.server.access_log import checked_ratio
from tailorbird.server.commands.data_directory import add_data_argument, find_data_directory
from tailorbird.server.keys import DEFAULT_TENANT, KeyFile
from tailorbird.server.listening import DEFAULT, checked_address
from tailorbird.server.logs import LEVELS, LogFormat, format_for
from tailorbird.server.observers import ObserverOptions, observing
from tailorbird.server.processes.supervisor import Supervisor
from tailorbird.server.serve import ServeOptions, serve
from tailorbird.server.tenants import parse_tenants
from tailorbird.server.transport import ServerLimits
from tailorbird.server.transport.choice import AUTO, CHOICES, NATIVE, chosen
from tailorbird.server.transport.listeners import ListenOptions, TlsFiles

FORMAT_HELP = "of lines on standard error; default text on a terminal, json elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    limits = ServerLimits()
    add_data_argument(parser)
    parser.add_argument(
        "--listen",
        default=DEFAULT,
        metavar="ADDRESS",
        help=f"HOST:PORT (port 0: any), unix:PATH or fd:N; default {DEFAULT}",
    )
    parser.add_argument("--insecure-listen", action="store_true", help="listen on other addresses than loopback too")
    parser.add_argument(
        "--transport",
        choices=CHOICES,
        default=AUTO,
        help="native is the fast one; default auto: native where it was built (see build-info), else grpcio",
    )
    parser.add_argument(
        "--tls-certificate", type=Path, metavar="PEM", help="serve TLS; the files are read again when changed"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="the certificate's key")
    parser.add_argument(
        "--tls-client-authorities", type=Path, metavar="PEM", help="ask callers for certificates by these"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, core_count() - 1),
        metavar="N",
        help="processes that decide beside the one that writes; default one per core but one; 0: everything in one process",
    )
    parser.add_argument("--reuse-port", action="store_true", help="other processes may listen on the port as well")
    parser.add_argument("--metrics", default="", metavar="HOST:PORT", help="answer Prometheus there; default nowhere")
    parser.add_argument(
        "--tenant",
        action="append",
        default=[],
        metavar="NAME[=DIR]",
        help="a tenant and its data directory, in the place of --data; may be repeated. Without DIR: whose keys are let in "
        f"(default {DEFAULT_TENANT})",
    )
    parser.add_argument("--log-format", choices=[str(form) for form in LogFormat], default="", help=FORMAT_HELP)
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="default info")
    parser.add_argument(
        "--access-log", nargs="?", const="1", default="0", metavar="PART", help="log every call, or this part of them"
    )
    parser.add_argument(
        "--traces", default="", metavar="URL", help="send OpenTelemetry traces there by OTLP over gRPC; default nowhere"
    )
    parser.add_argument(
        "--traces-ratio", default="0.01", metavar="PART", help="of calls whose caller does not say; default 0.01"
    )
    parser.add_argument("--grace-s", type=float, default=limits.grace_s, help="time for calls in flight when stopping")
    parser.add_argument("--message-bytes-max", type=int, default=limits.message_bytes_max, help="largest message taken")


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tls_files(arguments: argparse.Namespace) -> TlsFiles | None:
    """Return the files of TLS, or None without. Raises `CallerError` BAD_TLS_FILES for a part of them."""
    certificate, key, authorities = arguments.tls_certificate, arguments.tls_key, arguments.tls_client_authorities
    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None or key is None:
        raise CallerError("BAD_TLS_FILES", "expected --tls-certificate and --tls-key together, got only a part of them")
    files = TlsFiles(certificate, key, authorities)
    files.context()
    return files


def tenant_directories(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the data directories by tenant. Raises `CallerError` BAD_TENANT, NO_DATA_DIRECTORY."""
    named: list[str] = arguments.tenant
    if len(named) <= 1 and not any("=" in text for text in named):
        return {named[0] if named else DEFAULT_TENANT: find_data_directory(arguments.data)}
    if arguments.data is not None:
        raise CallerError(
            "BAD_TENANT", "expected --data or --tenant NAME=DIR, got both; give each tenant its directory"
        )
    return {tenant: find_data_directory(str(path)) for tenant, path in parse_tenants(named).items()}


def observer_options(arguments: argparse.Namespace, tenants: Collection[str]) -> ObserverOptions:
    """Return what is logged and traced. Raises `CallerError` BAD_ARGUMENT."""
    return ObserverOptions(
        log_format=format_for(arguments.log_format, sys.stderr),
        log_level=arguments.log_level,
        access_log=checked_ratio(arguments.access_log, "--access-log"),
        traces=arguments.traces,
        traces_ratio=checked_ratio(arguments.traces_ratio, "--traces-ratio"),
        # With several tenants only those who are let in have one.
        tenant=next(iter(tenants)) if len(tenants) == 1 else "",
    )


def run(arguments: argparse.Namespace) -> int:
    tls = tls_files(arguments)
    # Callers who show certificates or keys are known.
    insecure = arguments.insecure_listen or (tls is not None and tls.client_authorities is not None)
    directories = tenant_directories(arguments)
    tenant = next(iter(directories))
    has_keys = any(KeyFile(path).read() for path in directories.values())
    checked_address(arguments.listen, insecure=insecure or has_keys)
    options = ServeOptions(
        listen=arguments.listen,
        insecure_listen=insecure,
        sockets=ListenOptions(tls=tls, reuse_port=arguments.reuse_port),
        transport=arguments.transport,
        tenant=tenant,
        metrics=arguments.metrics,
        observers=observer_options(arguments, directories),
        limits=ServerLimits(message_bytes_max=arguments.message_bytes_max, grace_s=arguments.grace_s),
    )
    if arguments.workers < 0:
        raise CallerError("BAD_ARGUMENT", f"expected 0 or more, got {arguments.workers} in --workers")
    if arguments.workers:
        with observing(options.observers.of_no_calls(), "supervisor"):
            asyncio.run(Supervisor(directories, options, arguments.workers, announce).run())
        return 0
    with contextlib.ExitStack() as stack:
        watchers = stack.enter_context(observing(options.observers))
        engines = {name: stack.enter_context(Engine.open(path)) for name, path in directories.items()}
        # grpcio brings a loop's worth of threads of its own; the native transport is only as fast as the loop it runs on.
        loop_factory = uvloop.new_event_loop if chosen(options.transport)[0] == NATIVE else None
        stack.enter_context(asyncio.Runner(loop_factory=loop_factory)).run(serve(engines, options, announce, watchers))
    return 0


def announce(line: str) -> None:
    """Tell the operator."""
    print(line, flush=True)
