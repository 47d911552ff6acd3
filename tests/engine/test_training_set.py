"""Training sets equal what the service would have said at each moment, and nothing of the future is in them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tailorbird.engine import Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import CallerError, NotFound
from tailorbird.engine.profile import FeatureStatus
from tailorbird.engine.pushes import PushedRow
from tests.engine.shops import DAY, START, Clock, open_shop, signal
from tests.engine.test_backfill import ADDED, BASE, NAMES, catalogue, events, ingest

LAST = START + 500 * 3_600_000


@pytest.mark.parametrize("seed", range(3))
def test_each_row_is_what_would_have_been_read_just_before(tmp_path: Path, seed: int) -> None:
    """Events in the order of their time, asked about between any two of them; the export must say the same afterwards."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    devices = [f"d{person}{device}" for person in range(5) for device in range(3)]
    asked: list[tuple[str, int]] = []
    said = []
    with open_shop(tmp_path, BASE + ADDED, clock=Clock(LAST)) as engine:
        engine.put_items(catalogue())
        for person in range(5):  # people stay who they are: only what they do changes with time
            for device in range(3):
                engine.link(("anonymous_id", f"d{person}{device}"), ("user_id", f"user{person}"))
        for event in sorted(events(seed, 0, 120), key=lambda event: event.event_time):
            device, at = rng.choice(devices), event.event_time
            table = engine.get_features("anonymous_id", [device], NAMES, at=at)
            if any(
                at == before for _, before in asked
            ):  # then the event before is of the same time, and does not count
                ingest(engine, [event])
                continue
            asked.append((device, at))
            said.append(table)
            ingest(engine, [event])
        order = list(range(len(asked)))
        rng.shuffle(order)
        found = engine.training_set("anonymous_id", [asked[n][0] for n in order], [asked[n][1] for n in order], NAMES)
        for row, n in enumerate(order):
            known = said[n].known[0]
            if not known:
                continue
            np.testing.assert_array_equal(found.values[row], said[n].values[0], err_msg=str(asked[n]))
            np.testing.assert_array_equal(found.ages_ms[row], said[n].ages_ms[0])
            assert {name: texts[row] for name, texts in found.texts.items()} == {
                name: texts[0] for name, texts in said[n].texts.items()
            }
            assert {name: keys[row] for name, keys in found.weighted.items()} == {
                name: keys[0] for name, keys in said[n].weighted.items()
            }
        assert (found.statuses == FeatureStatus.FRESH).mean() > 0.5


def test_the_event_of_the_label_and_later_ones_do_not_count(tmp_path: Path) -> None:
    with open_shop(tmp_path, BASE, clock=Clock(START + DAY)) as engine:
        ingest(engine, [signal(f"p{n}", "page_viewed", START + n * 10) for n in (3, 1, 2)])  # one of them late
        times = [START, START + 10, START + 11, START + 30, START + 31]
        found = engine.training_set("anonymous_id", ["v1"] * 5, times)
        assert found.statuses[:, 0].tolist() == [2, 2, 0, 0, 0]
        assert found.values[2:, 0].tolist() == [1.0, 2.0, 3.0]


def test_only_what_may_be_trained_on_is_exported(tmp_path: Path) -> None:
    with open_shop(tmp_path, BASE, clock=Clock(START + DAY)) as engine:
        profile_only = parse_choice("granted:behavioural/collect+profile+personalise")
        ingest(
            engine,
            [signal("a", "page_viewed", consent=profile_only), signal("b", "page_viewed", who={"anonymous_id": "v2"})],
        )
        ingest(engine, [signal("c", "page_viewed", who={"anonymous_id": "v3"})])
        engine.set_consent({"anonymous_id": "v3"}, parse_choice("denied:behavioural/train"))
        found = engine.training_set("anonymous_id", ["v1", "v2", "v3", "v4"], [START + 1] * 4)
        masked, missing = FeatureStatus.MASKED, FeatureStatus.MISSING
        assert found.statuses[:, 0].tolist() == [masked, FeatureStatus.FRESH, masked, missing]
        assert found.known.tolist() == [True, True, True, False]
        engine.set_consent({"anonymous_id": "v1"}, parse_choice("granted:behavioural/train"))
        later = engine.training_set("anonymous_id", ["v1"], [START + 1])
        assert later.statuses.tolist() == [[missing]], "it was collected before training was agreed to"


def test_pushed_values_count_from_their_time(tmp_path: Path) -> None:
    text = BASE + "  - {name: risk, pushed: number, category: transactional}\n"
    with open_shop(tmp_path, text, clock=Clock(START + DAY)) as engine:
        rows = [PushedRow("u1", {"risk": value}, START + at) for at, value in ((20, 0.2), (10, 0.1))]
        engine.push_features("user_id", rows, consent=parse_choice("granted:all"))
        found = engine.training_set("user_id", ["u1"] * 3, [START + 10, START + 11, START + 21], ["risk"])
        np.testing.assert_array_equal(found.values[:, 0], [np.nan, 0.1, 0.2])


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    def refused(engine: Engine, *arguments: object) -> str:
        with pytest.raises((CallerError, NotFound)) as caught:
            engine.training_set(*arguments)  # type: ignore[arg-type]
        return caught.value.reason

    with open_shop(tmp_path, BASE) as engine:
        assert refused(engine, "anonymous_id", ["v1"], []) == "BAD_TABLE"
        assert refused(engine, "anonymous_id", ["v1"], [START], ["page"]) == "UNKNOWN_FEATURE"
        assert engine.training_set("anonymous_id", [], []).values.shape == (0, 1)
