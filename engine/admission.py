"""Admission: what a caller sent becomes facts, or a precise reason why not.

Nothing is written for a signal that is refused, repeated, or without a basis. Admission reads the state of the same open
transaction that earlier facts of the group were applied to, so that it sees their consent choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tailorbird.engine.applier import LINK_BIT, Applier
from tailorbird.engine.compiled import SignalPlan
from tailorbird.engine.consent import ALL_BITS, Basis, ConsentChoice, ConsentMasks, DataType, Purpose, bit
from tailorbird.engine.context import RAW, Contexts
from tailorbird.engine.context.moments import DAYPART, MOMENTS
from tailorbird.engine.decision_id import DECISION_ID, DecisionIds
from tailorbird.engine.errors import CallerError
from tailorbird.engine.facts import Anchor, ConsentFact, SignalFact
from tailorbird.engine.identifiers import IdentifierHasher
from tailorbird.engine.items import ITEM_ID_BYTES_MAX
from tailorbird.engine.money import CURRENCY
from tailorbird.engine.signals import Outcome, Signal, Status
from tailorbird.engine.state import masks_of
from tailorbird.engine.vocabulary import PRODUCT_FIELDS, Kind

# The part of the day is left to whoever counts.
STORED_MOMENTS = frozenset(MOMENTS) - {DAYPART}
CONTEXT_BIT = bit(DataType.CONTEXTUAL, Purpose.COLLECT)
EXPECTED = {
    Kind.STRING: "a string",
    Kind.ITEM: "an item id (a non-empty string of at most 1,024 bytes)",
    Kind.NUMBER: "a finite number",
    Kind.MONEY: "a finite number, an amount of money",
    Kind.INTEGER: "an integer of 64 bits",
    Kind.BOOLEAN: "true or false",
    Kind.PRODUCTS: "a list of product lines",
}
NAME_BYTES_MAX = 256
SOURCE_BYTES_MAX = 256


class Rejected(CallerError):
    """A signal cannot be taken as it is."""


class Admission:
    """Decides signal by signal what enters the log."""

    def __init__(self, applier: Applier, hasher: IdentifierHasher, contexts: Contexts) -> None:
        self.applier = applier
        self.contexts = contexts
        self.state = applier.state
        self.hasher = hasher
        self.decision_ids = DecisionIds(hasher)

    def admit(
        self, signal: Signal, append_time: int, import_consent: ConsentChoice | None
    ) -> tuple[Outcome | None, list[ConsentFact | SignalFact]]:
        """Return the facts of a signal, or the outcome that ends it here. Never raises for what a caller sent."""
        try:
            return self._admit(signal, append_time, import_consent)
        except CallerError as error:
            return Outcome(Status.REJECTED, error.reason, error.message), []

    def _admit(
        self, signal: Signal, append_time: int, import_consent: ConsentChoice | None
    ) -> tuple[Outcome | None, list[ConsentFact | SignalFact]]:
        plan = self._plan(signal)
        event_time = self._event_time(signal, append_time)
        self._check_properties(signal, plan)
        anchors = self._anchors(signal.identifiers)
        message_key = self._message_key(signal)
        if self.applier.is_repeat(message_key, signal.source, signal.source_offset):
            return Outcome(Status.DUPLICATE, "DUPLICATE", "applied before, by source and message id"), []
        facts: list[ConsentFact | SignalFact] = []
        masks = self._masks(anchors)
        choice = self._choice(signal, masks, import_consent)
        if choice is not None:
            facts.append(ConsentFact(anchors[0], choice, event_time))
            masks = (masks or ConsentMasks()).after(choice)
        permitted = (masks or ConsentMasks()).permits(self.state.compiled.configuration.jurisdiction)
        if len(anchors) > 1 and not permitted & LINK_BIT:
            anchors = anchors[:1]
            alone = self._masks(anchors) or ConsentMasks()
            if choice is not None:
                alone = alone.after(choice)
            permitted = alone.permits(self.state.compiled.configuration.jurisdiction)
        if not permitted & plan.collect:
            category = plan.type.category.name.lower()
            withheld = Outcome(
                Status.WITHHELD,
                "NO_CONSENT",
                f"expected a basis to collect {category} data, got none for this person; nothing was stored; send the "
                f"person's choice first, or with the signal, or import with --consent granted:{category} --basis ...",
            )
            # A choice is stored even when it refuses everything: it is what makes the refusal hold.
            return withheld, facts
        facts.append(
            SignalFact(
                signal.type,
                event_time,
                anchors,
                permitted,
                signal.properties,
                self._context(signal, event_time) if permitted & CONTEXT_BIT else {},
                message_key,
                signal.source,
                signal.source_offset,
            )
        )
        return None, facts

    def _context(self, signal: Signal, event_time: int) -> dict[str, str]:
        """Return the context to be stored: derived, nothing of it raw."""
        compiled = self.state.compiled
        if RAW.isdisjoint(signal.context) and compiled.context_names.isdisjoint(STORED_MOMENTS):
            return signal.context
        return dict(self.contexts.of(compiled).derive(signal.context, event_time, now=False))

    def _anchors(self, identifiers: Mapping[str, str]) -> tuple[Anchor, ...]:
        """Return the usable identifiers, best first. A placeholder beside a real one is passed over, alone it is refused."""
        if not isinstance(identifiers, Mapping):
            raise Rejected(
                "WRONG_TYPE", f"expected identifiers as a mapping of namespaces to values, got {_shown(identifiers)}"
            )
        for name, value in identifiers.items():
            if type(name) is not str or type(value) is not str:
                raise Rejected(
                    "WRONG_TYPE", f"expected a string in identifier {_shown(name)}, got {type(value).__name__}"
                )
        try:
            return self.hasher.anchors(identifiers)
        except CallerError as error:
            if error.reason != "REFUSED_VALUE" or len(identifiers) < 2:
                raise
            usable = {}
            for namespace, value in identifiers.items():
                try:
                    self.hasher.anchor(namespace, value)
                except CallerError as refusal:
                    if refusal.reason != "REFUSED_VALUE":
                        raise
                else:
                    usable[namespace] = value
            if not usable:
                raise
            return self.hasher.anchors(usable)

    # ---- consent -------------------------------------------------------------------------------------------------

    def _masks(self, anchors: tuple[Anchor, ...]) -> ConsentMasks | None:
        """Return the masks of whoever the identifiers are known to be, the stricter where they are several."""
        state = self.state
        masks: ConsentMasks | None = None
        last: bytes | None = None
        for anchor in anchors:
            person = state.person_of(anchor.key)
            if person is None or person == last:
                continue
            last = person
            own = masks_of(state.person(person))
            masks = own if masks is None else masks.stricter(own)
        return masks

    @staticmethod
    def _choice(
        signal: Signal, masks: ConsentMasks | None, import_consent: ConsentChoice | None
    ) -> ConsentChoice | None:
        """Return the choice to record before the signal: its own when it changes anything, else what an import rests on."""
        standing = masks or ConsentMasks()
        if signal.consent is not None:
            _check_choice(signal.consent)
            return signal.consent if standing.after(signal.consent) != standing else None
        if import_consent is not None:
            unknown = ~(standing.granted | standing.denied | standing.restricted)
            missing = import_consent.granted & unknown
            denied = import_consent.denied & unknown
            if missing or denied:
                return ConsentChoice(
                    granted=missing, denied=denied, basis=import_consent.basis, notice=import_consent.notice
                )
        return None

    # ---- form ----------------------------------------------------------------------------------------------------

    def _plan(self, signal: Signal) -> SignalPlan:
        plans = self.state.compiled.plans
        plan = plans.get(signal.type) if isinstance(signal.type, str) else None
        if plan is None:
            import difflib

            near = difflib.get_close_matches(str(signal.type)[:64], plans, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; declare it under `signals:`"
            raise Rejected("UNKNOWN_SIGNAL_TYPE", f"expected a declared signal type, got {_shown(signal.type)}{hint}")
        return plan

    def _event_time(self, signal: Signal, append_time: int) -> int:
        compiled = self.state.compiled
        time = signal.event_time
        if not isinstance(time, int) or isinstance(time, bool):
            raise Rejected(
                "WRONG_TYPE", f"expected event_time as integer milliseconds since 1970 UTC, got {_shown(time)}"
            )
        if time < append_time - compiled.event_age_max_ms:
            raise Rejected(
                "EVENT_TOO_OLD",
                f"expected event_time within limits.event_age_max = {compiled.configuration.limits.event_age_max} of now ({append_time}), got {time}",
            )
        return min(time, append_time + compiled.event_ahead_max_ms)

    def _message_key(self, signal: Signal) -> bytes:
        source, offset = signal.source, signal.source_offset
        if type(source) is not str or type(offset) is not int or type(signal.message_id) is not str:
            raise Rejected(
                "WRONG_TYPE",
                "expected source and message_id as strings and source_offset as an integer, got "
                f"{_shown(source)}, {_shown(signal.message_id)} and {_shown(offset)}",
            )
        if offset >= 0:
            if not source:
                raise Rejected("MISSING_SOURCE", "expected the name of the source that source_offset counts in, got ''")
            if offset >= 2**63:
                raise Rejected("WRONG_TYPE", f"expected source_offset below 2**63, got {offset:.3g}")
            if len(source) > SOURCE_BYTES_MAX or self._check_text("source", source) > SOURCE_BYTES_MAX:
                raise Rejected("FIELD_TOO_LARGE", f"expected source of at most {SOURCE_BYTES_MAX} bytes, got more")
            return b""
        if not signal.message_id:
            raise Rejected("MISSING_MESSAGE_ID", "expected a message_id, by which a retry is recognised; got ''")
        if len(signal.message_id) > 256 or len(signal.source) > 256:
            raise Rejected("FIELD_TOO_LARGE", "expected message_id and source of at most 256 characters")
        return self.hasher.message_key(signal.source, signal.message_id)

    def _check_properties(self, signal: Signal, plan: SignalPlan) -> None:
        limits = self.state.compiled.configuration.limits
        properties = signal.properties
        if not isinstance(properties, Mapping) or not isinstance(signal.context, Mapping):
            raise Rejected(
                "WRONG_TYPE",
                f"expected properties and context as mappings, got {_shown(properties)} and {_shown(signal.context)}",
            )
        if len(properties) > limits.properties_max or len(signal.context) > limits.properties_max:
            raise Rejected(
                "TOO_MANY_PROPERTIES",
                f"expected at most limits.properties_max = {limits.properties_max} properties, got {len(properties)}",
            )
        size = 0
        declared = plan.type.properties
        for name, value in properties.items():
            kind = declared.get(name)
            if kind is None:
                size += self._check_name(name, "properties") + self._check_scalar(name, value)
            elif kind is Kind.PRODUCTS:
                size += self._check_products(value, limits.products_max)
            else:
                size += self._check_kind(name, value, kind)
        if DECISION_ID in properties:
            self._check_decision_id(properties[DECISION_ID])
        if plan.update.reads_money:
            head = self.state.head
            try:
                self.state.compiled.features.money.rate(properties.get(CURRENCY), head.currency)
            except CallerError as error:
                raise Rejected(error.reason, f"{error.message}, in {signal.type}") from None
        for name in plan.type.required:
            if name not in properties:
                raise Rejected("MISSING_PROPERTY", f"expected property {name!r} in {signal.type}, got none")
        for name, text in signal.context.items():
            size += self._check_name(name, "context")
            if not isinstance(text, str):
                raise Rejected("WRONG_TYPE", f"expected a string in context.{name}, got {_shown(text)}")
            size += self._check_scalar(f"context.{name}", text)
        if size > limits.signal_bytes_max:
            raise Rejected(
                "SIGNAL_TOO_LARGE",
                f"expected at most limits.signal_bytes_max = {limits.signal_bytes_max} bytes, got {size}",
            )

    def _check_decision_id(self, value: object) -> None:
        """Refuse the id of a decision that was not made here: what an outcome is attributed to must have been decided."""
        if type(value) is not str:
            raise Rejected("WRONG_TYPE", f"expected a string in property {DECISION_ID!r}, got {_shown(value)}")
        try:
            self.decision_ids.read(value)
        except CallerError as error:
            raise Rejected(error.reason, f"{error.message}, in property {DECISION_ID!r}") from None

    def _check_products(self, lines: Any, products_max: int) -> int:
        if not isinstance(lines, list | tuple):
            raise Rejected(
                "WRONG_TYPE", f"expected {EXPECTED[Kind.PRODUCTS]} in property 'products', got {_shown(lines)}"
            )
        if len(lines) > products_max:
            raise Rejected(
                "TOO_MANY_PRODUCTS", f"expected at most limits.products_max = {products_max}, got {len(lines)}"
            )
        size = 0
        for index, line in enumerate(lines):
            if not isinstance(line, Mapping) or "product_id" not in line:
                raise Rejected(
                    "WRONG_TYPE", f"expected a product line with a product_id at products[{index}], got {_shown(line)}"
                )
            for name, value in line.items():
                kind = PRODUCT_FIELDS.get(name)
                if kind is None:
                    size += self._check_name(name, f"products[{index}]")
                where = f"products[{index}].{name}"
                size += self._check_scalar(where, value) if kind is None else self._check_kind(where, value, kind)
        return size

    def _check_name(self, name: object, where: str) -> int:
        if type(name) is not str:
            raise Rejected("WRONG_TYPE", f"expected names as strings in {where}, got {_shown(name)}")
        if len(name) > NAME_BYTES_MAX or (size := self._check_text(f"a name in {where}", name)) > NAME_BYTES_MAX:
            raise Rejected(
                "FIELD_TOO_LARGE", f"expected names of at most {NAME_BYTES_MAX} bytes in {where}, got {_shown(name)}"
            )
        return size

    def _check_kind(self, name: str, value: Any, kind: Kind) -> int:
        if kind is Kind.STRING or kind is Kind.ITEM:
            if type(value) is str:
                size = self._check_text(name, value)
                if kind is Kind.STRING or 0 < size <= ITEM_ID_BYTES_MAX:
                    return size
        elif kind is Kind.BOOLEAN:
            if isinstance(value, bool):
                return 1
        elif isinstance(value, bool):
            pass
        elif kind is Kind.INTEGER:
            if isinstance(value, int) and -(2**63) <= value < 2**63:
                return 8
        elif isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value):
            return 8
        raise Rejected("WRONG_TYPE", f"expected {EXPECTED[kind]} in property {name!r}, got {_shown(value)}")

    def _check_scalar(self, name: str, value: Any) -> int:
        if type(value) is str:
            return self._check_text(name, value)
        if isinstance(value, bool) or value is None:
            return 1
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return 8
        if isinstance(value, float) and math.isfinite(value):
            return 8
        raise Rejected(
            "WRONG_TYPE", f"expected a string, finite number or boolean in property {name!r}, got {_shown(value)}"
        )

    def _check_text(self, name: str, value: str) -> int:
        limit = self.state.compiled.configuration.limits.field_bytes_max
        if len(value) > limit:
            raise Rejected(
                "FIELD_TOO_LARGE",
                f"expected at most limits.field_bytes_max = {limit} bytes in {name!r}, got {len(value)}",
            )
        if value.isascii():
            return len(value)
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise Rejected(
                "BAD_UTF8", f"expected UTF-8 text in {name!r}, got a lone surrogate at character {error.start}"
            ) from None
        if size > limit:
            raise Rejected(
                "FIELD_TOO_LARGE", f"expected at most limits.field_bytes_max = {limit} bytes in {name!r}, got {size}"
            )
        return size


def _check_choice(choice: object) -> None:
    """Raise `Rejected` for a choice that no mask can hold."""
    if isinstance(choice, ConsentChoice) and isinstance(choice.notice, str) and len(choice.notice) <= NAME_BYTES_MAX:
        masks = choice.granted, choice.denied, choice.restricted
        if all(type(mask) is int and 0 <= mask <= ALL_BITS for mask in masks) and isinstance(choice.basis, Basis):
            try:
                choice.notice.encode()
            except UnicodeEncodeError:
                raise Rejected("BAD_UTF8", "expected UTF-8 text in consent.notice, got a lone surrogate") from None
            return
    raise Rejected(
        "WRONG_TYPE",
        f"expected consent as a ConsentChoice of 64-bit masks, a basis and a notice of at most {NAME_BYTES_MAX} characters, "
        f"got {_shown(choice)}",
    )


def _shown(value: object) -> str:
    """Return a value for an error message, cut short; never a whole payload."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"
