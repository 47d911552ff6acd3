"""`tailorbird train`: models from the log, in force at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.data_directory import add_data_argument, opened
from tailorbird.server.labels import read_labels

LABEL = "label"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_subparsers(dest="model", metavar="MODEL", required=True)
    together = models.add_parser("cooccurrence", help="what was bought together")
    score = models.add_parser("score", help="a feature with `learned_from`, from labelled moments")
    score.add_argument("feature", help="as the configuration names it")
    score.add_argument(
        "--labels",
        required=True,
        metavar="FILE",
        help=f"with a column of identifiers, of times, `at`, and `{LABEL}`, 0 or 1",
    )
    score.add_argument("--update", action="store_true", help="only let its calibration follow these labels")
    clusters = models.add_parser("clusters", help="a feature with `clusters`, from everybody")
    clusters.add_argument("feature", help="as the configuration names it")
    for model in (together, score, clusters):
        add_data_argument(model)


def run(arguments: argparse.Namespace) -> int:
    with opened(arguments, read_only=False) as engine:
        summary: Mapping[str, object]
        if arguments.model == "cooccurrence":
            summary = engine.train_cooccurrence()
        elif arguments.model == "clusters":
            summary = engine.train_clusters(arguments.feature)
        else:
            labels = read_labels(Path(arguments.labels), engine.configuration)
            if LABEL not in labels.table.column_names:
                raise CallerError(
                    "BAD_FILE",
                    f"expected a column `{LABEL}` of 0 and 1, got {', '.join(labels.table.column_names)}, in {arguments.labels}",
                )
            truth = [int(value) if value in (0, 1) else -1 for value in labels.table.column(LABEL).to_pylist()]
            learn = engine.update_score if arguments.update else engine.train_score
            summary = learn(arguments.feature, labels.namespace, labels.people, labels.times, truth)
        for name, value in summary.items():
            print(f"{name}: {value}")
    return 0
