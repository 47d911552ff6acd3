import numpy as np
import numpy.typing as npt

CONNECTIONS_MAX: int
IN_FLIGHT_MAX: int
STATUS_COUNT: int
WINDOWS_MAX: int

def run(
    host: str,
    port: int,
    requests: list[tuple[bytes, bytes]],
    *,
    connections: int,
    streams: int,
    due_ns: npt.NDArray[np.int64],
    calls_max: int,
    run_ns: int,
    drain_ns: int,
    timeout_ns: int,
    late_ns: int,
    window_ns: int,
    window_count: int,
    life_calls: int,
    in_flight_max: int,
) -> tuple[
    dict[str, int],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint32],
]: ...
