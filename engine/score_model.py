"""Learned scores: a probability from a person's features by trees and a calibration, as a file that deciders read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

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


class Score(msgspec.Struct, frozen=True, array_like=True):
    """What a model file holds. The probability is 1 / (1 + exp(-(slope * sum of trees + intercept)))."""

    feature: str
    built_at: int
    inputs: tuple[Input, ...]
    trees: ScoreTrees
    slope: float
    intercept: float
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

    def probabilities(self, numbers: Mapping[str, Column], texts: Mapping[str, Sequence[str | None]]) -> Column:
        """Return the score of each person from columns of equal length; NaN and None are what does not speak."""
        rows = input_matrix(self.score.inputs, numbers, texts)
        total = np.empty(len(rows))
        self._trees.total(rows, total)
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-(self.score.slope * total + self.score.intercept))))


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


def write_score(folder: Path, score: Score) -> tuple[Path, int]:
    """Publish a model in `folder`; return its path and its checksum (xxh3-64)."""
    body = MAGIC + msgspec.msgpack.encode(score)
    checksum = xxhash.xxh3_64_intdigest(body)
    path = folder / f"score-{score.feature}-{score.built_at}.tbm"
    write_durably(path, checksum.to_bytes(8, "little") + body)
    return path, checksum


def open_score(path: Path) -> tuple[ScoreModel, int]:
    """Return a model and its checksum. Raises `Damaged` DAMAGED_MODEL, `OSError`."""
    raw = path.read_bytes()
    checksum = int.from_bytes(raw[:8], "little")
    body = raw[8:]
    try:
        if body[:8] != MAGIC or xxhash.xxh3_64_intdigest(body) != checksum:
            raise ValueError("its magic or checksum does not fit")
        return ScoreModel(msgspec.msgpack.decode(body[8:], type=Score)), checksum
    except ValueError as error:  # msgspec's errors are of this kind too
        raise Damaged(
            "DAMAGED_MODEL", f"expected a score model, got {path}: {error}; delete it and train the score again"
        ) from None
