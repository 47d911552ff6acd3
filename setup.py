"""Maps the top-level folders into the namespace `tailorbird`, generates the API modules and compiles the kernels.

Metadata lives in pyproject.toml; here is only what needs code. Environment:

    TAILORBIRD_DEBUG_NATIVE=1              all Cython checks and the address and undefined-behaviour sanitizers
    TAILORBIRD_ALLOW_PERFORMANCE_HINTS=1   do not fail on a Cython `performance hint:`
    TAILORBIRD_WITHOUT_HTTP2=1             leave out the optional kernels, as where libnghttp2 is missing

Why a link tree: docs/adr/0001-one-namespace-over-top-level-folders.md.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# setuptools builds from the folder of this file; every path below is relative to it.
FOLDERS = {
    "tailorbird.engine": "engine",
    "tailorbird.native": "native",
    "tailorbird.server": "server",
    "tailorbird.bench": "bench",
    "tailorbird.client": "server/client",
}
GENERATED = Path("build/generated")
CYTHON_TREE = Path("build/cython")
NATIVE = Path("native")

# The kernels that may be missing, and the libraries each is linked with.
OPTIONAL = {name: ["nghttp2"] for name in ("http2", "http2_client", "http2_session", "load")}

DEBUG = os.environ.get("TAILORBIRD_DEBUG_NATIVE") == "1"
# The two builds never share generated C: the checks are in the C itself.
GENERATED_C = Path("build/c-debug" if DEBUG else "build/c-release")

WARNINGS = ["-Wall", "-Wextra"]
# No -march=native and no -ffast-math: a logged decision must replay bit for bit on another machine.
RELEASE_FLAGS = ["-O3", "-ffp-contract=off", "-fno-trapping-math", *WARNINGS]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
DEBUG_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off", *WARNINGS, *SANITIZERS]
FLAGS = DEBUG_FLAGS if DEBUG else RELEASE_FLAGS

DIRECTIVES: dict[str, object] = {
    "language_level": 3,
    "embedsignature": True,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": not DEBUG,
    # Off in both: with boundscheck on, a negative index is then an IndexError instead of a read from the end.
    "wraparound": False,
}


def packages_and_folders() -> tuple[list[str], dict[str, str]]:
    """Return every package to install and the folder of each mapped one; sub-packages are found."""
    packages: list[str] = []
    package_dir: dict[str, str] = {}
    for name, folder in FOLDERS.items():
        if not Path(folder, "__init__.py").exists():
            continue
        package_dir[name] = folder
        # server/client is installed as tailorbird.client, hence not a second time below tailorbird.server.
        inner = find_packages(where=folder, exclude=["client", "client.*"] if folder == "server" else [])
        packages += [name, *(f"{name}.{package}" for package in inner)]
    for folder_path in generate_api():
        name = ".".join(folder_path.relative_to(GENERATED).parts)
        packages.append(name)
        package_dir[name] = folder_path.as_posix()
    return packages, package_dir


def generate_api() -> list[Path]:
    """Generate messages, stubs and gRPC bindings below build/generated; return its package folders.

    Nothing is done when all outputs are newer than all inputs, because every build hook runs this file anew.
    """
    protos = sorted(Path("protos").rglob("*.proto"))
    folders = sorted({GENERATED / proto.parent.relative_to("protos") for proto in protos})
    expected: dict[Path, Path] = {}
    for proto in protos:
        stem = GENERATED / proto.relative_to("protos").with_suffix("")
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
            expected[stem.with_name(stem.name + suffix)] = proto
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        # A proto that was removed or renamed must not leave its module behind.
        for old in (*folder.glob("*_pb2*.py"), *folder.glob("*_pb2*.pyi")):
            if old not in expected:
                old.unlink()
        write_if_changed(folder / "__init__.py", f'"""Generated from protos/{folder.relative_to(GENERATED)}."""\n')
        write_if_changed(folder / "py.typed", "")
    if not protos or not is_stale(list(expected), [Path(__file__), *protos]):
        return folders

    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={GENERATED}" for kind in ("python", "pyi", "grpc_python")]
    arguments = ["protoc", "-Iprotos", f"-I{well_known}", *outputs, *(proto.as_posix() for proto in protos)]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc could not compile protos/; its message is above")
    for path in expected:
        path.touch()
    return folders


def is_stale(outputs: list[Path], inputs: list[Path]) -> bool:
    """Tell whether an output is missing or older than an input."""
    if not all(path.exists() for path in outputs):
        return True
    return min(path.stat().st_mtime_ns for path in outputs) < max(path.stat().st_mtime_ns for path in inputs)


def write_if_changed(path: Path, text: str) -> None:
    """Write `text`, leaving an equal file and its time alone."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def link_tree() -> None:
    """Make build/cython/tailorbird/native -> ../../../native, where Cython finds the .pxd of `tailorbird.native.*`."""
    link = CYTHON_TREE / "tailorbird" / NATIVE.name
    target = Path("../../..", NATIVE)
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)


def has_nghttp2() -> bool:
    """Tell whether a program with libnghttp2 compiles and links; one without bounds on resets and CONTINUATION does not."""
    if os.environ.get("TAILORBIRD_WITHOUT_HTTP2") == "1":
        return False
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(
            "#include <nghttp2/nghttp2.h>\n"
            "int main(void) {\n"
            "    nghttp2_option_set_max_continuations(0, 8);\n"
            "    nghttp2_option_set_stream_reset_rate_limit(0, 1, 1);\n"
            "}\n"
        )
        command = [*compiler, source.as_posix(), "-o", Path(folder, "probe").as_posix(), "-lnghttp2"]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def kernels() -> list[Path]:
    """Return the sources to compile: all of native/, without the HTTP/2 ones where its library is missing."""
    return [path for path in sorted(NATIVE.glob("*.pyx")) if path.stem not in OPTIONAL or has_nghttp2()]


def extensions() -> list[Extension]:
    """Return one extension per kernel; a change of any C header or of the flags recompiles them all."""
    flags_file = GENERATED_C / "flags.txt"
    write_if_changed(flags_file, " ".join(FLAGS) + "\n")
    depends = [path.as_posix() for path in (*sorted(NATIVE.glob("*.h")), *sorted(NATIVE.glob("*.pxd")))]
    macros = [("TAILORBIRD_BUILD_FLAGS", '"' + " ".join(FLAGS) + '"')]
    return [
        Extension(
            f"tailorbird.native.{source.stem}",
            [source.as_posix()],
            include_dirs=[NATIVE.as_posix()],
            depends=depends,
            define_macros=macros,
            extra_compile_args=FLAGS,
            extra_link_args=SANITIZERS if DEBUG else [],
            libraries=OPTIONAL.get(source.stem, []),
        )
        for source in kernels()
    ]


class BuildNative(build_ext):
    """Translates all kernels with the link tree in place, refuses performance hints, then compiles."""

    def build_extensions(self) -> None:
        from Cython.Build import cythonize

        link_tree()
        messages = io.StringIO()
        try:
            with contextlib.redirect_stderr(messages):
                translated = cythonize(
                    self.extensions,
                    include_path=[CYTHON_TREE.as_posix()],
                    build_dir=GENERATED_C.as_posix(),
                    compiler_directives=DIRECTIVES,
                    force=bool(self.force),
                )
        finally:
            sys.stderr.write(messages.getvalue())
        refuse_performance_hints(messages.getvalue())
        # Cython copies headers beside the C it writes, where the compiler would prefer them to the ones in native/.
        for copy in GENERATED_C.rglob("*.h"):
            copy.unlink()
        # setuptools keeps its own notes on the extension objects it was given, so those are kept.
        sources = {extension.name: extension.sources for extension in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
            extension.depends = [*extension.depends, (GENERATED_C / "flags.txt").as_posix()]
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()


def refuse_performance_hints(messages: str) -> None:
    """Stop a release build on a hint: most say that a `nogil` function takes the GIL back on every call.

    The debug build is let pass, because there Cython hints at the very checks that were asked for.
    """
    hints = [line for line in messages.splitlines() if "performance hint:" in line]
    if DEBUG or not hints or os.environ.get("TAILORBIRD_ALLOW_PERFORMANCE_HINTS") == "1":
        return
    # Otherwise the next build would find the C up to date, translate nothing and see no hint.
    for path in GENERATED_C.rglob("*.c"):
        path.unlink()
    raise SystemExit(
        "expected no Cython performance hint, got:\n  "
        + "\n  ".join(hints)
        + "\nadd `noexcept` (or the type that is missing); TAILORBIRD_ALLOW_PERFORMANCE_HINTS=1 builds all the same"
    )


packages, package_dir = packages_and_folders()
setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"": ["py.typed", "*.pyi", "*.yaml", "*-requirements.txt"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildNative},
)
