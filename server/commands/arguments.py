"""Values as the command line writes them: `name=value` pairs and moments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tailorbird.engine.consent import Basis
from tailorbird.engine.errors import CallerError
from tailorbird.server.moments import text_ms


def add_id_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--id NAMESPACE=VALUE`, which may be repeated."""
    parser.add_argument("--id", dest="ids", metavar="NAMESPACE=VALUE", action="append", default=[], help=text)


CONSENT_EXAMPLE = "--consent granted:behavioural,transactional,contextual --basis contract"


def add_consent_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--consent CHOICE` and `--basis BASIS`: what a batch rests on."""
    parser.add_argument(
        "--consent", metavar="CHOICE", help=f"what the people in the file agreed to, such as {CONSENT_EXAMPLE}"
    )
    parser.add_argument(
        "--basis", default=str(Basis.EXPLICIT), help=f"what that rests on: {', '.join(Basis)} (default explicit)"
    )


def pair(text: str, option: str) -> tuple[str, str]:
    """Return the two sides of `name=value`. Raises `CallerError` BAD_ARGUMENT."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CallerError("BAD_ARGUMENT", f"expected NAME=VALUE, got {text!r} in {option}")
    return name, value


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return `name=value` texts as a dict. Raises `CallerError` BAD_ARGUMENT, also for a name given twice."""
    result: dict[str, str] = {}
    for text in texts:
        name, value = pair(text, option)
        if name in result:
            raise CallerError("BAD_ARGUMENT", f"expected each name once, got {name!r} twice in {option}")
        result[name] = value
    return result


def identifiers(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the `--id` options; at least one. Raises `CallerError` MISSING_IDENTIFIER."""
    found = pairs(arguments.ids, "--id")
    if not found:
        raise CallerError(
            "MISSING_IDENTIFIER", "expected at least one --id NAMESPACE=VALUE, such as --id user_id=17, got none"
        )
    return found


def moment(text: str, latest: int) -> int:
    """Return milliseconds since 1970 UTC for `latest`, ISO 8601 (UTC where it has no offset) or milliseconds."""
    if text == "latest":
        return latest
    try:
        return text_ms(text)
    except ValueError:
        raise CallerError(
            "BAD_ARGUMENT",
            f"expected latest, a date such as 2011-09-30T18:00, or milliseconds since 1970, got {text!r} in --at",
        ) from None
