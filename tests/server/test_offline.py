"""Features offline, as a user types it: training sets to Parquet, batches computed from files, pushed here and remotely."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.server.cli import main
from tests.server.conftest import Serving
from tests.server.test_cli import TIME, in_shop, line, said

DAY = 86_400_000
BATCH = "  - {name: worth, signal: [order_completed, order_refunded], aggregate: sum(revenue), window: 30d, compute: batch}\n"
GRANTED = ("--consent", "granted:transactional", "--basis", "contract")
__all__ = ["in_shop"]


@pytest.fixture
def declared(in_shop: Path) -> Path:
    """Return the shop with a feature that is computed in batches."""
    configuration = in_shop / "tailorbird.yaml"
    configuration.write_text(configuration.read_text().replace("placements:", BATCH + "placements:"))
    return in_shop


def write_orders(path: Path = Path("orders.parquet"), **columns: list[object]) -> None:
    table: dict[str, list[object]] = {
        "type": ["order_completed", "order_completed", "order_refunded", "order_completed", "page_viewed"],
        "event_time": [TIME - 40 * DAY, TIME - DAY, TIME - DAY, TIME, TIME],
        "user_id": ["u1", "u1", "u1", "u2", "u3"],
        "revenue": [100.0, 30.0, 10.5, 7.25, None],
    }
    pq.write_table(pa.table({**table, **columns}), path)


def worth(capsys: pytest.CaptureFixture[str], *people: str) -> list[object]:
    asked = [f"user_id={person}" for person in people]
    lines = said(capsys, "features", "get", *asked, "--feature", "worth", "--json", "--at", str(TIME + 1)).splitlines()
    return [json.loads(text)["features"]["worth"][1] for text in lines]


def test_a_training_set_is_written_beside_its_labels(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orders = [line(message_id=f"m{n}", event_time=TIME + n * DAY) for n in range(3)]
    Path("signals.jsonl").write_text("\n".join(orders))
    said(capsys, "ingest", "signals.jsonl")
    moments = [TIME + n * DAY for n in (0, 1, 3)]
    iso = datetime.datetime.fromtimestamp(moments[1] / 1e3, datetime.UTC).isoformat()
    Path("labels.csv").write_text(
        f"user_id,at,bought\nu1,{moments[0]},0\nu1,{iso},1\nu2,{moments[2]},0\nu1,{moments[2]},1\n"
    )
    told = said(capsys, "features", "export", "--labels", "labels.csv", "--out", "set.parquet")
    assert told == "wrote 4 rows of 1 features to set.parquet; 3 of people who are known\n"
    found = pq.read_table("set.parquet")
    assert found.column_names == ["user_id", "at", "bought", "orders", "orders__status"]
    assert found.column("orders").to_pylist() == [None, 1.0, None, 3.0]
    assert found.column("orders__status").to_pylist() == ["missing", "fresh", "missing", "fresh"]
    assert found.column("bought").to_pylist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "said_"),
    [
        ("user_id,when\nu1,5\n", "one of times, `at`"),
        ("user_id,crm_id,at\nu1,c1,5\n", "one column of identifiers"),
        ("user_id,at\nu1,yesterday\n", "got 'yesterday', in column 'at', row 0"),
        ("user_id,at,orders\nu1,5,1\n", "no column 'orders' among the labels"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(
    in_shop: Path, capsys: pytest.CaptureFixture[str], labels: str, said_: str
) -> None:
    Path("labels.csv").write_text(labels)
    assert said_ in said(capsys, "features", "export", "--labels", "labels.csv", "--out", "set.parquet", code=2)
    assert not Path("set.parquet").exists()


@pytest.mark.filterwarnings("ignore")
def test_batches_are_computed_and_pushed_with_their_time(declared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_orders()
    compute = ("features", "materialize", "--events", "*.parquet", "--at", str(TIME))
    told = said(capsys, *compute, *GRANTED)
    assert told == "computed 2 people as of 2011-09-14 11:33:20 UTC: 2 applied\n"
    assert worth(capsys, "u1", "u2", "u3") == [19.5, 7.25, None]
    # An older batch that is late changes nothing, a later one takes what fell out of the window back to zero.
    said(capsys, "features", "materialize", "--events", "orders.parquet", "--at", str(TIME - 20 * DAY))
    assert worth(capsys, "u1") == [19.5]
    times = pa.array([TIME - 40 * DAY] * 5, pa.timestamp("ms", "UTC"))
    write_orders(Path("more.parquet"), event_time=times)
    said(capsys, "features", "materialize", "--events", "more.parquet", "--at", str(TIME + 1))
    assert worth(capsys, "u1", "u2") == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore")
def test_batches_are_pushed_into_a_running_service(
    declared: Path, serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    write_orders()
    with serving() as running:
        told = said(
            capsys,
            "features",
            "materialize",
            "--events",
            "orders.parquet",
            "--at",
            str(TIME),
            "--address",
            running.address,
        )
        assert "2 withheld" in told
        said(
            capsys, "features", "materialize", "--events", "orders.parquet", "--at", str(TIME), *GRANTED, "--address",
            running.address,
        )  # fmt: skip
        assert said(capsys, "features", "backfill", "--address", running.address) == "nothing is warming\n"
    assert worth(capsys, "u1", "u2") == [19.5, 7.25]
    told = said(capsys, "features", "backfill", "--address", running.address, code=1)
    assert "CALL_FAILED: expected an answer of" in told


@pytest.mark.filterwarnings("ignore")
def test_a_batch_is_computed_again_and_again_until_it_is_told_to_stop(declared: Path) -> None:
    write_orders()
    command = [Path(sys.executable).with_name("tailorbird"), "features", "materialize", "--events", "orders.parquet"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--every", "50ms", *GRANTED], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdout is not None
        runs = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        process.communicate()
        guard.cancel()
    assert all(run.startswith("computed 2 people as of") for run in runs)
    assert process.returncode == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "reason", "said_"),
    [
        (("--events", "nothing.parquet"), "BAD_FILE", "found none at nothing.parquet"),
        (("--events", "orders.parquet", "more.csv"), "BAD_FILE", "files of one kind"),
        (("--events", "broken.parquet"), "BAD_FILE", "readable event files, got broken.parquet"),
        (("--events", "strange.parquet"), "BAD_TABLE", "a column 'revenue' of type number, got string"),
        (("--events", "orders.parquet", "--feature", "orders"), "NOT_BATCHED", "`compute: batch`, worth, got 'orders'"),
        (("--events", "orders.parquet", "--engine", "flink"), "BAD_ARGUMENT", "duckdb, spark"),
        (("--events", "orders.parquet", "--namespace", "shoe"), "BAD_TABLE", "a column 'shoe'"),
    ],
)
def test_a_batch_that_cannot_be_computed_is_refused(
    declared: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str, said_: str
) -> None:
    write_orders()
    write_orders(Path("strange.parquet"), revenue=["a"] * 5)
    Path("more.csv").write_text("type\npage_viewed\n")
    Path("broken.parquet").write_bytes(b"PAR1 not really")
    told = said(capsys, "features", "materialize", *arguments, code=2)
    assert reason in told
    assert said_ in told
    assert main(["features", "list"]) == 0, "online features keep serving"
