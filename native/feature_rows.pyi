from typing import final

import numpy as np
import numpy.typing as npt

from tailorbird.native.record import RecordLayout, RecordView

@final
class FeatureColumns:
    def __new__(
        cls,
        layout: RecordLayout,
        indices: npt.NDArray[np.int32],
        columns: npt.NDArray[np.int32],
        is_number: npt.NDArray[np.uint8],
    ) -> FeatureColumns: ...
    @property
    def layout(self) -> RecordLayout: ...
    def __len__(self) -> int: ...

@final
class FeatureRows:
    def __new__(
        cls, values: npt.NDArray[np.float64], statuses: npt.NDArray[np.uint8], ages: npt.NDArray[np.int64]
    ) -> FeatureRows: ...
    def read(self, row: int, view: RecordView, which: FeatureColumns, at: int, mask: int) -> None: ...
