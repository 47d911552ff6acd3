"""People as a pure function of links: which identifiers belong together, whatever the order and number of the links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

from tailorbird.engine.identifiers import Namespace

IDENTIFIERS_PER_PERSON_MAX = 100
FRAGMENTS_PER_PERSON_MAX = 64

Pair = tuple[bytes, bytes]

_DAY_MS = 86_400_000
_LAST_PRIORITY = 1 << 16


class LinkKind(IntEnum):
    """Where a link comes from, the most trusted first; numbers are stored and never reused."""

    MANUAL = 1
    LOGIN = 2
    IMPORT = 3
    ALIAS = 4


class Refusal(IntEnum):
    """Why a link does not count; numbers are stored and never reused."""

    NONE = 0
    UNIQUE_CONFLICT = 1
    TOO_MANY_IDENTIFIERS = 2
    SEPARATED = 3
    GENERIC = 4
    COMPONENT_FULL = 5
    UNKNOWN_NAMESPACE = 6


class Link(NamedTuple):
    """One statement about two anchor keys; `negative` says that they are two people, whatever else is known."""

    one: bytes
    other: bytes
    kind: int
    event_time: int
    negative: bool = False


class RefusedLink(NamedTuple):
    """A link that does not count, and why."""

    one: bytes
    other: bytes
    reason: Refusal


class Partition(NamedTuple):
    """People as tuples of anchor keys, best first (priority, then key), in the order of their best; and the refused."""

    people: tuple[tuple[bytes, ...], ...]
    refused: tuple[RefusedLink, ...]
    generic: frozenset[bytes]


def partition(nodes: Mapping[bytes, str], links: Iterable[Link], namespaces: Mapping[str, Namespace]) -> Partition:
    """Return the people among `nodes` (anchor key to namespace), each end of a link being one of them.

    Shared identifiers are found first and stand alone. The other links are taken by kind, namespace priority, event
    time and keys, each joining two groups where the result breaks no rule: one value of a unique namespace, the limits
    of each namespace, 100 identifiers and 64 fragments in all, no separated pair. Groups only grow, so a refused link
    stays refused, and of several links between two identifiers only the first counts.
    """
    joined: dict[Pair, tuple[int, int]] = {}
    apart: set[Pair] = set()
    for link in links:
        pair = pair_of(link.one, link.other)
        if link.negative:
            apart.add(pair)
        elif link.one != link.other:
            rank = (int(link.kind), link.event_time)
            joined[pair] = min(joined.get(pair, rank), rank)
    return partition_pairs(nodes, joined, apart, namespaces)


def pair_of(one: bytes, other: bytes) -> Pair:
    return (one, other) if one < other else (other, one)


def partition_pairs(
    nodes: Mapping[bytes, str],
    joined: Mapping[Pair, tuple[int, int]],
    apart: set[Pair],
    namespaces: Mapping[str, Namespace],
) -> Partition:
    """Return the partition for one (kind, event time) a pair, pairs in the order of their keys."""
    generic = generic_among(nodes, (pair for pair in joined if pair not in apart), namespaces)
    refused: list[RefusedLink] = []
    counting: list[tuple[int, int, int, int, Pair]] = []
    first_linked: dict[bytes, int] = {}
    for pair, (kind, event_time) in joined.items():
        one, other = namespaces.get(nodes[pair[0]]), namespaces.get(nodes[pair[1]])
        if pair in apart:
            refused.append(RefusedLink(*pair, Refusal.SEPARATED))
        elif one is None or other is None:
            refused.append(RefusedLink(*pair, Refusal.UNKNOWN_NAMESPACE))
        elif pair[0] in generic or pair[1] in generic:
            refused.append(RefusedLink(*pair, Refusal.GENERIC))
        else:
            better, worse = sorted((one.priority, other.priority))
            counting.append((kind, better, worse, event_time, pair))
            for key in pair:
                first_linked[key] = min(first_linked.get(key, event_time), event_time)
    counting.sort()
    groups = {key: _Group(key, first_linked.get(key, 0), namespaces.get(name), name) for key, name in nodes.items()}
    foes = _foes(apart)
    for *_, pair in counting:
        larger, smaller = groups[pair[0]], groups[pair[1]]
        if larger is smaller:
            continue
        if len(larger.members) < len(smaller.members):
            larger, smaller = smaller, larger
        reason = larger.refusal(smaller, namespaces)
        if foes and any(groups.get(foe) is larger for key in smaller.members for foe in foes.get(key, ())):
            reason = Refusal.SEPARATED
        if reason is Refusal.NONE:
            larger.take(smaller)
            for key in smaller.members:
                groups[key] = larger
        else:
            refused.append(RefusedLink(*pair, reason))

    def order(key: bytes) -> tuple[int, bytes]:
        namespace = namespaces.get(nodes[key])
        return (_LAST_PRIORITY if namespace is None else namespace.priority, key)

    people = [tuple(sorted(group.members, key=order)) for group in {id(g): g for g in groups.values()}.values()]
    people.sort(key=lambda members: order(members[0]))
    return Partition(tuple(people), tuple(sorted(refused)), generic)


def generic_among(
    nodes: Mapping[bytes, str], pairs: Iterable[Pair], namespaces: Mapping[str, Namespace]
) -> frozenset[bytes]:
    """Return the nodes linked to as many values of one unique namespace as make them shared."""
    reached: Counter[tuple[bytes, str]] = Counter()
    for one, other in pairs:
        one_namespace, other_namespace = namespaces.get(nodes[one]), namespaces.get(nodes[other])
        if one_namespace is None or other_namespace is None or one_namespace.unique == other_namespace.unique:
            continue
        if one_namespace.unique:
            reached[other, one_namespace.name] += 1
        else:
            reached[one, other_namespace.name] += 1
    return frozenset(key for (key, _), count in reached.items() if 0 < namespaces[nodes[key]].generic_at <= count)


def _foes(apart: set[Pair]) -> dict[bytes, list[bytes]]:
    foes: dict[bytes, list[bytes]] = {}
    for one, other in apart:
        foes.setdefault(one, []).append(other)
        foes.setdefault(other, []).append(one)
    return foes


class _Group:
    """Identifiers found to be one person so far; `times` are when those of each namespace were first linked."""

    __slots__ = ("fragment_count", "members", "times")

    def __init__(self, key: bytes, first_linked: int, namespace: Namespace | None, name: str) -> None:
        self.members = [key]
        self.times = {name: [first_linked]}
        self.fragment_count = 1 if namespace is not None and namespace.holds_state else 0

    def refusal(self, other: _Group, namespaces: Mapping[str, Namespace]) -> Refusal:
        """Return which limit the two together break; a unique namespace comes before all others."""
        reason = Refusal.NONE
        if (
            len(self.members) + len(other.members) > IDENTIFIERS_PER_PERSON_MAX
            or self.fragment_count + other.fragment_count > FRAGMENTS_PER_PERSON_MAX
        ):
            reason = Refusal.TOO_MANY_IDENTIFIERS
        for name, times in other.times.items():
            standing = self.times.get(name)
            if standing is None:
                continue
            namespace = namespaces[name]
            if namespace.unique:
                return Refusal.UNIQUE_CONFLICT
            if _is_past(namespace, standing, times):
                reason = Refusal.TOO_MANY_IDENTIFIERS
        return reason

    def take(self, other: _Group) -> None:
        self.members += other.members
        self.fragment_count += other.fragment_count
        for name, times in other.times.items():
            self.times.setdefault(name, []).extend(times)


def _is_past(namespace: Namespace, some: list[int], more: list[int]) -> bool:
    count = len(some) + len(more)
    if count > namespace.per_person_max:
        return True
    rate_max = namespace.rate_max
    if not rate_max or count <= rate_max:
        return False
    times = sorted(some + more)
    window = namespace.rate_days * _DAY_MS
    return any(times[i + rate_max] - times[i] < window for i in range(count - rate_max))
