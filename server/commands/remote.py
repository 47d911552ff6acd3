"""Commands that work on a running service instead of opening its directory."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.errors import Unavailable
from tailorbird.engine.pushes import PushedRow
from tailorbird.engine.signals import IngestReport
from tailorbird.server.materialize import Push
from tailorbird.server.messages.consent import choice_message
from tailorbird.server.messages.signals import report_from
from tailorbird.v1 import feature_service_pb2, feature_service_pb2_grpc

Metadata = tuple[tuple[str, str], ...]


def add_address_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--address` and `--key`."""
    parser.add_argument("--address", metavar="HOST:PORT", help="of a running service that has the directory open")
    parser.add_argument("--key", default="", help="the key of a caller, where the service asks for one")


@contextmanager
def feature_stub(address: str, key: str) -> Iterator[tuple[feature_service_pb2_grpc.FeatureServiceStub, Metadata]]:
    """Give a stub and its metadata. Raises `Unavailable` CALL_FAILED for a call that fails."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    with grpc.insecure_channel(address) as channel:
        try:
            yield feature_service_pb2_grpc.FeatureServiceStub(channel), metadata
        except grpc.RpcError as error:
            raise Unavailable(
                "CALL_FAILED", f"expected an answer of {address}, got {error.code().name}: {error.details()}"
            ) from None


@contextmanager
def remote_push(address: str, key: str, namespace: str, choice: ConsentChoice | None) -> Iterator[Push]:
    """Give what pushes rows into a running service."""
    with feature_stub(address, key) as (stub, metadata):

        def push(rows: Sequence[PushedRow]) -> IngestReport:
            names = dict.fromkeys(name for row in rows for name in row.values)
            request = feature_service_pb2.PushFeaturesRequest(
                namespace=namespace,
                people=[row.person for row in rows],
                event_times_ms=[row.event_time for row in rows],
                columns=[
                    feature_service_pb2.PushedColumn(
                        name=name, numbers=[float(row.values.get(name, math.nan)) for row in rows]
                    )
                    for name in names
                ],
                source="materialize",
                consent=None if choice is None else choice_message(choice),
            )
            return report_from(stub.PushFeatures(request, metadata=metadata))

        yield push
