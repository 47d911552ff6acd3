"""What identity is tested against: a graph store in memory, and the people computed the slow and obvious way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tailorbird.engine.facts import Anchor
from tailorbird.engine.identifiers import Namespace
from tailorbird.engine.identity import Edge, IdentityGraph, Link, LinkKind, Regrouping

DAY_MS = 86_400_000


def anchor(name: str) -> Anchor:
    """Return the anchor written as `namespace:value`; its key is readable and sorts by namespace and value."""
    return Anchor(name.partition(":")[0], name.encode())


class MemoryStore:
    """A graph store in dictionaries that applies each regrouping, checking that it says all that changed."""

    def __init__(self) -> None:
        self.edges: dict[bytes, dict[bytes, Edge]] = {}
        self.persons: dict[bytes, bytes] = {}
        self.members: dict[bytes, tuple[bytes, ...]] = {}
        self.generic: set[bytes] = set()
        self.reads = 0

    def edge(self, key: bytes, other: bytes) -> Edge | None:
        self.reads += 1
        return self.edges.get(key, {}).get(other)

    def edges_of(self, key: bytes) -> Sequence[Edge]:
        self.reads += 1
        return list(self.edges.get(key, {}).values())

    def put_edge(self, key: bytes, edge: Edge) -> None:
        self.edges.setdefault(key, {})[edge.other] = edge

    def person_of(self, key: bytes) -> bytes | None:
        self.reads += 1
        return self.persons.get(key)

    def is_generic(self, key: bytes) -> bool:
        self.reads += 1
        return key in self.generic

    def set_generic(self, key: bytes, generic: bool) -> None:
        (self.generic.add if generic else self.generic.discard)(key)

    def apply(self, change: Regrouping | None) -> None:
        if change is None:
            return
        assert set(change.generic) <= self.generic
        assert not set(change.restored) & self.generic
        scattered: set[bytes] = set()
        for person in change.dissolved:
            scattered |= set(self.members.pop(person, ()))
        for formed in change.formed:
            assert formed.person not in self.members, "formed beside a person that was not dissolved"
            self.members[formed.person] = formed.members
            for key in formed.members:
                self.persons[key] = formed.person
                scattered.discard(key)
        assert not scattered, "dissolved and not formed again"

    def people(self) -> dict[bytes, frozenset[bytes]]:
        """Return the members of every person among the nodes that have an edge."""
        grouped: dict[bytes, set[bytes]] = {}
        for key in self.edges:
            grouped.setdefault(self.persons.get(key, key), set()).add(key)
        return {person: frozenset(members) for person, members in grouped.items()}

    def refused(self) -> set[tuple[bytes, bytes, int]]:
        """Return the refused links with their reasons, each pair once; both ends must agree."""
        found = set()
        for key, edges in self.edges.items():
            for other, edge in edges.items():
                back = self.edges[other][key]
                ours = (edge.kind, edge.event_time, edge.separated, edge.refusal)
                assert ours == (back.kind, back.event_time, back.separated, back.refusal)
                if edge.kind and edge.refusal:
                    found.add((min(key, other), max(key, other), int(edge.refusal)))
        return found


class World:
    """A graph over a memory store, with links written as names."""

    def __init__(self, namespaces: Mapping[str, Namespace]) -> None:
        self.store = MemoryStore()
        self.graph = IdentityGraph(self.store, namespaces)

    def link(self, one: str, other: str, event_time: int = 0, kind: LinkKind = LinkKind.LOGIN) -> Regrouping | None:
        change = self.graph.link(anchor(one), anchor(other), kind, event_time)
        self.store.apply(change)
        return change

    def split(self, one: str, other: str | None = None) -> Regrouping | None:
        change = self.graph.split(anchor(one), anchor(other) if other else None, 0)
        self.store.apply(change)
        return change

    def together(self, *names: str) -> bool:
        """Return whether all the named identifiers are one person."""
        return len({self.store.persons.get(name.encode(), name.encode()) for name in names}) == 1


def people_of(links: Sequence[Link], namespaces: Mapping[str, Namespace]) -> dict[bytes, frozenset[bytes]]:
    """Return the people of all nodes that occur in `links`, by id: every rule checked anew on every whole group."""
    name_of = {key: key.decode().partition(":")[0] for link in links for key in (link.one, link.other)}
    apart = {frozenset((link.one, link.other)) for link in links if link.negative}
    standing: dict[frozenset[bytes], tuple[int, int]] = {}
    for link in links:
        pair = frozenset((link.one, link.other))
        if not link.negative and len(pair) == 2 and pair not in apart:
            standing[pair] = min(standing.get(pair, (99, 0)), (int(link.kind), link.event_time))
    generic = {key for key in name_of if _is_generic(key, name_of, set(standing), namespaces)}
    standing = {pair: rank for pair, rank in standing.items() if not pair & generic}
    since = {key: min((time for pair, (_, time) in standing.items() if key in pair), default=0) for key in name_of}

    def turn(pair: frozenset[bytes]) -> tuple[object, ...]:
        kind, event_time = standing[pair]
        return kind, sorted(namespaces[name_of[key]].priority for key in pair), event_time, sorted(pair)

    groups = {frozenset({key}) for key in name_of}
    for pair in sorted(standing, key=turn):
        touched = {group for group in groups if group & pair}
        union = frozenset().union(*touched)
        if _is_lawful(union, name_of, since, apart, namespaces):
            groups = (groups - touched) | {union}

    def best(group: frozenset[bytes]) -> bytes:
        return min(group, key=lambda key: (namespaces[name_of[key]].priority, key))

    return {best(group): group for group in groups}


def _is_generic(
    key: bytes, name_of: Mapping[bytes, str], pairs: set[frozenset[bytes]], namespaces: Mapping[str, Namespace]
) -> bool:
    own = namespaces[name_of[key]]
    neighbours = [name_of[other] for pair in pairs if key in pair for other in pair - {key}]
    most = max((neighbours.count(name) for name, namespace in namespaces.items() if namespace.unique), default=0)
    return not own.unique and own.generic_at > 0 and most >= own.generic_at


def _is_lawful(
    group: frozenset[bytes],
    name_of: Mapping[bytes, str],
    since: Mapping[bytes, int],
    apart: set[frozenset[bytes]],
    namespaces: Mapping[str, Namespace],
) -> bool:
    if len(group) > 100 or sum(namespaces[name_of[key]].holds_state for key in group) > 64:
        return False
    if any(pair <= group for pair in apart if len(pair) == 2):
        return False
    for name, namespace in namespaces.items():
        times = [since[key] for key in group if name_of[key] == name]
        if len(times) > namespace.per_person_max:
            return False
        window = namespace.rate_days * DAY_MS
        for start in times:
            if namespace.rate_max and sum(start <= time < start + window for time in times) > namespace.rate_max:
                return False
    return True
