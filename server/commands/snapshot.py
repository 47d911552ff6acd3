"""`tailorbird snapshot`: a copy of the state, to start from after damage."""

from __future__ import annotations

import argparse

from tailorbird.server.commands.data_directory import add_data_argument, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    with opened(arguments, read_only=False) as engine:
        path = engine.snapshot()
        print(f"wrote {path} at log position {engine.position}")
        print(f"state hash {engine.state_hash()}")
    return 0
