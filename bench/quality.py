"""`tailorbird bench quality`: how good decisions are, on real orders of the online-retail format.

Facts before the cut go in through `Engine.ingest`, the co-occurrence model is trained from the engine's own log, and
then the state is frozen: every answer is the engine's own `decide`. `quality_questions.py` says what is asked and how
answers are judged. The peer of every number, `..._popularity`, is the list of items bought in most orders of the 30
days before the cut, less what the question excludes. The cut is `--split` (midnight UTC) or the first order of the
`--test` files.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path

import numpy as np

from tailorbird.bench.musts import Must
from tailorbird.bench.quality_questions import (
    BasketQuestion,
    KnownQuestion,
    Questions,
    ndcg10,
    questions_of,
    read_orders,
    recall20,
    without,
)
from tailorbird.engine import DecideRequest, Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import CallerError, InternalError
from tailorbird.engine.signals import Signal, Status
from tailorbird.server.sources import online_retail

# What a shop may do with the orders of its customers, and with the visit of whoever is in it.
CONSENT = parse_choice("granted:behavioural,contextual,transactional,device", "contract")
KNOWN_PLACEMENT, BASKET_PLACEMENT = "home", "basket"
K = 20
# Whoever knows a customer, a basket or a country must do better with it than the list that is everybody's.
MUSTS = (
    Must("ndcg10_known_over_popularity", at_least=1.1),
    Must("ndcg10_anonymous_over_popularity", at_least=2.0),
    Must("ndcg10_cold_over_popularity", at_least=1.03),
    Must("ndcg10_cold_abroad_over_popularity", at_least=1.8),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="FILE", help="orders to learn from")
    later = parser.add_mutually_exclusive_group(required=True)
    later.add_argument("--test", type=Path, nargs="+", metavar="FILE", help="later orders to be judged on")
    later.add_argument("--split", metavar="DATE", help="judge on the orders of --train from this date on (2011-08-01)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="another configuration than the preset online-retail"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="work below this directory (default the system's)")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Return the measures; see the module for each."""
    questions, known_items = _ask(args)
    preset = resources.files("tailorbird.engine") / "presets" / "online-retail.yaml"
    configuration = args.config if args.config is not None else preset.read_text("utf-8")
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-quality-", dir=args.data) as temporary,
        # The engine's clock stands at the cut: what it writes is of that time, like what it reads.
        Engine.open(Path(temporary, "shop"), configuration, clock=lambda: questions.cut) as engine,
    ):
        loaded = _load(engine, args.train, questions.cut, known_items)
        started = time.perf_counter()
        model = engine.train_cooccurrence()
        trained_s = time.perf_counter() - started
        position = engine.position
        scores = _Answering(engine, questions).scores()
        if engine.position != position:
            raise InternalError(
                "STATE_NOT_FROZEN", f"expected the log to end at {position} after the decisions, got {engine.position}"
            )
    return {
        "cut": datetime.fromtimestamp(questions.cut / 1000, UTC).isoformat(),
        "known_customers": len(questions.known),
        "anonymous_baskets": len(questions.baskets),
        "abroad_baskets": sum(question.abroad for question in questions.baskets),
        **loaded,
        "train_s": trained_s,
        "model": {key: model[key] for key in ("kind", "interactions", "rows", "neighbours", "parameters")},
        **scores,
    }


def _ask(args: argparse.Namespace) -> tuple[Questions, frozenset[str]]:
    """Return the questions, and the items of the catalogue at the cut."""
    orders = read_orders(args.train)
    if args.split is not None:
        try:
            day = date.fromisoformat(args.split)
        except ValueError:
            raise CallerError(
                "BAD_ARGUMENT", f"expected a date like 2011-08-01, got {args.split!r} in --split"
            ) from None
        cut = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
        later = [order for order in orders if order.time >= cut]
    else:
        later = read_orders(args.test)
        cut = min((order.time for order in later), default=0)
    before = [order for order in orders if order.time < cut]
    questions = questions_of(before, later, cut)
    if not questions.known or not questions.baskets:
        raise CallerError(
            "NO_QUESTIONS",
            f"expected customers on both sides of the cut and baskets after it, got {len(before)} orders before and "
            f"{len(later)} after; choose another --split or other files",
        )
    return questions, frozenset(item for order in before for item in order.items)


def _load(engine: Engine, paths: Sequence[Path], cut: int, known_items: frozenset[str]) -> dict[str, object]:
    """Put everything before the cut into the engine; return how much and how fast."""
    started = time.perf_counter()
    line_count = 0
    for path in paths:
        for batch in online_retail.read(path, consent=CONSENT):
            signals = [signal for signal in batch.signals if signal.event_time < cut]
            if not signals:
                continue
            engine.put_items([item for item in batch.items if item.id in known_items])
            report = engine.ingest(signals)
            refused = [outcome for outcome in report.outcomes if outcome.status is not Status.APPLIED]
            if refused:
                raise InternalError(
                    "WORKLOAD_REFUSED",
                    f"expected every order to be applied, got {refused[0].status}: {refused[0].message}",
                )
            line_count += sum(len(signal.properties["products"]) for signal in signals)
    engine.tick()
    taken_s = time.perf_counter() - started
    return {"product_lines": line_count, "product_lines_per_s": line_count / taken_s}


@dataclass(slots=True)
class _Mean:
    """A mean in the making, ours beside the peer's."""

    ours: list[float] = field(default_factory=list)
    popularity: list[float] = field(default_factory=list)

    def add(self, measure: Callable[..., float], ranked: list[str], popular: list[str], sought: frozenset[str]) -> None:
        self.ours.append(measure(ranked, sought))
        self.popularity.append(measure(popular, sought))

    def results(self, name: str) -> dict[str, object]:
        """Return ours, popularity's and their ratio; None where nothing was asked."""
        ours = float(np.mean(self.ours)) if self.ours else None
        popularity = float(np.mean(self.popularity)) if self.popularity else None
        ratio = ours / popularity if ours is not None and popularity else None
        return {name: ours, f"{name}_popularity": popularity, f"{name}_over_popularity": ratio}


class _Answering:
    """The engine's answers to all questions, judged."""

    def __init__(self, engine: Engine, questions: Questions) -> None:
        self.engine = engine
        self.questions = questions
        self.taken_us: list[float] = []

    def scores(self) -> dict[str, object]:
        names = ("ndcg10_known", "recall20_known", "ndcg10_anonymous", "recall20_anonymous", "ndcg10_cold")
        means = {name: _Mean() for name in (*names, "ndcg10_cold_abroad")}
        popular = self.questions.popular
        for asked in self.questions.known:
            ranked, peer = self._known(asked), without(popular, asked.bought)
            means["ndcg10_known"].add(ndcg10, ranked, peer, asked.sought)
            means["recall20_known"].add(recall20, ranked, peer, asked.sought)
        for question in self.questions.baskets:
            ranked, peer = self._anonymous(question), without(popular, question.given)
            means["ndcg10_anonymous"].add(ndcg10, ranked, peer, question.sought)
            means["recall20_anonymous"].add(recall20, ranked, peer, question.sought)
            ranked, peer = self._cold(question), without(popular, ())
            for name in ("ndcg10_cold", "ndcg10_cold_abroad") if question.abroad else ("ndcg10_cold",):
                means[name].add(ndcg10, ranked, peer, question.sought)
        results: dict[str, object] = {}
        for name, mean in means.items():
            results.update(mean.results(name))
        p50, p99 = np.percentile(self.taken_us, (50, 99)).tolist()
        return {**results, "decisions": len(self.taken_us), "decide_p50_us": p50, "decide_p99_us": p99}

    def _known(self, question: KnownQuestion) -> list[str]:
        return self._decide(
            DecideRequest(
                placement=KNOWN_PLACEMENT,
                identifiers={"crm_id": question.customer},
                context=_context(question.country),
                at=self.questions.cut,
                k=K,
            )
        )

    def _anonymous(self, question: BasketQuestion) -> list[str]:
        events = tuple(
            Signal(
                type="product_added",
                event_time=question.time - 1_000 * (len(question.given) - index),
                identifiers={"anonymous_id": "somebody"},
                properties={"product_id": item},
                consent=CONSENT,
            )
            for index, item in enumerate(question.given)
        )
        context = _context(question.country)
        return self._decide(
            DecideRequest(placement=BASKET_PLACEMENT, context=context, at=question.time, k=K, events=events)
        )

    def _cold(self, question: BasketQuestion) -> list[str]:
        context = _context(question.country)
        return self._decide(DecideRequest(placement=BASKET_PLACEMENT, context=context, at=question.time, k=K))

    def _decide(self, request: DecideRequest) -> list[str]:
        started = time.perf_counter_ns()
        decision = self.engine.decide(request)
        self.taken_us.append((time.perf_counter_ns() - started) / 1_000)
        return [item.id for item in decision.items]


def _context(country: str) -> dict[str, str]:
    return {"country": country} if country else {}
