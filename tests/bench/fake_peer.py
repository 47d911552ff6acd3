"""A peer for the tests of `bench peers`, see bench/peers/subject.py: its operations take no time and need nothing installed."""

from __future__ import annotations

import os
import random
import sys
from typing import Any

from tailorbird.bench.peers.subject import Operation, Subject

NAMES = ["get_1", "get_100"] + [
    f"{operation}_{form}{count}"
    for operation in ("predict", "parse")
    for form in ("", "embedding_")
    for count in (100, 1_000)
]


def open_subject(options: dict[str, Any]) -> Subject:
    """Return operations that do nothing, and some that go wrong."""
    if "refuse" in options:
        print("refused, as the test has it", file=sys.stderr)
        raise SystemExit(3)
    print("a peer may print before it is ready")
    released: list[int] = []

    def fail(number: int) -> None:
        raise ValueError(f"no {number}, as the test has it")

    def count_released(number: int) -> int:
        if len(released) != number:
            raise ValueError(f"expected {number} results to be released, got {len(released)}")
        print("a peer may print while it is timed")
        return number

    numbers = iter(range(1_000_000))
    operations = {name: Operation(str, draw) for name in NAMES}
    operations["fail"] = Operation(fail, draw)
    operations["leave"] = Operation(os._exit, lambda _: 7)
    operations["released"] = Operation(count_released, lambda _: next(numbers), released.append)
    return Subject(
        operations,
        versions={"fake": "1.0", "isolated": str(sys.flags.isolated)},
        settings=f"options {sorted(options)}",
        facts={"request_hex": b"what is asked".hex()},
    )


def draw(draws: random.Random) -> int:
    """Return a number."""
    return draws.randrange(1_000)
