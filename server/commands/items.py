"""`tailorbird items put FILE.jsonl` and `tailorbird items delete ID...`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from tailorbird.engine import Item
from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.data_directory import add_data_argument, opened
from tailorbird.server.sources.jsonl import open_file


class _ItemLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item as JSON names its fields; the engine's own struct is stored as an array."""

    id: str
    name: str = ""
    attributes: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    price: float = 0.0
    currency: str = ""
    stock: int = -1
    start: int = 0
    end: int = 0
    embedding: tuple[float, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="put|delete", required=True)
    put = verbs.add_parser("put", help="add items, or replace them whole")
    put.add_argument("file", metavar="FILE", type=Path, help="one JSON object a line, with an id")
    delete = verbs.add_parser("delete", help="take items out of the catalogue")
    delete.add_argument("items", metavar="ID", nargs="+")
    for verb in (put, delete):
        add_data_argument(verb)


def run(arguments: argparse.Namespace) -> int:
    # A catalogue is read before it is written: a damaged file changes nothing.
    items = list(read_items(arguments.file)) if arguments.verb == "put" else []
    with opened(arguments, read_only=False) as engine:
        batch_max = engine.configuration.limits.items_per_put_max
        if arguments.verb == "delete":
            position = engine.delete_items(arguments.items)
            print(f"deleted; in force from log position {position}")
            return 0
        position = engine.position
        rest = iter(items)
        while batch := list(islice(rest, batch_max)):
            position = engine.put_items(batch)
    print(f"put {len(items)} item(s); in force from log position {position}")
    return 0


def read_items(path: Path) -> Iterator[Item]:
    """Yield the items of a JSON Lines file. Raises `CallerError` with the line for what is none."""
    decoder = msgspec.json.Decoder(_ItemLine)
    line_number = 0
    try:
        with open_file(path) as file:
            for line in file:
                line_number += 1
                if line.strip():
                    yield Item(**msgspec.structs.asdict(decoder.decode(line.strip())))
    except FileNotFoundError:
        raise CallerError("NO_INPUT_FILE", f"expected a file of items at {path}, found none") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(
            "BAD_ITEM", f"expected one item a line, got: {error}, in {path} line {line_number}; nothing was put"
        ) from None
    except (EOFError, OSError) as error:
        raise CallerError(
            "DAMAGED_INPUT",
            f"expected to read {path} to its end, got {error} after line {line_number}; nothing was put",
        ) from None
