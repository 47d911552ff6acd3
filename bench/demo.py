"""`tailorbird demo`: a generated shop, and what a first, a returning and a logged-in visitor see.

Everything goes through the embedded engine as a shop would use it: the `shop` preset, signals with the people's
choices, decisions with nothing but identifiers and a context. The shop is generated from a fixed seed (world.py), so
the answers are the same each time; the times are of this machine, each of a single call.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tailorbird.bench.ingest import preset
from tailorbird.bench.world import CONSENT, World, WorldSettings
from tailorbird.engine import DecideRequest, Decision, Engine
from tailorbird.engine.consent import parse_choice
from tailorbird.engine.errors import PreconditionFailed
from tailorbird.engine.items import Item
from tailorbird.engine.requests import DecidedItem
from tailorbird.engine.signals import Signal

PLACEMENT = "home"
K = 5
GROUP = 1_000
MINUTE_MS = 60_000

RAINY_MORNING = {
    "country": "GB", "device": "mobile", "daypart": "morning", "weather": "rain", "referrer": "search",
}  # fmt: skip
CLEAR_EVENING = {
    "country": "DE", "device": "desktop", "daypart": "evening", "weather": "clear", "referrer": "direct",
}  # fmt: skip
PHONE = {"anonymous_id": "cookie-of-the-phone"}
LAPTOP = {"anonymous_id": "cookie-of-the-laptop"}
ACCOUNT = {"user_id": "ada-0001"}
LAPTOP_CONTEXT = {**RAINY_MORNING, "device": "desktop", "referrer": "direct"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep the shop in this new directory to play with")
    parser.add_argument("--seed", type=int, default=20_250_303, help="seed of the generated shop (default 20250303)")
    parser.add_argument("--signals", type=int, default=20_000, help="signals to ingest first (default 20,000)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; its exit code is 1 if something was offered again that must not be."""
    world = World(WorldSettings(seed=args.seed, people=1_000, items=300, context_strength=2.0, refusing_share=0.05))
    with _directory(args.data) as path:
        clock = _Clock(world.settings.start)
        path.mkdir(parents=True, exist_ok=True)
        (path / "tailorbird.yaml").write_text(preset("shop"))
        with Engine.open(path, clock=clock) as engine:
            demo = _Demo(engine, world, clock)
            demo.fill(args.signals)
            demo.first_visit()
            demo.returning_visit()
            demo.second_device()
            demo.withdrawal()
        if args.data is not None:
            print(f"\nThe shop stays in {path}. Try: tailorbird decide --data {path} --placement {PLACEMENT}")
    return min(demo.fault_count, 1)


class _Clock:
    """The shop's time in milliseconds since 1970: that of the latest signal."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class _Demo:
    """The scenes, in order; each goes on from where the last one left the shop."""

    def __init__(self, engine: Engine, world: World, clock: _Clock) -> None:
        self.engine, self.world, self.clock = engine, world, clock
        self.items: dict[str, Item] = {item.id: item for item in world.items()}
        self.bought: list[str] = []
        self.served: list[str] = []
        self.fault_count = 0
        self._sent = 0

    def fill(self, signal_count: int) -> None:
        """Put the catalogue, ingest the signals, train."""
        settings = self.world.settings
        print(f"A generated shop (seed {settings.seed}): {settings.people:,} people, {settings.items:,} items.")
        self.engine.put_items(list(self.items.values()))
        signals = self.world.signals(signal_count)
        ingest_s = 0.0
        while group := list(islice(signals, GROUP)):
            self.clock.now = max(self.clock.now, max(signal.event_time for signal in group))
            begin = time.perf_counter()
            self.engine.ingest(group)
            ingest_s += time.perf_counter() - begin
        print(
            f"Ingested {signal_count:,} signals in {ingest_s:.1f} s: {signal_count / ingest_s:,.0f} a second, durable."
        )
        begin = time.perf_counter()
        self.engine.train_cooccurrence()
        print(f"Trained what is bought together in {time.perf_counter() - begin:.1f} s.")
        self.engine.tick()
        for person in range(20):  # The first decisions of a process build what later ones share; they are not shown.
            self._decide(self.world.identifiers(person), {"country": self.world.country(person)})
        self.engine.flush()

    def first_visit(self) -> None:
        """Show two strangers in two contexts."""
        _title("1. An anonymous first visit: only the context is known")
        morning, evening = self._decide({}, RAINY_MORNING), self._decide({}, CLEAR_EVENING)
        self._show(*morning, RAINY_MORNING)
        self._show(*evening, CLEAR_EVENING)
        common = len(_ids(morning[0]) & _ids(evening[0]))
        print(f"  in common: {common} of {K} items")

    def returning_visit(self) -> None:
        """Show a visitor who looked around and bought something, and is back, still without a login."""
        _title("2. Ada comes back on her phone: the shop knows a cookie, and what it did")
        liked = self._liked(person=5, count=5)
        for item in liked:
            self._send("product_viewed", PHONE, {"product_id": item, **self.items[item].attributes})
        self._buy(PHONE, liked[:1])
        print(f"  so far she viewed   {self._names(liked)}")
        print(f"  and bought          {self._names(self.bought)}")
        decision, took_us = self._decide(PHONE, RAINY_MORNING)
        self._show(decision, took_us, RAINY_MORNING)
        self._check("of what she bought is offered again", _ids(decision) & set(self.bought))
        self.served = [item.id for item in decision.items]
        self.engine.flush()  # What was served is written after the answer; a server does this by itself.

    def second_device(self) -> None:
        """Show the same person after a login on a device that was never seen before."""
        _title("3. Ada logs in on her laptop: one person, two devices")
        self._send("identified", {**PHONE, **ACCOUNT}, {"country": "GB"})
        self._send("identified", {**LAPTOP, **ACCOUNT}, {"country": "GB"})
        print("  the laptop's cookie alone is asked with; nothing was ever viewed on it")
        decision, took_us = self._decide(LAPTOP, LAPTOP_CONTEXT)
        self._show(decision, took_us, LAPTOP_CONTEXT)
        self._check("of what she bought is offered again", _ids(decision) & set(self.bought))
        self._check("of what the phone was served is offered again", _ids(decision) & set(self.served))

    def withdrawal(self) -> None:
        """Show the first decision after a withdrawal of consent."""
        _title("4. Ada withdraws her consent: the next decision uses nothing of hers")
        begin = time.perf_counter()
        self.engine.set_consent(ACCOUNT, parse_choice("denied:all"))
        print(f"  withdrawn, durable and in force after {(time.perf_counter() - begin) * 1e3:.1f} ms")
        decision, took_us = self._decide(LAPTOP, LAPTOP_CONTEXT)
        self._show(decision, took_us, LAPTOP_CONTEXT)
        stranger, _ = self._decide({}, LAPTOP_CONTEXT)
        same = [item.id for item in decision.items] == [item.id for item in stranger.items]
        print(f"  the same as a stranger sees in this context: {'yes' if same else 'NO'}")
        self.fault_count += not same

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _decide(self, identifiers: dict[str, str], context: dict[str, str]) -> tuple[Decision, float]:
        request = DecideRequest(placement=PLACEMENT, identifiers=identifiers, context=context, k=K)
        begin = time.perf_counter_ns()
        decision = self.engine.decide(request)
        return decision, (time.perf_counter_ns() - begin) / 1_000

    def _send(self, kind: str, identifiers: dict[str, str], properties: dict[str, Any]) -> None:
        """Ingest one signal of Ada's, who said yes, a few seconds after the last one."""
        self._sent += 1
        self.clock.now += 5_000
        signal = Signal(
            type=kind,
            event_time=self.clock.now,
            identifiers=identifiers,
            message_id=f"ada-{self._sent}",
            properties=properties,
            context=RAINY_MORNING,
            consent=CONSENT,
        )
        self.engine.ingest([signal])

    def _buy(self, identifiers: dict[str, str], items: list[str]) -> None:
        lines = [{"product_id": item, "price": self.items[item].price, "quantity": 1} for item in items]
        revenue = sum(self.items[item].price for item in items)
        order = {"order_id": "ada-order", "revenue": revenue, "currency": "GBP", "products": lines}
        self._send("order_completed", identifiers, order)
        self.bought += items
        self.clock.now += MINUTE_MS

    def _liked(self, person: int, count: int) -> list[str]:
        """Return what somebody with a person's tastes would click first."""
        return self.world.best_items(person, {"country": "GB"}, count, at=self.clock.now)

    # ---- printing ------------------------------------------------------------------------------------------------

    def _show(self, decision: Decision, took_us: float, context: dict[str, str]) -> None:
        print(f"\n  {', '.join(context.values())}")
        for place, item in enumerate(decision.items, start=1):
            print(f"    {place}. {self._name(item.id):<34} {item.score:7.4f}  {self._why(item)}")
        print(
            f"  tier {decision.tier}, {decision.candidate_count} candidates, {decision.excluded_count} excluded, "
            f"{decision.masked_count} features masked, {took_us:.0f} µs"
        )

    def _why(self, item: DecidedItem) -> str:
        reasons = []
        for each in item.reasons:
            about = self._name(each.detail) if each.detail in self.items else each.detail
            name = each.reason.replace("_", " ")
            reasons.append(f"{name} ({about})" if about else name)
        return ", ".join(reasons)

    def _check(self, what: str, repeated: Collection[str]) -> None:
        print(f"  {'NOT AS IT SHOULD BE: ' + self._names(repeated) if repeated else 'nothing'} {what}")
        self.fault_count += bool(repeated)

    def _name(self, item: str) -> str:
        return self.items[item].name

    def _names(self, items: Collection[str]) -> str:
        return ", ".join(self._name(item) for item in items)


def _ids(decision: Decision) -> set[str]:
    return {item.id for item in decision.items}


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


@contextlib.contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    """Yield an empty directory: the one that was asked for, or one that is removed at the end."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="tailorbird-demo-") as temporary:
            yield Path(temporary)
        return
    if given.exists() and any(given.iterdir()):
        raise PreconditionFailed("ALREADY_THERE", f"expected a new or empty directory, got {given}; choose another one")
    yield given
