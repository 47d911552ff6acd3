"""What `tailorbird top` shows: two readings of a service's figures as lines of text, for a screen of some size."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

from tailorbird.server.scraped import Labels, Reading, quantile, rate

CALLS, CALL_SECONDS = "tailorbird_calls_total", "tailorbird_call_seconds"
MEMORY, PROCESSOR = "process_resident_memory_bytes", "process_cpu_seconds_total"
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
GAP = "  "
Row = Sequence[str]


def frame(before: Reading, after: Reading, where: str, *, width: int, height: int, is_painted: bool) -> list[str]:
    """Return at most `height` lines of at most `width` characters."""
    lines = [_title(before, after, where), *_standing(before, after), ""]
    for table in (_methods(before, after), _tiers(before, after), _ages(after), *_parts(before, after)):
        if len(table) > 1:
            lines += [*_aligned(table), ""]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) > height:
        lines = [*lines[: max(0, height - 1)], f"... {len(lines) - height + 1} more lines"][:height]
    headings = {"method", "tier", "category", "process", "tenant"}
    return [
        f"{BOLD}{line[:width]}{PLAIN}"
        if is_painted and (index == 0 or line.partition(" ")[0] in headings)
        else line[:width]
        for index, line in enumerate(map(printable, lines))
    ]


def printable(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _title(before: Reading, after: Reading, where: str) -> str:
    state = f"NOT READY: {after.unready}" if after.unready else "ready"
    span_s = after.moment_s - before.moment_s
    return f"tailorbird top  {where}  {state}  {time.strftime('%H:%M:%S')}  over {span_s:.1f} s"


def _standing(before: Reading, after: Reading) -> Iterable[str]:
    position = max(after.by("tailorbird_log_position", merge=max).values(), default=math.nan)
    lag = max(after.by("tailorbird_ingest_lag_seconds", merge=max).values(), default=math.nan)
    waiting = sum(after.by("tailorbird_writes_waiting_bytes").values())
    newest = max(after.by("tailorbird_newest_event_seconds", merge=max).values(), default=0.0)
    memory, processor = sum(after.by(MEMORY).values()), sum(rate(before, after, PROCESSOR).values())
    yield GAP.join(
        [
            f"position {number(position)}",
            f"ingest lag {span(lag)}",
            f"waiting {size(waiting)}",
            f"newest event {span(time.time() - newest) + ' ago' if newest > 0 else '-'}",
            f"memory {size(memory)}",
            f"processor {processor:.0%}",
        ]
    )
    calls, errors = _total_and_errors(rate(before, after, CALLS, "code"))
    yield f"calls {number(calls)}/s{GAP}errors {number(errors)}/s"


def _methods(before: Reading, after: Reading) -> list[Row]:
    totals, rates = after.by(CALLS, "method"), rate(before, after, CALLS, "method")
    by_code = rate(before, after, CALLS, "method", "code")
    rows: list[Row] = [("method", "calls/s", "errors/s", "p50", "p99")]
    for key in sorted((key for key, total in totals.items() if total), key=lambda key: (-rates[key], key)):
        _, errors = _total_and_errors({own: value for own, value in by_code.items() if own[:1] == key})
        half, most = (quantile(before, after, CALL_SECONDS, key, part) for part in (0.5, 0.99))
        name = _label(key, "method").rpartition(".")[2]
        rows.append((name, number(rates[key]), number(errors), span(half), span(most)))
    return rows


def _tiers(before: Reading, after: Reading) -> list[Row]:
    rates = rate(before, after, "tailorbird_decisions_total", "tier")
    total = sum(rates.values())
    rows = [
        (_label(key, "tier"), number(each), f"{each / total:.0%}" if total else "-")
        for key, each in rates.items()
        if after.by("tailorbird_decisions_total", "tier")[key]
    ]
    return [("tier", "decisions/s", "part"), *rows]


def _ages(after: Reading) -> list[Row]:
    stale = after.by("tailorbird_category_stale", "category", merge=max)
    ages = after.by("tailorbird_category_age_seconds", "category", merge=min)
    rows = [
        (_label(key, "category"), f"{span(age)} ago", "STALE" if stale.get(key) else "fresh")
        for key, age in ages.items()
    ]
    return [("category", "newest event", "state"), *rows]


def _parts(before: Reading, after: Reading) -> Iterable[list[Row]]:
    """Yield what each process and each tenant does, where figures tell them apart."""
    for label in ("process", "tenant"):
        rows: list[Row] = [(label, "calls/s", "errors/s", "position", "memory")]
        by_code, positions = rate(before, after, CALLS, label, "code"), after.by("tailorbird_log_position", label)
        memory = after.by(MEMORY, label)
        for name in after.values_of(label):
            key = ((label, name),)
            calls, errors = _total_and_errors({own: value for own, value in by_code.items() if own[:1] == key})
            told = size(memory[key]) if key in memory else "-"
            rows.append((name or "(none)", number(calls), number(errors), number(positions.get(key, math.nan)), told))
        yield rows


def _total_and_errors(rates: dict[Labels, float]) -> tuple[float, float]:
    return sum(rates.values()), sum(value for key, value in rates.items() if _label(key, "code") != "OK")


def _label(key: Labels, name: str) -> str:
    return dict(key).get(name, "")


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        GAP.join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def number(value: float) -> str:
    """Return a number as people read it, `-` for none."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def span(seconds: float) -> str:
    """Return a time in its own unit, `-` for none."""
    if math.isnan(seconds):
        return "-"
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7_200.0, 1 / 60, "min")):
        if seconds < limit:
            scaled = max(0.0, seconds) * scale
            return f"{scaled:.1f} {unit}" if 0 < scaled < 10 else f"{scaled:.0f} {unit}"
    return f"{seconds / 3_600:.0f} h" if seconds < 48 * 3_600 else f"{seconds / 86_400:.0f} d"


def size(value: float) -> str:
    """Return bytes in their own unit."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1_024:
            return f"{value:.0f} {unit}"
        value /= 1_024
    return f"{value:.1f} GiB"
