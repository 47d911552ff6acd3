"""Our Python client against grpcio's, on one native server: what a call costs a Python caller, messages written and read included.

Both call the same echo from this process, one call at a time, in blocks that take turns; every call has another request. The
process is not tied to a core, as callers are not: grpcio's threads may run beside each other.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from tailorbird.bench.load import Target
from tailorbird.bench.measure import time_paired
from tailorbird.client import Channel
from tailorbird.v1 import decision_service_pb2

Request = decision_service_pb2.DecideRequest
CALLS = 500  # of each client in a block


def client_results(target: Target, block_count: int) -> dict[str, object]:
    """Return the median microseconds of a call by each client, and the ratio, the median over blocks."""
    address = f"{target.host}:{target.port}"
    path = target.requests[0][0]
    made = [Request.FromString(message) for _, message in target.requests]
    write, read = Request.SerializeToString, decision_service_pb2.DecideResponse.FromString

    def requests(block: int) -> tuple[list[Request], list[Request]]:
        chosen = [made[(block * CALLS + n) % len(made)] for n in range(CALLS)]
        return chosen, chosen

    with Channel(address) as ours, grpc.insecure_channel(address) as theirs:
        peer: Callable[[Request], object] = theirs.unary_unary(path, write, read)
        paired = time_paired(ours.unary_unary(path, write, read), peer, requests, block_count=block_count)
    return {
        "client_over_grpcio_client_p50": paired.ratio_by_block(),
        "client_p50_us": paired.ours.percentile_us(50),
        "grpcio_client_p50_us": paired.peer.percentile_us(50),
    }
