"""Deterministic identity: the people of a store, kept in step with its links one link at a time.

`partition` says who the people are. `IdentityGraph` is an optimisation of it: it reads only the links that can matter
for a new one, partitions those, and reports what changed. Nothing is merged in place, so taking a link away gives the
people there would be without it. The one exception: a link past the bounds below is COMPONENT_FULL, and not kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from tailorbird.engine.facts import Anchor
from tailorbird.engine.identifiers import Namespace
from tailorbird.engine.partition import (
    Link,
    LinkKind,
    Pair,
    Partition,
    Refusal,
    RefusedLink,
    generic_among,
    pair_of,
    partition,
    partition_pairs,
)

__all__ = [
    "Edge",
    "FormedPerson",
    "GraphStore",
    "IdentityGraph",
    "Link",
    "LinkKind",
    "Partition",
    "Refusal",
    "RefusedLink",
    "Regrouping",
    "partition",
]

# A component is all that links connect, refused ones too: a refused link may count once another one is taken away.
REFUSED_PER_COMPONENT_MAX = 256
NODES_PER_COMPONENT_MAX = 512


class Edge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one end of a pair stores about the other.

    Of all links between the two only the first by (`kind`, `event_time`) is kept; `kind` 0 means that there is none and
    `separated` is all there is to say. `refusal` is `NONE` where the link counts.
    """

    other: bytes
    other_namespace: str
    kind: int
    event_time: int
    separated: bool = False
    refusal: int = 0


class FormedPerson(NamedTuple):
    """A person as grouped now; `members` are anchor keys, best first."""

    person: bytes
    members: tuple[bytes, ...]

    @property
    def best(self) -> bytes:
        """The anchor key the person's id is made of."""
        return self.members[0]


class Regrouping(NamedTuple):
    """What a link or a split changed.

    `dissolved` are the ids of every person whose members changed, also where one with the same id is in `formed`: take
    all of the former away, then write the latter. `refused` are the links that count no longer or never did, `generic`
    the keys found to be shared by several people, `restored` those that are so no longer.
    """

    dissolved: tuple[bytes, ...] = ()
    formed: tuple[FormedPerson, ...] = ()
    refused: tuple[RefusedLink, ...] = ()
    generic: tuple[bytes, ...] = ()
    restored: tuple[bytes, ...] = ()


class GraphStore(Protocol):
    """Where the graph lives. The graph writes edges and marks; its caller writes people, from each `Regrouping`."""

    def edge(self, key: bytes, other: bytes) -> Edge | None:
        """Return what `key` stores about `other`."""

    def edges_of(self, key: bytes) -> Sequence[Edge]:
        """Return all edges of `key`, in any order."""

    def put_edge(self, key: bytes, edge: Edge) -> None:
        """Add `edge` to those of `key`, in place of the one with the same `other`."""

    def person_of(self, key: bytes) -> bytes | None:
        """Return the id of the person `key` was last grouped into, or None where it never was in a `Regrouping`."""

    def is_generic(self, key: bytes) -> bool:
        """Return whether `key` is marked as shared by several people."""

    def set_generic(self, key: bytes, generic: bool) -> None:
        """Mark `key`, or take the mark away."""


@dataclass(slots=True)
class _Closure:
    """All that can decide about a link: the nodes its ends reach, and the edges between them as stored."""

    nodes: dict[bytes, str]
    joined: dict[Pair, tuple[int, int]]
    apart: set[Pair]
    refusals: dict[Pair, int]


class IdentityGraph:
    """Keeps the people of a store in step with its links, one link at a time.

    A person goes by the key of their best anchor. An anchor that was never linked is a person by itself.
    """

    def __init__(self, store: GraphStore, namespaces: Mapping[str, Namespace]) -> None:
        self._store = store
        self._namespaces = namespaces

    def link(self, one: Anchor, other: Anchor, kind: LinkKind, event_time: int) -> Regrouping | None:
        """Record that two anchors are one person's, and return what it changed, None for nothing.

        A link that is known with the same kind and no later time costs one read. Never raises: what breaks a rule is
        kept as refused and reported.
        """
        if one.key == other.key:
            return None
        known = self._store.edge(one.key, other.key)
        if known is not None and known.kind and (known.kind, known.event_time) <= (kind, event_time):
            return None
        if known is not None and known.separated:
            self._put_both(one, other, Edge(other.key, other.namespace, kind, event_time, True, Refusal.SEPARATED))
            return None if known.kind else _refusing(one, other, Refusal.SEPARATED)
        is_new = known is None
        edges = {end.key: self._store.edges_of(end.key) for end in (one, other)}
        # One identifier alone can fill its component (a kiosk, a robot's account): told without reading the rest.
        if is_new and any(_refused_count(found) >= REFUSED_PER_COMPONENT_MAX for found in edges.values()):
            return _refusing(one, other, Refusal.COMPONENT_FULL)
        if self._store.is_generic(one.key) or self._store.is_generic(other.key):
            self._put_both(one, other, Edge(other.key, other.namespace, kind, event_time, False, Refusal.GENERIC))
            return _refusing(one, other, Refusal.GENERIC) if is_new else None
        closure = self._closure((one, other), edges)
        pair = pair_of(one.key, other.key)
        closure.joined[pair] = (int(kind), event_time)
        found = partition_pairs(closure.nodes, closure.joined, closure.apart, self._namespaces)
        if is_new and (len(found.refused) > REFUSED_PER_COMPONENT_MAX or len(closure.nodes) > NODES_PER_COMPONENT_MAX):
            return _refusing(one, other, Refusal.COMPONENT_FULL)
        return self._regroup(closure, found, changed=pair)

    def split(self, one: Anchor, other: Anchor | None, event_time: int) -> Regrouping | None:
        """Keep `one` and `other` (every neighbour of `one` when None) apart for good, and return what it changed.

        Links between them stay known and never count again, and no other path may join them.
        """
        store = self._store
        ends = [other] if other is not None else [Anchor(e.other_namespace, e.other) for e in store.edges_of(one.key)]
        revoked: list[RefusedLink] = []
        seeds = {one.key: one}
        for end in ends:
            edge = store.edge(one.key, end.key) or Edge(end.key, end.namespace, 0, event_time)
            if edge.separated or end.key == one.key:
                continue
            refusal = Refusal.SEPARATED if edge.kind else Refusal.NONE
            self._put_both(one, end, Edge(end.key, end.namespace, edge.kind, edge.event_time, True, refusal))
            seeds[end.key] = end
            if edge.kind:
                revoked.append(RefusedLink(*pair_of(one.key, end.key), Refusal.SEPARATED))
        if len(seeds) == 1:
            return None
        restored = self._restore(seeds.values())
        closure = self._closure([seed for seed in seeds.values() if not store.is_generic(seed.key)], {})
        found = partition_pairs(closure.nodes, closure.joined, closure.apart, self._namespaces)
        change = self._regroup(closure, found, changed=None) or Regrouping()
        change = change._replace(refused=tuple(sorted({*revoked, *change.refused})), restored=restored)
        return change if any(change) else None

    def _closure(self, seeds: Iterable[Anchor], read: Mapping[bytes, Sequence[Edge]]) -> _Closure:
        """Return what the seeds reach by links that count or may count, not through shared identifiers.

        `read` are edges already read. Bounded by the size of two components, since no link may make a larger one.
        """
        nodes = {seed.key: seed.namespace for seed in seeds}
        joined: dict[Pair, tuple[int, int]] = {}
        refusals: dict[Pair, int] = {}
        apart: set[Pair] = set()
        waiting = list(nodes)
        while waiting:
            key = waiting.pop()
            edges = read.get(key)
            for edge in self._store.edges_of(key) if edges is None else edges:
                other = edge.other
                pair = (key, other) if key < other else (other, key)
                if edge.separated:
                    apart.add(pair)
                elif edge.refusal != Refusal.GENERIC:
                    joined[pair] = (edge.kind, edge.event_time)
                    refusals[pair] = edge.refusal
                    if other not in nodes:
                        nodes[other] = edge.other_namespace
                        waiting.append(other)
        return _Closure(nodes, joined, apart, refusals)

    def _regroup(self, closure: _Closure, found: Partition, changed: Pair | None) -> Regrouping | None:
        """Write what differs from the store; `changed` is the pair whose edge is to be written in any case."""
        store, nodes = self._store, closure.nodes
        refused_now = {(one, other): reason for one, other, reason in found.refused}
        refused: list[RefusedLink] = []
        for pair, (kind, event_time) in closure.joined.items():
            reason = refused_now.get(pair, Refusal.NONE)
            before = closure.refusals.get(pair, Refusal.NONE)
            if reason != before and reason:
                refused.append(RefusedLink(*pair, reason))
            if reason != before or pair == changed:
                one, other = (Anchor(nodes[key], key) for key in pair)
                self._put_both(one, other, Edge(other.key, other.namespace, kind, event_time, False, reason))
        for key in found.generic:
            store.set_generic(key, True)
        person_before = {key: store.person_of(key) or key for key in nodes}
        size_before = Counter(person_before.values())
        dissolved: set[bytes] = set()
        formed: list[FormedPerson] = []
        for members in found.people:
            before_ids = {person_before[key] for key in members}
            if len(before_ids) > 1 or size_before[person_before[members[0]]] != len(members):
                dissolved |= before_ids
                formed.append(FormedPerson(members[0], members))
        if not (formed or refused or found.generic):
            return None
        return Regrouping(tuple(sorted(dissolved)), tuple(formed), tuple(sorted(refused)), tuple(sorted(found.generic)))

    def _restore(self, ends: Iterable[Anchor]) -> tuple[bytes, ...]:
        """Take the generic mark from those `ends` that too few people share by now; their links may count again."""
        store = self._store
        restored = []
        for end in ends:
            if not store.is_generic(end.key):
                continue
            edges = [edge for edge in store.edges_of(end.key) if edge.kind and not edge.separated]
            nodes = {end.key: end.namespace} | {edge.other: edge.other_namespace for edge in edges}
            if end.key not in generic_among(nodes, ((end.key, edge.other) for edge in edges), self._namespaces):
                store.set_generic(end.key, False)
                restored.append((end, edges))
        for end, edges in restored:
            for edge in edges:
                if not store.is_generic(edge.other):
                    other = Anchor(edge.other_namespace, edge.other)
                    self._put_both(end, other, msgspec.structs.replace(edge, refusal=int(Refusal.NONE)))
        return tuple(sorted(end.key for end, _ in restored))

    def _put_both(self, one: Anchor, other: Anchor, edge: Edge) -> None:
        """Write `edge`, which is `one`'s about `other`, at both ends."""
        self._store.put_edge(one.key, edge)
        self._store.put_edge(other.key, msgspec.structs.replace(edge, other=one.key, other_namespace=one.namespace))


def _refused_count(edges: Iterable[Edge]) -> int:
    return sum(1 for edge in edges if edge.refusal)


def _refusing(one: Anchor, other: Anchor, reason: Refusal) -> Regrouping:
    return Regrouping(refused=(RefusedLink(*pair_of(one.key, other.key), reason),))
