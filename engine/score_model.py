"""What is learned from features: a probability by trees and a calibration, or the nearest of some centres, as a file that is read
wherever features are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from scipy.special import expit

from tailorbird.engine.directory import write_durably
from tailorbird.engine.errors import Damaged
from tailorbird.native.trees import Trees

MAGIC = b"TBSCORE1"
ROLE = "score:"  # before the name of the feature a model speaks for

Column = npt.NDArray[np.float64]


class Input(msgspec.Struct, frozen=True, array_like=True):
    """A feature a model reads. A text is one column per known text, 1 where it is that one."""

    name: str
    version: int
    texts: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """How many columns it takes."""
        return 1 if self.texts is None else len(self.texts)


class ScoreTrees(msgspec.Struct, frozen=True, array_like=True):
    """Trees as `native.trees.Trees` takes them, little endian."""

    roots: bytes
    inputs: bytes
    thresholds: bytes
    left: bytes
    right: bytes
    missing_left: bytes
    leaves: bytes


class Score(msgspec.Struct, frozen=True, array_like=True, tag="score"):
    """A probability: 1 / (1 + exp(-(slope * sum of trees + intercept))).

    `precision` (2 x 2, row by row) is how sure slope and intercept are: what an update weighs new labels against.
    """

    feature: str
    built_at: int
    inputs: tuple[Input, ...]
    trees: ScoreTrees
    slope: float
    intercept: float
    precision: tuple[float, float, float, float]
    report: dict[str, float]


class Clusters(msgspec.Struct, frozen=True, array_like=True, tag="clusters"):
    """Centres among people: [cluster, input], of inputs as log1p of their size with their sign, less `mean`, over `scale`."""

    feature: str
    built_at: int
    inputs: tuple[Input, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    centres: tuple[tuple[float, ...], ...]
    report: dict[str, float]


class ScoreModel:
    """A score ready to be computed."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.names = tuple(each.name for each in score.inputs)
        trees = score.trees
        self._trees = Trees(
            sum(each.width for each in score.inputs),
            np.frombuffer(trees.roots, "<i4"),
            np.frombuffer(trees.inputs, "<i4"),
            np.frombuffer(trees.thresholds, "<f8"),
            np.frombuffer(trees.left, "<i4"),
            np.frombuffer(trees.right, "<i4"),
            np.frombuffer(trees.missing_left, np.uint8),
            np.frombuffer(trees.leaves, "<f8"),
        )

    def totals(self, numbers: Mapping[str, Column], texts: Mapping[str, Sequence[str | None]]) -> Column:
        """Return the sum of trees of each person from columns of equal length; NaN and None are what does not speak."""
        rows = input_matrix(self.score.inputs, numbers, texts)
        total = np.empty(len(rows))
        self._trees.total(rows, total)
        return total

    def values(self, numbers: Mapping[str, Column], texts: Mapping[str, Sequence[str | None]]) -> Column:
        """Return the probability of each person, as of `totals`."""
        return np.asarray(expit(self.score.slope * self.totals(numbers, texts) + self.score.intercept))


class ClusterModel:
    """Clusters ready to be found."""

    def __init__(self, clusters: Clusters) -> None:
        self.clusters = clusters
        self.names = tuple(each.name for each in clusters.inputs)
        self._mean, self._scale = np.array(clusters.mean), np.array(clusters.scale)
        self._centres = np.array(clusters.centres)

    def values(self, numbers: Mapping[str, Column], texts: Mapping[str, Sequence[str | None]]) -> Column:
        """Return the number of the nearest centre of each person; what does not speak counts as the mean."""
        points = (flattened(input_matrix(self.clusters.inputs, numbers, texts)) - self._mean) / self._scale
        points = np.where(np.isnan(points), 0.0, points)
        distances = ((points[:, None, :] - self._centres) ** 2).sum(axis=2)
        return np.asarray(distances.argmin(axis=1), np.float64)


Learned = ScoreModel | ClusterModel


def flattened(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return log1p of the size of each value, with its sign: amounts and counts on one scale."""
    return np.asarray(np.copysign(np.log1p(np.abs(rows)), rows))


def input_matrix(
    inputs: Sequence[Input], numbers: Mapping[str, Column], texts: Mapping[str, Sequence[str | None]]
) -> npt.NDArray[np.float64]:
    """Return the inputs of each person as a model reads them: [person, column]."""
    columns: list[Column] = []
    for each in inputs:
        if each.texts is None:
            columns.append(numbers[each.name])
            continue
        said = texts[each.name]
        absent = np.array([np.nan if text is None else 0.0 for text in said])
        columns += [absent + np.array([text == known for text in said], np.float64) for known in each.texts]
    return np.ascontiguousarray(np.column_stack(columns)) if columns else np.zeros((0, 0))


_decode = msgspec.msgpack.Decoder(Score | Clusters).decode


def write_model(folder: Path, model: Score | Clusters) -> tuple[Path, int]:
    """Publish a model in `folder`; return its path and its checksum (xxh3-64)."""
    body = MAGIC + msgspec.msgpack.encode(model)
    checksum = xxhash.xxh3_64_intdigest(body)
    path = folder / f"score-{model.feature}-{model.built_at}.tbm"
    write_durably(path, checksum.to_bytes(8, "little") + body)
    return path, checksum


def open_model(path: Path) -> tuple[Learned, int]:
    """Return a model and its checksum. Raises `Damaged` DAMAGED_MODEL, `OSError`."""
    raw = path.read_bytes()
    checksum = int.from_bytes(raw[:8], "little")
    body = raw[8:]
    try:
        if body[:8] != MAGIC or xxhash.xxh3_64_intdigest(body) != checksum:
            raise ValueError("its magic or checksum does not fit")
        found = _decode(body[8:])
        return (ScoreModel(found) if isinstance(found, Score) else ClusterModel(found)), checksum
    except ValueError as error:  # msgspec's errors are of this kind too
        raise Damaged(
            "DAMAGED_MODEL", f"expected a score model, got {path}: {error}; delete it and train the score again"
        ) from None
