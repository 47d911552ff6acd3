"""`tailorbird replay --verify`: the state is a function of the log, or it is not."""

from __future__ import annotations

import argparse

from tailorbird.engine.errors import CallerError
from tailorbird.engine.replay import verify
from tailorbird.server.commands.data_directory import add_data_argument, find_data_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    parser.add_argument(
        "--verify", action="store_true", help="replay the log from empty beside the state, compare the hashes"
    )


def run(arguments: argparse.Namespace) -> int:
    if not arguments.verify:
        raise CallerError("BAD_ARGUMENT", "expected --verify: a replay changes nothing, it compares")
    live, replayed = verify(find_data_directory(arguments.data))
    print(f"state    {live}\nreplayed {replayed}\n{'equal' if live == replayed else 'DIFFERENT'}")
    return 0 if live == replayed else 1
