from typing import final

import numpy as np
import numpy.typing as npt

@final
class Trees:
    def __new__(
        cls,
        input_count: int,
        roots: npt.NDArray[np.int32],
        inputs: npt.NDArray[np.int32],
        thresholds: npt.NDArray[np.float64],
        left: npt.NDArray[np.int32],
        right: npt.NDArray[np.int32],
        missing_left: npt.NDArray[np.uint8],
        leaves: npt.NDArray[np.float64],
    ) -> Trees: ...
    @property
    def input_count(self) -> int: ...
    def total(self, rows: npt.NDArray[np.float64], out: npt.NDArray[np.float64]) -> None: ...
