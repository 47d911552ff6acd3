"""The file of a co-occurrence model: sparse rows of item neighbours, mapped read-only by every process that decides.

    header   80 bytes, little endian, see `_HEADER`; the checksum covers everything but itself
    indptr   uint32[item_count + 1]
    items    uint32[entry_count], ascending in each row
    weights  float32[entry_count], above zero

It is written beside its place, synced, renamed, and its folder synced: a reader sees a whole file or none.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from tailorbird.engine.errors import Damaged

MAGIC = b"TBCOOCC\0"
VERSION = 1
KINDS = ("ease", "cosine")
# Magic, version, kind, built_at, item_count, entry_count, rows trained on, parameters.
_HEADER = struct.Struct("<8sIIQIIQ8f")
_CHECKSUM = struct.Struct("<Q")
_ARRAYS_AT = 80
assert _HEADER.size + _CHECKSUM.size == _ARRAYS_AT


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What was fitted on held-out time; see `cooccurrence.train`. Kept as float32 in the file.

    `regularisation` is relative to the mean support of an item for `ease`, a count for `cosine`.
    An item a person had to do with weighs 2^-(newest - its time)/`recency_half_life_ms`. `popularity_exponent` is how
    far q follows what is popular now: q * (estimate / uniform)^exponent; the weights were divided by the popularity
    they were trained on to the same power. Against a parent of strength 1, co-occurrence has the support
    `support_per_item` times the sum of the item weights. `ndcg_*` are NDCG@10 on held-out time, 0 where there was too
    little to fit on.
    """

    regularisation: float
    recency_half_life_ms: float
    popularity_exponent: float
    support_per_item: float
    ndcg_returning: float = 0.0
    ndcg_visit: float = 0.0
    ndcg_returning_popularity: float = 0.0
    ndcg_visit_popularity: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """A co-occurrence model: row i of the CSR matrix holds what goes together with item i.

    `kind` is `ease` or `cosine`; `row_count` the visits and histories it was trained on. Items numbered `item_count`
    and above came after the training and have no row.
    """

    kind: str
    item_count: int
    row_count: int
    indptr: npt.NDArray[np.uint32]
    items: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]
    parameters: Parameters


def file_name(built_at: int) -> str:
    """Return the name of the model built at a log position."""
    return f"cooccurrence-{built_at}.tbm"


def write_neighbours(folder: Path, neighbours: Neighbours, built_at: int) -> tuple[Path, int]:
    """Publish a model in `folder`; return its path and its checksum (xxh3-64). An equal name is replaced whole."""
    values = [float(getattr(neighbours.parameters, field.name)) for field in fields(Parameters)]
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        KINDS.index(neighbours.kind),
        built_at,
        neighbours.item_count,
        len(neighbours.items),
        neighbours.row_count,
        *values,
    )
    arrays = [
        np.ascontiguousarray(neighbours.indptr, "<u4"),
        np.ascontiguousarray(neighbours.items, "<u4"),
        np.ascontiguousarray(neighbours.weights, "<f4"),
    ]
    digest = xxhash.xxh3_64(head)
    for array in arrays:
        digest.update(array.data)
    path = folder / file_name(built_at)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(head)
        file.write(_CHECKSUM.pack(digest.intdigest()))
        for array in arrays:
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path, digest.intdigest()


def open_neighbours(path: Path) -> tuple[Neighbours, int, int]:
    """Map a model; return it with the log position it was built at and its checksum.

    Raises `Damaged` DAMAGED_MODEL when magic, version, length, checksum or the order of the rows do not fit, and
    `FileNotFoundError` when there is no such file.
    """
    length = path.stat().st_size
    if length < _ARRAYS_AT:
        raise _damaged(path, f"expected at least {_ARRAYS_AT} bytes, got {length}")
    mapped = np.memmap(path, np.uint8, "r")
    head = mapped[: _ARRAYS_AT - _CHECKSUM.size].tobytes()
    magic, version, kind, built_at, item_count, entry_count, row_count, *values = _HEADER.unpack_from(head)
    if magic != MAGIC:
        raise _damaged(path, f"expected magic {MAGIC!r}, got {magic!r}")
    if version != VERSION or kind >= len(KINDS):
        raise _damaged(path, f"expected version {VERSION} and a kind below {len(KINDS)}, got {version} and {kind}")
    expected = _ARRAYS_AT + 4 * (item_count + 1) + 8 * entry_count
    if length != expected:
        raise _damaged(
            path, f"expected {expected} bytes for {item_count} items and {entry_count} entries, got {length}"
        )
    (checksum,) = _CHECKSUM.unpack(mapped[_ARRAYS_AT - _CHECKSUM.size : _ARRAYS_AT].tobytes())
    digest = xxhash.xxh3_64(head)
    digest.update(mapped[_ARRAYS_AT:].data)
    if digest.intdigest() != checksum:
        raise _damaged(path, f"expected checksum {checksum:016x}, got {digest.hexdigest()}")
    items_at = _ARRAYS_AT + 4 * (item_count + 1)
    weights_at = items_at + 4 * entry_count
    indptr = mapped[_ARRAYS_AT:items_at].view("<u4")
    # A plain view of the map: memmap's subclass costs a microsecond at every slice and keeps nothing that the base does
    # not.
    neighbours = Neighbours(
        kind=KINDS[kind],
        item_count=item_count,
        row_count=row_count,
        indptr=np.asarray(indptr),
        items=np.asarray(mapped[items_at:weights_at].view("<u4")),
        weights=np.asarray(mapped[weights_at:].view("<f4")),
        parameters=Parameters(**{field.name: value for field, value in zip(fields(Parameters), values, strict=True)}),
    )
    if indptr[0] != 0 or indptr[-1] != entry_count or (np.diff(indptr.astype(np.int64)) < 0).any():
        raise _damaged(path, f"expected row ends ascending from 0 to {entry_count}")
    return neighbours, built_at, checksum


def _damaged(path: Path, detail: str) -> Damaged:
    return Damaged("DAMAGED_MODEL", f"{detail}, in {path}; delete it and run `tailorbird train cooccurrence` again")
