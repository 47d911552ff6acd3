"""The other side of `tailorbird bench peers`: runs a peer in its own process, with the peer's own interpreter.

    build/peers/NAME/bin/python subject.py MODULE.py

Standard library only, and no import of Tailorbird: nothing of ours is in a peer's environment. Speaks JSON lines. The first
line in holds the options for `open_subject(options)` of the module; the first line out is {"ready": {"versions", "settings",
"facts"}}. Then {"operation", "calls", "seed"} is answered by {"spent_ns": [...]}, each call timed alone. What goes wrong is
answered by {"error": ...}. Ends when standard input ends.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Operation:
    """What is timed: `call(input)`. The input is drawn before, and `release(what call returned)` runs after, both untimed."""

    call: Callable[[Any], Any]
    draw: Callable[[random.Random], Any]
    release: Callable[[Any], object] | None = None


@dataclass(frozen=True)
class Subject:
    """A peer, ready: its operations by name, its versions, how it was configured, and what the bench needs to know."""

    operations: dict[str, Operation]
    versions: dict[str, str]
    settings: str
    facts: dict[str, str] = field(default_factory=dict)


def load_module(path: str) -> ModuleType:
    """Return the module in a file. What it imports as tailorbird.bench.peers.subject is this module, the only one there is."""
    sys.modules.setdefault("tailorbird.bench.peers.subject", sys.modules[__name__])
    spec = importlib.util.spec_from_file_location("peer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def time_operation(operation: Operation, call_count: int, seed: int) -> list[int]:
    """Return the nanoseconds of each call, at least 1, less the clock's own cost; the collector is off meanwhile."""
    draws = random.Random(seed)
    inputs = [operation.draw(draws) for _ in range(call_count)]
    clock, call, release = time.perf_counter_ns, operation.call, operation.release
    spent = []
    gc.collect()
    gc.disable()
    try:
        for each in inputs:
            begin = clock()
            result = call(each)
            spent.append(clock() - begin)
            if release is not None:
                release(result)
    finally:
        gc.enable()
    cost = clock_cost_ns()
    return [max(1, each - cost) for each in spent]


def clock_cost_ns(samples: int = 201) -> int:
    """Return the median nanoseconds between two readings of the clock with nothing in between."""
    clock = time.perf_counter_ns
    gaps = []
    for _ in range(samples):
        begin = clock()
        gaps.append(clock() - begin)
    return int(median(gaps))


def answer(subject: Subject, line: str) -> dict[str, object]:
    """Answer one request."""
    request = json.loads(line)
    name = request["operation"]
    operation = subject.operations.get(name)
    if operation is None:
        return {"error": f"expected one of {', '.join(sorted(subject.operations))}, got {name}"}
    return {"spent_ns": time_operation(operation, request["calls"], request["seed"])}


def main() -> None:
    """Serve requests until standard input ends."""
    # A peer may print what it likes: only answers go to the bench.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    options = json.loads(sys.stdin.readline())
    subject: Subject = load_module(sys.argv[1]).open_subject(options)
    ready = {"versions": subject.versions, "settings": subject.settings, "facts": subject.facts}
    answers.write(json.dumps({"ready": ready}) + "\n")
    for line in sys.stdin:
        try:
            found = answer(subject, line)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
