from typing import Final

import numpy as np
import numpy.typing as npt

CHUNK_HEADER_BYTES: Final[int]

def read_chunk(chunk: bytes, since_s: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]: ...
def distinct_newest(
    parts: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]], limit: int, half_life_ms: float
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]: ...
