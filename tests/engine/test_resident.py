"""Mapped files made resident."""

from __future__ import annotations

import mmap
from pathlib import Path

from tailorbird.engine import Engine
from tailorbird.engine.resident import make_resident

CONFIGURATION = "version: 1\nplacements:\n  - {name: home}\n"


def test_a_mapped_file_is_made_resident_as_far_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(bytes(8 * mmap.PAGESIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert make_resident(path, 3 * mmap.PAGESIZE + 1) == 3 * mmap.PAGESIZE
        assert make_resident(path, 2**60) == 8 * mmap.PAGESIZE
        assert make_resident(path, 1) == 0


def test_a_file_that_is_not_mapped_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(mmap.PAGESIZE))
    assert make_resident(path, mmap.PAGESIZE) == 0


def test_an_engine_warms_up_without_a_trace(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "shop", CONFIGURATION) as engine:
        before = engine.state_hash()
        engine.warm()
        assert engine.state_hash() == before
