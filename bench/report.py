"""How a benchmark's results are shown and kept: a table for people, a JSON file for machines."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("tailorbird", "numpy", "lmdb", "msgspec", "xxhash", "grpcio", "protobuf", "uvloop")
RAW = "raw"


def write_report(name: str, results: dict[str, object], path: Path | None) -> None:
    """Print `results` and, with a `path`, write {"bench", "machine", "versions", "results"} there as JSON.

    What stands under RAW is for the file alone.
    """
    print(f"{name}:")
    shown = {key: value for key, value in results.items() if key != RAW}
    width = max((len(key) for key in shown), default=0)
    for key, value in shown.items():
        print(f"  {key:<{width}}  {_shown(value)}")
    if path is not None:
        report = {"bench": name, "machine": machine(), "versions": versions(), "results": results}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written to {path}")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list) and value:
        return "".join(f"\n    {line}" for line in value)
    return str(value)


def machine() -> dict[str, object]:
    """Return the processor's model, the cores this process may use, the memory in MiB and the kernel."""
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a number may depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _first_value(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""
