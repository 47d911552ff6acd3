"""`tailorbird features`: what is declared, what people's features are, and filling those that came late."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tailorbird.engine import Engine
from tailorbird.engine.backfill import BackfillProgress
from tailorbird.engine.compiled import CompiledConfiguration, compile_configuration
from tailorbird.engine.configuration import read_configuration
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import CallerError, Unavailable
from tailorbird.engine.feature_docs import COLUMNS, feature_rows, features_markdown
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.engine.profile import FeatureStatus
from tailorbird.engine.pushes import PushedRow
from tailorbird.engine.signals import IngestReport
from tailorbird.server.commands.arguments import add_consent_arguments, moment
from tailorbird.server.commands.data_directory import (
    CONFIGURATION,
    add_data_argument,
    find_data_directory,
    opened,
)
from tailorbird.server.commands.remote import add_address_arguments, feature_stub, remote_push
from tailorbird.server.labels import read_labels
from tailorbird.server.materialize import Materialized, Push, materialize
from tailorbird.server.moments import moment_text
from tailorbird.server.offline import ENGINES, table_columns, write_parquet
from tailorbird.v1 import feature_service_pb2


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
    add_address_arguments(backfill)
    export = verbs.add_parser("export", help="write a training set: features of people just before given moments")
    export.add_argument(
        "--labels", required=True, metavar="FILE", help="with a column of identifiers and one of times, `at`"
    )
    export.add_argument("--out", required=True, metavar="FILE.parquet", help="the labels' columns and the features'")
    export.add_argument("--feature", action="append", default=[], dest="names", metavar="NAME", help="default all")
    compute = verbs.add_parser(
        "materialize", help="compute features declared with `compute: batch` from files of events"
    )
    compute.add_argument(
        "--events", nargs="+", required=True, metavar="FILE", help="files or patterns: parquet, csv or jsonl"
    )
    compute.add_argument("--namespace", default="user_id", help="the column that names the person (default user_id)")
    compute.add_argument(
        "--feature", action="append", default=[], dest="names", metavar="NAME", help="default all of them"
    )
    compute.add_argument("--engine", default=ENGINES[0], help=f"{' or '.join(ENGINES)} (default {ENGINES[0]})")
    compute.add_argument("--at", metavar="TIME", help="a date, or milliseconds since 1970 (default: now)")
    compute.add_argument("--every", metavar="DURATION", help="again and again, such as 24h")
    add_consent_arguments(compute)
    add_address_arguments(compute)
    for verb in (listing, docs, get, backfill, export, compute):
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
        case "backfill":
            _backfill(arguments)
        case "export":
            _export(arguments)
        case _:
            _materialize(arguments)
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


def _export(arguments: argparse.Namespace) -> None:
    with opened(arguments, read_only=True) as engine:
        labels = read_labels(Path(arguments.labels), engine.configuration)
        table = engine.training_set(labels.namespace, labels.people, labels.times, arguments.names)
    columns = {name: labels.table.column(name) for name in labels.table.column_names}
    for name, values in table_columns(table).items():
        if name in columns:
            raise CallerError(
                "BAD_FILE", f"expected no column {name!r} among the labels, got one, in {arguments.labels}"
            )
        columns[name] = values
    write_parquet(columns, Path(arguments.out))
    rows, known = len(labels.people), int(table.known.sum())
    print(f"wrote {rows:,} rows of {len(table.names)} features to {arguments.out}; {known:,} of people who are known")


def _materialize(arguments: argparse.Namespace) -> None:
    every_s = duration_ms(arguments.every, "--every") / 1e3 if arguments.every else 0.0
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    choice = parse_choice(arguments.consent, arguments.basis) if arguments.consent else None
    while True:
        began = time.time()
        at = moment(arguments.at, 0) if arguments.at else round(began * 1_000)
        if arguments.address:
            currency = ""
            with remote_push(arguments.address, arguments.key, arguments.namespace, choice) as push:
                done = _compute(arguments, _declared(arguments), at, push, currency)
        else:
            with opened(arguments, read_only=False) as engine:

                def push(rows: Sequence[PushedRow], engine: Engine = engine) -> IngestReport:
                    return engine.push_features(arguments.namespace, rows, source="materialize", consent=choice)

                done = _compute(arguments, _declared(arguments), at, push, engine.currency)
        told = ", ".join(f"{count:,} {status}" for status, count in done.counts.items() if count)
        print(f"computed {done.people:,} people as of {moment_text(at)}: {told or 'nobody'}", flush=True)
        for outcome in done.refusals:
            print(f"  {outcome.status}: {outcome.reason}: {outcome.message}", file=sys.stderr)
        if not every_s or stopping.wait(max(0.0, began + every_s - time.time())):
            return


def _compute(
    arguments: argparse.Namespace, compiled: CompiledConfiguration, at: int, push: Push, currency: str
) -> Materialized:
    return materialize(
        compiled,
        arguments.names,
        arguments.events,
        arguments.namespace,
        at,
        push,
        engine=arguments.engine,
        currency=currency,
    )


def _show(progress: BackfillProgress) -> None:
    print(
        f"read {progress.read:,} of {progress.end:,} records, wrote {progress.written:,} of {progress.found:,} fragments",
        file=sys.stderr,
    )


def _backfill_remotely(address: str, key: str) -> tuple[str, ...]:
    """Backfill in a running service, showing its progress; return the features."""
    with feature_stub(address, key) as (stub, metadata):
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
    raise Unavailable("CALL_FAILED", f"expected {address} to finish, got the end of its answers; start it again")
