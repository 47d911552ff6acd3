"""Checks tests/COVERAGE.md, which names the tests of each promised capability and each bad input."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "COVERAGE.md"

# Kept here and not only in the table: a row that is removed there must fail here.
CAPABILITIES = (
    "one namespace: wheel and sdist install and import in an empty environment",
    "imports point down only",
    "native kernel equals its oracle",
    "tailorbird build-info",
    "LocalLog: append, sync, read back",
    "snapshot and restore",
    "replay from empty gives the same state hash",
    "exactly-once: state and next offset in one transaction",
    "duplicate refusal by source and message id",
    "signals of all five categories declared in tailorbird.yaml",
    "built-in e-commerce vocabulary with Segment's names",
    "validation with a precise reason per bad signal",
    "tailorbird init",
    "tailorbird ingest",
    "tailorbird profile",
    "tailorbird snapshot",
    "tailorbird replay --verify",
    "Engine.open and engine.ingest",
    "catalogue items: attributes, price, tags, schedule, stock, embedding",
    "placements",
    "popularity by context cell with shrinkage",
    "eligibility",
    "native top-k, ties broken by item id",
    "reasons and tier in the answer",
    "engine.decide with at",
    "DecisionService.Decide",
    "SignalService.Ingest",
    "ProfileService.GetProfile",
    "CatalogService.PutItems and DeleteItems",
    "health and reflection",
    "one table of handlers for any transport",
    "tailorbird decide",
    "tailorbird serve",
    "tailorbird demo",
    "fragments: anonymous, login and CRM identifiers",
    "canonical forms and refused values",
    "one user_id and one crm_id per person",
    "merge",
    "exact split",
    "consent masks at admission",
    "consent masks at decision",
    "opt-in default: nothing stored without a basis",
    "bought, served and shown never offered again on any device",
    "features block compiled into layout and descriptors",
    "feature count",
    "feature sum",
    "feature last",
    "feature time since",
    "feature decayed count",
    "feature decayed top-k",
    "feature last-k",
    "affinity",
    "co-occurrence: tailorbird train cooccurrence",
    "co-occurrence file named by log position",
    "retrievers with quotas",
    "last tiers of fallback",
    "init shop --preset online-retail",
    "ingest --format online-retail: the real file's traps handled and counted",
    "decide for a known customer and without an id on the real file",
    "ingest --format otto: counts per type equal the file's",
    "otto: the next decision changes after each event",
    "generated shop with known answers",
    "bench engine",
    "bench ingest",
    "bench rpc",
    "bench overload",
    "bench soak",
    "load generator: closed and open loop, known answers",
    "histograms within a hundredth",
    "overload: no work past a deadline, what is too much refused where it is read",
    "bench peers",
    "bench quality",
    "bench crash: kill -9 loses and doubles nothing",
    "bench powerfail: images lose and double nothing",
    "decision log: asked, used and answered",
    "signed decision ids that say where the decision stands",
    "decision log: retention by bytes and age",
    "outcomes attributed to decisions",
    "a logged day replays to identical decisions",
    "tailorbird decisions tail, show, replay, export, erase",
    "an erased person's decisions are gone, a refusing one's never kept",
    "frequency caps: served and shown, on all devices",
    "a placement chooses shown or served",
    "events of a batch and a page count in their answers",
    "an acknowledged change of stock is in force in the next decision",
    "counts published as item columns by ticks",
    "hot swap of catalogue and configuration without a pause",
    "logs: a line an event, bounded, nothing about a person",
    "access log, all calls or a part",
    "healthz and readyz beside metrics",
    "OpenTelemetry traces, off without cost",
    "tailorbird top",
    "decisions counted by tier",
    "several tenants in one service, held apart",
    "one writer, many workers: what one took all see",
    "every method is read or relayed",
    "processes: killed, replaced, stopped",
    "servings across workers, written before the answer",
    "events of a decision are written behind it",
    "acknowledgement applied or durable",
    "two lanes of writes",
    "bench service",
)
BAD_INPUTS = (
    "unknown signal type",
    "missing identifier",
    "wrong field type",
    "event time 30 years old",
    "event time next year",
    "10 MB in one field",
    "bad UTF-8",
    "truncated log",
    "damaged log",
    "truncated snapshot",
    "damaged snapshot",
    "truncated catalogue file",
    "damaged catalogue file",
    "truncated input file",
    "damaged input file",
    "unknown placement",
    "a million candidate ids",
    "empty catalogue",
    "configuration with a typo",
    "configuration with a wrong type",
    "configuration with two features of one name",
    "data directory of another version",
    "data directory opened twice for writing",
    "full disk",
    "full map",
    "state offset beyond the log's end",
    "forged or damaged decision id",
    "torn or damaged decision log",
    "disk full while decisions are logged",
    "a key that is revoked while its stream runs",
    "an unknown tenant, or another's",
    "a reader of logs or metrics that stops or has left",
    "a collector of traces that does not answer",
    "a writer killed under load",
    "workers killed one after another",
    "a second service on a directory, or on a port",
    "a full lane",
    "disk full while serving",
    "a writer that is slow, then gone",
    "a position from the future",
)

Rows = dict[str, list[str]]


def rows_of(markdown: str) -> dict[str, Rows]:
    """Return section title → row name → named tests. ValueError for a row that is not two cells or comes twice."""
    sections: dict[str, Rows] = {}
    title = ""
    for number, line in enumerate(markdown.splitlines(), start=1):
        if line.startswith("## "):
            title = line[3:].strip()
            sections[title] = {}
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 2 or not title:
            raise ValueError(f"expected `| name | tests |` below a `## ` heading, got line {number}: {line}")
        name, tests = cells
        if tests == "tests" or set(name) <= {"-", ":"}:
            continue
        if name in sections[title]:
            raise ValueError(f"expected each row once, got {name!r} again in line {number}")
        sections[title][name] = re.split(r"(?:\s|,|<br>)+", tests.replace("`", "")) if tests else []
    return sections


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """Return the names of a file's tests, `test_x` or `TestClass::test_x`, contract classes included."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            functions = (child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
            names.update(f"{node.name}::{function.name}" for function in functions)
    return frozenset(name for name in names if name.rpartition("::")[2].startswith("test_"))


def faults(test_id: str) -> str | None:
    """Return what is wrong with a named test, or None."""
    path, separator, name = test_id.partition("::")
    if not separator or not re.fullmatch(r"tests/[\w/]+\.py", path):
        return f"expected tests/path.py::test_name, got {test_id!r}"
    if not (ROOT / path).is_file():
        return f"{test_id}: there is no file {path}"
    if name not in names_of_tests(ROOT / path):
        return f"{test_id}: {path} has no such test"
    return None


@pytest.fixture(scope="module")
def table() -> dict[str, Rows]:
    return rows_of(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("section", "required"), [("Capabilities", CAPABILITIES), ("Bad input", BAD_INPUTS)])
def test_every_required_row_is_there(table: dict[str, Rows], section: str, required: tuple[str, ...]) -> None:
    assert [name for name in required if name not in table[section]] == []


def test_every_row_names_a_test(table: dict[str, Rows]) -> None:
    assert [name for rows in table.values() for name, tests in rows.items() if not tests] == []


def test_every_named_test_exists(table: dict[str, Rows]) -> None:
    named = [test_id for rows in table.values() for tests in rows.values() for test_id in tests]
    assert [fault for test_id in named if (fault := faults(test_id))] == []


def test_a_test_that_does_not_exist_is_a_fault() -> None:
    assert faults("tests/test_coverage_table.py::test_every_row_names_a_test") is None
    assert faults("tests/test_coverage_table.py::test_nowhere") is not None
    assert faults("tests/test_nowhere.py::test_x") is not None
    assert faults("tests/test_coverage_table.py::rows_of") is not None
    assert faults("something") is not None
    assert faults("open") is not None


def test_the_table_reader_keeps_empty_cells_and_refuses_bad_rows() -> None:
    head = "## Bad input\n\n| bad input | tests |\n|---|---|\n"
    assert rows_of(head + "| a | |\n| b | `x`<br>`y` z |\n") == {"Bad input": {"a": [], "b": ["x", "y", "z"]}}
    with pytest.raises(ValueError, match="once"):
        rows_of(head + "| a | x |\n| a | y |\n")
    with pytest.raises(ValueError, match="expected"):
        rows_of(head + "| a | x | y |\n")
