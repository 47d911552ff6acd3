"""Vowpal Wabbit in its own process, see subject.py: whole predictions of `--cb_explore_adf` from example text.

The shared line holds the person's 64 features and the context, which our decision reads for itself; each action is a line
with the item's id. The crosses are those of our score: 64 features with the item, 3 context values with the item, so that
a prediction has as many terms as a decision, each with a weight of its own. Numbered features need no hashing. This is the
least it can be told; an item never seen scores nothing then. `embedding` is what our decision knows: the item's 64 numbers
as well, of four digits each (ours are kept in 16 bits), one term each and not 64 x 64 crosses. `parse` is the part of a
prediction that reads the text.
"""

from __future__ import annotations

import platform
import random
from importlib.metadata import version
from typing import Any

from tailorbird.bench.peers.subject import Operation, Subject

DIMENSION = 64
ACTION_COUNTS = (100, 1_000)
# Actions are drawn from so many, whose lines are made once.
ITEMS_MAX = 5_000
LESSONS, LESSON_ACTIONS = 200, 20
CONTEXT = "country=GB device=mobile daypart=evening"
ARGUMENTS = "--cb_explore_adf --epsilon 0.05 -q pi -q ci -b 22 --quiet"


def open_subject(options: dict[str, Any]) -> Subject:
    """Make a model that has learnt a little, so that no weight is looked up in vain."""
    from vowpalwabbit import Workspace

    workspace = Workspace(ARGUMENTS)
    draws = random.Random(64)
    ids = [f"|i item-{item:07d}" for item in range(min(int(options["items"]), ITEMS_MAX))]
    embeddings = [f"{line} |e {numbers(draws.gauss(0.0, 0.05) for _ in range(DIMENSION))}" for line in ids]
    for _ in range(LESSONS):
        lines = example(draws, embeddings, LESSON_ACTIONS)
        lines[1] = f"0:{-draws.randrange(2)}:{1 / LESSON_ACTIONS} {lines[1]}"  # action, cost, probability
        workspace.learn("\n".join(lines))
    check(workspace, "\n".join(example(draws, embeddings, 10)), 10)

    operations = {}
    for count in ACTION_COUNTS:
        for name, lines in (("", ids), ("embedding_", embeddings)):

            def text(draws: random.Random, lines: list[str] = lines, count: int = count) -> str:
                return "\n".join(example(draws, lines, count))

            operations[f"predict_{name}{count}"] = Operation(workspace.predict, text)
            operations[f"parse_{name}{count}"] = Operation(workspace.parse, text, workspace.finish_example)
    return Subject(
        operations=operations,
        versions={"python": platform.python_version(), "vowpalwabbit": version("vowpalwabbit")},
        settings=f"{ARGUMENTS}; namespaces p: person, c: context, i: item id, e: embedding",
    )


def example(draws: random.Random, lines: list[str], count: int) -> list[str]:
    """Return the lines of a request of a random person on random items."""
    shared = f"shared |p {numbers(draws.random() for _ in range(DIMENSION))} |c {CONTEXT}"
    return [shared, *draws.choices(lines, k=count)]


def numbers(values: Any) -> str:
    """Return numbered features."""
    return " ".join(f"{number}:{value:.4g}" for number, value in enumerate(values))


def check(workspace: Any, text: str, count: int) -> None:
    """Raise unless a prediction is a probability for each action."""
    found = workspace.predict(text)
    if len(found) != count or abs(sum(found) - 1.0) > 1e-4:
        raise ValueError(f"expected {count} probabilities that add up to 1, got {found}")
