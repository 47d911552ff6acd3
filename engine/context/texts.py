"""What a context may be made of."""

from __future__ import annotations

from collections.abc import Mapping

from tailorbird.engine.errors import CallerError


def check_context(context: Mapping[str, str], bytes_max: int) -> None:
    """Raise `CallerError` for a context that is no text, or too much of it."""
    for name, text in context.items():
        if type(name) is not str or type(text) is not str:
            raise CallerError("WRONG_TYPE", f"expected a string in context {name!r:.60}, got {type(text).__name__}")
        if len(text) > bytes_max:
            raise CallerError(
                "FIELD_TOO_LARGE",
                f"expected at most limits.field_bytes_max = {bytes_max} bytes in context {name!r:.60}, got {len(text)}",
            )
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise CallerError(
                    "BAD_UTF8", f"expected UTF-8 text in context {name!r:.60}, got a lone surrogate at {error.start}"
                ) from None
