"""Identifiers and context: repeated pairs on the wire, dicts in the engine."""

from __future__ import annotations

from collections.abc import Iterable

from tailorbird.engine.errors import CallerError
from tailorbird.v1 import identity_pb2


def identifiers_from(messages: Iterable[identity_pb2.Identifier]) -> dict[str, str]:
    """Return namespace to value. Raises `CallerError` DUPLICATE_NAME for a namespace given twice."""
    return unique_pairs(((message.namespace, message.value) for message in messages), "identifiers")


def context_from(messages: Iterable[identity_pb2.ContextEntry]) -> dict[str, str]:
    """Return name to value. Raises `CallerError` DUPLICATE_NAME for a name given twice."""
    return unique_pairs(((message.name, message.value) for message in messages), "context")


def unique_pairs(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Return the pairs as a dict; one name twice is refused, because either value would be lost silently."""
    result: dict[str, str] = {}
    for name, value in pairs:
        if name in result:
            raise duplicate_name(name, where)
        result[name] = value
    return result


def duplicate_name(name: str, where: str) -> CallerError:
    """Return the error for a name that stands twice in one list."""
    return CallerError(
        "DUPLICATE_NAME", f"expected each name once, got {name[:64]!r} twice in {where}; send one of them"
    )
