from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from tailorbird.native.anchors import PlainHasher
from tailorbird.native.lmdb_pages import LmdbTable
from tailorbird.native.record import RecordLayout
from tailorbird.native.scoring import ItemTable, Prior
from tailorbird.native.servings import ServedLog
from tailorbird.native.signed_ids import CountedIds
from tailorbird.native.wire import DecisionEncoder

class _Servings(Protocol):
    """Of the engine: the logs that are passed over, those that are added to, and what the state of a position does not hold."""

    @property
    def logs(self) -> tuple[ServedLog, ...]: ...
    @property
    def taking(self) -> tuple[ServedLog, ...]: ...
    def beside(self, position: int) -> list[ServedLog]: ...

# Decision id, tier, completeness, profile age, masked, excluded, candidates, unknown candidates, at, person id, degraded.
QuickAnswer = tuple[str, int, float, int, int, int, int, int, int, str, tuple[str, ...]]
# Context, permitted, fragments, vector.
QuickEvidence = tuple[QuickContext, int, list[bytes], bytes]

@final
class QuickPlan:
    def __new__(
        cls,
        layout: RecordLayout,
        placement: str,
        number: int,
        k: int,
        *,
        require_stock: bool,
        record_served: bool,
        features: npt.NDArray[np.int32],
        exclude_recent: npt.NDArray[np.int32],
        vector: npt.NDArray[np.int32],
        vector_log: bool,
        windows: tuple[tuple[int, int, int], ...],
        caps: tuple[tuple[int, int, int, int], ...],
    ) -> QuickPlan: ...

@final
class QuickContext:
    def __new__(
        cls, prior: Prior, tier: int, chain: object, derived: Mapping[str, str], is_kept: bool
    ) -> QuickContext: ...
    @property
    def chain(self) -> Any: ...
    @property
    def derived(self) -> Mapping[str, str]: ...

@final
class QuickDecider:
    def __new__(
        cls,
        namespaces: dict[bytes, tuple[PlainHasher | None, int]],
        person_hasher: PlainHasher,
        servings: _Servings,
        decision_id: Callable[[str, int], str],
        loose_ids: CountedIds,
        context: Callable[[dict[str, str], int], QuickContext | None],
        reasons: Callable[[QuickContext, int], tuple[Any, ...]],
        item: Callable[[str, float, float, tuple[Any, ...]], Any],
        encoder: DecisionEncoder,
        tier_counts__t: npt.NDArray[np.int64],
    ) -> QuickDecider: ...
    def take_up(
        self,
        layout: RecordLayout,
        plans: Iterable[QuickPlan],
        *,
        version: int,
        candidates_max: int,
        k_max: int,
        always: int,
        all_bits: int,
        served_consent: int,
        served_code: int,
        notable: float,
        depends_on_time: bool,
    ) -> None: ...
    def follow(
        self,
        people: LmdbTable,
        items: ItemTable,
        served: ServedLog,
        allowed: Mapping[str, npt.NDArray[np.uint8]],
        degraded: tuple[str, ...],
        position: int,
        stale: Callable[[int], list[str]] | None,
    ) -> None: ...
    def decide(self, request: bytes, now: int, log: Callable[..., None] | None) -> bytes | None: ...
    def decide_request(
        self,
        placement: str,
        identifiers: dict[str, str],
        context: dict[str, str],
        candidates: Sequence[str],
        at: int,
        k: int,
        request_id: str,
        min_position: int,
        now: int,
        log: Callable[..., None] | None,
    ) -> tuple[tuple[Any, ...], QuickAnswer, QuickEvidence] | None: ...
