from typing import Final

import numpy as np
import numpy.typing as npt

CHUNK_HEADER_BYTES: Final[int]

# (bytes, the oldest time to take, in seconds since 1970)
Chunk = tuple[bytes, int]

def read_chunks(chunks: list[Chunk]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]: ...
def read_items(chunks: list[Chunk]) -> npt.NDArray[np.uint32]: ...
def distinct_newest(
    parts: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]], limit: int, half_life_ms: float
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]: ...
