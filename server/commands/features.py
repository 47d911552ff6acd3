"""`tailorbird features`: what is declared, what people's features are, and filling those that came late."""

from __future__ import annotations

import argparse
import json
import sys

import grpc

from tailorbird.engine.backfill import BackfillProgress
from tailorbird.engine.compiled import CompiledConfiguration, compile_configuration
from tailorbird.engine.configuration import read_configuration
from tailorbird.engine.errors import CallerError, Unavailable
from tailorbird.engine.feature_docs import COLUMNS, feature_rows, features_markdown
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.engine.profile import FeatureStatus
from tailorbird.server.commands.arguments import moment
from tailorbird.server.commands.data_directory import (
    CONFIGURATION,
    add_data_argument,
    find_data_directory,
    opened,
)
from tailorbird.v1 import feature_service_pb2, feature_service_pb2_grpc


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="show the declared features")
    docs = verbs.add_parser("docs", help="write the declared features as a page in Markdown")
    get = verbs.add_parser("get", help="show features of people")
    get.add_argument("people", nargs="+", metavar="NAMESPACE=VALUE", help="one namespace for all, such as user_id=17")
    get.add_argument("--feature", action="append", default=[], dest="names", metavar="NAME", help="default all")
    get.add_argument("--at", metavar="TIME", help="latest, a date, or milliseconds since 1970 (default: now)")
    get.add_argument("--json", action="store_true", help="print JSON, a line per person")
    backfill = verbs.add_parser("backfill", help="fill features that were declared late from the whole log")
    backfill.add_argument("--address", metavar="HOST:PORT", help="of a running service that has the directory open")
    backfill.add_argument("--key", default="", help="with the scope admin, where the service asks for keys")
    for verb in (listing, docs, get, backfill):
        add_data_argument(verb)


def run(arguments: argparse.Namespace) -> int:
    match arguments.verb:
        case "list":
            rows = [COLUMNS, *feature_rows(_declared(arguments))]
            widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
            for row in rows:
                print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        case "docs":
            sys.stdout.write(features_markdown(_declared(arguments)))
        case "get":
            _get(arguments)
        case _:
            _backfill(arguments)
    return 0


def _declared(arguments: argparse.Namespace) -> CompiledConfiguration:
    _, text = read_configuration(find_data_directory(arguments.data) / CONFIGURATION)
    return compile_configuration(text, 1, 1)


def _get(arguments: argparse.Namespace) -> None:
    pairs = [text.partition("=") for text in arguments.people]
    namespaces = {namespace for namespace, _, _ in pairs}
    if len(namespaces) > 1 or not all(equals for _, equals, _ in pairs):
        raise CallerError(
            "BAD_ARGUMENT",
            f"expected people as NAMESPACE=VALUE, all of one namespace, got {' '.join(arguments.people)}",
        )
    people = [value for _, _, value in pairs]
    with opened(arguments, read_only=True) as engine:
        at = moment(arguments.at, engine.latest_event_time) if arguments.at else 0
        table = engine.get_features(namespaces.pop(), people, arguments.names, at=at)
    for row, person in enumerate(people):
        if arguments.json:
            print(json.dumps({"person": person, "known": bool(table.known[row]), "features": _values(table, row)}))
        else:
            print(f"{person}: {'known' if table.known[row] else 'a stranger'}, {table.completeness[row]:.0%} complete")
            for name, (status, value) in _values(table, row).items():
                print(f"  {name:<32} {status:<10} {'' if value is None else value}".rstrip())


def _values(table: FeatureTable, row: int) -> dict[str, tuple[str, object]]:
    """Return (status, value) of each feature of a person."""
    found: dict[str, tuple[str, object]] = {}
    for column, name in enumerate(table.names):
        status = FeatureStatus(int(table.statuses[row, column]))
        value: object
        if name in table.texts:
            value = table.texts[name][row]
        elif name in table.weighted:
            value = table.weighted[name][row]
        else:
            value = float(table.values[row, column])
            value = None if value != value else value
        found[name] = status.name.lower(), value
    return found


def _backfill(arguments: argparse.Namespace) -> None:
    if arguments.address:
        names = _backfill_remotely(arguments.address, arguments.key)
    else:
        with opened(arguments, read_only=False) as engine:
            names = engine.backfill(_show)
    print(f"backfilled {', '.join(names)}" if names else "nothing is warming")


def _show(progress: BackfillProgress) -> None:
    print(
        f"read {progress.read:,} of {progress.end:,} records, wrote {progress.written:,} of {progress.found:,} fragments",
        file=sys.stderr,
    )


def _backfill_remotely(address: str, key: str) -> tuple[str, ...]:
    """Backfill in a running service, showing its progress; return the features."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    with grpc.insecure_channel(address) as channel:
        stub = feature_service_pb2_grpc.FeatureServiceStub(channel)
        try:
            for answer in stub.BackfillFeatures(feature_service_pb2.BackfillFeaturesRequest(), metadata=metadata):
                if answer.finished:
                    return tuple(answer.features)
                _show(
                    BackfillProgress(
                        tuple(answer.features),
                        answer.records_read,
                        answer.records_end,
                        answer.fragments_written,
                        answer.fragments_found,
                    )
                )
        except grpc.RpcError as error:
            raise Unavailable(
                "BACKFILL_FAILED", f"expected {address} to backfill, got {error.code().name}: {error.details()}"
            ) from None
    raise Unavailable("BACKFILL_FAILED", f"expected {address} to finish, got the end of its answers; start it again")
