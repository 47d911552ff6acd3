"""`tailorbird serve`: the engine over gRPC."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

import uvloop

from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.data_directory import add_data_argument, find_data_directory, opened
from tailorbird.server.keys import DEFAULT_TENANT, KeyFile
from tailorbird.server.listening import DEFAULT, checked_address
from tailorbird.server.processes.supervisor import Supervisor
from tailorbird.server.serve import ServeOptions, serve
from tailorbird.server.transport import ServerLimits
from tailorbird.server.transport.choice import AUTO, CHOICES, NATIVE, chosen
from tailorbird.server.transport.listeners import ListenOptions, TlsFiles


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
    parser.add_argument("--tenant", default=DEFAULT_TENANT, help=f"whose keys are let in (default {DEFAULT_TENANT})")
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


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    tls = tls_files(arguments)
    # Callers who show certificates or keys are known.
    insecure = arguments.insecure_listen or (tls is not None and tls.client_authorities is not None)
    has_keys = bool(KeyFile(find_data_directory(arguments.data)).read())
    checked_address(arguments.listen, insecure=insecure or has_keys)
    options = ServeOptions(
        listen=arguments.listen,
        insecure_listen=insecure,
        sockets=ListenOptions(tls=tls, reuse_port=arguments.reuse_port),
        transport=arguments.transport,
        tenant=arguments.tenant,
        metrics=arguments.metrics,
        limits=ServerLimits(message_bytes_max=arguments.message_bytes_max, grace_s=arguments.grace_s),
    )
    if arguments.workers < 0:
        raise CallerError("BAD_ARGUMENT", f"expected 0 or more, got {arguments.workers} in --workers")
    if arguments.workers:
        data = find_data_directory(arguments.data)
        asyncio.run(Supervisor(data, options, arguments.workers, announce).run())
        return 0
    # grpcio brings a loop's worth of threads of its own; the native transport is only as fast as the loop it runs on.
    loop_factory = uvloop.new_event_loop if chosen(options.transport)[0] == NATIVE else None
    with opened(arguments, read_only=False) as engine, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(engine, options, announce))
    return 0


def announce(line: str) -> None:
    """Tell the operator."""
    print(line, flush=True)
