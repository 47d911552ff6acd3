"""`tailorbird demo`: a generated shop and three visits."""

from __future__ import annotations

import argparse
import importlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    importlib.import_module("tailorbird.bench.demo").add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return int(importlib.import_module("tailorbird.bench.demo").run(arguments) or 0)
