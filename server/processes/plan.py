"""What a process of the service is started with, as one argument of its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tailorbird.server.face import ServeOptions

WRITER, WORKER = "writer", "worker"
NO_DESCRIPTOR = -1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which process this is, and what it works with.

    `name` is what people and metrics call the place it has; `number` tells apart the processes that decide, in the decision log
    too; `tenants` are data directories, `tenant` says whose writer this is; `run` is a directory of this service's sockets that
    nobody else may enter; `parent` and `lock` are descriptors it inherits.
    """

    role: str
    name: str
    number: int
    tenants: dict[str, Path]
    tenant: str = ""
    run: Path
    options: ServeOptions
    parent: int
    lock: int = NO_DESCRIPTOR

    def relay(self, tenant: str) -> Path:
        """Return the Unix socket a tenant's writer takes writes at."""
        return self.run / f"writer-{list(self.tenants).index(tenant)}.sock"

    @property
    def figures(self) -> Path:
        """The Unix socket this process tells its metrics at."""
        return self.run / f"{self.role}-{self.number}.metrics.sock"

    def encoded(self) -> str:
        """Return the plan as a text."""
        return msgspec.json.encode(self, enc_hook=_as_text).decode()


def read_plan(arguments: list[str]) -> Plan:
    """Return the plan of this process."""
    return msgspec.json.decode(arguments[1], type=Plan, dec_hook=_as_path)


def _as_text(value: Any) -> str:
    return str(value)


def _as_path(kind: type, value: Any) -> Any:
    return kind(value)
