from collections.abc import Iterable, Sequence
from typing import Final, final

import numpy as np
import numpy.typing as npt

from tailorbird.native.servings import ServedLog

UNKNOWN_ITEM: Final[int]

# (item number, id, score, reason code, affinity index)
Winner = tuple[int, str, float, int, int]
# Item ids, item numbers, or None for every item
Candidates = Sequence[str] | npt.NDArray[np.uint32] | None
# (scores per item, items where they are not zero, support, strength of the parent, popularity exponent)
Together = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32], float, float, float]

@final
class CellTable:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def set_counts(self, items: npt.NDArray[np.uint32], counts: npt.NDArray[np.float64]) -> None: ...
    def counts(self, items: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]: ...
    def entries(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]: ...

@final
class Prior:
    def __init__(
        self,
        scale: float = 1.0,
        total: float = 0.0,
        uniform_strength: float = 1.0,
        levels: tuple[tuple[CellTable, float, float], ...] = (),
    ) -> None: ...

@final
class ItemTable:
    count: Final[int]
    live_count: Final[int]
    attribute_count: Final[int]
    dimension: Final[int]
    def __init__(self, attribute_count: int, dimension: int) -> None: ...
    def put(
        self,
        number: int,
        item_id: str,
        live: bool,
        stock: int,
        start_s: int,
        end_s: int,
        symbols: tuple[int, ...],
        embedding: npt.NDArray[np.float32] | None,
    ) -> None: ...
    def id(self, number: int) -> str: ...
    def lookup(self, ids: Iterable[str]) -> tuple[npt.NDArray[np.uint32], int]: ...
    def set_counts(self, items: npt.NDArray[np.uint32], counts: npt.NDArray[np.float64]) -> None: ...
    def counts(self) -> npt.NDArray[np.float64]: ...
    def live(self) -> npt.NDArray[np.uint8]: ...
    def attribute(self, index: int) -> npt.NDArray[np.uint64]: ...
    def symbol(self, attribute: int, number: int) -> int: ...
    def begin(self) -> None: ...
    def exclude(self, numbers: Iterable[int]) -> None: ...
    def exclude_listed(self, chunk: bytes, since_s: int) -> None: ...
    def exclude_served(self, log: ServedLog, fragment: bytes, since_s: int) -> None: ...
    def rank(
        self,
        candidates: Candidates,
        k: int,
        now_s: int,
        prior: Prior,
        *,
        require_stock: bool = True,
        allowed: npt.NDArray[np.uint8] | None = None,
        together: Together | None = None,
        affinities: tuple[tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.float64], float], ...] = (),
        vector: npt.NDArray[np.float32] | None = None,
        vector_log: bool = False,
        notable: float = 1.1,
        parts: npt.NDArray[np.float64] | None = None,
    ) -> tuple[list[Winner], tuple[int, ...], int, int, int, int]: ...
