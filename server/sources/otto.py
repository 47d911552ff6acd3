"""Shop sessions (OTTO session dataset, CC BY 4.0): one JSON object a line, `session` and its `events` of aid, ts and
type.

Clicks become `product_viewed`, carts `product_added`, orders `order_completed` of one product. A session is one
visitor, `anonymous_id` "session-" and its number: the bare number of some, 0 or 7777, is what placeholders look like,
and nobody is recognised by those. An item is put when its number is first met: the data name no more of it. `source_offset` is
the running number of the event in the file, malformed ones included, so that reading a mended file repeats no offset
for a new event.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Signal
from tailorbird.server.sources.batch import SIGNALS_PER_BATCH, Batch, Counts
from tailorbird.server.sources.text_lines import TextLines, source_name

TYPES = {"clicks": "product_viewed", "carts": "product_added", "orders": "order_completed"}


class _Event(msgspec.Struct):
    aid: int
    ts: int
    type: str


class _Session(msgspec.Struct):
    session: int | str
    events: list[msgspec.Raw]


def read(path: Path, *, consent: ConsentChoice | None = None, counts: Counts | None = None) -> Iterator[Batch]:
    """Yield the file's batches in order; see `Reader`. `counts.signals` counts by the engine's types, `used` by the
    file's.
    """
    counts = Counts() if counts is None else counts
    lines = TextLines(path)
    source = source_name("otto", path)
    sessions, events = msgspec.json.Decoder(_Session), msgspec.json.Decoder(_Event)
    met: set[int] = set()
    items: list[Item] = []
    signals: list[Signal] = []
    offset = -1

    def batch() -> Batch:
        nonlocal items, signals
        whole = Batch(tuple(items), tuple(signals))
        counts.items += len(items)
        items, signals = [], []
        return whole

    try:
        for line in lines:
            if not line.strip():
                continue
            counts.lines += 1
            try:
                session = sessions.decode(line)
            except msgspec.DecodeError as error:
                counts.malform(lines.line, f"expected a session with its events, got: {error}")
                continue
            for raw in session.events:
                offset += 1
                try:
                    event = events.decode(raw)
                except msgspec.DecodeError as error:
                    counts.malform(lines.line, f"expected an event of aid, ts and type, got: {error}")
                    continue
                if event.type not in TYPES:
                    counts.malform(lines.line, f"expected a type of {', '.join(TYPES)}, got {event.type[:40]!r}")
                    continue
                counts.used[event.type] += 1
                counts.signals[TYPES[event.type]] += 1
                if event.aid not in met:
                    met.add(event.aid)
                    items.append(Item(id=str(event.aid)))
                signals.append(_signal(event, session.session, source, offset, consent))
                if len(signals) == SIGNALS_PER_BATCH:
                    yield batch()
    except CallerError:
        if signals:
            yield batch()
        raise
    if signals:
        yield batch()


def _signal(event: _Event, session: int | str, source: str, offset: int, consent: ConsentChoice | None) -> Signal:
    product = {"product_id": str(event.aid)}
    properties: dict[str, Any] = dict(product)
    if event.type == "orders":
        properties = {"order_id": f"{session}-{event.ts}", "products": [product]}
    return Signal(
        type=TYPES[event.type],
        event_time=event.ts,
        identifiers={"anonymous_id": f"session-{session}"},
        properties=properties,
        source=source,
        source_offset=offset,
        consent=consent,
    )
