"""Timing helpers: what is compared with what, and in which order."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tailorbird.bench.measure import Paired, Timings, private_bytes, time_blocks, time_calls, time_paired, written_bytes


def timings(*blocks: list[int]) -> Timings:
    return Timings([np.array(block, dtype=np.int64) for block in blocks])


def test_percentiles_are_over_all_calls_in_microseconds() -> None:
    assert timings([1_000, 2_000], [3_000]).percentile_us(50) == 2.0
    assert timings([1_000, 2_000], [3_000]).percentile_us(100) == 3.0


def test_ratios_compare_medians_over_all_and_block_by_block() -> None:
    # The machine was ten times slower during the second block, for both.
    paired = Paired(timings([20, 20, 20], [200, 200, 200]), timings([10, 10, 10], [100, 100, 100]))
    assert paired.ratio_by_block() == 2.0
    assert paired.ratio() == 2.0
    skewed = Paired(timings([30], [20], [20]), timings([10], [10], [10]))
    assert skewed.ratio_by_block() == 2.0


def test_peers_take_turns_and_the_first_block_is_not_counted() -> None:
    order: list[tuple[str, int]] = []
    gaps: list[int] = []
    paired = time_paired(
        lambda given: order.append(("ours", given)),
        lambda given: order.append(("peer", given)),
        lambda block: ([block], [block]),
        block_count=3,
        between=lambda: gaps.append(len(order)),
    )
    assert order == [
        ("peer", 0), ("ours", 0), ("ours", 1), ("peer", 1), ("peer", 2), ("ours", 2), ("ours", 3), ("peer", 3),
    ]  # fmt: skip
    assert gaps == [2, 4, 6, 8]
    assert len(paired.ours.blocks) == len(paired.peer.blocks) == 3


def test_one_call_is_timed_over_blocks_of_inputs() -> None:
    seen: list[int] = []
    timed = time_blocks(seen.append, lambda block: [block, block], block_count=2)
    assert seen == [0, 0, 1, 1, 2, 2]
    assert [len(block) for block in timed.blocks] == [2, 2]


def test_the_collector_is_off_during_calls_and_on_again_after_a_failure() -> None:
    assert gc.isenabled()
    states: list[bool] = []
    spent = time_calls(lambda _: states.append(gc.isenabled()), [None, None])
    assert states == [False, False]
    assert (spent >= 1).all()
    with pytest.raises(ZeroDivisionError):
        time_calls(lambda given: 1 // given, [0])
    assert gc.isenabled()


def test_private_memory_grows_with_what_is_held() -> None:
    private, anonymous = private_bytes()
    held = np.ones(64 << 20, dtype=np.uint8)
    assert private_bytes()[0] - private > 48 << 20
    assert private_bytes()[1] - anonymous > 48 << 20
    assert held[-1] == 1
    assert written_bytes() >= 0
