"""People: facts about identifiers become links, links become people, and people become rows.

Joins the pure graph of `identity.py` with the rows of `state.py`, and writes the ledger of links, splits and refusals.
"""

from __future__ import annotations

import msgspec

from tailorbird.engine.compiled import CompiledConfiguration
from tailorbird.engine.facts import Anchor
from tailorbird.engine.identity import Edge, IdentityGraph, LinkKind, Regrouping
from tailorbird.engine.state import State

KNOWN_LINKS_CACHED_MAX = 200_000

_encode_edge = msgspec.msgpack.Encoder().encode
_decode_edge = msgspec.msgpack.Decoder(Edge).decode


class StateGraph:
    """The graph store of a `State` (`identity.GraphStore`)."""

    def __init__(self, state: State) -> None:
        self.state = state

    def edge(self, key: bytes, other: bytes) -> Edge | None:
        data = self.state.txn.get(key + other, db=self.state.tables["edges"])
        return None if data is None else _decode_edge(data)

    def edges_of(self, key: bytes) -> list[Edge]:
        return [_decode_edge(value) for _, value in self.state.edges(key)]

    def put_edge(self, key: bytes, edge: Edge) -> None:
        self.state.txn.put(key + edge.other, _encode_edge(edge), db=self.state.tables["edges"])

    def person_of(self, key: bytes) -> bytes | None:
        return self.state.person_of(key)

    def is_generic(self, key: bytes) -> bool:
        row = self.state.identifier(key)
        return row is not None and row.generic

    def set_generic(self, key: bytes, generic: bool) -> None:
        self.state.mark_generic(key, generic)


class People:
    """Who is who, for one writer."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._graph: IdentityGraph | None = None
        self._known_links: dict[bytes, int] = {}

    def use(self, compiled: CompiledConfiguration) -> None:
        """Take up the identity rules of a configuration."""
        self._graph = IdentityGraph(StateGraph(self.state), compiled.namespaces)
        self._known_links.clear()

    def forget(self) -> None:
        """Drop what is remembered of links: the transaction it came from is gone."""
        self._graph = None
        self._known_links.clear()

    @property
    def graph(self) -> IdentityGraph:
        """The graph under the configuration in force."""
        if self._graph is None:
            self.use(self.state.compiled)
        assert self._graph is not None
        return self._graph

    def see(self, anchor: Anchor, append_time: int) -> None:
        """Make sure that an identifier is known and belongs to a person, its own if no other."""
        if not self.state.see_identifier(anchor.namespace, anchor.key, append_time):
            self.state.add_person(anchor.key, (anchor,), append_time)

    def meet(self, anchors: tuple[Anchor, ...], event_time: int, append_time: int) -> None:
        """See the identifiers that came with one event, best first, and link the best with each other one."""
        see = self.state.see_identifier
        unknown = 0
        for anchor in anchors:
            unknown += not see(anchor.namespace, anchor.key, append_time)
        if not unknown:
            if len(anchors) > 1:
                self._log_in(anchors, event_time)
            return
        if self._nothing_forbids(anchors, unknown):
            self._meet_strangers(anchors, event_time, append_time)
            return
        for anchor in anchors:
            self.see(anchor, append_time)
        self._log_in(anchors, event_time)

    def _log_in(self, anchors: tuple[Anchor, ...], event_time: int) -> None:
        for other in anchors[1:]:
            pair = anchors[0].key + other.key
            earliest = self._known_links.get(pair)
            if earliest is None or event_time < earliest:
                self.link(anchors[0], other, "login", event_time)
                self._know(pair, event_time)

    def _know(self, pair: bytes, event_time: int) -> None:
        if len(self._known_links) > KNOWN_LINKS_CACHED_MAX:
            self._known_links.clear()
        self._known_links[pair] = event_time

    def _nothing_forbids(self, anchors: tuple[Anchor, ...], unknown: int) -> bool:
        """Return whether identifiers are one person without asking the graph: one of each namespace, nobody knows them,
        or only the best of them and that one by itself, never linked."""
        if unknown < len(anchors):
            if unknown < len(anchors) - 1:
                return False
            row = self.state.identifier(anchors[0].key)
            if row is None or len(self.state.members_of(row.person)) > 1:
                return False
            if next(self.state.edges(anchors[0].key), None) is not None:
                return False
        namespaces = self.state.compiled.namespaces
        names = {anchor.namespace for anchor in anchors}
        return len(names) == len(anchors) and all(
            namespaces[name].unique or namespaces[name].generic_at != 1 for name in names
        )

    def _meet_strangers(self, anchors: tuple[Anchor, ...], event_time: int, append_time: int) -> None:
        """Make a person of several identifiers at once: what `see` and `link` of each would lead to."""
        best = anchors[0]
        self.state.add_person(best.key, anchors, append_time)
        edges = StateGraph(self.state)
        for other in anchors[1:]:
            edges.put_edge(best.key, Edge(other.key, other.namespace, LinkKind.LOGIN, event_time))
            edges.put_edge(other.key, Edge(best.key, best.namespace, LinkKind.LOGIN, event_time))
            self.state.append_link_entry(("link", "login", best.key, other.key, event_time, [], (), ()))
            self._know(best.key + other.key, event_time)

    def link(self, one: Anchor, other: Anchor, kind: str, event_time: int) -> None:
        """Record a link and regroup the people it touches."""
        link_kind = LinkKind[kind.upper()]
        self._apply(self.graph.link(one, other, link_kind, event_time), ("link", kind, one.key, other.key, event_time))

    def split(self, one: Anchor, other: Anchor | None, event_time: int, reason: str) -> None:
        """Take links back for good and give every side its own state again."""
        self._known_links.clear()
        other_key = other.key if other is not None else b""
        self._apply(self.graph.split(one, other, event_time), ("split", reason, one.key, other_key, event_time))

    def _apply(self, regrouping: Regrouping | None, entry: tuple[object, ...]) -> None:
        if regrouping is None:
            return
        if regrouping.dissolved or regrouping.formed:
            self.state.regroup(
                regrouping.dissolved, tuple((formed.person, formed.members) for formed in regrouping.formed)
            )
        refused = [(link.one, link.other, int(link.reason)) for link in regrouping.refused]
        self.state.append_link_entry((*entry, refused, regrouping.generic, regrouping.restored))
