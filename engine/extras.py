"""Optional dependencies, each named by the extra that brings it."""

from __future__ import annotations

import importlib
from typing import Any

from tailorbird.engine.errors import PreconditionFailed


def extra(module: str, name: str) -> Any:
    """Return a module of the extra `name`. Raises `PreconditionFailed` MISSING_EXTRA, saying what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise PreconditionFailed(
            "MISSING_EXTRA", f"expected {package}, which is not installed; run: pip install 'tailorbird[{name}]'"
        ) from None
