"""Features derived from others: a closed set of arithmetic over their names.

formula    = both { "or" both }
both       = negation { "and" negation }
negation   = "not" negation | comparison
comparison = sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=") sum ]
sum        = term { ("+" | "-") term }
term       = factor { ("*" | "/") factor }
factor     = number | name | "-" factor | function "(" formula { "," formula } ")" | "(" formula ")"

Functions: ratio(a, b) is a / b; min, max; abs; sqrt; clamp(x, low, high). What is true is 1, what is not 0, and any other number
than 0 is true. What is no finite number, such as a division by zero, is missing. A formula speaks where all it reads speak;
else it says why not, the gravest reason first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.expressions import Scanner

Column = npt.NDArray[np.float64]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[<>=!]=|[-+*/(),<>]))"
)
DEPTH_MAX = 32


def _clamp(x: Column, low: Column, high: Column) -> Column:
    return np.minimum(np.maximum(x, low), high)


# function -> (how many arguments, what it computes)
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "ratio": (2, np.divide),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "abs": (1, np.abs),
    "sqrt": (1, np.sqrt),
    "clamp": (3, _clamp),
}
_OPERATORS: dict[str, Callable[..., Any]] = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}

_COMPARISONS: dict[str, Callable[..., Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
WORDS = frozenset({"and", "or", "not"})


def _known(*arguments: Any) -> Any:
    """NaN where an argument is NaN, else 0: comparisons would make a truth of what is missing."""
    return sum(argument * 0.0 for argument in arguments)


def _truth(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments) * 1.0 + _known(*arguments)


_AND, _OR, _NOT = _truth(np.logical_and), _truth(np.logical_or), _truth(np.logical_not)

# A step of a formula in postfix order: a number, the name of a feature, or (function, argument count).
Step = float | str | tuple[Callable[..., Any], int]


class Formula:
    """A parsed formula: `names` are the features it reads, in order of their first mention."""

    def __init__(self, text: str, steps: Sequence[Step]) -> None:
        self.text = text
        self._steps = tuple(steps)
        self.names = tuple(dict.fromkeys(step for step in steps if isinstance(step, str)))

    def values(self, columns: Mapping[str, Column]) -> Column:
        """Return the formula over columns of equal length; NaN where it has no finite value."""
        stack: list[Any] = []
        with np.errstate(all="ignore"):
            for step in self._steps:
                if isinstance(step, str):
                    stack.append(columns[step])
                elif isinstance(step, float):
                    stack.append(step)
                else:
                    function, count = step
                    arguments = stack[-count:]
                    stack[-count:] = [function(*arguments)]
        found: Column = np.asarray(stack[0], np.float64)
        return np.where(np.isfinite(found), found, np.nan)


class _Parser(Scanner):
    pattern = _TOKEN
    reason = "BAD_FORMULA"
    expected = "a name, number or mark"

    def __init__(self, text: str, where: str) -> None:
        self.steps: list[Step] = []
        self.depth = 0
        super().__init__(text, where)

    def formula(self) -> Formula:
        self.either()
        if self.kind:
            raise self.fail("the end")
        return Formula(self.text.strip(), self.steps)

    def either(self) -> None:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise self.fail(f"at most {DEPTH_MAX} levels")
        self.words("or", _OR, lambda: self.words("and", _AND, self.negation))
        self.depth -= 1

    def words(self, word: str, function: Callable[..., Any], operand: Callable[[], None]) -> None:
        operand()
        while self.kind == "name" and self.token == word:
            self.advance()
            operand()
            self.steps.append((function, 2))

    def negation(self) -> None:
        negations = 0
        while self.kind == "name" and self.token == "not":
            self.advance()
            negations += 1
        self.sum()
        if self.kind == "mark" and self.token in _COMPARISONS:
            comparison = _COMPARISONS[self.take("mark")]
            self.sum()
            self.steps.append((_truth(comparison), 2))
        self.steps += [(_NOT, 1)] * negations

    def sum(self) -> None:
        self.chain("+-", lambda: self.chain("*/", self.factor))

    def chain(self, marks: str, operand: Callable[[], None]) -> None:
        operand()
        while self.kind == "mark" and self.token in marks:
            operator = self.take("mark")
            operand()
            self.steps.append((_OPERATORS[operator], 2))

    def factor(self) -> None:
        negations = 0
        while self.at("-"):
            self.advance()
            negations += 1
        if self.kind == "number":
            self.steps.append(float(self.take("number")))
        elif self.at("("):
            self.advance()
            self.either()
            self.take("mark", ")")
        elif self.kind == "name" and self.token not in WORDS:
            self.named()
        else:
            raise self.fail("a number, a feature or a function")
        if negations % 2:
            self.steps.append((np.negative, 1))

    def named(self) -> None:
        unknown = self.fail(f"a function of {', '.join(FUNCTIONS)}")
        name = self.take("name")
        if not self.at("("):
            self.steps.append(name)
            return
        if name not in FUNCTIONS:
            raise unknown
        count, function = FUNCTIONS[name]
        self.advance()
        for argument in range(count):
            if argument:
                self.take("mark", ",")
            self.either()
        self.take("mark", ")")
        self.steps.append((function, count))


def parse_formula(text: str, where: str) -> Formula:
    """Return the parsed formula. Raises `ConfigurationError` BAD_FORMULA with the column and what was expected."""
    return _Parser(text, where).formula()


def in_order(reads: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names so that each comes after those it reads. Raises `ConfigurationError` CYCLIC_FEATURES."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order or name not in reads:
            return
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise ConfigurationError(
                "CYCLIC_FEATURES", f"expected features that end at stored ones, got the cycle {cycle}; break it"
            )
        path.append(name)
        for read in reads[name]:
            visit(read)
        path.pop()
        order.append(name)

    for name in reads:
        visit(name)
    return order
