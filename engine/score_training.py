"""Training a score: gradient-boosted trees on a point-in-time training set, calibrated on predictions of folds left out.

LightGBM (Ke et al., NeurIPS 2017) grows the trees, in one thread so that the same set trains the same model. How many trees is
decided by five folds; what these predict of the fold they did not see is what Platt scaling (Platt, 1999) is fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from tailorbird.engine.errors import CallerError
from tailorbird.engine.extras import extra
from tailorbird.engine.feature_table import FeatureTable
from tailorbird.engine.features import FeatureSet
from tailorbird.engine.score_model import Clusters, Column, Input, Score, ScoreTrees, flattened, input_matrix

FOLDS = 5
ROUNDS_MAX = 600
TEXTS_MAX = 64  # of a text feature, those met most
LABELS_MIN = 20  # of each kind
FORGETTING = 0.9  # how much of what was known of a curve is left after an update
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
    lightgbm = extra("lightgbm", "training")
    truth = _checked(labels, LABELS_MIN)
    ones = truth.sum()
    inputs = _inputs(features, table)
    numbers = {each.name: table.column(each.name) for each in inputs if each.texts is None}
    rows = input_matrix(inputs, numbers, table.texts)
    rounds, held_out = _cross_validated(lightgbm, rows, truth)
    slope, intercept, precision = platt(held_out, truth)
    booster = lightgbm.train(PARAMETERS, lightgbm.Dataset(rows, truth), num_boost_round=rounds)
    calibrated = expit(slope * held_out + intercept)
    report = {
        "rows": float(len(truth)),
        "ones": float(ones),
        "trees": float(rounds),
        "auc": auc(calibrated, truth),
        "calibration_error": calibration_error(calibrated, truth),
    }
    return Score(feature, built_at, inputs, _trees(booster.dump_model()), slope, intercept, precision, report)


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


Precision = tuple[float, float, float, float]


def platt(scores: Column, truth: Column) -> tuple[float, float, Precision]:
    """Return slope, intercept and their precision of the logistic curve through scores, on Platt's smoothed labels."""
    ones = truth.sum()
    target = np.where(truth == 1.0, (ones + 1) / (ones + 2), 1 / (len(truth) - ones + 2))
    return _logistic(scores, target, np.array([1.0, 0.0]), 1e-9 * np.eye(2))


def updated_score(score: Score, totals: Column, labels: Sequence[int], built_at: int) -> Score:
    """Return a score whose curve has taken in newly labelled moments: what was known of it is the prior, a little forgotten.

    The trees stay as they are. Raises `CallerError` BAD_LABELS.
    """
    truth = _checked(labels, 1)
    prior = FORGETTING * np.array(score.precision).reshape(2, 2)
    slope, intercept, precision = _logistic(totals, truth, np.array([score.slope, score.intercept]), prior)
    before = expit(score.slope * totals + score.intercept)
    after = expit(slope * totals + intercept)
    report = {
        **score.report,
        "updates": score.report.get("updates", 0.0) + 1.0,
        "update_rows": float(len(truth)),
        "update_calibration_error_before": calibration_error(before, truth),
        "update_calibration_error_after": calibration_error(after, truth),
    }
    return Score(score.feature, built_at, score.inputs, score.trees, slope, intercept, precision, report)


def _logistic(
    scores: Column, target: Column, prior: Column, prior_precision: npt.NDArray[np.float64]
) -> tuple[float, float, Precision]:
    """Return the most likely (slope, intercept) under a normal prior, by Newton's method, and the precision there."""
    design = np.column_stack([scores, np.ones(len(scores))])
    weights = prior.copy()
    hessian = prior_precision
    for _ in range(50):
        fitted = expit(design @ weights)
        gradient = design.T @ (fitted - target) + prior_precision @ (weights - prior)
        hessian = (design * (fitted * (1.0 - fitted))[:, None]).T @ design + prior_precision
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    found: list[float] = hessian.ravel().tolist()
    return float(weights[0]), float(weights[1]), (found[0], found[1], found[2], found[3])


def train_clusters(feature: str, features: FeatureSet, table: FeatureTable, count: int, built_at: int) -> Clusters:
    """Return `count` centres among people: k-means (scikit-learn) over their features, numbered by size, the largest 0.

    Raises `CallerError` TOO_FEW_PEOPLE, `PreconditionFailed` MISSING_EXTRA.
    """
    cluster = extra("sklearn.cluster", "training")
    inputs = _inputs(features, table)
    numbers = {each.name: table.column(each.name) for each in inputs if each.texts is None}
    rows = flattened(input_matrix(inputs, numbers, table.texts))
    rows = rows[~np.isnan(rows).all(axis=1)]
    if len(rows) < count:
        raise CallerError(
            "TOO_FEW_PEOPLE", f"expected at least {count} people of whom something is known, got {len(rows)}"
        )
    seen = ~np.isnan(rows).all(axis=0)
    mean, spread = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
    mean[seen] = np.nanmean(rows[:, seen], axis=0)
    spread[seen] = np.nanstd(rows[:, seen], axis=0)
    scale = np.where(spread > 0.0, spread, 1.0)
    points = (rows - mean) / scale
    points = np.where(np.isnan(points), 0.0, points)
    fitted = cluster.KMeans(n_clusters=count, n_init=10, random_state=SEED).fit(points)
    sizes = np.bincount(fitted.labels_, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    report = {"people": float(len(rows)), **{f"cluster_{place}": float(sizes[at]) for place, at in enumerate(order)}}
    centres = tuple(tuple(row) for row in fitted.cluster_centers_[order].tolist())
    return Clusters(feature, built_at, inputs, tuple(mean.tolist()), tuple(scale.tolist()), centres, report)


def _checked(labels: Sequence[int], of_each_min: int) -> Column:
    truth = np.asarray(labels, np.float64)
    ones = int(truth.sum())
    if not set(truth.tolist()) <= {0.0, 1.0} or min(ones, len(truth) - ones) < of_each_min:
        raise CallerError(
            "BAD_LABELS",
            f"expected labels 0 and 1, at least {of_each_min} of each, got {ones} ones of {len(truth)} labels",
        )
    return truth


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
