"""What every fact log does, whichever keeps it. A subclass gives `open_log`, three lines over a place that lasts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailorbird.engine.errors import CallerError, InternalError, PreconditionFailed
from tailorbird.engine.fact_log import FactLog
from tailorbird.engine.log_record import RECORD_BYTES_MAX, LogRecord


class FactLogContract:
    """Inherit it and define `open_log(place)`: opens the log of `place` for writing, again after a close."""

    def open_log(self, place: Path) -> FactLog:
        raise NotImplementedError

    def test_an_empty_log_starts_and_ends_at_zero(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        assert (log.start, log.end) == (0, 0)
        assert list(log.read(0)) == []
        log.close()

    def test_records_come_back_in_order_with_time_kind_and_payload(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        assert log.append_group(1_700_000_000_000, [(1, b"one"), (255, b"")]) == 0
        assert log.append_group(1_700_000_000_001, [(0, b"\0" * 3)]) == 2
        log.sync()
        assert list(log.read(0)) == [
            LogRecord(0, 1_700_000_000_000, 1, b"one"),
            LogRecord(1, 1_700_000_000_000, 255, b""),
            LogRecord(2, 1_700_000_000_001, 0, b"\0\0\0"),
        ]
        log.close()

    def test_an_empty_group_changes_nothing(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        assert log.append_group(5, []) == 0
        log.sync()
        assert log.end == 0
        log.close()

    def test_synced_records_survive_reopening_and_numbering_goes_on(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        log.append_group(1, [(1, b"a")])
        log.sync()
        log.close()
        log = self.open_log(tmp_path)
        assert log.end == 1
        assert log.append_group(2, [(1, b"b")]) == 1
        log.sync()
        log.close()
        log = self.open_log(tmp_path)
        assert [r.payload for r in log.read(0)] == [b"a", b"b"]
        log.close()

    def test_a_read_begins_where_it_is_told_and_ends_at_its_limit(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        log.append_group(1, [(1, b"%d" % i) for i in range(3000)])
        log.sync()
        for first, limit in ((0, 1), (1023, 2), (1500, 700), (2200, 700), (2999, 10), (17, 0)):
            offsets = [r.offset for r in log.read(first, limit)]
            assert offsets == list(range(first, min(3000, first + limit)))
        assert [r.payload for r in log.read(2048, 1)] == [b"2048"]
        log.close()

    def test_nothing_stands_at_or_beyond_the_end(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        log.append_group(1, [(1, b"a")])
        assert list(log.read(1)) == []
        assert list(log.read(1000)) == []
        log.close()

    def test_an_unsynced_group_can_be_dropped_and_its_offsets_are_given_again(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        log.append_group(1, [(1, b"kept")])
        log.sync()
        log.append_group(2, [(1, b"two"), (1, b"three")])
        log.append_group(3, [(1, b"four")])
        log.rollback_to(3)
        assert [r.payload for r in log.read(0)] == [b"kept", b"two", b"three"]
        log.rollback_to(1)
        assert log.end == 1
        assert log.append_group(4, [(1, b"other")]) == 1
        log.sync()
        log.close()
        log = self.open_log(tmp_path)
        assert [r.payload for r in log.read(0)] == [b"kept", b"other"]
        log.close()

    def test_a_synced_record_cannot_be_dropped(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        log.append_group(1, [(1, b"a"), (1, b"b")])
        log.sync()
        with pytest.raises(InternalError, match="ROLLBACK_OF_SYNCED"):
            log.rollback_to(1)
        with pytest.raises(InternalError, match="ROLLBACK_OF_SYNCED"):
            log.rollback_to(3)
        assert log.end == 2
        log.close()

    def test_a_record_over_the_limit_is_refused_whole(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        with pytest.raises(CallerError, match=r"limits\.record_bytes_max"):
            log.append_group(1, [(1, b"small"), (1, bytes(RECORD_BYTES_MAX + 1))])
        assert log.end == 0
        log.append_group(1, [(1, bytes(RECORD_BYTES_MAX))])
        assert len(next(iter(log.read(0))).payload) == RECORD_BYTES_MAX
        log.close()

    def test_reading_below_the_start_names_the_start(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        with pytest.raises(PreconditionFailed, match="OFFSET_TRUNCATED"):
            log.read(log.start - 1)
        log.close()

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        log = self.open_log(tmp_path)
        log.close()
        log.close()
