"""What the engine raises.

    TailorbirdError
    ├─ CallerError(ValueError)   the caller sent something wrong
    │  ├─ ConfigurationError     the configuration file cannot be used
    │  ├─ NotFound               an unknown placement, profile or item was named
    │  ├─ Unauthenticated        no key, or none that is known and in force
    │  ├─ PermissionDenied       a key for something else
    │  └─ PreconditionFailed     the data directory or the request does not fit the present state
    ├─ Unavailable               the engine cannot answer now
    │  └─ ResourceExhausted      a named limit, the disk or the map is full
    └─ InternalError             our own bug, or stored bytes that are not what we wrote
       └─ Damaged                stored bytes fail their checksum

A message says what was expected, what came, where, and what to do. `reason` is the machine's name for it: stable, upper case.
"""

from __future__ import annotations


class TailorbirdError(Exception):
    """Base of all errors raised on purpose. `reason` is a stable upper-case name such as `UNKNOWN_PLACEMENT`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[type[TailorbirdError], tuple[str, str]]:
        return type(self), (self.reason, self.message)


class CallerError(TailorbirdError, ValueError):
    """The caller sent something wrong; repeating it unchanged cannot succeed."""


class ConfigurationError(CallerError):
    """The configuration cannot be used; the message names the place in the file."""


class NotFound(CallerError):
    """Something named in the request does not exist."""


class Unauthenticated(CallerError):
    """The caller showed no key, or none that is known and in force."""


class PermissionDenied(CallerError):
    """The caller's key is for something else."""


class PreconditionFailed(CallerError):
    """The request is well formed but does not fit the present state of the data directory."""


class Unavailable(TailorbirdError):
    """The engine cannot answer now; the same request may succeed later."""


class ResourceExhausted(Unavailable):
    """A named limit, the disk or the map is full."""


class InternalError(TailorbirdError):
    """Our own bug; never caught inside the engine."""


class Damaged(InternalError):
    """Stored bytes are not what was written: a checksum, magic or length does not fit."""
