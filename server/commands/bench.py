"""`tailorbird bench NAME`: measure. The benchmarks are modules of `tailorbird.bench`, imported only here."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tailorbird.engine.errors import CallerError, PreconditionFailed

# Name and what it measures; `all` runs those that need no input of the user's.
BENCHES: dict[str, str] = {
    "engine": "a decision against bare numpy, a profile against a bare read",
    "stages": "where the time of a decision goes",
    "ingest": "signals a second against bare LMDB writes",
    "quality": "how good the decisions are, on real orders",
    "features": "reading features against Feast, updating them, what a profile takes (needs make bench-peers)",
    "propensity": "a learned score on real sessions, against logistic regression and LightGBM",
    "crash": "kill -9 at random moments of a mixed load",
    "powerfail": "the log after every order of lost writes",
    "rpc": "the transports against each other, Decide against an echo",
    "overload": "what a server gets done that is asked for too much, and how soon it recovers",
    "service": "the service as several processes: beside ingest, visibility, repeats, rolling restarts",
    "soak": "whether anything grows, fails or leaks under load for a long time",
    "peers": "decisions against Feast and Vowpal Wabbit, the transport against C++ gRPC (needs `make bench-peers`)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, text in BENCHES.items():
        if importlib.util.find_spec(f"tailorbird.bench.{name}") is None:
            continue
        bench_parser = names.add_parser(name, help=text, description=f"Measures {text}.")
        _module(name).add_arguments(bench_parser)
        bench_parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
        if hasattr(_module(name), "MUSTS"):
            bench_parser.add_argument("--check", action="store_true", help="end non-zero where a must is missed")
    everything = names.add_parser("all", help="all that need no input", description="Runs all that need no input.")
    everything.add_argument("--quick", action="store_true", help="small sizes")
    everything.add_argument("--json", type=Path, metavar="DIR", help="write NAME.json for each into this directory")


def run(arguments: argparse.Namespace) -> int:
    if arguments.bench != "all":
        results = _measure(arguments.bench, arguments, arguments.json)
        is_checked = getattr(arguments, "check", False) or getattr(_module(arguments.bench), "ALWAYS_CHECKED", False)
        return _check(arguments.bench, results) if is_checked else 0
    for name in BENCHES:
        options = None
        if importlib.util.find_spec(f"tailorbird.bench.{name}") is not None:
            options = _without_input(name, quick=arguments.quick)
        if options is None:
            print(f"{name}: needs input of its own, see `tailorbird bench {name} --help`")
            continue
        try:
            _measure(name, options, arguments.json / f"{name}.json" if arguments.json else None)
        except PreconditionFailed as missing:
            print(f"{name}: {missing}")
    return 0


def _measure(name: str, options: argparse.Namespace, path: Path | None) -> dict[str, object]:
    results = _module(name).run(options)
    if not isinstance(results, dict):
        raise CallerError(
            "BAD_BENCH", f"expected a dict of results from tailorbird.bench.{name}, got {type(results).__name__}"
        )
    importlib.import_module("tailorbird.bench.report").write_report(name, results, path)
    return results


def _check(name: str, results: dict[str, object]) -> int:
    """Tell each must of a benchmark that its results missed; return the exit code."""
    faults = importlib.import_module("tailorbird.bench.musts").missed(results, _module(name).MUSTS)
    for fault in faults:
        print(f"missed: {name}: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _without_input(name: str, *, quick: bool) -> argparse.Namespace | None:
    """Return a benchmark's default options, quick where it can be, or None where it has a required one."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    _module(name).add_arguments(parser)
    can_be_quick = "--quick" in parser.format_help()
    try:
        return parser.parse_args(["--quick"] if quick and can_be_quick else [])
    except (argparse.ArgumentError, SystemExit):
        return None


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tailorbird.bench.{name}")
