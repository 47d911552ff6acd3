"""`tailorbird init DIR`: a data directory with a configuration to start from."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

from tailorbird.engine.errors import CallerError, PreconditionFailed
from tailorbird.server.commands.data_directory import CONFIGURATION

DEFAULT = "shop"
NEXT_STEPS = """\
wrote {path} from the preset {preset}
next:
  tailorbird ingest --data {directory} {example}
  tailorbird decide --data {directory} --placement home
  tailorbird serve --data {directory}
"""
EXAMPLES = {
    "online-retail": "--format online-retail FILE.csv.gz \\\n"
    "    --consent granted:behavioural,transactional,contextual --basis contract",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="made when it is not there")
    parser.add_argument("--preset", default=DEFAULT, help=f"one of {', '.join(presets())} (default {DEFAULT})")


def run(arguments: argparse.Namespace) -> int:
    known = presets()
    if arguments.preset not in known:
        raise CallerError(
            "UNKNOWN_PRESET", f"expected a preset of {', '.join(known)}, got {arguments.preset!r} in --preset"
        )
    text = (resources.files("tailorbird.engine") / "presets" / f"{arguments.preset}.yaml").read_text("utf-8")
    directory = Path(arguments.directory)
    path = directory / CONFIGURATION
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise PreconditionFailed(
            "ALREADY_THERE", f"expected a new data directory, found {path}; choose another one, or edit that file"
        ) from None
    except OSError as error:
        raise CallerError("CANNOT_WRITE", f"expected to write {path}, got: {error.strerror}") from None
    example = EXAMPLES.get(arguments.preset, "SIGNALS.jsonl")
    print(NEXT_STEPS.format(path=path, preset=arguments.preset, directory=arguments.directory, example=example), end="")
    return 0


def presets() -> list[str]:
    """Return the names of the configurations that come with the engine."""
    folder = resources.files("tailorbird.engine") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
