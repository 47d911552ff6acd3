"""A crash subject that is the whole engine under a mixed load, each fact told apart by a serial number of its own.

Signals, consent choices, links and catalogue puts carry their serial where their fact keeps something of the caller's;
decisions leave served facts, which nobody is promised. A promise is what the engine returned from: serial numbers, and
for signals the log positions their outcomes named.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from tailorbird.bench.crash_subject import Verdict
from tailorbird.engine import Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.facts import ConsentFact, ItemsPutFact, LinkFact, SignalFact, SplitFact, decode_fact
from tailorbird.engine.items import Item
from tailorbird.engine.log import LocalLog
from tailorbird.engine.replay import verify as verify_replay
from tailorbird.engine.requests import DecideRequest
from tailorbird.engine.signals import Signal, Status

CONFIGURATION = """\
version: 1
state_sync: STATE_SYNC
limits: {map_bytes: 1073741824}
statistics: {signals: {order_completed: 1.0, product_viewed: 0.1}, half_life: 14d, tick: 1s}
features:
  - {name: views, aggregate: count, signal: product_viewed}
  - {name: spent, aggregate: sum(total), signal: order_completed}
  - {name: recent_items, aggregate: "last_k(product_id, k=20)", signal: [product_viewed, product_added]}
placements:
  - {name: home, k: 5, retrieve: {whole_catalogue: true}, rank: {recent: [recent_items]}}
"""
STEPS = 45
PEOPLE = 25
ITEMS = 40
RESENT = 20
_START = 1_748_736_000_000  # 2025-06-01; a signal's time is this and its serial number's seconds.
_CHOICE = parse_choice("granted:behavioural,contextual,transactional,preference,demographic,device")


class Promise(msgspec.Struct, array_like=True):
    """What the engine returned from: `positions` are the signals' places in the log, empty for anything else."""

    serials: list[int]
    positions: list[int] = []


def run_workload(path: Path, seed: int, acknowledge: Callable[[bytes], None]) -> None:
    """Work for `STEPS` steps; serial numbers are `seed * 2**20` and up."""
    rng = random.Random(seed)
    serials = iter(range(seed << 20, (seed + 1) << 20))
    _write_configuration(path, rng.choice(("commit", "interval")))

    def promise(*kept: int, positions: Sequence[int] = ()) -> None:
        acknowledge(msgspec.msgpack.encode(Promise(list(kept), list(positions))))

    with Engine.open(path) as engine:
        for step in range(STEPS):
            serial = next(serials)
            action = rng.choices(
                ("signals", "consent", "link", "split", "items", "decide", "snapshot", "train"), _WEIGHTS
            )[0]
            if step < 2:  # The rest needs a catalogue, and people who agreed.
                action = ("items", "consent")[step]
            if action == "signals":
                batch = [_signal(s) for s in (serial, *_take(serials, rng.choice((0, 0, 3, 30))))]
                outcomes = engine.ingest(batch, consent=_CHOICE).outcomes
                applied = [(s, o) for s, o in zip(batch, outcomes, strict=True) if o.status is Status.APPLIED]
                assert len(applied) == len(batch), outcomes
                promise(*(_serial_of(s) for s, _ in applied), positions=[o.position for _, o in applied])
            elif action == "consent":
                engine.set_consent(_device(rng), msgspec.structs.replace(_CHOICE, notice=str(serial)))
                promise(serial)
            elif action in ("link", "split"):
                device, user = ("device_id", f"d{rng.randrange(PEOPLE)}"), ("user_id", f"u{rng.randrange(PEOPLE)}")
                if action == "link":
                    engine.link(device, user, event_time=serial)
                else:
                    engine.split(device, user, reason=str(serial))
                promise(serial)
            elif action == "items":
                engine.put_items(_items(rng, serial, ITEMS if step == 0 else 3))
                promise(serial)
            elif action == "decide":
                engine.decide(DecideRequest(placement="home", identifiers=_person(rng)))
            elif action == "snapshot":
                engine.snapshot()
            else:
                engine.train_cooccurrence()


_WEIGHTS = (12, 2, 2, 1, 2, 5, 0.5, 0.5)


def verify(path: Path, acknowledged: Sequence[bytes]) -> Verdict:
    """Start, look for every promise in the log, send again what is there, decide, replay from empty."""
    promises = [msgspec.msgpack.decode(note, type=Promise) for note in acknowledged]
    if not (path / "tailorbird.yaml").exists():
        return Verdict(lost=sum(len(p.serials) for p in promises))
    with Engine.open(path) as engine:
        found = Counter[int]()
        places: dict[int, int] = {}
        signals: list[int] = []
        for offset, serial, is_signal in _facts(path):
            found[serial] += 1
            places[serial] = offset
            if is_signal:
                signals.append(serial)
        lost = [s for p in promises for s in p.serials if s not in found]
        moved = [s for p in promises for s, at in zip(p.serials, p.positions, strict=False) if places.get(s) != at]
        doubled = [serial for serial, count in found.items() if count > 1]
        if signals:
            # A sender who was cut off sends again, and must be told that it is there.
            again = engine.ingest([_signal(s) for s in signals[-RESENT:]], consent=_CHOICE)
            doubled += [
                s for s, o in zip(signals[-RESENT:], again.outcomes, strict=True) if o.status is not Status.DUPLICATE
            ]
        engine.decide(DecideRequest(placement="home", identifiers={"device_id": "d0"}))
    live, replayed = verify_replay(path)
    detail = f"lost {lost[:3]}, moved {moved[:3]}, doubled {doubled[:3]}, state {live}, replayed {replayed}"
    return Verdict(len(lost) + len(moved), len(doubled), int(live != replayed), detail)


def reboot(path: Path) -> None:
    """Let the mark of a state written without syncs be that of an earlier boot."""
    mark = path / "state.boot"
    if mark.exists():
        mark.write_text("an earlier boot")


def _facts(path: Path) -> Iterator[tuple[int, int, bool]]:
    """Yield offset, serial number and whether it is a signal, of every fact that has one."""
    log = LocalLog.open(path / "log", read_only=True)
    try:
        for record in log.read(log.start, log.end):
            fact = decode_fact(record.kind, record.payload)
            if isinstance(fact, SignalFact):
                yield record.offset, fact.properties["serial"], True
            elif isinstance(fact, ConsentFact) and fact.choice.notice:
                yield record.offset, int(fact.choice.notice), False
            elif isinstance(fact, LinkFact):
                yield record.offset, fact.event_time, False
            elif isinstance(fact, SplitFact):
                yield record.offset, int(fact.reason), False
            elif isinstance(fact, ItemsPutFact):
                yield record.offset, int(fact.items[0].name), False
    finally:
        log.close()


def _signal(serial: int) -> Signal:
    """Return the signal of a serial number, the same whenever it is sent."""
    rng = random.Random(serial)
    line = {"product_id": f"i{rng.randrange(ITEMS)}", "price": rng.randrange(1, 100) / 4, "quantity": 1}
    kind = rng.choice(("product_viewed", "product_viewed", "product_added", "order_completed"))
    properties: dict[str, object] = {"serial": serial}
    properties |= {"total": line["price"], "products": [line]} if kind == "order_completed" else line
    return Signal(
        type=kind,
        event_time=_START + serial % (1 << 20) * 1000,
        identifiers=_person(rng),
        message_id=str(serial),
        source="crash",
        properties=properties,
        context={"country": rng.choice(("DE", "FR", "GB")), "device": "mobile"},
    )


def _serial_of(signal: Signal) -> int:
    return int(signal.message_id)


def _person(rng: random.Random) -> dict[str, str]:
    number = rng.randrange(PEOPLE)
    identifiers = {"device_id": f"d{number}"}
    if rng.random() < 0.2:  # A login, now and then on somebody else's device.
        identifiers["user_id"] = f"u{number if rng.random() < 0.9 else rng.randrange(PEOPLE)}"
    return identifiers


def _device(rng: random.Random) -> dict[str, str]:
    return {"device_id": f"d{rng.randrange(PEOPLE)}"}


def _items(rng: random.Random, serial: int, count: int) -> list[Item]:
    numbers = range(count) if count == ITEMS else rng.sample(range(ITEMS), count)
    return [
        Item(
            id=f"i{number}",
            name=str(serial),
            attributes={"category": f"c{number % 4}", "brand": f"b{number % 7}"},
            price=rng.randrange(1, 100) / 4,
            stock=rng.choice((-1, 0, 5)),
        )
        for number in numbers
    ]


def _take(serials: Iterator[int], count: int) -> list[int]:
    return [next(serials) for _ in range(count)]


def _write_configuration(path: Path, state_sync: str) -> None:
    """Write the configuration as an operator would who wants it to stay: whole, or not at all."""
    target = path / "tailorbird.yaml"
    if target.exists():
        return
    temporary = target.with_suffix(".new")
    with temporary.open("w") as file:
        file.write(CONFIGURATION.replace("STATE_SYNC", state_sync))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
