"""Item–item weights from sets of items: EASE where it fits in memory, shrunk cosine beyond.

EASE (Steck 2019, "Embarrassingly shallow autoencoders for sparse data") is ridge regression of each item on all others:
with G = XᵀX and P = (G + λI)⁻¹, the weight of item j given item i is -P_ij / P_jj. It needs one dense float32 matrix of
items x items, at most `EASE_ITEMS_MAX` squared: 576 MB. Beyond, the weight is (c_ij / sqrt(c_i c_j) * c_ij / (c_ij +
λ))² from sparse counts, made in blocks of bounded size: the square puts it within 2 % of EASE on real orders.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack

from tailorbird.engine.baskets import Rows
from tailorbird.engine.errors import InternalError

EASE_ITEMS_MAX = 12_000
_BLOCK_BYTES = 64 * 1024**2

Csr = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.float32]]


def kind_for(supported_item_count: int, memory_bytes_max: int) -> str:
    """Return `ease` when its matrix and one block fit, else `cosine`."""
    fits = 4 * supported_item_count**2 + 4 * _BLOCK_BYTES <= memory_bytes_max
    return "ease" if fits and supported_item_count <= EASE_ITEMS_MAX else "cosine"


def item_item(rows: Rows, item_count: int, kind: str, regularisation: float, neighbour_count: int) -> Csr:
    """Return indptr uint32[item_count + 1], neighbours and weights: the `neighbour_count` heaviest above zero of each
    item.

    Items that no row holds have empty rows. For `ease`, `regularisation` is relative to the mean diagonal of G.
    """
    supported, column = np.unique(rows.items, return_inverse=True)
    cells = sparse.csr_matrix(
        (np.ones(len(column), np.float32), (rows.rows, column)), shape=(rows.row_count, len(supported))
    )
    transposed = cells.T.tocsr()
    support = np.diff(transposed.indptr).astype(np.float64)
    blocks = _blocks(cells, transposed)
    parts = (
        _ease_rows(cells, transposed, support, blocks, regularisation, neighbour_count)
        if kind == "ease"
        else _cosine_rows(cells, transposed, support, blocks, regularisation, neighbour_count)
    )
    counts = np.zeros(item_count, np.int64)
    counts[supported] = np.concatenate([part[0] for part in parts]) if parts else 0
    indptr = np.concatenate(([0], np.cumsum(counts)))
    if indptr[-1] >= 2**32:
        raise InternalError("MODEL_TOO_LARGE", f"expected fewer than 2^32 neighbours in all, got {indptr[-1]}")
    neighbours = np.concatenate([part[1] for part in parts]) if parts else np.zeros(0, np.int64)
    weights = np.concatenate([part[2] for part in parts]) if parts else np.zeros(0)
    return indptr.astype(np.uint32), supported[neighbours].astype(np.uint32), weights.astype(np.float32)


_Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]


def _blocks(cells: sparse.csr_matrix, transposed: sparse.csr_matrix) -> list[tuple[int, int]]:
    """Return ranges of items whose co-occurrence counts take at most about `_BLOCK_BYTES`, dense or sparse."""
    item_count = transposed.shape[0]
    lengths = np.diff(cells.indptr).astype(np.int64)
    reach = np.concatenate(([0], np.cumsum(lengths[transposed.indices])))[transposed.indptr]
    pairs = np.minimum(np.diff(reach), item_count)
    ranges = []
    start = 0
    while start < item_count:
        room = max(1, _BLOCK_BYTES // (4 * item_count))
        within = np.cumsum(pairs[start : start + 4096]) * 12 <= _BLOCK_BYTES
        end = min(item_count, start + max(1, room, int(within.sum())))
        ranges.append((start, end))
        start = end
    return ranges


def _ease_rows(
    cells: sparse.csr_matrix,
    transposed: sparse.csr_matrix,
    support: npt.NDArray[np.float64],
    blocks: list[tuple[int, int]],
    regularisation: float,
    neighbour_count: int,
) -> list[_Part]:
    item_count = len(support)
    if item_count == 0:
        return []
    gram = np.zeros((item_count, item_count), np.float32, order="F")
    for start, end in blocks:
        gram[:, start:end] = (transposed[start:end] @ cells).toarray().T
    diagonal = np.arange(item_count)
    gram[diagonal, diagonal] += np.float32(regularisation * support.mean())
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1, clean=0)
    inverse, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise InternalError("NOT_POSITIVE_DEFINITE", f"expected G + λI to be positive definite, got LAPACK {failed}")
    scale = -1.0 / inverse[diagonal, diagonal]
    parts = []
    for start, end in blocks:
        # LAPACK fills the lower triangle only: a row of P is its part left of the diagonal and its column below.
        dense = np.empty((end - start, item_count), np.float32)
        dense[:, :start] = inverse[start:end, :start]
        dense[:, end:] = inverse[end:, start:end].T
        corner = np.tril(inverse[start:end, start:end])
        dense[:, start:end] = corner + np.tril(corner, -1).T
        dense *= scale
        dense[np.arange(end - start), np.arange(start, end)] = 0
        parts.append(_heaviest(dense, neighbour_count))
    return parts


def _heaviest(dense: npt.NDArray[np.float32], neighbour_count: int) -> _Part:
    """Return counts, columns and values of the heaviest positive entries of each row, columns ascending."""
    if dense.shape[1] > neighbour_count:
        bound = -np.partition(-dense, neighbour_count - 1, axis=1)[:, neighbour_count - 1 : neighbour_count]
        above, equal = dense > bound, dense == bound
        # Of equals at the bound the smaller item numbers stay.
        room = neighbour_count - above.sum(axis=1, keepdims=True)
        kept = (above | (equal & (np.cumsum(equal, axis=1) <= room))) & (dense > 0)
    else:
        kept = dense > 0
    return kept.sum(axis=1), np.nonzero(kept)[1], dense[kept]


def _cosine_rows(
    cells: sparse.csr_matrix,
    transposed: sparse.csr_matrix,
    support: npt.NDArray[np.float64],
    blocks: list[tuple[int, int]],
    regularisation: float,
    neighbour_count: int,
) -> list[_Part]:
    parts = []
    for start, end in blocks:
        block = (transposed[start:end] @ cells).tocsr()
        block.sort_indices()
        row = np.repeat(np.arange(end - start), np.diff(block.indptr))
        count = block.data.astype(np.float64)
        norm = np.sqrt(support[row + start] * support[block.indices])
        weight = (count / norm * count / (count + regularisation)) ** 2
        weight[row + start == block.indices] = 0
        order = np.lexsort((block.indices, -weight, row))
        rank = np.arange(len(row)) - block.indptr[row]
        kept = np.sort(order[(rank < neighbour_count) & (weight[order] > 0)])
        parts.append(
            (
                np.bincount(row[kept], minlength=end - start),
                block.indices[kept].astype(np.int64),
                weight[kept].astype(np.float32),
            )
        )
    return parts
