"""What every test may ask for: Hypothesis' settings and the folder of real data files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# No deadline: timing is never asserted. A failure prints the blob that repeats it; CI always draws the same examples.
settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if IN_CI else "dev")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real files named by TAILORBIRD_DATA.

    Where it is missing a test is skipped on a developer's machine and fails where CI=true: a green CI has read them.
    """
    value = os.environ.get("TAILORBIRD_DATA", "")
    if value and Path(value).is_dir():
        return Path(value).resolve()
    got = f"TAILORBIRD_DATA={value!r}, which is no folder" if value else "TAILORBIRD_DATA is not set"
    message = f"expected a folder of real data files, got {got}; set it to the one that holds online-retail/ and otto/"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)
