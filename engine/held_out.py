"""Questions whose answers lie in held-out time, and how well a co-occurrence model answers them.

The last part of the log is cut off. Returning: a group on both sides of the cut, its items before given, those it came
for the first time after the cut sought. Visit: a visit after the cut of 4 to 40 items, its first half given, the second
sought.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailorbird.engine.baskets import Interactions, sampling_hash, visit_of
from tailorbird.engine.neighbours_file import Neighbours
from tailorbird.native import neighbours as native

HELD_OUT_SHARE = 0.15
QUESTIONS_MAX = 500
QUESTIONS_MIN = 50
# Each question scores the whole catalogue once: larger catalogues are asked fewer.
SCORES_PER_MEASURE_MAX = 20_000_000
VISIT_ITEMS_MIN, VISIT_ITEMS_MAX = 4, 40
K = 10
_GAINS = 1 / np.log2(np.arange(2, K + 2))


@dataclass(frozen=True, slots=True)
class Question:
    """Items given, each with its age in ms against the newest of them, and the items sought."""

    given: npt.NDArray[np.uint32]
    ages_ms: npt.NDArray[np.float64]
    sought: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The questions of either kind; one of the two may be empty."""

    returning: tuple[Question, ...]
    visits: tuple[Question, ...]

    def ndcg(self, neighbours: Neighbours | None, estimate: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Return the mean NDCG@10 (binary gain) of returning and of visits, by popularity alone without a model."""
        return _mean(self.returning, neighbours, estimate), _mean(self.visits, neighbours, estimate)

    def measure(self, neighbours: Neighbours, estimate: npt.NDArray[np.float64]) -> float:
        """Return the geometric mean of both kinds' NDCG@10, so that neither's scale decides; of one where only one
        is.
        """
        found = np.array(self.ndcg(neighbours, estimate))[[bool(self.returning), bool(self.visits)]]
        return float(np.exp(np.log(np.maximum(found, 1e-9)).mean()))


def held_out(interactions: Interactions, item_count: int) -> tuple[Interactions, HeldOut | None]:
    """Return the interactions before the cut and the questions after it, None when there are fewer than
    `QUESTIONS_MIN`.
    """
    if len(interactions) < QUESTIONS_MIN:
        return interactions, None
    cut = int(np.quantile(interactions.times, 1 - HELD_OUT_SHARE, method="higher"))
    before, after = interactions.where(interactions.times < cut), interactions.where(interactions.times >= cut)
    if len(before) == 0:
        return interactions, None
    known = np.zeros(item_count, bool)
    known[before.items] = True
    before, after = before.sorted(), after.sorted()
    question_max = max(QUESTIONS_MIN, min(QUESTIONS_MAX, SCORES_PER_MEASURE_MAX // item_count))
    asked = HeldOut(
        tuple(_returning(before, after, known, question_max)),
        tuple(_visits(after, known, question_max)),
    )
    return before, asked if len(asked.returning) + len(asked.visits) >= QUESTIONS_MIN else None


def _sample(groups: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return at most `count` of the groups, the same ones every time."""
    return groups[np.argsort(sampling_hash(groups, np.zeros(len(groups), np.uint32)), kind="stable")[:count]]


def _returning(
    before: Interactions, after: Interactions, known: npt.NDArray[np.bool_], question_max: int
) -> list[Question]:
    questions: list[Question] = []
    for group in _sample(np.intersect1d(before.groups, after.groups), 2 * question_max):
        start, end = np.searchsorted(before.groups, group), np.searchsorted(before.groups, group, "right")
        # The newest first, so that `unique` keeps each item's last time.
        given, last = np.unique(before.items[start:end][::-1], return_index=True)
        times = before.times[start:end][::-1][last]
        start, end = np.searchsorted(after.groups, group), np.searchsorted(after.groups, group, "right")
        sought = np.setdiff1d(after.items[start:end], given)
        sought = sought[known[sought]]
        if len(sought) and len(questions) < question_max:
            questions.append(Question(given, (times.max() - times).astype(np.float64), sought))
    return questions


def _visits(after: Interactions, known: npt.NDArray[np.bool_], question_max: int) -> list[Question]:
    visits = visit_of(after)
    starts = np.flatnonzero(np.diff(visits, prepend=-1))
    ends = np.append(starts[1:], len(visits))
    questions: list[Question] = []
    for visit in _sample(np.arange(len(starts)), 4 * question_max):
        items = after.items[starts[visit] : ends[visit]]
        items = items[np.sort(np.unique(items, return_index=True)[1])]
        if not VISIT_ITEMS_MIN <= len(items) <= VISIT_ITEMS_MAX or len(questions) == question_max:
            continue
        half = len(items) // 2
        sought = items[half:][known[items[half:]]]
        if len(sought):
            questions.append(Question(items[:half], np.zeros(half), sought))
    return questions


def _mean(questions: tuple[Question, ...], neighbours: Neighbours | None, estimate: npt.NDArray[np.float64]) -> float:
    if not questions:
        return 0.0
    scratch = np.zeros(len(estimate), np.float32)
    touched = np.zeros(len(estimate), np.uint32)
    follow = np.ones(len(estimate))
    if neighbours is not None:
        follow = (estimate * len(estimate)) ** neighbours.parameters.popularity_exponent
    total = 0.0
    for question in questions:
        scores = estimate.copy()
        if neighbours is not None:
            parameters = neighbours.parameters
            weights = np.exp2(-question.ages_ms / parameters.recency_half_life_ms).astype(np.float32)
            count = native.accumulate(
                neighbours.indptr, neighbours.items, neighbours.weights, question.given, weights, scratch, touched
            )
            q = scratch * follow
            native.clear(scratch, touched, count)
            together = parameters.support_per_item * float(weights.sum())
            scores += together / max(float(q.sum()), 1e-30) * q
        scores[question.given] = -1
        total += ndcg(scores, question.sought)
    return total / len(questions)


def ndcg(scores: npt.NDArray[np.float64], sought: npt.NDArray[np.uint32]) -> float:
    """Return NDCG@10 with binary gain and the ideal cut at 10 of items ranked by score, ties by item number."""
    k = min(K, len(scores))
    best = np.argpartition(-scores, k - 1)[:k]
    best = best[np.lexsort((best, -scores[best]))]
    return float(_GAINS[:k][np.isin(best, sought)].sum() / _GAINS[: min(K, len(sought))].sum())
