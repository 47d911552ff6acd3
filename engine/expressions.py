"""The aggregate expressions of feature declarations: `decayed_top_k(category, k=16, half_life=7d, weights={a: 1})`.

aggregate = name [ "(" [ argument { "," argument } ] ")" ]
argument  = field | name "=" value
value     = number | duration | "{" name ":" number { "," name ":" number } "}"
field     = name { "." name }
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tailorbird.engine.durations import UNITS_MS
from tailorbird.engine.errors import ConfigurationError

_TOKEN = re.compile(
    r"\s*(?:(?P<duration>\d+(?:\.\d+)?(?:ms|s|m|h|d|w|y)\b)|(?P<number>-?\d+(?:\.\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)|(?P<mark>[(){},:=]))"
)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A parsed aggregate: its name, the field it `reads` (empty: none), and its options; durations are in ms."""

    name: str
    reads: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    durations: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


class Scanner:
    """Reads a text token by token, and says where and why it cannot go on. A language has a pattern of its own."""

    pattern: re.Pattern[str]
    reason: str
    expected: str

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where, self.position = text, where, 0
        self.kind, self.token = "", ""
        self.advance()

    def fail(self, expected: str) -> ConfigurationError:
        got = repr(self.token) if self.kind else "the end"
        return ConfigurationError(
            self.reason, f"expected {expected}, got {got} at column {self.position}, in {self.where}: {self.text!r}"
        )

    def advance(self) -> None:
        if not self.text[self.position :].strip():
            self.kind, self.token = "", ""
            return
        match = self.pattern.match(self.text, self.position)
        if match is None:
            self.kind, self.token = "mark", self.text[self.position :].lstrip()[:1]
            raise self.fail(self.expected)
        self.kind, self.token, self.position = match.lastgroup or "", match[match.lastgroup or 0], match.end()

    def take(self, kind: str, token: str = "") -> str:
        if self.kind != kind or (token and self.token != token):
            raise self.fail(repr(token) if token else f"a {kind}")
        taken = self.token
        self.advance()
        return taken

    def at(self, token: str) -> bool:
        return self.kind == "mark" and self.token == token


class _Parser(Scanner):
    pattern = _TOKEN
    reason = "BAD_AGGREGATE"
    expected = "a name, number, duration or mark"

    def aggregate(self) -> Aggregate:
        name, read = self.take("name"), ""
        numbers: dict[str, float] = {}
        durations: dict[str, int] = {}
        weights: dict[str, float] = {}
        if self.at("("):
            self.advance()
            while not self.at(")"):
                field_error = self.fail("one field only")
                word = self.take("name")
                if not self.at("="):
                    if read:
                        raise field_error
                    read = word
                else:
                    self.advance()
                    self.option(word, numbers, durations, weights)
                if not self.at(")"):
                    self.take("mark", ",")
            self.advance()
        if self.kind:
            raise self.fail("the end")
        return Aggregate(name, read, numbers, durations, weights)

    def option(
        self, word: str, numbers: dict[str, float], durations: dict[str, int], weights: dict[str, float]
    ) -> None:
        if self.kind == "number":
            numbers[word] = float(self.take("number"))
        elif self.kind == "duration":
            text = self.take("duration")
            unit = text.lstrip("0123456789.")
            durations[word] = round(float(text[: -len(unit)]) * UNITS_MS[unit])
        elif self.at("{") and word == "weights":
            self.advance()
            while not self.at("}"):
                name = self.take("name")
                self.take("mark", ":")
                weights[name] = float(self.take("number"))
                if not self.at("}"):
                    self.take("mark", ",")
            self.advance()
        else:
            raise self.fail("a number, a duration or weights={...}")


def parse_aggregate(text: str, where: str) -> Aggregate:
    """Return the parsed aggregate. Raises `ConfigurationError` BAD_AGGREGATE with the column and what was expected."""
    return _Parser(text, where).aggregate()
