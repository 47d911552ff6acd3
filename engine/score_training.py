"""Training a score: gradient-boosted trees on a point-in-time training set, calibrated on predictions of folds left out.

LightGBM (Ke et al., NeurIPS 2017) grows the trees, in one thread so that the same set trains the same model. How many trees is
decided by five folds; what these predict of the fold they did not see is what Platt scaling (Platt, 1999) is fitted to.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tailorbird.engine.errors import CallerError, PreconditionFailed
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.engine.features import FeatureSet
from tailorbird.engine.score_model import Column, Input, Score, ScoreTrees, input_matrix

FOLDS = 5
ROUNDS_MAX = 600
TEXTS_MAX = 64  # of a text feature, those met most
LABELS_MIN = 20  # of each kind
SEED = 20240611
PARAMETERS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "learning_rate": 0.04,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "seed": SEED,
    "verbosity": -1,
}


def train_score(feature: str, features: FeatureSet, table: FeatureTable, labels: Sequence[int], built_at: int) -> Score:
    """Return the score of `feature` trained on a table of its inputs and 0 or 1 per row.

    Raises `CallerError` BAD_LABELS, `PreconditionFailed` MISSING_EXTRA.
    """
    try:
        lightgbm = importlib.import_module("lightgbm")
    except ImportError:
        raise PreconditionFailed(
            "MISSING_EXTRA", "expected lightgbm, which is not installed; run: pip install 'tailorbird[training]'"
        ) from None
    truth = np.asarray(labels, np.float64)
    ones = int(truth.sum())
    if not set(truth.tolist()) <= {0.0, 1.0} or min(ones, len(truth) - ones) < LABELS_MIN:
        raise CallerError(
            "BAD_LABELS",
            f"expected labels 0 and 1, at least {LABELS_MIN} of each, got {ones} ones of {len(truth)} labels",
        )
    inputs = _inputs(features, table)
    numbers = {each.name: table.column(each.name) for each in inputs if each.texts is None}
    rows = input_matrix(inputs, numbers, table.texts)
    rounds, held_out = _cross_validated(lightgbm, rows, truth)
    slope, intercept = platt(held_out, truth)
    booster = lightgbm.train(PARAMETERS, lightgbm.Dataset(rows, truth), num_boost_round=rounds)
    calibrated = 1.0 / (1.0 + np.exp(-(slope * held_out + intercept)))
    report = {
        "rows": float(len(truth)),
        "ones": float(ones),
        "trees": float(rounds),
        "auc": auc(calibrated, truth),
        "calibration_error": calibration_error(calibrated, truth),
    }
    return Score(feature, built_at, inputs, _trees(booster.dump_model()), slope, intercept, report)


def _inputs(features: FeatureSet, table: FeatureTable) -> tuple[Input, ...]:
    found = []
    for name in table.names:
        texts: tuple[str, ...] | None = None
        if name in table.texts:
            counts: dict[str, int] = {}
            for text in table.texts[name]:
                if text is not None:
                    counts[text] = counts.get(text, 0) + 1
            texts = tuple(sorted(counts, key=lambda text: (-counts[text], text))[:TEXTS_MAX])
        found.append(Input(name, features.by_name[name].version, texts))
    return tuple(found)


def _cross_validated(lightgbm: Any, rows: npt.NDArray[np.float64], truth: Column) -> tuple[int, Column]:
    """Return how many rounds are best, and the sum of trees of every row from the fold that did not see it."""
    folds = np.random.default_rng(SEED).permutation(len(truth)) % FOLDS
    losses = np.zeros(ROUNDS_MAX)
    boosters = []
    for fold in range(FOLDS):
        seen = folds != fold
        train = lightgbm.Dataset(rows[seen], truth[seen])
        told: dict[str, Any] = {}
        boosters.append(
            lightgbm.train(
                PARAMETERS,
                train,
                num_boost_round=ROUNDS_MAX,
                valid_sets=[lightgbm.Dataset(rows[~seen], truth[~seen], reference=train)],
                valid_names=["held_out"],
                callbacks=[lightgbm.record_evaluation(told)],
            )
        )
        losses += np.asarray(told["held_out"]["binary_logloss"]) * int((~seen).sum())
    rounds = int(losses.argmin()) + 1
    held_out = np.empty(len(truth))
    for fold, booster in enumerate(boosters):
        held_out[folds == fold] = booster.predict(rows[folds == fold], raw_score=True, num_iteration=rounds)
    return rounds, held_out


def platt(scores: Column, truth: Column) -> tuple[float, float]:
    """Return (slope, intercept) of the logistic curve through scores, by Newton's method on Platt's smoothed labels."""
    ones = truth.sum()
    target = np.where(truth == 1.0, (ones + 1) / (ones + 2), 1 / (len(truth) - ones + 2))
    design = np.column_stack([scores, np.ones(len(scores))])
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        fitted = 1.0 / (1.0 + np.exp(-design @ weights))
        gradient = design.T @ (fitted - target)
        hessian = (design * (fitted * (1.0 - fitted))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def auc(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> float:
    """Return the share of pairs of a one and a zero that the scores order rightly; ties count half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[places]
    ones = truth.sum()
    zeros = len(truth) - ones
    return float((ranks[truth == 1.0].sum() - ones * (ones + 1) / 2.0) / (ones * zeros))


def calibration_error(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], bins: int = 10) -> float:
    """Return the mean over equal bins of [0, 1], weighted by rows, of |mean score - share of ones|."""
    places = np.minimum((scores * bins).astype(np.int64), bins - 1)
    gaps = np.abs(np.bincount(places, scores - truth, minlength=bins))
    return float(gaps.sum() / len(truth))


def _trees(dumped: Mapping[str, Any]) -> ScoreTrees:
    """Return LightGBM's trees flat: parents before their children, leaves apart."""

    nodes: list[tuple[int, float, int, int, int]] = []
    leaves: list[float] = []

    def add(node: Mapping[str, Any]) -> int:
        if "leaf_value" in node:
            leaves.append(float(node["leaf_value"]))
            return -len(leaves)
        place = len(nodes)
        threshold = float(node["threshold"])
        # Where training met no gap in this column, LightGBM reads a gap as zero.
        missing_left = bool(node["default_left"]) if node["missing_type"] == "NaN" else threshold >= 0.0
        nodes.append((0, 0.0, 0, 0, 0))
        left, right = add(node["left_child"]), add(node["right_child"])
        nodes[place] = (int(node["split_feature"]), threshold, left, right, int(missing_left))
        return place

    roots = [add(tree["tree_structure"]) for tree in dumped["tree_info"]]
    inputs, thresholds, left, right, missing_left = zip(*nodes, strict=True) if nodes else ((),) * 5
    return ScoreTrees(
        np.array(roots, "<i4").tobytes(),
        np.array(inputs, "<i4").tobytes(),
        np.array(thresholds, "<f8").tobytes(),
        np.array(left, "<i4").tobytes(),
        np.array(right, "<i4").tobytes(),
        np.array(missing_left, np.uint8).tobytes(),
        np.array(leaves, "<f8").tobytes(),
    )
