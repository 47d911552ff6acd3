"""The public contract follows its rules: comments everywhere, buf's STANDARD names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "protos").rglob("*.proto"))
# Field numbers within descriptor.proto, of which a location's path is made.
MESSAGES, ENUMS, SERVICES, FIELDS, ONEOFS, VALUES, METHODS = 4, 5, 6, 2, 8, 2, 2


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    output = tmp_path_factory.mktemp("protos") / "set.pb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={output}", *map(str, FILES)], check=True)
    return list(descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file)


def elements(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    found: dict[tuple[int, ...], str] = {}
    for m, message in enumerate(file.message_type):
        assert not message.nested_type, f"{message.name}: nested messages are not used"
        found[MESSAGES, m] = message.name
        found |= {(MESSAGES, m, FIELDS, f): f"{message.name}.{field.name}" for f, field in enumerate(message.field)}
        for o, oneof in enumerate(message.oneof_decl):
            if not oneof.name.startswith("_"):
                found[MESSAGES, m, ONEOFS, o] = f"{message.name}.{oneof.name}"
    for e, enum in enumerate(file.enum_type):
        found[ENUMS, e] = enum.name
        found |= {(ENUMS, e, VALUES, v): value.name for v, value in enumerate(enum.value)}
    for s, service in enumerate(file.service):
        found[SERVICES, s] = service.name
        found |= {(SERVICES, s, METHODS, m): f"{service.name}.{method.name}" for m, method in enumerate(service.method)}
    return found


def test_everything_has_a_comment(descriptors: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in descriptors:
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        missing = [name for path, name in elements(file).items() if not comments.get(path, "").strip()]
        assert missing == [], file.name


def test_names_follow_the_standard_rules(descriptors: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in descriptors:
        assert file.package == "tailorbird.v1"
        for enum in file.enum_type:
            prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"
            assert enum.value[0].name == f"{prefix}UNSPECIFIED"
            assert enum.value[0].number == 0
            assert all(value.name.startswith(prefix) for value in enum.value)
        for message in file.message_type:
            assert all(re.fullmatch(r"[a-z][a-z0-9_]*", field.name) for field in message.field)
        for service in file.service:
            assert service.name.endswith("Service")
            for method in service.method:
                assert method.input_type == f".tailorbird.v1.{method.name}Request"
                assert method.output_type == f".tailorbird.v1.{method.name}Response"


def test_no_maps_structs_or_anys_are_on_the_wire(descriptors: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in descriptors:
        assert all(name.startswith("tailorbird/v1/") for name in file.dependency)
