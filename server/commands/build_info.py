"""`tailorbird build-info`: what exactly is running."""

from __future__ import annotations

import argparse
import json
import sys

from tailorbird.server.build_info import build_info, render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    info = build_info()
    sys.stdout.write(json.dumps(info, indent=2) + "\n" if arguments.json else render(info))
    return 0
