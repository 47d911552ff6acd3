"""`make fuzz`: our own codecs against protobuf's on damaged messages, until the time is over.

Messages that callers send are cut, joined, repeated and changed at random; what is read of each must be what protobuf reads, or
be refused as protobuf refuses it. The Makefile runs it on the build with the sanitizers. A failure prints the seed, and the bytes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from tailorbird.v1 import consent_pb2, identity_pb2, signal_pb2, signal_service_pb2
from tailorbird.v1 import decision_service_pb2 as api
from tests.server import test_signal_codec, test_wire_codec

WHO = [
    identity_pb2.Identifier(namespace="user_id", value="u1"),
    identity_pb2.Identifier(namespace="email", value="é@x"),
]
WHERE = [identity_pb2.ContextEntry(name="country", value="GB")]
VIEW = signal_pb2.Signal(
    type="product_viewed",
    event_time_ms=1_750_000_000_000,
    identifiers=WHO,
    message_id="m1",
    properties=[
        signal_pb2.Property(name="product_id", string_value="a"),
        signal_pb2.Property(name="new", bool_value=True),
        signal_pb2.Property(name="price", double_value=2.5),
        signal_pb2.Property(name="count", int_value=-2),
    ],
    context=WHERE,
    source="web",
    source_offset=7,
)
ORDER = signal_pb2.Signal(
    type="order_completed",
    identifiers=WHO[:1],
    products=[
        signal_pb2.ProductLine(product_id="a", sku="s", price=2.5, quantity=2, position=1, coupon="c"),
        signal_pb2.ProductLine(product_id="b", extra=[signal_pb2.Property(name="colour", string_value="white")]),
    ],
    consent=consent_pb2.ConsentChoice(
        entries=[consent_pb2.ConsentEntry(data_type="DATA_TYPE_BEHAVIOURAL", state="CONSENT_STATE_GRANTED")], notice="n"
    ),
)
DECIDE = api.DecideRequest(
    placement="home",
    identifiers=WHO,
    context=WHERE,
    candidate_ids=["a", "日本", "c" * 130],
    at_ms=1_750_000_000_000,
    item_count=3,
    events=[VIEW],
    request_id="r",
    min_position=9,
)


def check_decide(data: bytes) -> None:
    """Hold a DecideRequest against protobuf's reading of it."""
    found = test_wire_codec.outcome(test_wire_codec.by_ours, data)
    expected = test_wire_codec.outcome(test_wire_codec.by_protobuf, data)
    assert repr(found) == repr(expected), f"expected {expected}, got {found}"


def check_ingest(data: bytes) -> None:
    """Hold an IngestRequest and an IngestStreamRequest against protobuf's reading of them."""
    test_signal_codec.check(test_signal_codec.UNARY, data)
    test_signal_codec.check(test_signal_codec.STREAM, data)


TARGETS: list[tuple[Callable[[bytes], None], list[bytes]]] = [
    (check_decide, [DECIDE.SerializeToString()]),
    (
        check_ingest,
        [
            signal_service_pb2.IngestRequest(signals=[VIEW, ORDER]).SerializeToString(),
            signal_service_pb2.IngestStreamRequest(signals=[ORDER], source="web").SerializeToString(),
        ],
    ),
]


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Return bytes changed in one way."""
    place, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + data[end:]
    if kind == 2:
        return data[:end] + data[place:]
    if kind == 3:
        return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
    if kind == 4:
        return (
            data[:place] + bytes([(data[place] + rng.choice((-1, 1))) % 256]) + data[place + 1 :]
            if end > place
            else data
        )
    return data[:place] + rng.choice(others)[rng.randrange(60) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    print(f"fuzzing the codecs for {args.seconds:g} s, seed {args.seed}", flush=True)
    rng, until, tried = random.Random(args.seed), time.monotonic() + args.seconds, 0
    while time.monotonic() < until:
        for check, seeds in TARGETS:
            data = rng.choice(seeds)
            for _ in range(rng.randrange(1, 6)):
                data = mutated(rng, data, seeds)
            try:
                check(data)
            except Exception:
                print(f"seed {args.seed}, message {tried}, {check.__name__}: {data.hex()}", file=sys.stderr)
                raise
            tried += 1
    print(f"{tried} messages read or refused as by protobuf")


if __name__ == "__main__":
    main()
