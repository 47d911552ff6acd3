"""The command line as a user types it."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tailorbird.server.cli import COMMANDS, main
from tailorbird.server.transport.choice import CHOICES, NATIVE, chosen, has_native

CONSENT = {"choice": "granted:behavioural,transactional,contextual"}
TIME = 1_316_000_000_000


def line(**changes: object) -> str:
    signal_ = {
        "type": "order_completed",
        "event_time": TIME,
        "identifiers": {"user_id": "u1"},
        "message_id": "m1",
        "properties": {"products": [{"product_id": "mug"}]},
        "consent": CONSENT,
    }
    return json.dumps({**signal_, **changes})


@pytest.fixture
def in_shop(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand where a new user stands: above the one data directory, which has four items."""
    monkeypatch.delenv("TAILORBIRD_DATA_DIR", raising=False)
    monkeypatch.chdir(shop.parent)
    items = [{"id": item_id, "name": f"A {item_id}", "price": 9.5} for item_id in ("mug", "lamp", "clock", "vase")]
    Path("items.jsonl").write_text("\n".join(map(json.dumps, items)))
    assert main(["items", "put", "items.jsonl"]) == 0
    return shop


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Run a command; return what it printed, or its error."""
    capsys.readouterr()
    assert main(arguments) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_help_names_every_command_and_loads_none() -> None:
    script = (
        "import sys\nfrom tailorbird.server.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "loaded = [m for m in sys.modules if m.startswith(('tailorbird.engine', 'grpc', 'numpy', 'lmdb'))]\n"
        "assert loaded == [], loaded"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"    {command}" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert "usage: tailorbird" in capsys.readouterr().out


def test_a_shop_from_nothing_to_a_decision(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("signals.jsonl").write_text(line() + "\n")
    assert "1 applied" in said(capsys, "ingest", "signals.jsonl")
    assert "1 duplicate" in said(capsys, "ingest", "signals.jsonl")
    table = said(capsys, "decide", "--placement", "home", "--id", "user_id=u1", "--at", "latest")
    assert "A lamp" in table
    assert "A mug" not in table
    assert "tier " in table
    assert "time taken" in table
    assert "2011-09-14 11:33:20 UTC" in table
    answer = json.loads(
        said(capsys, "decide", "--placement", "home", "--k", "4", "--json", "--context", "country=France")
    )
    assert len(answer["items"]) == 4
    assert answer["time_taken"]["first_us"] > 0
    profile = said(capsys, "profile", "--id", "user_id=u1", "--at", "latest")
    assert "1 item(s) bought" in profile
    assert "orders  1" in profile
    assert "granted: behavioural/collect+profile" in profile
    assert json.loads(said(capsys, "profile", "--id", "user_id=u1", "--json"))["bought_count"] == 1


def test_candidates_come_as_a_list_or_as_a_file(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ids.txt").write_text("mug\nvase\n")
    for given in ("mug,vase", "ids.txt"):
        answer = json.loads(said(capsys, "decide", "--placement", "home", "--candidates", given, "--json"))
        assert sorted(item["id"] for item in answer["items"]) == ["mug", "vase"]


def test_deleted_items_are_gone(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "items", "delete", "mug", "lamp")
    answer = json.loads(said(capsys, "decide", "--placement", "home", "--json"))
    assert sorted(item["id"] for item in answer["items"]) == ["clock", "vase"]


def test_a_damaged_catalogue_file_changes_nothing(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text('{"id": "new"}\n{"id": 7}\n')
    error = said(capsys, "items", "put", "bad.jsonl", code=2)
    assert error.startswith("error: BAD_ITEM: ")
    assert "line 2" in error
    answer = json.loads(said(capsys, "decide", "--placement", "home", "--k", "5", "--json"))
    assert "new" not in [item["id"] for item in answer["items"]]


@pytest.mark.parametrize(("cut", "reason"), [("in a line", "BAD_ITEM"), ("in the compressed file", "DAMAGED_INPUT")])
def test_a_truncated_catalogue_file_changes_nothing(
    in_shop: Path, capsys: pytest.CaptureFixture[str], cut: str, reason: str
) -> None:
    whole = "".join(json.dumps({"id": f"new {n}", "name": f"Item {n}"}) + "\n" for n in range(1_000)).encode()
    if cut == "in a line":
        Path("bad.jsonl").write_bytes(whole[:-20])
    else:
        compressed = gzip.compress(whole)
        Path("bad.jsonl").write_bytes(compressed[: len(compressed) // 2])
    error = said(capsys, "items", "put", "bad.jsonl", code=2)
    assert error.startswith(f"error: {reason}: ")
    assert "nothing was put" in error
    answer = json.loads(said(capsys, "decide", "--placement", "home", "--k", "5", "--json"))
    assert sorted(item["id"] for item in answer["items"]) == ["clock", "lamp", "mug", "vase"]


def test_bad_lines_are_counted_and_kept_and_stop_nothing(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        line(message_id="a"),
        "not json",
        line(message_id="b", type="order_complete"),
        line(message_id="c", identifiers={}),
        line(message_id="d", properties={"products": [], "note": "x" * 9_000}),
        line(message_id="e", properties={"note": "x" * 10_000_000}),
        line(message_id="f"),
    ]
    Path("signals.jsonl").write_text("\n".join(lines))
    summary = said(capsys, "ingest", "signals.jsonl", "--batch", "2")
    assert "2 applied" in summary
    assert "rejected.jsonl" in summary
    kept = [json.loads(entry) for entry in (in_shop / "rejected.jsonl").read_text().splitlines()]
    assert sorted((entry["line"], entry["reason"]) for entry in kept) == [
        (2, "BAD_JSON"),
        (3, "UNKNOWN_SIGNAL_TYPE"),
        (4, "MISSING_IDENTIFIER"),
        (5, "FIELD_TOO_LARGE"),
        (6, "LINE_TOO_LONG"),
    ]
    assert (in_shop / "rejected.jsonl").stat().st_mode & 0o077 == 0


def test_a_limit_stops_after_that_many_signals(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("signals.jsonl").write_text("\n".join(line(message_id=f"m{n}") for n in range(10)))
    assert "7 applied" in said(capsys, "ingest", "signals.jsonl", "--limit", "7", "--batch", "3")


def test_signals_without_a_basis_are_withheld_until_one_is_named(
    in_shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("signals.jsonl").write_text(line(consent=None))
    summary = said(capsys, "ingest", "signals.jsonl")
    assert "1 withheld" in summary
    assert "--consent" in summary
    options = ("--consent", "granted:transactional", "--basis", "contract")
    assert "1 applied" in said(capsys, "ingest", "signals.jsonl", *options)


def test_an_import_that_names_no_consent_is_refused_in_an_opt_in_region(
    in_shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sessions.jsonl").write_text('{"session": 1, "events": [{"aid": 1, "ts": 1661724000000, "type": "clicks"}]}\n')
    error = said(capsys, "ingest", "--format", "otto", "sessions.jsonl", code=2)
    assert error.startswith("error: NO_CONSENT_BASIS: ")
    assert "--consent granted:" in error
    done = said(capsys, "ingest", "--format", "otto", "sessions.jsonl", "--consent", "granted:behavioural")
    assert "1 applied" in done


@pytest.mark.parametrize("session", [0, 7, 7777, 12_899_779])
def test_a_visit_is_taken_whatever_its_number(in_shop: Path, capsys: pytest.CaptureFixture[str], session: int) -> None:
    event = {"aid": 1, "ts": TIME, "type": "orders"}
    Path("sessions.jsonl").write_text(json.dumps({"session": session, "events": [event]}) + "\n")
    choice = ("--consent", "granted:behavioural,transactional")
    assert "1 applied" in said(capsys, "ingest", "--format", "otto", "sessions.jsonl", *choice)
    assert "orders  1" in said(capsys, "profile", "--id", f"anonymous_id=session-{session}", "--at", "latest")


def test_a_choice_is_in_force_at_once(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("signals.jsonl").write_text(line())
    said(capsys, "ingest", "signals.jsonl")
    said(capsys, "consent", "--id", "user_id=u1", "--grant", "denied:transactional")
    profile = said(capsys, "profile", "--id", "user_id=u1", "--at", "latest")
    assert "denied: transactional/" in profile
    assert "orders  masked" in profile


def test_a_link_makes_one_person_and_a_split_two(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = ("--grant", "granted:behavioural,transactional,device")
    for name in ("user_id=u1", "anonymous_id=a1"):
        said(capsys, "consent", "--id", name, *choice)
    Path("signals.jsonl").write_text(line())
    said(capsys, "ingest", "signals.jsonl")
    said(capsys, "link", "--id", "user_id=u1", "--id", "anonymous_id=a1")
    assert "1 item(s) bought" in said(capsys, "profile", "--id", "anonymous_id=a1")
    said(capsys, "split", "--id", "user_id=u1", "--id", "anonymous_id=a1")
    assert "0 item(s) bought" in said(capsys, "profile", "--id", "anonymous_id=a1")


def test_snapshot_and_replay_tell_one_hash(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("signals.jsonl").write_text("\n".join(line(message_id=f"m{n}") for n in range(5)))
    said(capsys, "ingest", "signals.jsonl")
    snapshot = said(capsys, "snapshot")
    state_hash = snapshot.split("state hash ")[1].strip()
    replayed = said(capsys, "replay", "--verify")
    assert replayed.count(state_hash) == 2
    assert replayed.endswith("equal\n")


def test_late_features_are_listed_backfilled_and_shown(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("signals.jsonl").write_text("\n".join(line(message_id=f"m{n}") for n in range(5)))
    said(capsys, "ingest", "signals.jsonl")
    configuration = in_shop / "tailorbird.yaml"
    late = "  - {name: week, signal: order_completed, aggregate: count, window: 7d, description: Orders of late}\n"
    configuration.write_text(configuration.read_text().replace("placements:", late + "placements:"))
    listed = said(capsys, "features", "list")
    assert "Orders of late: how many events, in the last 7d (hops of 1d)" in listed
    assert "| week | Orders of late: how many" in said(capsys, "features", "docs")
    said(capsys, "snapshot")  # the first to write puts the new configuration in force
    asked = ("features", "get", "user_id=u1", "user_id=u2", "--at", "latest")
    assert ["week", "warming"] in [text.split() for text in said(capsys, *asked).splitlines()]
    assert said(capsys, "features", "backfill") == "backfilled week\n"
    assert said(capsys, "features", "backfill") == "nothing is warming\n"
    shown = [json.loads(text) for text in said(capsys, *asked, "--feature", "week", "--json").splitlines()]
    assert shown == [
        {"person": "u1", "known": True, "features": {"week": ["fresh", 5.0]}},
        {"person": "u2", "known": False, "features": {"week": ["missing", None]}},
    ]
    assert "BAD_ARGUMENT" in said(capsys, "features", "get", "user_id=u1", "email=a@b.com", code=2)


def test_models_are_trained_from_the_log(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baskets = [line(message_id=f"m{n}", identifiers={"user_id": f"u{n}"}) for n in range(5)]
    Path("signals.jsonl").write_text("\n".join(baskets))
    said(capsys, "ingest", "signals.jsonl")
    assert said(capsys, "train", "cooccurrence")


def test_scores_and_clusters_are_trained_from_labels_and_people(
    in_shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = in_shop / "tailorbird.yaml"
    learned = (
        "  - {name: chance, learned_from: [orders]}\n  - {name: kind, learned_from: [orders], clusters: 2}\nplacements:"
    )
    configuration.write_text(configuration.read_text().replace("placements:", learned))
    lines, labels = [], ["user_id,at,label"]
    for person in range(120):
        who, count = {"user_id": f"u{person}"}, 1 + 4 * (person % 2)
        lines += [line(message_id=f"m{person}.{order}", identifiers=who) for order in range(count)]
        labels.append(f"u{person},{TIME + 1},{person % 2 if person % 10 else 1 - person % 2}")
    Path("signals.jsonl").write_text("\n".join(lines))
    Path("labels.csv").write_text("\n".join(labels) + "\n")
    said(capsys, "ingest", "signals.jsonl")
    assert "a learned probability, from orders" in said(capsys, "features", "list")
    assert "rows: 120.0" in said(capsys, "train", "score", "chance", "--labels", "labels.csv")
    assert "updates: 1.0" in said(capsys, "train", "score", "chance", "--labels", "labels.csv", "--update")
    assert "cluster_1: 60.0" in said(capsys, "train", "clusters", "kind")
    shown = said(capsys, "features", "get", "user_id=u1", "user_id=u2", "--at", "latest", "--json").splitlines()
    low, high = (json.loads(text)["features"] for text in reversed(shown))
    assert low["chance"][1] < 0.5 < high["chance"][1]
    assert low["kind"][1] != high["kind"][1]
    Path("labels.csv").write_text("user_id,at\nu1,5\n")
    assert "a column `label`" in said(capsys, "train", "score", "chance", "--labels", "labels.csv", code=2)


@pytest.mark.parametrize(
    ("arguments", "reason", "hint"),
    [
        (["decide", "--placement", "hom"], "UNKNOWN_PLACEMENT", "home"),
        (["decide", "--placement", "home", "--id", "u1"], "BAD_ARGUMENT", "NAME=VALUE"),
        (["decide", "--placement", "home", "--at", "yesterday"], "BAD_ARGUMENT", "latest"),
        (["decide", "--placement", "home", "--k", "9999"], "BAD_K", "limits.k_max"),
        (["decide", "--placement", "home", "--id", "user_id=a", "--id", "user_id=b"], "BAD_ARGUMENT", "twice"),
        (["profile"], "MISSING_IDENTIFIER", "--id"),
        (["profile", "--id", "user_id=nobody"], "NO_PROFILE", ""),
        (["consent", "--id", "user_id=u", "--grant", "granted:everything"], "BAD_CONSENT", "everything"),
        (["link", "--id", "user_id=u"], "BAD_ARGUMENT", "twice"),
        (["replay"], "BAD_ARGUMENT", "--verify"),
        (["ingest", "nothing.jsonl"], "NO_INPUT_FILE", "nothing.jsonl"),
        (["ingest", "items.jsonl", "--batch", "0"], "BAD_ARGUMENT", "--batch"),
        (["items", "put", "nothing.jsonl"], "NO_INPUT_FILE", "nothing.jsonl"),
        (["serve", "--listen", "0.0.0.0:1"], "LISTEN_NOT_LOOPBACK", "--insecure-listen"),
        (["profile", "--data", "elsewhere", "--id", "user_id=u"], "NO_DATA_DIRECTORY", "tailorbird init elsewhere"),
    ],
)
def test_mistakes_are_told_with_reason_and_remedy(
    in_shop: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str, hint: str
) -> None:
    error = said(capsys, *arguments, code=2)
    assert error.startswith(f"error: {reason}: ")
    assert hint in error
    assert error.count("\n") == 1


# ---- the data directory ----------------------------------------------------------------------------------------------


def test_init_writes_a_configuration_and_never_over_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said_ = said(capsys, "init", "shop", "--preset", "online-retail")
    assert "tailorbird ingest" in said_
    assert (tmp_path / "shop" / "tailorbird.yaml").is_file()
    assert "error: ALREADY_THERE: " in said(capsys, "init", "shop", code=2)
    error = said(capsys, "init", "other", "--preset", "pizza", code=2)
    assert "error: UNKNOWN_PRESET: " in error
    assert "online-retail" in error
    # What init wrote can be opened, and answers.
    assert "EMPTY_CATALOGUE" in said(capsys, "decide", "--placement", "home")


def test_the_data_directory_is_found_or_asked_for(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tailorbird.engine.errors import CallerError
    from tailorbird.server.commands.data_directory import find_data_directory

    monkeypatch.delenv("TAILORBIRD_DATA_DIR", raising=False)
    monkeypatch.chdir(shop)
    assert find_data_directory(None) == shop
    monkeypatch.chdir(shop.parent)
    assert find_data_directory(None) == shop
    other = shop.parent / "other"
    other.mkdir()
    (other / "tailorbird.yaml").write_text("version: 1\n")
    with pytest.raises(CallerError, match="other, shop; choose with --data"):
        find_data_directory(None)
    monkeypatch.setenv("TAILORBIRD_DATA_DIR", str(other))
    assert find_data_directory(None) == other
    assert find_data_directory(str(shop)) == shop
    monkeypatch.setenv("TAILORBIRD_DATA_DIR", "nowhere")
    with pytest.raises(CallerError, match="in TAILORBIRD_DATA_DIR"):
        find_data_directory(None)
    monkeypatch.delenv("TAILORBIRD_DATA_DIR")
    empty = shop.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(CallerError, match="tailorbird init DIR"):
        find_data_directory(None)


# ---- serving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", CHOICES)
def test_serve_says_where_answers_and_stops_on_sigterm(in_shop: Path, transport: str) -> None:
    if transport == NATIVE and not has_native():
        pytest.skip("libnghttp2 was missing when the kernels were built")
    script = "import sys; from tailorbird.server.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "serve", "--listen", "127.0.0.1:0", "--transport", transport],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("listening on 127.0.0.1:")
        assert f"transport {chosen(transport)[1]}" in first
        assert "not authenticated" in process.stdout.readline()
        with grpc.insecure_channel(first.split()[2].rstrip(",")) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status
            assert status == health_pb2.HealthCheckResponse.SERVING
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert "stopping" in out
    finally:
        process.kill()
        process.communicate()
