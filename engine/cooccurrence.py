"""Training of the co-occurrence model: what goes together with the items a person had to do with.

    q(j) = sum over the person's items i of weight(i) * row_i(j), times (estimate(j) / uniform)^exponent, scaled to sum
    1 estimate'(j) = (S q(j) + s estimate(j)) / (S + s),   s = 1,   S = support_per_item * sum of the weights

`estimate` is the popularity in the person's context. The weights of the rows are divided by the popularity they were
trained on, to the same exponent, so that q follows what changed since and not what was popular all along.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tailorbird.engine.baskets import Interactions, training_rows
from tailorbird.engine.errors import CallerError
from tailorbird.engine.held_out import HeldOut, held_out
from tailorbird.engine.item_item import item_item, kind_for
from tailorbird.engine.neighbours_file import Neighbours, Parameters

DAY_MS = 86_400_000
REGULARISATIONS = {"ease": (0.3, 1.0, 3.0, 10.0), "cosine": (0.0, 10.0, 50.0)}
RECENCY_HALF_LIVES_MS = (7 * DAY_MS, 30 * DAY_MS, 90 * DAY_MS, 365 * DAY_MS)
POPULARITY_EXPONENTS = (0.0, 0.25, 0.5)
SUPPORTS_PER_ITEM = (0.5, 2.0, 10.0)
DEFAULTS = {
    kind: Parameters(
        regularisation=regularisation,
        recency_half_life_ms=90 * DAY_MS,
        popularity_exponent=0.25,
        support_per_item=2.0,
    )
    for kind, regularisation in (("ease", 3.0), ("cosine", 10.0))
}
# A value other than the default must be better by more than this share of the measure: below it is noise.
IMPROVEMENT_MIN = 0.005


def train(
    interactions: Interactions,
    item_count: int,
    *,
    neighbour_count: int = 200,
    popularity_half_life_ms: float = 30 * DAY_MS,
    memory_bytes_max: int = 2 * 1024**3,
    parameters: Parameters | None = None,
) -> Neighbours:
    """Return the model of a log's interactions; the same interactions give the same model on the same machine.

    Items are numbered below `item_count`, else `CallerError` BAD_ITEM. EASE when its items x items matrix fits
    `memory_bytes_max` (12,000 items at most), cosine beyond; `Neighbours.kind` says which. Unless `parameters` are
    given they are fitted on the last 15 % of the interactions, with a model trained on those before; with fewer than 50
    questions to be asked there, the defaults hold. Without interactions the model has no neighbours.
    """
    if len(interactions) and int(interactions.items.max()) >= item_count:
        raise CallerError(
            "BAD_ITEM", f"expected items below {item_count}, got {int(interactions.items.max())}, in interactions"
        )
    kind = kind_for(len(np.unique(interactions.items)), memory_bytes_max)
    if parameters is None:
        parameters = _fit(interactions, item_count, kind, neighbour_count, popularity_half_life_ms)
    return _model(interactions, item_count, kind, neighbour_count, parameters)


def popularity(
    interactions: Interactions, item_count: int, at: int | None = None, half_life_ms: float = np.inf
) -> npt.NDArray[np.float64]:
    """Return the share of each item in the interactions, decayed to `at`, smoothed with one interaction spread
    evenly.
    """
    weights = np.ones(len(interactions))
    if at is not None:
        weights = np.exp2((interactions.times - at) / half_life_ms)
    counts = np.bincount(interactions.items, weights, item_count)
    return np.asarray((counts + 1 / item_count) / (counts.sum() + 1))


def _model(
    interactions: Interactions, item_count: int, kind: str, neighbour_count: int, parameters: Parameters
) -> Neighbours:
    rows = training_rows(interactions)
    indptr, items, weights = item_item(rows, item_count, kind, parameters.regularisation, neighbour_count)
    neighbours = Neighbours(
        kind=kind,
        item_count=item_count,
        row_count=rows.row_count,
        indptr=indptr,
        items=items,
        weights=weights,
        parameters=replace(parameters, popularity_exponent=0.0),
    )
    return _discounted(neighbours, interactions, parameters) if item_count else neighbours


def _discounted(neighbours: Neighbours, interactions: Interactions, parameters: Parameters) -> Neighbours:
    """Return the model with its weights, so far undivided, divided by the popularity they were trained on."""
    relative = popularity(interactions, neighbours.item_count) * neighbours.item_count
    discount = relative**-parameters.popularity_exponent
    weights = (neighbours.weights * discount[neighbours.items]).astype(np.float32)
    return replace(neighbours, weights=weights, parameters=parameters)


def _fit(
    interactions: Interactions, item_count: int, kind: str, neighbour_count: int, popularity_half_life_ms: float
) -> Parameters:
    """Return the parameters that answer the questions of held-out time best, chosen one after the other."""
    chosen = DEFAULTS[kind]
    known, questions = held_out(interactions, item_count)
    if questions is None:
        return chosen
    estimate = popularity(known, item_count, int(known.times.max()), popularity_half_life_ms)
    plain: dict[float, Neighbours] = {}

    def measure(parameters: Parameters) -> float:
        undivided = plain.get(parameters.regularisation)
        if undivided is None:
            bare = replace(parameters, popularity_exponent=0.0)
            undivided = plain[parameters.regularisation] = _model(known, item_count, kind, neighbour_count, bare)
        return questions.measure(_discounted(undivided, known, parameters), estimate)

    best = measure(chosen)
    for name, values in (
        ("regularisation", REGULARISATIONS[kind]),
        ("recency_half_life_ms", RECENCY_HALF_LIVES_MS),
        ("popularity_exponent", POPULARITY_EXPONENTS),
        ("support_per_item", SUPPORTS_PER_ITEM),
    ):
        standing = chosen
        for value in values:
            other = replace(standing, **{name: float(value)})
            if other != standing:
                found = measure(other)
                if found > best * (1 + IMPROVEMENT_MIN):
                    best, chosen = found, other
    return _with_measures(chosen, questions, _discounted(plain[chosen.regularisation], known, chosen), estimate)


def _with_measures(
    parameters: Parameters, questions: HeldOut, neighbours: Neighbours, estimate: npt.NDArray[np.float64]
) -> Parameters:
    returning, visit = questions.ndcg(neighbours, estimate)
    returning_popularity, visit_popularity = questions.ndcg(None, estimate)
    return replace(
        parameters,
        ndcg_returning=returning,
        ndcg_visit=visit,
        ndcg_returning_popularity=returning_popularity,
        ndcg_visit_popularity=visit_popularity,
    )
