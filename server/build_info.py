"""What exactly is running: versions, compiled kernels and how they were compiled (`tailorbird build-info`)."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import lmdb

OPTIONAL_EXTENSIONS = frozenset({"http2", "http2_client", "http2_session", "load"})
LIBRARIES = ("grpcio", "lmdb", "msgspec", "numpy", "protobuf", "uvloop", "xxhash")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionInfo:
    """One kernel. `state` is `loaded`, `absent` (optional and not built) or what went wrong at import."""

    state: str
    path: str | None


def build_info() -> dict[str, object]:
    """Return versions, extensions and compiler flags as values JSON can carry. Never raises for a missing kernel."""
    return {
        "version": installed_version("tailorbird"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "libraries": {name: installed_version(name) for name in LIBRARIES},
        # lib_version=0 asks for the engine bundled by default; its file format differs from the other one's.
        "lmdb_engine": ".".join(str(part) for part in lmdb.version(lib_version=0)),
        "compiler": compiler_info(),
        "extensions": {name: asdict(extension_info(name)) for name in extension_names()},
    }


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, or say that there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a distribution"


def compiler_info() -> dict[str, object]:
    """Return compiler, flags and whether sanitizers are in, as the kernels themselves report them."""
    try:
        from tailorbird.native import build_flags
    except ImportError as error:
        return {"error": str(error)}
    return {"name": build_flags.compiler(), "flags": build_flags.flags(), "sanitized": build_flags.sanitized()}


def extension_names() -> list[str]:
    """Return the kernels this build should have: one per type stub or shared object, and the optional ones."""
    names = set(OPTIONAL_EXTENSIONS)
    for folder in importlib.import_module("tailorbird.native").__path__:
        for path in Path(folder).iterdir():
            if path.suffix == ".pyi" and not path.with_suffix(".py").exists():
                names.add(path.stem)
            elif path.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
                names.add(path.name.partition(".")[0])
    names.discard("__init__")
    return sorted(names)


def extension_info(name: str) -> ExtensionInfo:
    """Import one kernel and tell how it went."""
    module_name = f"tailorbird.native.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name and name in OPTIONAL_EXTENSIONS:
            return ExtensionInfo(state="absent", path=None)
        return ExtensionInfo(state=f"missing: {error}", path=None)
    except ImportError as error:
        return ExtensionInfo(state=f"failed: {error}", path=error.path)
    return ExtensionInfo(state="loaded", path=module.__file__)


def render(info: dict[str, object]) -> str:
    """Return `info` as indented lines of `name: value`, ending in a newline."""
    return "".join(f"{line}\n" for line in lines(info, ""))


def lines(values: dict[str, object], indent: str) -> list[str]:
    """Return one line per value; nested mappings follow their name, two columns further in."""
    result: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            result += [f"{indent}{name}:", *lines(value, indent + "  ")]
        else:
            result.append(f"{indent}{name}: {value}")
    return result


def main() -> int:
    """Print the build information; the exit code is 1 where a kernel that must be there does not load."""
    info = build_info()
    sys.stdout.write(render(info))
    states = (extension_info(name).state for name in extension_names())
    return int(any(state not in {"loaded", "absent"} for state in states))
