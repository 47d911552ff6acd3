import numpy as np
import numpy.typing as npt

def accumulate(
    indptr: npt.NDArray[np.uint32],
    neighbours: npt.NDArray[np.uint32],
    weights: npt.NDArray[np.float32],
    items: npt.NDArray[np.uint32],
    item_weights: npt.NDArray[np.float32],
    scratch: npt.NDArray[np.float32],
    touched: npt.NDArray[np.uint32],
    touched_count: int = 0,
) -> int: ...
def total(scratch: npt.NDArray[np.float32], touched: npt.NDArray[np.uint32], touched_count: int) -> float: ...
def clear(scratch: npt.NDArray[np.float32], touched: npt.NDArray[np.uint32], touched_count: int) -> None: ...
def top(
    scratch: npt.NDArray[np.float32],
    touched: npt.NDArray[np.uint32],
    touched_count: int,
    limit: int,
    out_items: npt.NDArray[np.uint32],
    out_scores: npt.NDArray[np.float32],
) -> int: ...
def explain(
    indptr: npt.NDArray[np.uint32],
    neighbours: npt.NDArray[np.uint32],
    weights: npt.NDArray[np.float32],
    items: npt.NDArray[np.uint32],
    item_weights: npt.NDArray[np.float32],
    target: int,
) -> int: ...
