"""`tailorbird split`: an identifier is not the person it was taken for."""

from __future__ import annotations

import argparse

from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.arguments import add_id_argument, pair
from tailorbird.server.commands.data_directory import add_data_argument, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    add_id_argument(parser, "once: apart from everything it is linked to; twice: apart from each other")
    parser.add_argument("--reason", default="", help="kept in the ledger")


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.ids) not in (1, 2):
        raise CallerError(
            "BAD_ARGUMENT", f"expected --id NAMESPACE=VALUE once or twice, got it {len(arguments.ids)} times"
        )
    named = [pair(text, "--id") for text in arguments.ids]
    with opened(arguments, read_only=False) as engine:
        position = engine.split(named[0], named[1] if len(named) == 2 else None, reason=arguments.reason)
    print(f"split from log position {position}")
    return 0
