"""`tailorbird bench propensity`: a learned score on real sessions, from pushed facts to served probabilities.

Every row of the file enters as pushed facts of one person, through `Engine.push_features`. The score is trained with
`Engine.train_score` on the point-in-time export and read with `Engine.get_features`; of the rows it is judged on no label is seen.
Without `--test` the file is cut into five folds, each judged by a model of the other four. Peers, on the same folds: logistic
regression (scikit-learn) on logarithms, quantile bins and indicators of the same columns, and LightGBM as it comes.

`auc`, `auc_sklearn`, `auc_lightgbm`: of every row from the fold that did not see it. `auc_behind_best` is the better peer's less
ours. `calibration_error`: over ten bins of the score, the gap of mean score and share of buyers, weighted by rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailorbird.bench.musts import Must
from tailorbird.engine import Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.pushes import PushedRow
from tailorbird.engine.score_training import auc, calibration_error
from tailorbird.engine.signals import Status

MUSTS = (Must("auc_behind_best", at_most=0.015), Must("calibration_error", at_most=0.03))
LABEL = "Revenue"
TEXTS = ("Month", "OperatingSystems", "Browser", "Region", "TrafficType", "VisitorType", "Weekend")
NUMBERS = (
    "Administrative", "Administrative_Duration", "Informational", "Informational_Duration", "ProductRelated",
    "ProductRelated_Duration", "BounceRates", "ExitRates", "PageValues", "SpecialDay",
)  # fmt: skip
SCORE = "purchase_propensity"
FOLDS = 5
SEED = 11
NOW = 1_750_000_000_000
PUSHED_AT_ONCE = 1_000
BINS = 16

Rows = list[dict[str, str]]
Column = npt.NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument(
        "--train", type=Path, required=True, metavar="FILE", help="sessions of the shoppers-intention format"
    )
    parser.add_argument(
        "--test", type=Path, metavar="FILE", help="sessions to be judged on (default: five folds of --train)"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measures; see the module for each."""
    rows = read_sessions(args.train)
    train_count = len(rows)
    if args.test is not None:
        rows += read_sessions(args.test)
        cuts = [(np.arange(train_count), np.arange(train_count, len(rows)))]
    else:
        folds = np.random.default_rng(SEED).permutation(len(rows)) % FOLDS
        cuts = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(FOLDS)]
    truth = np.array([row[LABEL].upper() == "TRUE" for row in rows], np.float64)
    ours, sklearn, lightgbm = (np.full(len(rows), np.nan) for _ in range(3))
    trained_s = []
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-propensity-") as folder,
        Engine.open(Path(folder, "shop"), configuration(), clock=lambda: NOW + 10) as engine,
    ):
        push(engine, rows)
        for seen, judged in cuts:
            began = time.perf_counter()
            people = [person(row) for row in seen.tolist()]
            labels = [int(truth[row]) for row in seen.tolist()]
            engine.train_score(SCORE, "user_id", people, [NOW + 1] * len(people), labels)
            trained_s.append(time.perf_counter() - began)
            ours[judged] = served(engine, judged.tolist())
    design, plain = transformed(rows, [seen for seen, _ in cuts]), encoded(rows)
    for index, (seen, judged) in enumerate(cuts):
        sklearn[judged] = logistic(design[index][seen], truth[seen], design[index][judged])
        lightgbm[judged] = boosted(plain[seen], truth[seen], plain[judged])
    judged = np.concatenate([judged for _, judged in cuts])
    found = {
        "auc": auc(ours[judged], truth[judged]),
        "auc_sklearn": auc(sklearn[judged], truth[judged]),
        "auc_lightgbm": auc(lightgbm[judged], truth[judged]),
    }
    best = max(found["auc_sklearn"], found["auc_lightgbm"])
    return {
        **found,
        "auc_behind_best": best - found["auc"],
        "calibration_error": calibration_error(ours[judged], truth[judged]),
        "calibration_error_lightgbm": calibration_error(lightgbm[judged], truth[judged]),
        "judged_rows": len(judged),
        "buyers": int(truth[judged].sum()),
        "training_s": float(np.median(trained_s)),
    }


def read_sessions(path: Path) -> Rows:
    """Return a file's rows. Raises `CallerError` BAD_FILE."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    reader = csv.DictReader(io.StringIO(data.decode()))
    missing = {*TEXTS, *NUMBERS, LABEL} - set(reader.fieldnames or ())
    if missing:
        raise CallerError("BAD_FILE", f"expected columns {', '.join(sorted(missing))}, found none in {path}")
    return list(reader)


def configuration() -> str:
    """Return what is declared: every column, and the score that is learned from them."""
    lines = [f"  - {{name: {name.lower()}, pushed: number, category: behavioural}}" for name in NUMBERS]
    lines += [f"  - {{name: {name.lower()}, pushed: text, category: behavioural}}" for name in TEXTS]
    lines.append(f"  - {{name: {SCORE}, learned_from: [{', '.join((*NUMBERS, *TEXTS)).lower()}]}}")
    return "version: 1\njurisdiction: opt_in\nlimits: {map_bytes: 4294967296}\nfeatures:\n" + "\n".join(lines) + "\n"


def person(row: int) -> str:
    """Return whose session a row is."""
    return f"session-{row}"


def push(engine: Engine, rows: Rows) -> None:
    """Push every row's features, not its label."""
    consent = parse_choice("granted:behavioural")
    for start in range(0, len(rows), PUSHED_AT_ONCE):
        pushed = [
            PushedRow(person(start + offset), _values(row), NOW)
            for offset, row in enumerate(rows[start : start + PUSHED_AT_ONCE])
        ]
        report = engine.push_features("user_id", pushed, source="bench", consent=consent)
        assert report.count(Status.APPLIED) == len(pushed), report.outcomes[:1]


def _values(row: dict[str, str]) -> dict[str, float | str]:
    return {name.lower(): float(row[name]) for name in NUMBERS} | {name.lower(): row[name] for name in TEXTS}


def served(engine: Engine, judged: Sequence[int]) -> Column:
    """Return the score of people as GetFeatures serves it."""
    found = [
        engine.get_features(
            "user_id", [person(row) for row in judged[start : start + PUSHED_AT_ONCE]], [SCORE], at=NOW + 2
        )
        for start in range(0, len(judged), PUSHED_AT_ONCE)
    ]
    return np.concatenate([table.values[:, 0] for table in found])


# ---- peers -----------------------------------------------------------------------------------------------------------


def encoded(rows: Rows) -> npt.NDArray[np.float64]:
    """Return numbers as they are and texts as indicators: [row, column]."""
    columns = [np.array([float(row[name]) for row in rows]) for name in NUMBERS]
    return np.column_stack([*columns, *_indicators(rows)])


def _indicators(rows: Rows) -> Iterator[Column]:
    for name in TEXTS:
        for text in sorted({row[name] for row in rows}):
            yield np.array([row[name] == text for row in rows], np.float64)


def transformed(rows: Rows, seen: list[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.float64]]:
    """Return, per fold, logarithms and quantile bins (of the rows seen) of numbers, and indicators of texts."""
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in NUMBERS}
    texts = list(_indicators(rows))
    found = []
    for each in seen:
        columns = []
        for values in numbers.values():
            columns.append(np.log1p(values))
            edges = np.unique(np.quantile(values[each], np.linspace(0, 1, BINS + 1)[1:-1]))
            columns += [(values > edge).astype(np.float64) for edge in edges]
        found.append(np.column_stack([*columns, *texts]))
    return found


def logistic(seen: Any, truth: Column, judged: Any) -> Column:
    """Return logistic regression's probabilities."""
    linear = importlib.import_module("sklearn.linear_model")
    scaler = importlib.import_module("sklearn.preprocessing").StandardScaler().fit(seen)
    model = linear.LogisticRegression(max_iter=2_000, C=0.1).fit(scaler.transform(seen), truth)
    return np.asarray(model.predict_proba(scaler.transform(judged))[:, 1])


def boosted(seen: Any, truth: Column, judged: Any) -> Column:
    """Return LightGBM's probabilities, its parameters as they come."""
    lightgbm = importlib.import_module("lightgbm")
    parameters = {"objective": "binary", "num_threads": 1, "seed": SEED, "deterministic": True, "verbosity": -1}
    return np.asarray(lightgbm.train(parameters, lightgbm.Dataset(seen, truth), num_boost_round=100).predict(judged))
