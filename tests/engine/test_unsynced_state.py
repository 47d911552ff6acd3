"""State written without syncs: whatever a power failure left of it is not trusted, from its first byte on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailorbird.engine import engine as engine_module
from tailorbird.engine.directory import Directory
from tailorbird.engine.store import Store
from tests.engine.shops import CONFIGURATION, open_shop, signal, views

UNSYNCED = "state_sync: interval\n" + CONFIGURATION


def test_the_mark_of_unsynced_state_is_there_before_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[bool] = []

    class Watched(Store):
        def __init__(self, path: Path, **named: Any) -> None:
            marked.append(Directory(path.parent).boot_mark.exists())
            super().__init__(path, **named)

    monkeypatch.setattr(engine_module, "Store", Watched)
    open_shop(tmp_path, UNSYNCED).close()
    assert marked == [True]


def test_unsynced_state_of_another_boot_is_rebuilt_from_the_log(tmp_path: Path) -> None:
    with open_shop(tmp_path, UNSYNCED) as engine:
        engine.ingest([signal("a")])
        mark = engine.directory.boot_mark
    assert not mark.exists()
    mark.write_text("another boot")
    (tmp_path / "shop" / "state" / "data.mdb").write_bytes(b"torn")
    with open_shop(tmp_path, UNSYNCED) as engine:
        assert any("state is not trusted" in note for note in engine.recovery)
        assert views(engine) == 1.0
