"""`tailorbird link`: two identifiers are one person."""

from __future__ import annotations

import argparse

from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.arguments import add_id_argument, pair
from tailorbird.server.commands.data_directory import add_data_argument, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    add_id_argument(parser, "given twice: the two identifiers")


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.ids) != 2:
        raise CallerError("BAD_ARGUMENT", f"expected --id NAMESPACE=VALUE twice, got it {len(arguments.ids)} times")
    one, other = (pair(text, "--id") for text in arguments.ids)
    with opened(arguments, read_only=False) as engine:
        position = engine.link(one, other)
    print(f"linked from log position {position}")
    return 0
