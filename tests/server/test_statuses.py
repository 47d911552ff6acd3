"""Errors become statuses in one place; internal ones keep their text to themselves."""

from __future__ import annotations

import logging

import pytest

from tailorbird.engine import errors
from tailorbird.server.statuses import MESSAGE_BYTES_MAX, PUSHBACK_KEY, REASON_KEY, Code, clipped, status_of


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.CallerError, Code.INVALID_ARGUMENT),
        (errors.ConfigurationError, Code.FAILED_PRECONDITION),
        (errors.NotFound, Code.NOT_FOUND),
        (errors.PreconditionFailed, Code.FAILED_PRECONDITION),
        (errors.Unavailable, Code.UNAVAILABLE),
        (errors.ResourceExhausted, Code.RESOURCE_EXHAUSTED),
    ],
)
def test_what_the_caller_may_know_is_told(kind: type[errors.TailorbirdError], code: Code) -> None:
    status = status_of(kind("SOME_REASON", "expected x, got y"))
    assert (status.code, status.message, status.reason) == (code, "expected x, got y", "SOME_REASON")
    assert status.trailers() == ((REASON_KEY, "SOME_REASON"),)


def test_a_writer_that_is_gone_is_to_be_asked_again_when_it_may_be_back() -> None:
    assert status_of(errors.Unavailable("WRITER_GONE", "x")).trailers()[1:] == ((PUSHBACK_KEY, "400"),)


@pytest.mark.parametrize(
    "error", [errors.InternalError("R", "secret"), errors.Damaged("R", "secret"), KeyError("secret")]
)
def test_our_own_bug_is_an_id_that_the_log_explains(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status = status_of(error, "/a/b")
    assert status.code is Code.INTERNAL
    assert "secret" not in status.message
    incident = status.message.split()[2].rstrip(";")
    assert incident in caplog.text
    assert "secret" in caplog.text


def test_a_long_message_is_cut_at_a_character() -> None:
    cut = clipped("ü" * 5_000)
    assert len(cut.encode()) <= MESSAGE_BYTES_MAX
    assert cut.endswith("ü...")
    assert clipped("short") == "short"
    clipped("\ud800").encode()
