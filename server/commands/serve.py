"""`tailorbird serve`: the engine over gRPC."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

import uvloop

from tailorbird.server.commands.data_directory import add_data_argument, opened
from tailorbird.server.listening import DEFAULT, checked_address
from tailorbird.server.serve import ServeOptions, serve
from tailorbird.server.transport import ServerLimits
from tailorbird.server.transport.choice import AUTO, CHOICES, NATIVE, chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    limits = ServerLimits()
    add_data_argument(parser)
    parser.add_argument(
        "--listen", default=DEFAULT, metavar="HOST:PORT", help=f"default {DEFAULT}; port 0 takes a free one"
    )
    parser.add_argument("--insecure-listen", action="store_true", help="listen on other addresses than loopback too")
    parser.add_argument(
        "--transport",
        choices=CHOICES,
        default=AUTO,
        help="native is the fast one; default auto: native where it was built (see build-info), else grpcio",
    )
    parser.add_argument("--grace-s", type=float, default=limits.grace_s, help="time for calls in flight when stopping")
    parser.add_argument("--message-bytes-max", type=int, default=limits.message_bytes_max, help="largest message taken")


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    checked_address(arguments.listen, insecure=arguments.insecure_listen)
    options = ServeOptions(
        listen=arguments.listen,
        insecure_listen=arguments.insecure_listen,
        transport=arguments.transport,
        limits=ServerLimits(message_bytes_max=arguments.message_bytes_max, grace_s=arguments.grace_s),
    )
    # grpcio brings a loop's worth of threads of its own; the native transport is only as fast as the loop it runs on.
    loop_factory = uvloop.new_event_loop if chosen(options.transport)[0] == NATIVE else None
    with opened(arguments, read_only=False) as engine, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(engine, options, lambda line: print(line, flush=True)))
    return 0
