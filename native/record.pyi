from collections.abc import Iterable
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

COUNT: Final[int]
SUM: Final[int]
LAST: Final[int]
TIME_SINCE: Final[int]
DECAYED: Final[int]
TOP_K: Final[int]
LAST_K: Final[int]
MEAN: Final[int]
MIN: Final[int]
MAX: Final[int]
FIRST: Final[int]
DISTINCT: Final[int]
QUANTILE: Final[int]
WINDOW_COUNT: Final[int]
WINDOW_SUM: Final[int]
WINDOW_MEAN: Final[int]
WINDOW_MIN: Final[int]
WINDOW_MAX: Final[int]
WINDOW_DISTINCT: Final[int]

FRESH: Final[int]
STALE: Final[int]
MISSING: Final[int]
WARMING: Final[int]
DEFAULTED: Final[int]
MASKED: Final[int]

TOP_K_MAX: Final[int]
LAST_K_MAX: Final[int]
QUANTILE_BINS_MAX: Final[int]
TILES_MAX: Final[int]
PRECISION_MIN: Final[int]
PRECISION_MAX: Final[int]
FEATURES_MAX: Final[int]
SUM_UNITS_PER_ONE: Final[int]
FLAG_SATURATED: Final[int]

class RecordError(ValueError):
    reason: str
    message: str
    def __init__(self, reason: str, message: str) -> None: ...

@final
class RecordLayout:
    def __new__(
        cls,
        version: int,
        ops: bytes | bytearray | memoryview | npt.NDArray[np.uint8],
        *,
        k: npt.NDArray[np.uint32],
        half_life_ms: npt.NDArray[np.float64],
        required: npt.NDArray[np.uint64],
        admit: npt.NDArray[np.uint64],
        max_age_ms: npt.NDArray[np.int64],
        window_ms: npt.NDArray[np.int64] | None = None,
        hop_ms: npt.NDArray[np.int64] | None = None,
        quantile: npt.NDArray[np.float64] | None = None,
        default: npt.NDArray[np.float64] | None = None,
        warming: npt.NDArray[np.uint8] | None = None,
    ) -> RecordLayout: ...
    @property
    def version(self) -> int: ...
    @property
    def feature_count(self) -> int: ...
    @property
    def dense_bytes(self) -> int: ...
    @property
    def packed_bytes_max(self) -> int: ...
    @property
    def fingerprint(self) -> int: ...
    @property
    def offsets(self) -> tuple[int, ...]: ...
    @property
    def ops(self) -> bytes: ...
    @property
    def bytes_max(self) -> tuple[int, ...]: ...
    @property
    def program_count(self) -> int: ...
    def add_program(self, entries: Iterable[tuple[int, int, float]]) -> int: ...

class RecordHeader:
    partition: int
    member_count: int
    key_id: int
    fragment_id: bytes
    granted: int
    denied: int
    restricted: int
    explicit: int
    first_seen: int
    last_seen: int
    consent_time: int
    @property
    def flags(self) -> int: ...
    @property
    def layout_version(self) -> int: ...

@final
class Record(RecordHeader):
    def __new__(cls, layout: RecordLayout) -> Record: ...
    @property
    def layout(self) -> RecordLayout: ...
    @staticmethod
    def unpack(layout: RecordLayout, data: bytes | bytearray | memoryview) -> Record: ...
    def pack(self) -> bytes: ...
    def copy(self) -> Record: ...
    @property
    def feature_count(self) -> int: ...
    def clear_features(self) -> None: ...
    def clear_feature(self, index: int) -> None: ...
    def update(self, program: int, event_time: int, digest: int, slots: tuple[object, ...], mask: int) -> None: ...
    def merge(self, other: Record, data_mask: int) -> None: ...
    def upgraded(self, new_layout: RecordLayout, mapping: npt.NDArray[np.int32]) -> Record: ...
    def take(self, other: Record, mapping: npt.NDArray[np.int32]) -> None: ...
    def bytes_used(self, index: int) -> int: ...
    # The shape depends on the feature's kind, which only the caller knows.
    def feature(self, index: int) -> Any: ...

def stored_layout_version(data: bytes | bytearray | memoryview) -> int: ...

@final
class RecordView(RecordHeader):
    def __new__(cls) -> RecordView: ...
    @property
    def layout(self) -> RecordLayout | None: ...
    def load(self, layout: RecordLayout, data: bytes | bytearray | memoryview) -> None: ...
    def read_vector(
        self,
        indices: npt.NDArray[np.int32],
        at: int,
        mask: int,
        out: npt.NDArray[np.float32],
        status: npt.NDArray[np.uint8],
    ) -> tuple[int, int]: ...
    def status(self, index: int, at: int, mask: int) -> int: ...
    def age(self, index: int, at: int) -> int: ...
    def symbol(self, index: int, at: int, mask: int) -> int | None: ...
    def recent(
        self, index: int, at: int, mask: int, out_items: npt.NDArray[np.uint32], out_times: npt.NDArray[np.int64]
    ) -> int: ...
    def top(
        self, index: int, at: int, mask: int, out_keys: npt.NDArray[np.uint64], out_weights: npt.NDArray[np.float32]
    ) -> int: ...
