"""Arrows point down only: who may import whom among the top-level folders, read from the sources themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PARTS = ("engine", "native", "server", "bench", "client", "v1")
MAY_IMPORT = {
    "native": {"native"},
    "engine": {"engine", "native"},
    "client": {"client", "native", "v1"},
    "server": {"server", "engine", "native", "client", "v1"},
    "bench": set(PARTS),
}
# Embedding users get the engine alone; a kernel knows neither wire nor configuration.
BANNED_ROOTS = {
    "native": ("grpc", "google", "yaml", "lmdb"),
    "engine": ("grpc", "grpc_health", "grpc_reflection", "google"),
    "server": (),
    "client": (),
    "bench": (),
}
# As top-level names these would work in the checkout and nowhere else.
FOLDER_NAMES = ("engine", "native", "server", "bench", "tests")
CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+c?import\s+([^#\n]*)|c?import\s+([\w.]+(?:\s*,\s*[\w.]+)*))", re.M
)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported dotted name; `at_top` tells that it happens when the importing module is imported."""

    name: str
    line: int
    at_top: bool


def part_of(path: Path) -> str:
    """Return the part of the house a source belongs to; server/client is installed as tailorbird.client."""
    return "client" if path.parts[:2] == ("server", "client") else path.parts[0]


def package_of(path: Path) -> list[str]:
    """Return the dotted package a source stands in, for relative imports."""
    folders = path.parts[1:-1] if part_of(path) == "client" else path.parts[:-1]
    return ["tailorbird", *folders]


def sources() -> list[Path]:
    """Return all Python and Cython sources of the house, relative to the root."""
    suffixes = {".py", ".pyi", ".pyx", ".pxd"}
    folders = ("engine", "native", "server", "bench")
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path.relative_to(ROOT) for path in found)


def imports_of(path: Path, text: str) -> list[Import]:
    """Return every import of a source; `from a import b` counts as both `a` and `a.b`."""
    if path.suffix in {".pyx", ".pxd"}:
        return list(cython_imports(text))
    return list(python_imports(ast.parse(text), package_of(path), at_top=True))


def python_imports(node: ast.AST, package: list[str], *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_top)
        elif isinstance(child, ast.ImportFrom):
            anchor = package[: len(package) - child.level + 1] if child.level else []
            module = ".".join([*anchor, *([child.module] if child.module else [])])
            yield Import(module, child.lineno, at_top)
            for alias in child.names:
                yield Import(f"{module}.{alias.name}", child.lineno, at_top)
        elif isinstance(child, ast.Call) and is_dynamic_import(child):
            name = child.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(name.value, child.lineno, at_top)
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from python_imports(child, package, at_top=at_top and not lazy)


def is_dynamic_import(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"} and bool(call.args)


def cython_imports(text: str) -> Iterator[Import]:
    for match in CYTHON_IMPORT.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        module, names, plain = match.groups()
        if module:
            yield Import(module, line, True)
            for name in re.findall(r"\w+", re.sub(r"\bas\s+\w+", "", names)):
                yield Import(f"{module}.{name}", line, True)
        else:
            for name in plain.split(","):
                yield Import(name.strip(), line, True)


def may_start_benchmarks(path: Path) -> bool:
    """Tell whether a source is the command line, the only one that may reach up to bench."""
    return path.parts[0] == "server" and (
        path.name == "cli.py" or path.name.startswith("cli_") or path.parts[1] in {"cli", "commands"}
    )


def violations(path: Path, text: str) -> list[str]:
    """Return what a source imports against the rules, one readable line each."""
    part = part_of(path)
    wrong = []
    for imported in imports_of(path, text):
        root, _, rest = imported.name.partition(".")
        target = rest.partition(".")[0]
        where = f"{path}:{imported.line}"
        if root == "tailorbird" and target in PARTS and target not in MAY_IMPORT[part]:
            if target == "bench" and may_start_benchmarks(path):
                if imported.at_top:
                    wrong.append(f"{where}: {imported.name} must be imported inside the function that needs it")
                continue
            wrong.append(f"{where}: {part} must not import {imported.name}")
        elif root in BANNED_ROOTS[part]:
            wrong.append(f"{where}: {part} must not import {imported.name}")
        elif root in FOLDER_NAMES:
            wrong.append(f"{where}: expected tailorbird.{imported.name}, got {imported.name}")
    return wrong


def test_no_import_points_upwards() -> None:
    found = [line for path in sources() for line in violations(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert found == []


def test_every_part_of_the_house_is_read() -> None:
    assert {part_of(path) for path in sources()} >= {"engine", "native", "server", "bench"}
    assert {path.suffix for path in sources()} >= {".py", ".pyx"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("native/a.pyx", "from tailorbird.engine.store cimport Record\n"),
        ("native/a.pyx", "cimport numpy, tailorbird.server.wire\n"),
        ("native/a.py", "from tailorbird import engine\n"),
        ("engine/a.py", "import tailorbird.server.cli\n"),
        ("engine/a.py", "from tailorbird.v1 import decision_pb2\n"),
        ("engine/a.py", "from ..server import build_info\n"),
        ("engine/inner/a.py", "from ...bench import world\n"),
        ("engine/a.py", "def late() -> None:\n    import grpc\n"),
        ("engine/a.py", "from google.protobuf import message\n"),
        ("engine/a.py", "import importlib\nimportlib.import_module('tailorbird.bench.world')\n"),
        ("engine/a.py", "from engine.errors import CallerError\n"),
        ("server/a.py", "def late() -> None:\n    from tailorbird.bench import world\n"),
        ("server/cli.py", "from tailorbird.bench import world\n"),
        ("server/client/a.py", "from tailorbird.engine.errors import CallerError\n"),
    ],
)
def test_an_upward_arrow_is_found(path: str, text: str) -> None:
    assert violations(Path(path), text) != []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("native/a.pyx", "from tailorbird.native.record cimport Record\nfrom libc.stdint cimport uint64_t\n"),
        ("engine/a.py", "from tailorbird.native import hashing\nfrom . import errors\n"),
        ("server/a.py", "from tailorbird.engine import errors\nfrom tailorbird.v1 import decision_pb2\nimport grpc\n"),
        ("server/cli.py", "def bench() -> None:\n    from tailorbird.bench import world\n"),
        ("server/commands/a.py", "def bench() -> None:\n    from tailorbird.bench import world\n"),
        ("server/client/a.py", "from tailorbird.v1 import decision_pb2\nfrom . import channel\n"),
        ("bench/a.py", "from tailorbird.server.cli import main\nfrom tailorbird.engine import errors\n"),
    ],
)
def test_a_downward_arrow_is_allowed(path: str, text: str) -> None:
    assert violations(Path(path), text) == []


def test_every_folder_with_python_is_a_package() -> None:
    folders = {path.parent for path in sources() if path.suffix == ".py"}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_every_package_is_typed_and_every_kernel_has_a_stub() -> None:
    packages = [ROOT / name for name in ("engine", "native", "server", "bench", "server/client")]
    assert [folder for folder in packages if folder.is_dir() and not (folder / "py.typed").exists()] == []
    assert [path.name for path in (ROOT / "native").glob("*.pyx") if not path.with_suffix(".pyi").exists()] == []
