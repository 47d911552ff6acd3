"""`tailorbird decisions`: what was decided, why, what came of it, and whether it would be decided again."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tailorbird.engine.configuration import read_configuration
from tailorbird.engine.decision_id import DecisionIds
from tailorbird.engine.decision_log import SEGMENT_HEADER_BYTES, find, list_segments, read_all, read_segment
from tailorbird.engine.decision_outcomes import find_outcomes
from tailorbird.engine.decision_record import LoggedDecision, Stored
from tailorbird.engine.decision_replay import replay_decisions
from tailorbird.engine.decision_table import export_parquet, id_of
from tailorbird.engine.directory import Directory
from tailorbird.engine.durations import duration_ms
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.log import LocalLog
from tailorbird.server.commands.arguments import add_id_argument, identifiers, moment
from tailorbird.server.commands.data_directory import add_data_argument, find_data_directory, opened
from tailorbird.server.commands.decide import decision_lines
from tailorbird.server.moments import moment_text

FOLLOW_S = 0.2
DIFFERENCES_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    tail = verbs.add_parser("tail", help="the newest decisions, one a line")
    tail.add_argument("--count", type=int, default=10, metavar="N", help="how many to begin with (default 10)")
    tail.add_argument("--follow", action="store_true", help="and those to come")
    show = verbs.add_parser("show", help="one decision and its outcomes")
    show.add_argument("id", help="the decision id as the answer had it")
    show.add_argument("--json", action="store_true", help="print JSON")
    replay = verbs.add_parser("replay", help="decide again as of the log positions, and compare bit for bit")
    replay.add_argument("--decision", metavar="ID", help="this decision alone")
    export = verbs.add_parser("export", help="write decisions as columns")
    export.add_argument("--parquet", type=Path, required=True, metavar="FILE", help="the file to write")
    for verb in (replay, export):
        verb.add_argument("--since", metavar="TIME", help="decided at this time or later: a date, or ms since 1970")
        verb.add_argument("--until", metavar="TIME", help="decided before this time")
    erase = verbs.add_parser("erase", help="overwrite all decisions on a person")
    add_id_argument(erase, "a name the person is known by; may be repeated")
    for verb in (tail, show, replay, export, erase):
        add_data_argument(verb)


def run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "erase":
        with opened(arguments, read_only=True) as engine:
            print(f"{engine.erase_decisions(identifiers(arguments))} decision(s) overwritten")
        return 0
    directory = Directory(find_data_directory(arguments.data))
    directory.prepare(create=False)
    ids = DecisionIds(IdentifierHasher(directory.read_identity_key()))
    if arguments.verb == "tail":
        return _tail(directory, ids, arguments)
    if arguments.verb == "show":
        return _show(directory, ids, arguments)
    if arguments.verb == "replay":
        return _replay(directory, ids, arguments)
    print(
        f"{export_parquet(arguments.parquet, _between(directory, arguments), ids)} decision(s) in {arguments.parquet}"
    )
    return 0


def _between(directory: Directory, arguments: argparse.Namespace) -> Iterator[Stored]:
    now = time.time_ns() // 1_000_000
    since = moment(arguments.since, now) if arguments.since else -(1 << 63)
    until = moment(arguments.until, now) if arguments.until else 1 << 63
    return (stored for stored in read_all(directory.decisions) if since <= stored.at < until)


# ---- tail --------------------------------------------------------------------------------------------------------


def _tail(directory: Directory, ids: DecisionIds, arguments: argparse.Namespace) -> int:
    newest: list[Stored] = []
    ends: dict[Path, int] = {}
    for segment in list_segments(directory.decisions):
        newest = [*newest, *read_segment(segment)][-max(1, arguments.count) :]
    for stored in newest if arguments.count else []:
        print(_line(stored, ids))
    if not arguments.follow:
        return 0
    for segment in list_segments(directory.decisions):
        ends[segment.path] = segment.path.stat().st_size
    while True:
        time.sleep(FOLLOW_S)
        for segment in list_segments(directory.decisions):
            start = ends.get(segment.path, SEGMENT_HEADER_BYTES)
            for stored in read_segment(segment, start):
                print(_line(stored, ids), flush=True)
                start = stored.end
            ends[segment.path] = start


def _line(stored: Stored, ids: DecisionIds) -> str:
    if not stored.payload:
        return f"{moment_text(stored.at)}  {'damaged' if stored.payload is None else 'erased'}"
    logged = stored.logged()
    assert logged is not None
    items = " ".join(item.id for item in logged.items)
    return (
        f"{moment_text(stored.at)}  {id_of(stored, logged, ids)}  {logged.placement}  {logged.tier}  {items}".rstrip()
    )


# ---- show --------------------------------------------------------------------------------------------------------


def _show(directory: Directory, ids: DecisionIds, arguments: argparse.Namespace) -> int:
    attempts = find(directory.decisions, ids, arguments.id)
    configuration, _ = read_configuration(directory.configuration)
    window = duration_ms(configuration.decision_log.outcome_window, "decision_log.outcome_window")
    oldest = min(attempts, key=lambda stored: stored.position)
    log = LocalLog.open(directory.log, read_only=True)
    try:
        until = max(stored.at for stored in attempts) + window
        outcomes = list(find_outcomes(log, arguments.id, oldest.position, until))
    finally:
        log.close()
    if arguments.json:
        found = [_as_json(stored, arguments.id) for stored in attempts]
        answer = {"decisions": found, "outcomes": [outcome._asdict() for outcome in outcomes]}
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return 0
    for stored in attempts:
        logged = stored.logged()
        if logged is None:
            print(f"{moment_text(stored.at)}: erased with the person it was about\n")
            continue
        print("\n".join(decision_lines(stored.decision(arguments.id, logged), {})))
        print("\n".join(_asked_lines(logged)), end="\n\n")
    print(f"{len(outcomes)} outcome(s) within {configuration.decision_log.outcome_window}")
    for outcome in outcomes:
        print(f"  {moment_text(outcome.event_time)}  {outcome.type}  {' '.join(outcome.items)}".rstrip())
    return 0


def _as_json(stored: Stored, decision_id: str) -> dict[str, object]:
    logged = stored.logged()
    if logged is None:
        return {"at": stored.at, "position": stored.position, "erased": True}
    return {
        **msgspec.to_builtins(stored.decision(decision_id, logged)),
        "context": logged.context,
        "given_count": logged.given_count,
        "candidates": logged.candidates,
        "model": logged.model,
        "withheld": logged.withheld,
    }


def _asked_lines(logged: LoggedDecision) -> list[str]:
    context = ", ".join(f"{name}={value}" for name, value in logged.context.items()) or "no context"
    asked = f"asked for {logged.placement} with {context}"
    if logged.given_count:
        asked += f" among {logged.given_count} candidates"
    if logged.events:
        asked += f" after {len(logged.events)} event(s)"
    lines = [asked]
    if logged.model:
        lines.append(f"model {logged.model}")
    if logged.withheld:
        lines.append("the person does not let decisions be kept: nothing of theirs was")
    return lines


# ---- replay ------------------------------------------------------------------------------------------------------


def _replay(directory: Directory, ids: DecisionIds, arguments: argparse.Namespace) -> int:
    named = arguments.decision
    wanted = find(directory.decisions, ids, named) if named else list(_between(directory, arguments))
    passed: Counter[str] = Counter()
    same = partly = different = 0
    for each in replay_decisions(directory.root, wanted):
        if each.passed is not None:
            passed[each.passed] += 1
        elif not each.difference:
            same += each.whole
            partly += not each.whole
        else:
            different += 1
            if different <= DIFFERENCES_SHOWN:
                logged = each.stored.logged()
                assert logged is not None
                name = id_of(each.stored, logged, ids)
                print(f"DIFFERENT {name} at position {each.stored.position}: {each.difference}")
    print(f"{same} identical to the bit, {different} different")
    if partly:
        print(
            f"{partly} identical in order and reasons; their candidates were not kept (decision_log.candidates_sampled)"
        )
    for reason, count in sorted(passed.items()):
        print(f"{count} not replayed: {PASSED[reason]}")
    return 1 if different else 0


PASSED = {
    "erased": "erased with the person",
    "withheld": "the person does not let decisions be kept",
    "no_log": "the fact log begins after them, and no snapshot is older",
    "damaged": "the record is damaged",
}
