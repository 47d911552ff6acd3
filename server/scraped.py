"""Figures of a running service, read from its `/metrics`, and what two readings say together."""

from __future__ import annotations

import json
import math
import operator
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from tailorbird.engine.errors import CallerError, Unavailable

ANSWER_S = 5.0
ANSWER_BYTES_MAX = 16 * 1024**2
SIGN = "tailorbird_calls"  # there in every service's figures

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The figures of one moment (`moment_s`, monotonic), and why the service is not ready, empty where it is."""

    moment_s: float
    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    unready: str = ""

    def by(self, name: str, *labels: str, merge: Callable[[float, float], float] = operator.add) -> dict[Labels, float]:
        """Return the values of a figure by some of its labels, merged over the others, by default added up."""
        found: dict[Labels, float] = {}
        for own, value in self.samples.get(name, ()):
            key = tuple((label, own[label]) for label in labels if label in own)
            found[key] = value if key not in found else merge(found[key], value)
        return found

    def values_of(self, label: str) -> list[str]:
        """Return what a label is, over all figures; empty where none has it."""
        return sorted({own[label] for samples in self.samples.values() for own, _ in samples if label in own})


def checked_url(address: str) -> str:
    """Return `http://host:port` of an address. Raises `CallerError` BAD_ADDRESS."""
    url = address if address.startswith(("http://", "https://")) else f"http://{address}"
    url = url.removesuffix("/").removesuffix("/metrics")
    host, _, port = url.partition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise CallerError("BAD_ADDRESS", f"expected HOST:PORT, where `serve --metrics` answers, got {address!r}")
    return url


def read(url: str) -> Reading:
    """Read the figures now. Raises `Unavailable` NO_ANSWER, NO_METRICS."""
    text = _get(f"{url}/metrics")
    if text is None or SIGN not in text:
        raise Unavailable("NO_METRICS", f"expected the figures of a service at {url}/metrics, got something else")
    moment_s = time.monotonic()
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), float(sample.value)))
    except ValueError as error:
        raise Unavailable("NO_METRICS", f"expected Prometheus' text at {url}/metrics, got: {error}") from None
    return Reading(moment_s, samples, _unready(url))


def rate(before: Reading, after: Reading, name: str, *labels: str) -> dict[Labels, float]:
    """Return how much a counter grew a second; one that began anew, as its service did, from nothing."""
    seconds = max(after.moment_s - before.moment_s, 1e-3)
    earlier = before.by(name, *labels)
    return {
        key: (value - earlier.get(key, 0.0) if value >= earlier.get(key, 0.0) else value) / seconds
        for key, value in after.by(name, *labels).items()
    }


def quantile(before: Reading, after: Reading, name: str, key: Labels, part: float) -> float:
    """Return a quantile of what a histogram took in between two readings, NaN of nothing.

    Within a bucket values count as spread evenly; of the last, which has no end, its beginning is told.
    """
    labels = [label for label, _ in key]
    grown: dict[float, float] = {}
    later, earlier = after.by(f"{name}_bucket", *labels, "le"), before.by(f"{name}_bucket", *labels, "le")
    for own, value in later.items():
        if own[:-1] == key:
            grown[float(own[-1][1])] = max(0.0, value - earlier.get(own, 0.0))
    total = grown.get(math.inf, 0.0)
    if not total:
        return math.nan
    start = counted = 0.0
    for end in sorted(grown):
        if grown[end] >= part * total:
            inside = (part * total - counted) / (grown[end] - counted) if grown[end] > counted else 1.0
            return start if math.isinf(end) else start + (end - start) * inside
        start, counted = end, grown[end]
    return start


def _unready(url: str) -> str:
    try:
        text = _get(f"{url}/readyz")
    except Unavailable:
        return ""  # the figures were there a moment ago
    try:
        told = json.loads(text or "{}")
    except ValueError:
        return ""
    return str(told.get("reason", "")) if isinstance(told, dict) else ""


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as response:
            return bytes(response.read(ANSWER_BYTES_MAX)).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.read(ANSWER_BYTES_MAX).decode(errors="replace") if error.code == 503 else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(
            "NO_ANSWER",
            f"expected an answer of {url}, got: {reason}; start one with `tailorbird serve --metrics HOST:PORT`",
        ) from None
