"""Nothing but loopback is listened on unless it is asked for by name."""

from __future__ import annotations

import pytest

from tailorbird.engine.errors import CallerError
from tailorbird.server.listening import checked_address


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.8.8.8:1", "[::1]:50051", "localhost:50051"])
def test_loopback_is_fine(text: str) -> None:
    assert checked_address(text, insecure=False) == text


@pytest.mark.parametrize("text", ["0.0.0.0:50051", "[::]:50051", "192.0.2.1:1", "shop.example:1", "127.0.0.1.nip.io:1"])
def test_another_address_needs_to_be_meant(text: str) -> None:
    with pytest.raises(CallerError, match="--insecure-listen") as caught:
        checked_address(text, insecure=False)
    assert caught.value.reason == "LISTEN_NOT_LOOPBACK"
    assert checked_address(text, insecure=True) == text


@pytest.mark.parametrize("text", ["", "50051", "127.0.0.1", "127.0.0.1:99999", "::1:50051", "unix:", "fd:x"])
def test_what_is_no_address_is_told_so(text: str) -> None:
    with pytest.raises(CallerError) as caught:
        checked_address(text, insecure=True)
    assert caught.value.reason == "BAD_ADDRESS"
