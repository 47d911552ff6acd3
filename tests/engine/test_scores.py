"""Learned scores: trained on what was known before, served as features, calibrated, and never worse off for missing inputs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tailorbird.engine import Engine
from tailorbird.engine.compiled import compile_configuration
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import CallerError, ConfigurationError, NotFound, PreconditionFailed
from tailorbird.engine.profile import FeatureStatus
from tailorbird.engine.pushes import PushedRow
from tailorbird.engine.score_training import auc, calibration_error, platt
from tests.engine.shops import DAY, START, Clock, assert_replays_to_the_same, open_shop

SHOP = """\
version: 1
limits: {map_bytes: 268435456}
features:
  - {name: pages, pushed: number, category: behavioural}
  - {name: channel, pushed: text, category: behavioural}
  - {name: spent, pushed: number, category: transactional}
  - {name: propensity, learned_from: [pages, channel, spent], default: 0.5}
  - {name: odds, formula: propensity / (1 - propensity)}
"""
CHANNELS = ("mail", "search", "social")


def truth_of(pages: float, channel: str | None, spent: float | None) -> float:
    """The world's probability that somebody buys."""
    logit = -3.0 + 0.4 * pages + (2.0 if channel == "mail" else 0.0) + (1.0 if (spent or 0.0) > 50 else 0.0)
    return float(1 / (1 + np.exp(-logit)))


def people(count: int, seed: int) -> tuple[list[PushedRow], np.ndarray, list[int]]:
    rng = random.Random(seed)
    rows, chances, labels = [], [], []
    for number in range(count):
        pages = float(rng.randrange(12))
        channel = rng.choice((*CHANNELS, None))
        spent = rng.uniform(0, 100) if rng.random() < 0.7 else None
        values: dict[str, float | str] = {"pages": pages}
        if channel is not None:
            values["channel"] = channel
        if spent is not None:
            values["spent"] = spent
        rows.append(PushedRow(f"u{number}", values, START))
        chances.append(truth_of(pages, channel, spent))
        labels.append(int(rng.random() < chances[-1]))
    return rows, np.array(chances), labels


def push(engine: Engine, rows: list[PushedRow]) -> None:
    report = engine.push_features("user_id", rows, consent=parse_choice("granted:all"))
    assert {outcome.status for outcome in report.outcomes} == {"applied"}


def scores(engine: Engine, *who: str) -> tuple[list[float], list[int]]:
    table = engine.get_features("user_id", who, ["propensity"], at=START + 2)
    return table.values[:, 0].tolist(), table.statuses[:, 0].tolist()


def test_a_score_learns_the_world_and_is_served(tmp_path: Path) -> None:
    rows, chances, labels = people(3_000, seed=4)
    who = [row.person for row in rows]
    with open_shop(tmp_path, SHOP, clock=Clock(START + DAY)) as engine:
        push(engine, rows)
        assert scores(engine, "u1") == ([0.5], [FeatureStatus.DEFAULTED])
        half = 1_500
        report = engine.train_score("propensity", "user_id", who[:half], [START + 1] * half, labels[:half])
        assert (report["rows"], report["ones"]) == (half, sum(labels[:half]))
        found = np.concatenate(
            [
                engine.get_features("user_id", who[n : n + 500], ["propensity"]).values[:, 0]
                for n in range(half, 3_000, 500)
            ]
        )
        judged, truth = chances[half:], np.array(labels[half:], np.float64)
        assert auc(found, truth) > auc(judged, truth) - 0.02, "the world's own chances cannot be beaten by much"
        assert np.abs(found - judged).mean() < 0.08
        assert calibration_error(found, truth) < 0.04
        table = engine.get_features("user_id", who[:2], ["odds", "propensity"], at=START + 2)
        np.testing.assert_allclose(table.column("odds"), table.column("propensity") / (1 - table.column("propensity")))
        before = scores(engine, *who[:20])
    with open_shop(tmp_path, SHOP) as engine:
        assert scores(engine, *who[:20]) == before
    assert_replays_to_the_same(tmp_path)


def test_of_whom_nothing_speaks_there_is_no_score_and_of_others_what_may_be_used(tmp_path: Path) -> None:
    rows, _, labels = people(400, seed=5)
    with open_shop(tmp_path, SHOP, clock=Clock(START + DAY)) as engine:
        push(engine, rows)
        engine.train_score("propensity", "user_id", [row.person for row in rows], [START + 1] * 400, labels)
        engine.set_consent({"user_id": "u1"}, parse_choice("denied:all"))
        engine.set_consent({"user_id": "u2"}, parse_choice("denied:transactional"))
        values, statuses = scores(engine, "nobody", "u1", "u2")
        assert statuses == [FeatureStatus.DEFAULTED, FeatureStatus.MASKED, FeatureStatus.FRESH]
        bare = PushedRow("bare", {name: value for name, value in rows[2].values.items() if name != "spent"}, START)
        push(engine, [bare])
        assert scores(engine, "bare")[0] == [values[2]], "what consent masks is as if it were not there"


def test_a_damaged_model_is_left_out_and_told_until_it_is_trained_again(tmp_path: Path) -> None:
    rows, _, labels = people(200, seed=6)
    shop = SHOP + "placements:\n  - {name: home, k: 3, retrieve: {whole_catalogue: true}}\n"

    def train(engine: Engine) -> None:
        engine.train_score("propensity", "user_id", [row.person for row in rows], [START + 1] * 200, labels)

    with open_shop(tmp_path, shop, clock=Clock(START + DAY)) as engine:
        push(engine, rows)
        train(engine)
        (file,) = engine.directory.models.glob("score-propensity-*.tbm")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with open_shop(tmp_path, shop, clock=Clock(START + DAY)) as engine:
        assert scores(engine, "u1") == ([0.5], [FeatureStatus.DEFAULTED])
        assert any("DAMAGED_MODEL" in text for text in engine.recovery)
        engine.train_cooccurrence()
        assert "DAMAGED_MODEL" in engine.decide(placement="home").degraded, "another model makes it no better"
        train(engine)
        assert "DAMAGED_MODEL" not in engine.decide(placement="home").degraded
        assert scores(engine, "u1")[1] == [FeatureStatus.FRESH]


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    rows, _, labels = people(60, seed=7)
    who = [row.person for row in rows]
    with open_shop(tmp_path, SHOP, clock=Clock(START + DAY)) as engine:
        push(engine, rows)
        for feature, given, reason in (
            ("propensity", [0] * 60, "BAD_LABELS"),
            ("propensity", [2] * 30 + [0] * 30, "BAD_LABELS"),
            ("propensity", labels[1:], "BAD_LABELS"),
            ("pages", labels, "NOT_LEARNED"),
            ("propensty", labels, "UNKNOWN_FEATURE"),
        ):
            with pytest.raises((CallerError, NotFound), match=reason):
                engine.train_score(feature, "user_id", who, [START + 1] * 60, given)


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("{name: a, learned_from: [pages], formula: pages}", "BAD_FORMULA"),
        ("{name: a, learned_from: [pages], signal: page_viewed}", "BAD_FORMULA"),
        ("{name: a, learned_from: [nothing]}", "UNKNOWN_FEATURE"),
        ("{name: a, learned_from: [a]}", "CYCLIC_FEATURES"),
        ("{name: a, learned_from: [pages], clusters: 1}", "BAD_CLUSTERS"),
        ("{name: a, formula: pages, clusters: 3}", "BAD_CLUSTERS"),
        ("{name: a, learned_from: [odds2]}\n  - {name: odds2, formula: a}", "CYCLIC_FEATURES"),
    ],
)
def test_a_score_that_cannot_be_declared_is_refused(declaration: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compile_configuration(f"{SHOP}  - {declaration}\n", 1, 1)
    assert caught.value.reason == reason


def test_the_measures_themselves() -> None:
    truth = np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), truth) == 0.75
    assert auc(np.array([0.5] * 4), truth) == 0.5
    assert calibration_error(np.array([0.05, 0.05, 0.95, 0.95]), truth) == pytest.approx(0.05)
    rng = np.random.default_rng(3)
    raw = rng.normal(size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(2 * raw - 1)))).astype(np.float64)
    assert platt(raw, labels)[:2] == pytest.approx((2.0, -1.0), abs=0.1)


def test_an_update_follows_new_labels_and_keeps_the_order_of_people(tmp_path: Path) -> None:
    rows, _, labels = people(3_000, seed=8)
    who = [row.person for row in rows]
    with open_shop(tmp_path, SHOP, clock=Clock(START + DAY)) as engine:
        push(engine, rows)
        with pytest.raises(PreconditionFailed, match="NOT_TRAINED"):
            engine.update_score("propensity", "user_id", who[:2], [START + 1] * 2, [0, 1])
        engine.train_score("propensity", "user_id", who[:1_000], [START + 1] * 1_000, labels[:1_000])
        before = np.array(scores(engine, *who[2_000:])[0])
        # From one day to the next half as many buy.
        rng = random.Random(1)
        fewer = [int(label and rng.random() < 0.5) for label in labels]
        told = [
            engine.update_score("propensity", "user_id", who[n : n + 250], [START + 1] * 250, fewer[n : n + 250])
            for n in range(1_000, 2_000, 250)
        ]
        after = np.array(scores(engine, *who[2_000:])[0])
        truth = np.array(fewer[2_000:], np.float64)
        assert abs(after.mean() - truth.mean()) < abs(before.mean() - truth.mean()) / 2
        assert calibration_error(after, truth) < calibration_error(before, truth)
        assert (np.argsort(after, kind="stable") == np.argsort(before, kind="stable")).mean() > 0.99
        assert [report["updates"] for report in told] == [1.0, 2.0, 3.0, 4.0]
        assert told[0]["update_calibration_error_after"] < told[0]["update_calibration_error_before"]
    assert_replays_to_the_same(tmp_path)


def test_clusters_find_the_kinds_of_people_there_are(tmp_path: Path) -> None:
    text = SHOP + "  - {name: kind, learned_from: [pages, spent], clusters: 3}\n"
    kinds = {0: (2.0, 5.0), 1: (30.0, 10.0), 2: (30.0, 900.0)}
    rng = random.Random(2)
    rows, truth = [], []
    for number in range(900):
        kind = 0 if number % 10 < 5 else 1 if number % 10 < 8 else 2
        pages, spent = (value * rng.uniform(0.8, 1.25) for value in kinds[kind])
        rows.append(PushedRow(f"u{number}", {"pages": pages, "spent": spent}, START))
        truth.append(float(kind))
    with open_shop(tmp_path, text, clock=Clock(START + DAY)) as engine:
        push(engine, rows)
        before = engine.get_features("user_id", ["u1"], ["kind"])
        assert before.statuses.tolist() == [[FeatureStatus.WARMING]]
        report = engine.train_clusters("kind")
        assert report == {"people": 900.0, "cluster_0": 450.0, "cluster_1": 270.0, "cluster_2": 180.0}
        found = engine.get_features("user_id", [row.person for row in rows], ["kind"], at=START + 2)
        assert found.values[:, 0].tolist() == truth
        for feature, reason in (("pages", "NOT_LEARNED"), ("propensity", "NOT_LEARNED"), ("kidn", "UNKNOWN_FEATURE")):
            with pytest.raises((CallerError, NotFound), match=reason):
                engine.train_clusters(feature)
        with pytest.raises(CallerError, match="NOT_LEARNED"):
            engine.train_score("kind", "user_id", ["u1"], [START], [1])
    with open_shop(tmp_path, text) as engine:
        assert engine.get_features("user_id", ["u9"], ["kind"], at=START + 2).values.tolist() == [[2.0]]
    with open_shop(tmp_path / "empty", text) as engine, pytest.raises(CallerError, match="TOO_FEW_PEOPLE"):
        engine.train_clusters("kind")
