"""The quick decider against the general one: two engines in lockstep, one of which is only asked the general way.

Worlds and requests are random, seeds printed. Every answer must be the same bytes, also after what earlier ones served.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.engine import Engine, Item
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.decision_id import IdKind
from tailorbird.engine.decision_log import read_all
from tailorbird.engine.decision_replay import replay_decisions
from tailorbird.engine.errors import TailorbirdError
from tailorbird.engine.requests import DecideRequest, Decision, Reason, Tier
from tailorbird.engine.signals import Signal
from tailorbird.native.signed_ids import CountedIds
from tailorbird.server.messages.decisions import REASONS, TIERS, read_request, write_decision
from tailorbird.v1 import decision_service_pb2 as api
from tailorbird.v1 import identity_pb2, signal_pb2
from tests.engine.shops import DAY, START, Clock

DIMENSION = 6
VECTOR = "vector: {{features: [views, spent, hot, last, city, orders], transform: {}}}"
CONFIGURATION = """\
version: 1
jurisdiction: {jurisdiction}
limits: {{map_bytes: 67108864, k_max: 70, field_bytes_max: 200}}
identity: {{refused_values: [{refused}]}}
embedding_dimension: 6
decision_log: {{candidates_sampled: {sampled}}}
{freshness}
statistics: {{signals: {{product_viewed: 1.0}}, levels: [[country], [country, {level}]]}}
features:
  - {{name: views, signal: product_viewed, aggregate: count}}
  - {{name: spent, signal: order_completed, aggregate: sum(total)}}
  - {{name: hot, signal: product_viewed, aggregate: "decayed_count(half_life=1d)"}}
  - {{name: last, signal: order_completed, aggregate: time_since, max_age: 3d}}
  - {{name: city, signal: product_viewed, aggregate: last(price), default: 2.5}}
  - {{name: orders, signal: order_completed, aggregate: count}}
  - {{name: viewed, signal: product_viewed, aggregate: "last_k(product_id, k=4)"}}
  - {{name: likes, signal: product_viewed, aggregate: "decayed_top_k(category, k=3, half_life=9d)"}}
placements:
  - {{name: vector, k: 5, rank: {{bought: false, {log}}}, exclude: {{bought: 9d, served: 30m, shown: 1d}}}}
  - {{name: raw, k: 3, rank: {{bought: false, {none}}}, exclude: {{served: 5m}}, exclude_recent: [viewed], require_stock: false}}
  - {{name: plain, k: 4, exclude: {{}}, record_served: false}}
  - {{name: ruled, k: 4, where: {{category: [a, b]}}, tags: [new], exclude: {{served: 30m}}}}
  - {{name: capped, k: 4, rank: {{bought: false}}, exclude: {{}}, caps: {{served: {{times: 2, window: 2h}}, shown: {{times: 1, window: 2d}}}}}}
  - {{name: both, k: 3, rank: {{bought: false}}, exclude: {{bought: 9d, served: 20m}}, caps: {{served: {{times: 3, window: 1d}}}}}}
  - {{name: recent, k: 4, rank: {{recent: [viewed], affinity: {{category: likes}}}}}}
"""
NAMES = [f"item-{n}" for n in range(60)] + ["x" * 30, "é-ü", "short", "y" * 130]
PEOPLE = ["u-101", "u-102", "u-103", "u-104", "Ünïcode 7", "guest", "a" * 70, "u 105"]
VISITORS = [f"v-{n}" for n in range(100, 107)] + ["0f8fad5b-d9cb-469f-a165-70867728950e"]
CONSENTS = ["granted:all", "granted:behavioural", "denied:transactional", "granted:all;denied:behavioural", ""]


@dataclasses.dataclass
class Pair:
    """Two engines that are told and asked the same."""

    quick: Engine
    general: Engine
    clock: Clock
    is_logged: bool
    answered: int = 0
    answered_in_pieces: int = 0
    in_bytes: bool = True

    def each(self, call: Any) -> None:
        call(self.quick)
        call(self.general)

    def ask(self, request: bytes) -> None:
        expected = outcome(self.general, request)
        found: Any = self.quick.decide_encoded(request) if self.in_bytes else None
        self.in_bytes = not self.in_bytes
        if found is None:  # Quick or not, in pieces.
            found = outcome(self.quick, request)
        else:
            self.answered += 1
            assert isinstance(expected, bytes)
            assert api.DecideResponse.FromString(found) == api.DecideResponse.FromString(expected)
        assert found == expected

    def start(self) -> None:
        """Begin to log in both, where they log, and number the ids of decisions alike."""
        for engine in (self.quick, self.general):
            if self.is_logged:
                engine.log_decisions()
            engine._decider.ids.loose_ids = CountedIds(engine._decider.hasher.decision_signer, IdKind.LOOSE, 0)
        quickly = self.quick._decider.decide_quickly

        def counted(request: DecideRequest, now: int) -> Decision | None:
            found = quickly(request, now)
            self.answered_in_pieces += found is not None
            return found

        self.quick._decider.decide_quickly = counted  # type: ignore[method-assign]
        self.general._decider.decide_quickly = lambda request, now: None  # type: ignore[method-assign]

    def close(self) -> None:
        self.quick.close()
        self.general.close()


def outcome(engine: Engine, request: bytes) -> bytes | tuple[str, str]:
    try:
        return write_decision(engine.decide(read_request(request, engine.configuration.limits.candidates_max)))
    except TailorbirdError as error:
        return error.reason, error.message


def random_item(rng: np.random.Generator, name: str) -> Item:
    bounds = [0, 0] if rng.random() < 0.7 else (START + rng.integers(-2 * DAY, 2 * DAY, 2)).tolist()
    return Item(
        id=name,
        attributes={"category": "abc"[rng.integers(0, 3)]} if rng.random() < 0.8 else {},
        tags=("new",) if rng.random() < 0.6 else (),
        stock=int(rng.integers(-1, 3)),
        start=min(bounds),
        end=max(bounds),
        embedding=tuple(rng.normal(0, 0.2, DIMENSION).tolist()) if rng.random() < 0.9 else (),
    )


def random_identifiers(rng: np.random.Generator) -> dict[str, str]:
    """Return those of one person, mostly; with those of two, both become one of several fragments."""
    found, n = {}, rng.integers(0, len(PEOPLE))
    if rng.random() < 0.6:
        found["user_id"] = PEOPLE[n]
    if not found or rng.random() < 0.4:
        found["anonymous_id"] = VISITORS[n if rng.random() < 0.95 else rng.integers(0, len(VISITORS))]
    if rng.random() < 0.1:
        found = {}
    if rng.random() < 0.05:
        found["email"] = "someone@shop.org"
    return found


def random_signal(rng: np.random.Generator, number: int, now: int) -> Signal:
    buys, shows = rng.random() < 0.3, rng.random() < 0.3
    products = [
        {"product_id": name, "price": 3.0, "quantity": 1}
        for name in rng.choice(NAMES, rng.integers(1, 4), replace=False).tolist()
    ]
    consent = CONSENTS[rng.integers(0, len(CONSENTS))]
    return Signal(
        type="order_completed" if buys else "items_shown" if shows else "product_viewed",
        event_time=now - int(rng.integers(0, 5 * DAY)),
        identifiers=random_identifiers(rng) or {"anonymous_id": VISITORS[0]},
        message_id=f"m{number}",
        properties={"total": float(rng.integers(1, 100)), "products": products}
        if buys
        else {"products": products}
        if shows
        else products[0],
        source="test",
        context=random_context(rng),
        consent=parse_choice(consent) if consent else None,
    )


def random_context(rng: np.random.Generator) -> dict[str, str]:
    context = {"country": ["GB", "DE", "", "é"][rng.integers(0, 4)], "device": "mobile"}
    if rng.random() < 0.3:
        context["daypart"] = "night"
    if rng.random() < 0.02:
        context["long"] = "z" * [201, 1_500][rng.integers(0, 2)]
    return context if rng.random() < 0.9 else {}


def random_request(rng: np.random.Generator, now: int) -> bytes:
    identifiers, context = random_identifiers(rng), random_context(rng)
    if rng.random() < 0.02:
        identifiers["nobody_s"] = "x"
    names = [*NAMES, *NAMES, "unknown-1", "unknown-2"]
    message = api.DecideRequest(
        placement=rng.choice(
            ["vector"] * 9
            + ["raw"] * 6
            + ["capped", "both"] * 4
            + ["plain", "plain", "ruled", "ruled", "recent", "none", ""]
        ),
        identifiers=[identity_pb2.Identifier(namespace=n, value=v) for n, v in identifiers.items()],
        context=[identity_pb2.ContextEntry(name=n, value=v) for n, v in context.items()],
        candidate_ids=[names[i] for i in rng.integers(0, len(names), rng.integers(1, 40))]
        if rng.random() < 0.95
        else [],
        item_count=int(rng.choice([0] * 12 + [1, 2, 10, 64, 65, 70, 71, -1])),
        at_ms=0 if rng.random() < 0.8 else int(now + rng.integers(-DAY, DAY)),
        request_id="r-1" if rng.random() < 0.1 else "",
        min_position=int(rng.choice([0] * 20 + [5, 10**6])),
    )
    if rng.random() < 0.04:
        message.events.append(signal_pb2.Signal(type="product_viewed", event_time_ms=now))
    data = message.SerializeToString()
    if rng.random() < 0.02:
        data += bytes(rng.integers(0, 256, 3, dtype=np.uint8))
    return data


def test_the_engine_s_own_order_is_that_of_the_wire() -> None:
    assert (tuple(Reason), tuple(Tier)) == (REASONS, TIERS)


@pytest.mark.parametrize("seed", range(12))
def test_a_quick_decision_is_the_general_one(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = np.random.default_rng([seed, 71])
    configuration = CONFIGURATION.format(
        jurisdiction="opt_out" if seed % 3 == 0 else "opt_in",
        refused="u-103" if seed == 7 else "",
        freshness="freshness: {behavioural: 1h}" if seed % 5 == 1 else "",
        sampled=1.0 if seed % 2 else 0.1,
        level="daypart" if seed % 2 else "device",
        log=VECTOR.format("log1p"),
        none=VECTOR.format("identity"),
    )
    clock = Clock()
    (tmp_path / "quick").mkdir()
    Engine.open(tmp_path / "quick", configuration, clock=clock).close()
    shutil.copytree(tmp_path / "quick", tmp_path / "general")
    quick, general = (Engine.open(tmp_path / name, clock=clock) for name in ("quick", "general"))
    pair = Pair(quick, general, clock, is_logged=seed % 4 > 1)
    pair.start()
    asked = 0
    for step in range(120):
        what = rng.random()
        if step == 0 or what < 0.1:
            group = [
                random_item(rng, name) for name in rng.choice(NAMES, 40 if step == 0 else 3, replace=False).tolist()
            ]
            pair.each(lambda engine, group=group: engine.put_items(group))
        elif what < 0.35:
            signals = [random_signal(rng, 10 * step + n, clock.now) for n in range(4)]
            pair.each(lambda engine, signals=signals: engine.ingest(signals))
        elif what < 0.42:
            pair.each(Engine.tick)
        elif what < 0.5:
            pair.each(Engine.flush)
        elif what < 0.52:
            gone = [NAMES[rng.integers(0, len(NAMES))]]
            pair.each(lambda engine, gone=gone: engine.delete_items(gone))
        elif what < 0.53 and step > 40:
            pair.each(Engine.train_cooccurrence)
        elif what < 0.55:
            pair.close()
            pair.quick = Engine.open(tmp_path / "quick", clock=clock)
            pair.general = Engine.open(tmp_path / "general", clock=clock)
            pair.start()
        clock.now += int(rng.integers(0, 20 * 60_000))
        for _ in range(8):
            pair.ask(random_request(rng, clock.now))
            asked += 1
    assert pair.quick.state_hash() == pair.general.state_hash()
    pair.close()
    if pair.is_logged:
        one, other = (list(read_all(tmp_path / name / "decisions")) for name in ("quick", "general"))
        assert len(one) > asked // 2
        assert one == other
        found = [replayed.difference for replayed in replay_decisions(tmp_path / "quick", one)]
        assert found == [""] * len(one)
    # Where values are refused by name, no identifier is plain.
    assert pair.answered > asked // (200 if seed == 7 else 8), (
        "the quick decider must have answered many of them, or nothing was compared"
    )
    print(f"answered {pair.answered} of {asked}")


def test_where_the_file_has_gone_on_too_far_the_general_decider_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.open(tmp_path / "shop", "version: 1\nplacements:\n  - {name: home}\n", clock=lambda: START) as engine:
        engine.put_items([Item(id="a"), Item(id="b")])
        request = DecideRequest(placement="home", candidates=("b", "a"))
        expected = [item.id for item in engine.decide(request).items]
        engine._decider.forget_moment()
        monkeypatch.setattr(engine._store, "people", lambda txn: None)
        assert engine._decider.decide_quickly(request, START) is None
        assert [item.id for item in engine.decide(request).items] == expected == ["a", "b"]
