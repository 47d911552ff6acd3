"""`tailorbird train cooccurrence`: models from the log, in force at once."""

from __future__ import annotations

import argparse

from tailorbird.server.commands.data_directory import add_data_argument, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    parser.add_argument("model", choices=["cooccurrence"], help="what was bought together")


def run(arguments: argparse.Namespace) -> int:
    with opened(arguments, read_only=False) as engine:
        for name, value in engine.train_cooccurrence().items():
            print(f"{name}: {value}")
    return 0
