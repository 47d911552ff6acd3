"""`tailorbird decide`: one decision, with reasons, tier and the time it took. Nothing is written."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tailorbird.engine import DecideRequest, Decision
from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.arguments import add_id_argument, moment, pairs
from tailorbird.server.commands.data_directory import add_data_argument, opened
from tailorbird.server.moments import moment_text

NAME_WIDTH_MAX = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    parser.add_argument("--placement", required=True, help="a placement of the configuration")
    add_id_argument(parser, "a name the visitor is known by; may be repeated; none for a visitor nobody knows")
    parser.add_argument(
        "--context", metavar="NAME=VALUE", action="append", default=[], help="what is true now, such as country=France"
    )
    parser.add_argument(
        "--candidates", metavar="FILE|ID,ID", help="choose among these item ids (a file has one a line)"
    )
    parser.add_argument("--at", metavar="TIME", help="latest, a date, or milliseconds since 1970 (default: now)")
    parser.add_argument(
        "--k", type=int, default=0, metavar="N", help="how many items (default: the placement's number)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    with opened(arguments, read_only=True) as engine:
        request = DecideRequest(
            placement=arguments.placement,
            identifiers=pairs(arguments.ids, "--id"),
            context=pairs(arguments.context, "--context"),
            candidates=candidate_ids(arguments.candidates),
            # The engine's own clock when none is given; both decisions below must be of one moment.
            at=moment(arguments.at, engine.latest_event_time) if arguments.at else time.time_ns() // 1_000_000,
            k=arguments.k,
        )
        started_ns = time.perf_counter_ns()
        engine.decide(request)
        first_ns = time.perf_counter_ns()
        decision = engine.decide(request)
        second_ns = time.perf_counter_ns()
        names = engine.item_names(item.id for item in decision.items)
    taken_us = {"first_us": (first_ns - started_ns) / 1_000, "again_us": (second_ns - first_ns) / 1_000}
    if arguments.json:
        answer = {**msgspec.to_builtins(decision), "time_taken": taken_us}
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())
    else:
        print("\n".join(decision_lines(decision, names)))
        print(f"time taken {taken_us['again_us']:.0f} µs, {taken_us['first_us']:.0f} µs the first time in this process")
    return 0


def candidate_ids(text: str | None) -> tuple[str, ...]:
    """Return the ids of `id,id` or of a file with one id a line. Raises `CallerError` BAD_ARGUMENT."""
    if text is None:
        return ()
    path = Path(text)
    if not path.is_file():
        return tuple(filter(None, (part.strip() for part in text.split(","))))
    try:
        return tuple(filter(None, (line.strip() for line in path.read_text("utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise CallerError(
            "BAD_ARGUMENT", f"expected a readable UTF-8 file, got {error} in --candidates {text}"
        ) from None


def decision_lines(decision: Decision, names: Mapping[str, str]) -> list[str]:
    """Return a decision as a table for people; `names` has the names of items by id."""
    rows = [("", "id", "name", "score", "reasons")]
    for rank, item in enumerate(decision.items, 1):
        reasons = ", ".join(f"{reason.reason} {reason.detail}".strip() for reason in item.reasons)
        rows.append((str(rank), item.id, names.get(item.id, "")[:NAME_WIDTH_MAX], f"{item.score:.5f}", reasons))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for number, item_id, name, score, reasons in rows:
        cells = (
            number.rjust(widths[0]),
            item_id.ljust(widths[1]),
            name.ljust(widths[2]),
            score.rjust(widths[3]),
            reasons,
        )
        lines.append("  ".join(cells).rstrip())
    known = f"person {decision.person_id}" if decision.person_id else "nobody known"
    lines += [
        "",
        f"tier {decision.tier}, {known}, as of {moment_text(decision.at)}, log position {decision.position}",
        f"{decision.candidate_count} candidates, {decision.excluded_count} excluded",
        f"profile {decision.completeness:.0%} complete, {decision.masked_count} feature(s) withheld by consent",
    ]
    if decision.unknown_candidate_count:
        lines.append(f"{decision.unknown_candidate_count} candidates are not in the catalogue")
    if decision.degraded:
        lines.append(f"missing: {', '.join(decision.degraded)}")
    return lines
