"""What was acknowledged is in force in the next decision, whoever decides meanwhile; what a decider followed step by step is what
it would have read at once; and no decision has to take in more than a little."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tailorbird.engine import DecideRequest, Decision, Engine, Item
from tailorbird.engine.catalogue import Catalogue
from tailorbird.engine.decider import Decider
from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.evidence import Evidence
from tailorbird.engine.servings import Servings
from tests.engine.shops import START, Clock, assert_replays_to_the_same, buy, ids, items, open_shop, view

WAIT_S = 60
SHOP = """\
version: 1
jurisdiction: opt_out
limits: {map_bytes: 134217728}
statistics: {levels: [[country]]}
features:
  - {name: views, signal: product_viewed, aggregate: count}
placements:
  - {name: home, k: 6, retrieve: {whole_catalogue: true}, exclude: {}}
  - {name: found, k: 6, retrieve: {popular: 4, new: 3}, exclude: {}}
"""
RULED = SHOP + "  - {name: red, k: 6, where: {category: [red]}, tags: [sale], exclude: {}}\n"
WIDER = SHOP.replace("statistics:", "attributes: [brand, category, size]\nembedding_dimension: 2\nstatistics:")
NAMES = [f"item-{n:02d}" for n in range(24)]


def answers(engine: Engine) -> list[bytes]:
    """Return what the placements answer in several contexts, but for ids and positions."""
    found = []
    for placement in engine.configuration.placements:
        for country in ("", "DE", "GB"):
            context = {"country": country} if country else {}
            for candidates in ((), tuple(NAMES[::2])):
                decision = engine.decide(placement=placement.name, context=context, candidates=candidates, at=START)
                found.append(msgspec.msgpack.encode(msgspec.structs.replace(decision, decision_id="", position=0)))
    return found


def read_at_once(engine: Engine) -> list[bytes]:
    """Return the answers of a decider that has followed nothing before."""
    evidence = Evidence(engine._store, engine.directory.models)
    decider = Decider(engine._store, evidence, engine._hasher, Servings(), engine._contexts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_decider", decider)
        return answers(engine)


# ---- in force ----------------------------------------------------------------------------------------------------------


def toggles(seed: int, count: int) -> Iterator[tuple[str, int]]:
    """Yield which item has which stock from now on: never all sold out, each change another one."""
    rng = random.Random(seed)
    stock = dict.fromkeys("abcd", 1)
    for _ in range(count):
        name = rng.choice([n for n, left in stock.items() if not left or sum(stock.values()) > 1])
        stock[name] = 1 - stock[name]
        yield name, stock[name]


@pytest.mark.parametrize("encoded", [False, True])
def test_an_acknowledged_change_of_stock_is_in_force_while_others_decide(tmp_path: Path, encoded: bool) -> None:
    """Two threads decide on whatever there is, one of them a batch after the other; a third changes it, and asks."""
    with open_shop(tmp_path, SHOP) as engine:
        engine.put_items(items("a", "b", "c", "d", stock=1))
        stop, faults, decided = threading.Event(), list[BaseException](), [0, 0]
        request = DecideRequest(placement="home", candidates=("d", "c", "b", "a") if encoded else ())

        def decide(number: int) -> None:
            try:
                while not stop.is_set():
                    if number:
                        assert all(isinstance(each, Decision) for each in engine.decide_each([request] * 3))
                    else:
                        assert 1 <= len(ids(engine.decide(request))) <= 4
                    decided[number] += 1
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=decide, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        stock = dict.fromkeys("abcd", 1)
        for name, left in toggles(7, 200):
            position = engine.put_items(items(name, stock=left))
            stock[name] = left
            decision = engine.decide(request)
            assert ids(decision) == [n for n in "abcd" if stock[n]]
            assert decision.position >= position
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert faults == []
        assert min(decided) > 0


def _decide_beside(path: Path, asked: Connection) -> None:
    """Decide all the time, in a process of its own, and answer whoever asks."""
    with Engine.open(path, read_only=True) as engine:
        while True:
            decision = engine.decide(placement="home")
            if asked.poll():
                if asked.recv() is None:
                    return
                decision = engine.decide(placement="home")
                asked.send((decision.position, ids(decision)))


def test_an_acknowledged_change_of_stock_is_in_force_in_another_process(tmp_path: Path) -> None:
    with open_shop(tmp_path, SHOP) as engine:
        engine.put_items(items("a", "b", "c", "d", stock=1))
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_decide_beside, args=(tmp_path / "shop", theirs))
        process.start()
        try:
            stock = dict.fromkeys("abcd", 1)
            for name, left in toggles(8, 100):
                position = engine.put_items(items(name, stock=left))
                stock[name] = left
                ours.send("ask")
                assert ours.poll(WAIT_S)
                read_at, offered = ours.recv()
                assert (read_at >= position, offered) == (True, [n for n in "abcd" if stock[n]])
        finally:
            ours.send(None)
            process.join(WAIT_S)
        assert process.exitcode == 0


# ---- followed step by step, or read at once ----------------------------------------------------------------------------


def change(engine: Engine, rng: random.Random, step: int) -> None:
    """Change what decisions follow: items, counts, ticks, the configuration."""
    name = rng.choice(NAMES)
    kind = rng.choice(["buy", "buy", "buy", "put", "put", "delete", "view", "configure"])
    if kind == "buy":
        buy(
            engine,
            f"v{rng.randrange(5)}",
            name,
            at=START + step * rng.choice([0, 60_000]),
            country=rng.choice(["DE", "GB"]),
        )
    elif kind == "put":
        fields = {"category": rng.choice(["red", "blue"]), "brand": rng.choice("xy"), "size": rng.choice("sm")}
        fields = {name: value for name, value in fields.items() if name in engine.configuration.attributes}
        tags = rng.choice([("sale",), (), ("new", "sale")])
        embedding = (0.5, -0.25) if engine.configuration.embedding_dimension else ()
        engine.put_items([Item(id=name, stock=rng.choice([0, 3]), attributes=fields, tags=tags, embedding=embedding)])
    elif kind == "delete":
        engine.delete_items([name])
    elif kind == "view":
        view(engine, name)
        engine.tick()
    else:
        text = rng.choice([SHOP, RULED, WIDER, SHOP.replace("k: 6", "k: 5"), SHOP.replace("[[country]]", "[[device]]")])
        engine.configure(
            text.replace("features:", f"features:\n  - {{name: f{step}, signal: page_viewed, aggregate: count}}")
        )


@pytest.mark.parametrize("seed", range(4))
def test_what_is_followed_step_by_step_is_what_is_read_at_once(tmp_path: Path, seed: int) -> None:
    """Of items, counts published by ticks, and configurations: an engine that was there equals one just opened, and a replay."""
    rng = random.Random(seed)
    engine = open_shop(tmp_path, SHOP, clock=Clock())
    engine.put_items(items(*NAMES))
    list(engine.decide_each([DecideRequest(placement="home")]))  # so that a batch's own evidence follows too
    for step in range(60):
        change(engine, rng, step)
        if rng.random() < 0.5:
            engine.decide(placement="home", context={"country": "DE"})
        if step % 10 == 9:
            engine.tick()
            engine._evidence._forget_orders()  # which find candidates, and may be a little behind
            followed = answers(engine)
            batch = list(engine.decide_each([DecideRequest(placement="home", at=START, context={"country": "GB"})]))
            assert read_at_once(engine) == followed, f"seed {seed}, step {step}"
            alone = engine.decide(placement="home", at=START, context={"country": "GB"})
            assert isinstance(batch[0], Decision)
            assert batch[0].items == alone.items, f"seed {seed}, step {step}"
    engine.close()
    assert_replays_to_the_same(tmp_path)


def test_ticks_publish_counts_as_columns_and_replay_alike(tmp_path: Path) -> None:
    with open_shop(tmp_path, SHOP) as engine:
        engine.put_items(items("a", "b", "c"))
        for number in range(30):
            buy(engine, f"v{number}", "c" if number % 3 else "b", country="DE" if number % 2 else "GB")
        assert ids(engine.decide(placement="home", context={"country": "DE"}))[:2] == ["c", "b"]
        counts = engine._evidence.catalogue.items.counts()
        numbers, unknown = engine._evidence.catalogue.items.lookup(["a", "b", "c"])
        assert unknown == 0
        assert np.argsort(counts[numbers]).tolist() == [0, 1, 2]
        before = answers(engine)
    assert_replays_to_the_same(tmp_path)
    with open_shop(tmp_path, None) as engine:
        assert answers(engine) == before


# ---- without a pause ---------------------------------------------------------------------------------------------------


class Taken:
    """Counts the items that catalogues take in, by thread of those who ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.most = 0
        follow, put = Catalogue.follow, Catalogue._put
        counted = threading.local()

        def followed(catalogue: Catalogue, *args: object) -> None:
            counted.count = 0
            follow(catalogue, *args)  # type: ignore[arg-type]
            self.most = max(self.most, counted.count)

        def taken(catalogue: Catalogue, *args: object) -> None:
            counted.count += 1
            self.count += 1
            put(catalogue, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Catalogue, "follow", followed)
        monkeypatch.setattr(Catalogue, "_put", taken)


def test_a_large_delta_leaves_nothing_to_the_next_decision_and_little_to_those_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailorbird.engine.engine.ITEMS_PER_GROUP", 10)
    with open_shop(tmp_path, SHOP) as engine:
        engine.put_items(items("a"))
        engine.decide(placement="home")
        list(engine.decide_each([DecideRequest(placement="home")]))
        taken = Taken(monkeypatch)
        seen: list[int] = []
        put = engine.writer.put_items

        def put_and_decide(group: list[Item]) -> int:
            position = put(group)
            seen.append(engine.decide(placement="home").candidate_count)
            return position

        monkeypatch.setattr(engine.writer, "put_items", put_and_decide)
        engine.put_items(items(*NAMES, *NAMES[:3]))
        assert seen == [11, 21, 25]
        assert (taken.most, taken.count) == (10, 2 * 24)  # once for decisions, once for batches
        engine.delete_items(NAMES)
        assert (taken.most, taken.count) == (10, 4 * 24)
        assert ids(engine.decide(placement="home")) == ["a"]
        assert len(list(engine.decide_each([DecideRequest(placement="home")]))) == 1
        assert taken.count == 4 * 24


@pytest.mark.parametrize(
    ("text", "made"), [(SHOP.replace("k: 6", "k: 5"), 0), (RULED, 24), (WIDER, 24)]
)  # fmt: skip
def test_a_new_configuration_is_swapped_in_with_its_catalogue_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, made: int
) -> None:
    """Made while the one in force decides; where columns and rules stay, nothing is made at all."""
    with open_shop(tmp_path, SHOP) as engine:
        engine.put_items([Item(id=name, attributes={"category": "red"}, tags=("sale",)) for name in NAMES])
        buy(engine, "v1", NAMES[7], country="DE")
        engine.decide(placement="home")
        taken = Taken(monkeypatch)
        configure, before = engine.writer.configure, list[int]()

        def configured(text: str) -> int:
            before.append(taken.count)
            position = configure(text)
            engine.decide(placement="home")
            return position

        monkeypatch.setattr(engine.writer, "configure", configured)
        engine.configure(text)
        assert before == [made]
        assert ids(engine.decide(placement=engine.configuration.placements[-1].name, candidates=NAMES))[0] == NAMES[7]
        assert taken.count == made


def test_a_configuration_that_is_refused_leaves_no_catalogue_behind(tmp_path: Path) -> None:
    with open_shop(tmp_path, SHOP) as engine:
        engine.put_items(items(*NAMES))
        view(engine, NAMES[0])
        engine.decide(placement="home")
        with pytest.raises(ConfigurationError, match="FEATURE_CHANGED"):
            engine.configure(WIDER.replace("aggregate: count}", "aggregate: distinct(product_id), window: 1h}"))
        assert engine._evidence._prepared is None
        assert len(ids(engine.decide(placement="home"))) == 6
