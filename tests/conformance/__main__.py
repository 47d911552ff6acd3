"""Holds both transports against programs that are not ours: h2spec, grpcurl, grpc-go's interop client, grpcio's client.

    python -m tests.conformance build/conformance      the folder with bin/, which `make conformance` fills

Each check has a name, `program/case`. What fails and is no exception in exceptions.toml is red, and so is an exception
that passes or that names no check: the file says what is true today.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from tailorbird.server.health import Health
from tailorbird.server.reflection import reflection_table
from tailorbird.server.transport import HandlerTable, ServerLimits
from tailorbird.server.transport.choice import GRPCIO, NATIVE, make_server
from tests.conformance.interop import HERE, interop_table, messages

LIMIT_S = 180.0
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
SERVICE = "grpc.testing.TestService"
INTEROP_CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
)
DECIDE = "tailorbird.v1.DecisionService/Decide"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: its name, and why it failed or None."""

    name: str
    failure: str | None


async def output_of(*command: str | Path) -> tuple[int, str]:
    """Run a program; return its exit code and all it printed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return -1, f"expected an end within {LIMIT_S:.0f} s, got none"
    return process.returncode or 0, printed.decode("utf-8", "replace")


@asynccontextmanager
async def served(transport: str, table: HandlerTable) -> AsyncIterator[int]:
    server, _ = make_server(transport, table, ServerLimits(grace_s=1))
    port = await server.start("127.0.0.1:0")
    try:
        yield port
    finally:
        await server.stop()


async def h2spec(programs: Path, port: int) -> list[Outcome]:
    """Return one outcome per case, named `h2spec/<section>/<number>`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        path = f"/{SERVICE}/EmptyCall"
        _, printed = await output_of(
            programs / "h2spec", "--strict", "-p", str(port), "-P", path, "-o", "2", "-j", report, "generic", "http2",
            "hpack",
        )  # fmt: skip
        if not report.exists():
            return [Outcome("h2spec", printed)]
        outcomes = []
        numbers: dict[str, int] = {}
        text = NOT_XML.sub("?", report.read_text("utf-8", "replace"))  # h2spec prints the bytes it got as they are
        for case in ElementTree.fromstring(text).iter("testcase"):
            section = case.get("package", "")
            numbers[section] = numbers.get(section, 0) + 1
            # A case that h2spec skips shows nothing, so it must be argued like one that fails.
            failed = next((found for kind in ("failure", "error", "skipped") for found in case.iter(kind)), None)
            fault = None if failed is None else f"{case.get('classname')}: {' '.join((failed.text or '').split())}"
            outcomes.append(Outcome(f"h2spec/{section}/{numbers[section]}", fault))
        return outcomes


async def interop(programs: Path, port: int) -> list[Outcome]:
    """Return one outcome per case of grpc-go's client."""
    outcomes = []
    for case in INTEROP_CASES:
        code, printed = await output_of(
            programs / "client", "--server_host=127.0.0.1", f"--server_port={port}", f"--test_case={case}"
        )
        outcomes.append(Outcome(f"grpc-go/{case}", None if code == 0 else printed))
    return outcomes


async def grpcurl(programs: Path, port: int) -> list[Outcome]:
    """Ask what an operator asks of a running service, by reflection."""
    target, plain = f"127.0.0.1:{port}", "-plaintext"
    run = programs / "grpcurl"
    somebody = json.dumps({"placement": "home", "identifiers": [{"namespace": "anonymous_id", "value": "a"}]})
    asked: dict[str, tuple[tuple[str, ...], int | None, str]] = {
        "list": ((target, "list"), 0, r"tailorbird\.v1\.DecisionService"),
        "describe": ((target, "describe", "tailorbird.v1.DecisionService"), 0, r"rpc Decide "),
        "health": ((target, "grpc.health.v1.Health/Check"), 0, r'"SERVING"'),
        "unknown-service": (("-d", '{"service": "x"}', target, "grpc.health.v1.Health/Check"), None, "NotFound"),
        "decide": (("-d", somebody, target, DECIDE), 0, r'"decision_?[iI]d": "\w+'),
        "decide-refused": (("-d", '{"placement": "nowhere"}', target, DECIDE), None, r"Code: \w+\s+Message: .*nowhere"),
    }
    outcomes = []
    for name, (arguments, expected, pattern) in asked.items():
        code, printed = await output_of(run, plain, *arguments)
        found = re.search(pattern, printed) and (code == expected if expected is not None else True)
        outcomes.append(Outcome(f"grpcurl/{name}", None if found else f"exit {code}: {printed}"))
    return outcomes


async def grpcio_client(pb: Any, port: int) -> list[Outcome]:
    """Let grpcio's client make the interop calls, with compression."""
    outcomes = []
    for name, compression in (("plain", grpc.Compression.NoCompression), ("gzip", grpc.Compression.Gzip)):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", compression=compression) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/UnaryCall",
                request_serializer=pb.SimpleRequest.SerializeToString,
                response_deserializer=pb.SimpleResponse.FromString,
            )
            try:
                request = pb.SimpleRequest(response_size=314_159, payload=pb.Payload(body=bytes(271_828)))
                answer = await call(request, timeout=LIMIT_S)
                got = len(answer.payload.body)
                failure = None if got == 314_159 else f"expected 314159 bytes, got {got}"
            except grpc.aio.AioRpcError as error:
                failure = str(error)
        outcomes.append(Outcome(f"grpcio/large-unary-{name}", failure))
    return outcomes


@asynccontextmanager
async def service(transport: str) -> AsyncIterator[int]:
    """Run `tailorbird serve` on a new directory of data."""
    with tempfile.TemporaryDirectory() as folder:
        run, data = Path(sys.executable).with_name("tailorbird"), Path(folder, "shop")
        code, printed = await output_of(run, "init", data)
        if code != 0:
            raise SystemExit(f"expected `tailorbird init` to write a configuration, got exit {code}: {printed}")
        process = await asyncio.create_subprocess_exec(
            run, "serve", "--data", data, "--listen", "127.0.0.1:0", "--transport", transport,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            seen = ""
            while (found := re.search(r"listening on \S+:(\d+),", seen)) is None:
                line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
                if not line:
                    raise SystemExit(f"expected `tailorbird serve` to listen, got its end: {seen}")
                seen += line.decode()
            yield int(found[1])
        finally:
            process.terminate()
            await process.wait()


def verdict(outcomes: list[Outcome], transport: str) -> list[str]:
    """Return what is red, one line each."""
    exceptions = tomllib.loads((HERE / "exceptions.toml").read_text())["exception"]
    argued = {each["check"] for each in exceptions if transport in each["transports"] and each["why"].strip()}
    failed = {each.name: each.failure for each in outcomes if each.failure is not None}
    names = {each.name for each in outcomes}
    return [
        *(f"{name} failed: {failure}" for name, failure in failed.items() if name not in argued),
        *(f"{name} is an exception and passes: delete it" for name in sorted(argued & names - set(failed))),
        *(f"{name} is an exception and no check" for name in sorted(argued - names)),
    ]


async def main(folder: Path) -> int:
    pb = messages(folder / "proto")
    programs = folder / "bin"
    health = Health(())
    health.set_serving(True)
    table = {**interop_table(pb), **health.table(), **reflection_table(())}
    red = 0
    for transport in (NATIVE, GRPCIO):
        async with served(transport, table) as port:
            outcomes = [*await interop(programs, port), *await grpcio_client(pb, port)]
            if transport == NATIVE:  # grpcio's HTTP/2 is not ours
                outcomes += await h2spec(programs, port)
        async with service(transport) as port:
            outcomes += await grpcurl(programs, port)
        lines = verdict(outcomes, transport)
        passed = sum(each.failure is None for each in outcomes)
        print(f"{transport}: {passed} of {len(outcomes)} checks passed, {len(lines)} red")
        for line in lines:
            print(f"  {line}")
        red += len(lines)
    return 1 if red else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(arguments.folder)))
