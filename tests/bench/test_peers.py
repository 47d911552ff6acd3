"""Peers in processes of their own: the protocol, a peer that is not there, one that fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from tailorbird.bench import features
from tailorbird.bench.peers.process import PeerProcess
from tailorbird.engine.errors import PreconditionFailed

# A peer that answers like Feast's subject, every call taking a second.
FAKE = """\
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "prepare":
        answer = {"version": "0", "python": "3"}
    elif request["op"] == "get":
        answer = {"ns": [10**9] * len(request["people"]), "absent": 0}
    else:
        raise SystemExit("no such thing as " + request["op"])
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    subject = tmp_path / "subject.py"
    subject.write_text(FAKE)
    return subject


def test_a_peer_answers_line_by_line(fake: Path) -> None:
    with PeerProcess("fake", fake, Path(sys.executable)) as peer:
        assert peer.ask(op="prepare", people=1, features=2) == {"version": "0", "python": "3"}
        assert peer.ask(op="get", people=[["a"], ["b"]])["ns"] == [10**9] * 2
        with pytest.raises(PreconditionFailed, match="PEER_FAILED: .* it said: no such thing as dance"):
            peer.ask(op="dance")


def test_a_peer_that_is_not_installed_names_what_installs_it(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILORBIRD_PEERS", str(tmp_path / "nowhere"))
    with pytest.raises(PreconditionFailed, match=r"NO_PEER: expected feast installed at .*; run: make bench-peers"):
        PeerProcess("feast", fake)


def test_features_are_measured_against_a_peer(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILORBIRD_PEERS", str(tmp_path / "peers"))
    interpreter = tmp_path / "peers" / "feast" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    monkeypatch.setattr("tailorbird.bench.peers.feast_subject.__file__", str(fake))
    parser = argparse.ArgumentParser()
    features.add_arguments(parser)
    results = features.run(parser.parse_args(["--quick", "--data", str(tmp_path)]))
    assert results["feast_get_1_us"] == results["feast_get_100_us"] == 1e6
    for count in (1, 100):
        ours = results[f"get_features_{count}_us"]
        assert isinstance(ours, float)
        assert results[f"feast_over_get_features_{count}"] == pytest.approx(1e6 / ours)
    for name in ("update_events_per_s", "bytes_per_stranger", "bytes_per_customer"):
        assert isinstance(results[name], float)
        assert results[name] > 0
    assert len(features.fifty()) == 50
