"""What a process of the service is started with, as one argument of its command line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import msgspec

from tailorbird.server.face import ServeOptions

WRITER, WORKER = "writer", "worker"
NO_DESCRIPTOR = -1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which process this is, and what it works with.

    `name` is what people and metrics call the place it has; `number` tells apart the processes that decide, in the decision log
    too; `run` is a directory of this service's sockets that nobody else may enter; `parent` and `lock` are descriptors it inherits.
    """

    role: str
    name: str
    number: int
    data: Path
    run: Path
    options: ServeOptions
    parent: int
    lock: int = NO_DESCRIPTOR

    @property
    def relay(self) -> Path:
        """The Unix socket the writer takes writes at."""
        return self.run / "writer.sock"

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


def log_as(name: str) -> None:
    """Log to standard error as this process."""
    form = f"%(asctime)s %(levelname)s [{name}] %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)


def _as_text(value: Any) -> str:
    return str(value)


def _as_path(kind: type, value: Any) -> Any:
    return kind(value)
