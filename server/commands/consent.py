"""`tailorbird consent`: record a person's choice."""

from __future__ import annotations

import argparse

from tailorbird.engine.consent import Basis, parse_choice
from tailorbird.server.commands.arguments import add_id_argument, identifiers
from tailorbird.server.commands.data_directory import add_data_argument, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    add_id_argument(parser, "a name the person is known by; may be repeated")
    parser.add_argument(
        "--grant",
        metavar="CHOICE",
        required=True,
        help="such as granted:behavioural,transactional or granted:behavioural/collect+profile;denied:location",
    )
    add_basis_argument(parser)


def add_basis_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--basis`."""
    parser.add_argument(
        "--basis", default=str(Basis.EXPLICIT), help=f"what the choice rests on: {', '.join(Basis)} (default explicit)"
    )


def run(arguments: argparse.Namespace) -> int:
    choice = parse_choice(arguments.grant, arguments.basis)
    with opened(arguments, read_only=False) as engine:
        position = engine.set_consent(identifiers(arguments), choice)
    print(f"recorded; in force from log position {position}")
    return 0
