"""Timing: interleaved blocks of two peers, percentiles, ratios, and what the process holds and writes.

Two peers are timed in one process, in blocks that take turns, and who goes first alternates: what slows the machine
down for a second slows both. Inputs of a block are made before it is timed. The garbage collector is off while a block
runs, as in `timeit`. Each call is timed alone; the clock's own cost is taken off.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

NS_PER_US = 1_000.0

Input = TypeVar("Input")
PeerInput = TypeVar("PeerInput")


@dataclass(slots=True)
class Timings:
    """Nanoseconds of each call, by block."""

    blocks: list[NDArray[np.int64]] = field(default_factory=list)

    def percentile_us(self, percent: float) -> float:
        """Return a percentile over all calls, in microseconds."""
        return float(np.percentile(np.concatenate(self.blocks), percent)) / NS_PER_US


@dataclass(slots=True)
class Paired:
    """Ours and a peer, timed in the same blocks."""

    ours: Timings = field(default_factory=Timings)
    peer: Timings = field(default_factory=Timings)

    def ratio(self) -> float:
        """Return our median over the peer's median, all calls."""
        return self.ours.percentile_us(50) / self.peer.percentile_us(50)

    def ratio_by_block(self) -> float:
        """Return the median over the blocks of (our median over the peer's in the same block)."""
        pairs = zip(self.ours.blocks, self.peer.blocks, strict=True)
        return float(np.median([np.median(ours) / np.median(peer) for ours, peer in pairs]))


def time_calls(call: Callable[[Input], object], inputs: Sequence[Input]) -> NDArray[np.int64]:
    """Return the nanoseconds of each call of `call(input)`, at least 1, less the clock's own cost."""
    clock = time.perf_counter_ns
    spent = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for each in inputs:
            begin = clock()
            call(each)
            spent.append(clock() - begin)
    finally:
        if was_enabled:
            gc.enable()
    return np.maximum(np.array(spent, dtype=np.int64) - clock_cost_ns(), 1)


def time_blocks(
    call: Callable[[Input], object],
    inputs_of: Callable[[int], Sequence[Input]],
    *,
    block_count: int,
    between: Callable[[], object] | None = None,
) -> Timings:
    """Time one call over blocks; the first block of inputs only warms up."""
    timings = Timings()
    for block in range(block_count + 1):
        spent = time_calls(call, inputs_of(block))
        if block:
            timings.blocks.append(spent)
        if between is not None:
            between()
    return timings


def time_paired(
    ours: Callable[[Input], object],
    peer: Callable[[PeerInput], object],
    inputs_of: Callable[[int], tuple[Sequence[Input], Sequence[PeerInput]]],
    *,
    block_count: int,
    between: Callable[[], object] | None = None,
) -> Paired:
    """Time two calls in alternating blocks; the first block of inputs only warms up.

    `inputs_of(block)` makes both peers' inputs, untimed; `between` runs after each block, untimed.
    """
    paired = Paired()
    for block in range(block_count + 1):
        our_inputs, peer_inputs = inputs_of(block)
        if block % 2:
            ours_ns, peer_ns = time_calls(ours, our_inputs), time_calls(peer, peer_inputs)
        else:
            peer_ns, ours_ns = time_calls(peer, peer_inputs), time_calls(ours, our_inputs)
        if block:
            paired.ours.blocks.append(ours_ns)
            paired.peer.blocks.append(peer_ns)
        if between is not None:
            between()
    return paired


def in_turns(cases: Mapping[str, Callable[[int], float]], block_count: int) -> dict[str, NDArray[np.float64]]:
    """Return what each case measures in each block, the cases taking turns; the first block only warms up.

    `case(block)` measures once. The order of the cases turns round in every other block.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for block in range(block_count + 1):
        for name in cases if block % 2 else reversed(list(cases)):
            value = cases[name](block)
            if block:
                found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def ratio_by_block(found: Mapping[str, NDArray[np.float64]], above: str, below: str) -> float:
    """Return the median over the blocks of one case over another in the same block."""
    return float(np.median(found[above] / found[below]))


def clock_cost_ns(samples: int = 201) -> int:
    """Return the median nanoseconds between two readings of the clock with nothing in between."""
    clock = time.perf_counter_ns
    gaps = []
    for _ in range(samples):
        begin = clock()
        gaps.append(clock() - begin)
    return int(np.median(gaps))


def private_bytes() -> tuple[int, int]:
    """Return (private, anonymous) bytes of this process from /proc.

    Private counts pages no other process maps, also those of files (an LMDB map read by one process); anonymous only
    what is no file's: heap, stacks and arrays.
    """
    private = anonymous = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            private += int(rest.split()[0]) * 1024
        elif name == "Anonymous":
            anonymous = int(rest.split()[0]) * 1024
    return private, anonymous


def mapped_bytes(directory: Path) -> int:
    """Return how many private bytes of this process are pages of files below `directory`, from /proc."""
    total, is_below, root = 0, False, f"{directory.resolve()}/"
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):  # the head of a mapping; its path comes last
            is_below = root in rest
        elif is_below and first in ("Private_Clean:", "Private_Dirty:"):
            total += int(rest.split()[0]) * 1024
    return total


def written_bytes() -> int:
    """Return how many bytes this process has sent towards the disk so far, from /proc."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "write_bytes":
            return int(value)
    return 0
