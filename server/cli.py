"""The command `tailorbird`: one module per command, imported when it is the one that is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Command to module below tailorbird.server.commands and help line, in the order a new user needs them.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "write a configuration to start from"),
    "ingest": ("ingest", "read signals from files"),
    "items": ("items", "put items into the catalogue, or delete them"),
    "decide": ("decide", "what should this visitor see now?"),
    "decisions": ("decisions", "what was decided, what came of it, and deciding it again"),
    "profile": ("profile", "what is known about a person"),
    "features": ("features", "what is declared, what people's features are, and filling late ones"),
    "consent": ("consent", "record a person's choice"),
    "link": ("link", "say that two identifiers are one person"),
    "split": ("split", "say that they are not, after all"),
    "train": ("train", "train a model from the log"),
    "snapshot": ("snapshot", "write a snapshot of the state"),
    "replay": ("replay", "rebuild the state from the log and compare"),
    "keys": ("keys", "make, list and revoke the keys of callers"),
    "serve": ("serve", "answer over gRPC"),
    "top": ("top", "a running service at a glance"),
    "demo": ("demo", "a generated shop and three visits"),
    "bench": ("bench", "measure"),
    "build-info": ("build_info", "versions, kernels and compiler flags"),
}

EXIT_OURS = 1
EXIT_CALLER = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the caller did wrong, 1 for everything else."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (`| head`); the interpreter would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OURS


def _run(arguments: list[str]) -> int:
    try:
        parsed = build_parser(arguments).parse_args(arguments)
        return int(importlib.import_module(f"tailorbird.server.commands.{parsed.module}").run(parsed))
    except Exception as error:
        # Imported late, because it brings the whole engine with it, which `--help` can do without.
        from tailorbird.engine.errors import CallerError, TailorbirdError

        if not isinstance(error, TailorbirdError):
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CALLER if isinstance(error, CallerError) else EXIT_OURS


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, with the options of the one command `arguments` name."""
    parser = argparse.ArgumentParser(
        prog="tailorbird",
        description="Real-time personalization decisions.",
        epilog="The data directory is --data DIR, else TAILORBIRD_DATA_DIR, else the current directory or its only "
        "subdirectory with a tailorbird.yaml.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, (module, text) in COMMANDS.items():
        command = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(module=module)
        if name == asked:
            importlib.import_module(f"tailorbird.server.commands.{module}").add_arguments(command)
    return parser
