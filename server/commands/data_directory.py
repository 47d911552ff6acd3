"""Which data directory a command works on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError

CONFIGURATION = "tailorbird.yaml"
VARIABLE = "TAILORBIRD_DATA_DIR"


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--data DIR`."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        help=f"the data directory (default: {VARIABLE}, or the one {CONFIGURATION} here or just below)",
    )


@contextmanager
def opened(arguments: argparse.Namespace, *, read_only: bool) -> Iterator[Engine]:
    """Open the engine of the data directory the arguments lead to, and close it.

    A directory that holds a configuration and nothing else is made ready first, even by a command that only reads.
    """
    path = find_data_directory(arguments.data)
    with Engine.open(path, read_only=read_only and (path / "state").exists()) as engine:
        yield engine


def find_data_directory(named: str | None) -> Path:
    """Return `--data`, else TAILORBIRD_DATA_DIR, else the current directory or its only child with a configuration.

    Raises `CallerError` NO_DATA_DIRECTORY or SEVERAL_DATA_DIRECTORIES, saying what to do.
    """
    for value, origin in ((named, "--data"), (os.environ.get(VARIABLE), VARIABLE)):
        if value:
            path = Path(value)
            if not (path / CONFIGURATION).is_file():
                raise CallerError(
                    "NO_DATA_DIRECTORY",
                    f"expected a directory with {CONFIGURATION}, got {value!r} in {origin}; "
                    f"`tailorbird init {value}` makes one",
                )
            return path
    here = Path.cwd()
    if (here / CONFIGURATION).is_file():
        return here
    below = sorted(path.parent for path in here.glob(f"*/{CONFIGURATION}"))
    if len(below) == 1:
        return below[0]
    if below:
        raise CallerError(
            "SEVERAL_DATA_DIRECTORIES",
            f"expected one data directory below {here}, got {', '.join(path.name for path in below)}; "
            "choose with --data DIR",
        )
    raise CallerError(
        "NO_DATA_DIRECTORY",
        f"expected {CONFIGURATION} in {here} or in one directory below, found none; `tailorbird init DIR` makes a data "
        f"directory, --data DIR or {VARIABLE} names one",
    )
