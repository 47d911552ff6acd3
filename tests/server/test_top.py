"""`tailorbird top`: what it makes of figures, and the command on a terminal, in a pipe, and before nothing."""

from __future__ import annotations

import fcntl
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tailorbird.engine import Engine, Item
from tailorbird.engine.errors import CallerError, Unavailable
from tailorbird.server.cli import main
from tailorbird.server.scraped import Reading, checked_url, quantile, rate, read
from tailorbird.server.top import frame, number, printable, size, span
from tailorbird.v1 import decision_service_pb2, decision_service_pb2_grpc
from tests.server.conftest import Process, serving_process

LONG_S = 30.0
DECIDE = "/tailorbird.v1.DecisionService/Decide"
KEY = (("method", DECIDE),)


def reading(moment_s: float, scale: float, **labels: str) -> Reading:
    """Return figures of a service that has decided 100 * scale times, most within a millisecond."""
    told = {"method": DECIDE, **labels}
    return Reading(
        moment_s,
        {
            "tailorbird_calls_total": [
                ({**told, "code": "OK"}, 90 * scale),
                ({**told, "code": "NOT_FOUND"}, 10 * scale),
            ],
            "tailorbird_call_seconds_bucket": [
                ({**told, "le": "0.001"}, 80 * scale),
                ({**told, "le": "0.002"}, 100 * scale),
                ({**told, "le": "+Inf"}, 100 * scale),
            ],
            "tailorbird_decisions_total": [
                ({"tier": "person", **labels}, 60 * scale),
                ({"tier": "empty", **labels}, 0.0),
            ],
            "tailorbird_log_position": [(labels, 1_000 * scale)],
            "tailorbird_ingest_lag_seconds": [(labels, 0.25)],
            "tailorbird_writes_waiting_bytes": [(labels, 2_048.0)],
            "tailorbird_newest_event_seconds": [(labels, time.time() - 3_600)],
            "tailorbird_category_age_seconds": [({"category": "behavioural", **labels}, 90.0)],
            "tailorbird_category_stale": [({"category": "behavioural", **labels}, 1.0)],
            "process_resident_memory_bytes": [(labels, 50 * 1024.0**2)],
            "process_cpu_seconds_total": [(labels, scale)],
        },
    )


def lines(
    before: Reading, after: Reading, *, width: int = 120, height: int = 50, is_painted: bool = False
) -> list[str]:
    return frame(before, after, "here:1", width=width, height=height, is_painted=is_painted)


def row(found: list[str], name: str) -> list[str]:
    """Return the cells of the line that begins with a name."""
    (line,) = [line for line in found if line.startswith(name)]
    return re.split(r"\s{2,}", line.strip())


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_two_readings_give_rates_and_quantiles_of_what_came_between() -> None:
    before, after = reading(10.0, 1), reading(12.0, 3)
    assert rate(before, after, "tailorbird_calls_total", "method") == {KEY: 100.0}
    # Of 200 calls 160 took up to 1 ms, spread evenly: half of all are within 100 / 160 ms; 198 within 1 ms + 38 / 40 of the next.
    assert quantile(before, after, "tailorbird_call_seconds", KEY, 0.5) == pytest.approx(0.000625)
    assert quantile(before, after, "tailorbird_call_seconds", KEY, 0.99) == pytest.approx(0.00195)
    assert math.isnan(quantile(after, after, "tailorbird_call_seconds", KEY, 0.5))


def test_a_counter_that_began_anew_is_counted_from_nothing() -> None:
    assert rate(reading(10.0, 3), reading(12.0, 1), "tailorbird_calls_total", "method") == {KEY: 50.0}


def test_a_frame_tells_rates_errors_latencies_lag_ages_and_memory() -> None:
    found = lines(reading(10.0, 1), reading(12.0, 3))
    assert found[0].startswith("tailorbird top  here:1  ready  ")
    assert "position 3,000  ingest lag 250 ms  waiting 2 KiB  newest event 60 min ago  memory 50 MiB" in found[1]
    assert "processor 100%" in found[1]
    assert found[2] == "calls 100/s  errors 10/s"
    assert row(found, "DecisionService/Decide") == ["DecisionService/Decide", "100", "10", "625 µs", "1.9 ms"]
    assert row(found, "person") == ["person", "60", "100%"]
    assert not [line for line in found if line.startswith("empty")]
    assert row(found, "behavioural") == ["behavioural", "90 s ago", "STALE"]


@pytest.mark.parametrize("label", ["process", "tenant"])
def test_processes_and_tenants_are_told_apart_where_figures_do(label: str) -> None:
    def both(moment_s: float, scale: float) -> Reading:
        parts = [reading(moment_s, scale, **{label: name}).samples for name in ("one", "two")]
        return Reading(moment_s, {name: parts[0][name] + parts[1][name] for name in parts[0]})

    found = lines(both(10.0, 1), both(12.0, 3))
    assert found[2] == "calls 200/s  errors 20/s"
    assert "position 3,000" in found[1]
    assert "memory 100 MiB" in found[1]
    for name in ("one", "two"):
        assert row(found, name) == [name, "100", "10", "3,000", "50 MiB"]
    assert row(found, "DecisionService/Decide")[1] == "200"


def test_a_frame_fits_its_screen() -> None:
    before, after = reading(10.0, 1), reading(12.0, 3)
    whole = lines(before, after)
    for width, height in ((120, 50), (40, 10), (10, 3), (1, 1), (5, 0)):
        found = lines(before, after, width=width, height=height)
        assert len(found) <= height
        assert all(len(line) <= width for line in found)
    assert lines(before, after, height=4)[-1] == f"... {len(whole) - 3} more lines"
    painted = lines(before, after, is_painted=True)
    assert [re.sub(r"\x1b\[\d*m", "", line)[20:40] for line in painted] == [line[20:40] for line in whole]
    assert painted[0].startswith("\x1b[1m")


def test_what_is_not_there_is_a_dash_and_what_is_not_ready_is_told() -> None:
    found = lines(Reading(1.0), Reading(2.0, unready="STARTING"))
    assert "NOT READY: STARTING" in found[0]
    assert "position -  ingest lag -" in found[1]
    assert len(found) == 3


def test_a_service_cannot_write_to_the_terminal_of_who_looks() -> None:
    after = reading(2.0, 3, tenant="a\x1b]0;owned\x07")
    assert "\x1b" not in "".join(lines(reading(1.0, 1, tenant="a\x1b]0;owned\x07"), after))
    assert printable("a\x1bb\r\n") == "a?b??"


def test_figures_are_read_by_people() -> None:
    assert [number(value) for value in (0.0, 0.25, 12.6, 1_234.0, math.nan)] == ["0", "0.2", "13", "1,234", "-"]
    assert [span(value) for value in (0.0, 45e-6, 0.0012, 0.25, 90, 600, 7_300, 2e6)] == [
        "0 µs",
        "45 µs",
        "1.2 ms",
        "250 ms",
        "90 s",
        "10 min",
        "2 h",
        "23 d",
    ]
    assert [size(value) for value in (5, 2_048, 3 * 1024**2, 5 * 1024**3)] == ["5 B", "2 KiB", "3 MiB", "5.0 GiB"]


@pytest.mark.parametrize("address", ["", "nowhere", ":1", "http://x", "x:y"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(CallerError, match="expected HOST:PORT"):
        checked_url(address)
    assert checked_url("http://a:1/metrics") == checked_url("a:1") == "http://a:1"


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(shop: Path, tmp_path: Path) -> Iterator[Process]:
    with Engine.open(shop) as engine:
        engine.put_items([Item(id="mug")])
    with serving_process(tmp_path, "--data", str(shop)) as served:
        yield served


def decide(process: Process, count: int) -> None:
    with grpc.insecure_channel(process.address) as channel:
        stub = decision_service_pb2_grpc.DecisionServiceStub(channel)
        for _ in range(count):
            stub.Decide(decision_service_pb2.DecideRequest(placement="home"), timeout=LONG_S)
        with pytest.raises(grpc.RpcError):
            stub.Decide(decision_service_pb2.DecideRequest(placement="x"), timeout=LONG_S)


def test_once_prints_a_frame_of_a_running_service(process: Process, capsys: pytest.CaptureFixture[str]) -> None:
    decide(process, 20)
    assert main(["top", process.metrics.removeprefix("http://"), "--once", "--interval", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    found = printed.splitlines()
    assert "ready" in found[0]
    assert re.search(r"position [1-9]\d*  ingest lag .*  memory [1-9]\d* MiB", found[1])
    assert row(found, "DecisionService/Decide")[0] == "DecisionService/Decide"
    assert row(found, "catalogue")[0] == "catalogue"
    tiers = read(process.metrics).by("tailorbird_decisions_total", "tier")
    assert sum(tiers.values()) == 20


def test_where_nothing_answers_that_is_said(capsys: pytest.CaptureFixture[str], process: Process) -> None:
    assert main(["top", "127.0.0.1:9", "--once"]) == 1
    assert "NO_ANSWER: expected an answer of http://127.0.0.1:9/metrics" in capsys.readouterr().err
    assert main(["top", process.address, "--once"]) == 1  # the port of calls, not of figures
    assert re.search("NO_(ANSWER|METRICS)", capsys.readouterr().err)
    assert main(["top", "127.0.0.1:9", "--interval", "0"]) == 2
    with pytest.raises(Unavailable, match="NO_METRICS"):
        read(f"{process.metrics}/other")


class Terminal:
    """`tailorbird top` on a terminal of its own."""

    def __init__(self, address: str, columns: int, rows: int) -> None:
        self.leader, follower = pty.openpty()
        self.before = termios.tcgetattr(follower)
        self.resize(columns, rows)
        script = "import sys; from tailorbird.server.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", script, "top", address, "--interval", "0.2"]
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        self.popen = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
        self.follower = follower
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, pattern: str, begin: int = 0) -> int:
        """Read until what was written since `begin` matches; return where the writing stood before this."""
        ends_s, stood = time.monotonic() + LONG_S, len(self.text)
        while not re.search(pattern, self.text[begin:], re.S):
            assert time.monotonic() < ends_s, self.text[-2_000:]
            if select.select([self.leader], [], [], 0.1)[0]:
                self.text += os.read(self.leader, 65_536).decode(errors="replace")
        return stood

    def ended(self) -> int:
        """Return how it ended."""
        code = self.popen.wait(LONG_S)
        if select.select([self.leader], [], [], 0.1)[0]:
            self.text += os.read(self.leader, 65_536).decode(errors="replace")
        return code


@contextmanager
def terminal(address: str, columns: int = 100, rows: int = 30) -> Iterator[Terminal]:
    found = Terminal(address, columns, rows)
    try:
        yield found
    finally:
        if found.popen.poll() is None:
            found.popen.kill()
        found.popen.communicate()
        os.close(found.leader)
        os.close(found.follower)


def test_a_terminal_is_kept_up_to_date_follows_its_size_and_is_given_back(process: Process) -> None:
    decide(process, 3)
    with terminal(process.metrics) as screen:
        screen.until(r"\x1b\[\?1049h.*tailorbird top.*DecisionService/Decide")
        stood = len(screen.text)
        decide(process, 50)
        screen.until(r"DecisionService/Decide +[1-9][\d,.]* +", stood)
        screen.resize(30, 4)
        stood = len(screen.text)
        screen.until(r"\x1b\[H[^\n]*\r\n[^\n]*\r\n[^\n]*\r\n\.\.\. \d+ more lines\x1b\[K\x1b\[J", stood)
        last = screen.text.rpartition("\x1b[H")[2]
        plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", last)
        assert [line for line in plain.split("\r\n") if len(line) > 30] == []
        os.write(screen.leader, b"q")
        assert screen.ended() == 0
        assert screen.text.endswith("\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(screen.follower) == screen.before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_gives_the_terminal_back(process: Process, number: signal.Signals, code: int) -> None:
    with terminal(process.metrics) as screen:
        screen.until("tailorbird top")
        screen.popen.send_signal(number)
        assert screen.ended() == code
        assert screen.text.endswith("\x1b[?1049l")
        assert termios.tcgetattr(screen.follower) == screen.before


def test_a_service_that_goes_away_is_waited_for(shop: Path, tmp_path: Path) -> None:
    with serving_process(tmp_path, "--data", str(shop)) as served:
        decided = Terminal(served.metrics, 120, 30)
        decided.until("tailorbird top")
    try:
        decided.until("no answer since .*refused")
        os.write(decided.leader, b"q")
        assert decided.ended() == 0
    finally:
        if decided.popen.poll() is None:
            decided.popen.kill()
        decided.popen.communicate()
        os.close(decided.leader)
        os.close(decided.follower)
