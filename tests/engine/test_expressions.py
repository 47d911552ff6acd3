"""The small language of aggregates: what it reads, and where it says an expression goes wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.engine.errors import ConfigurationError
from tailorbird.engine.expressions import Aggregate, parse_aggregate

HOUR, DAY = 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("count", Aggregate("count")),
        ("count()", Aggregate("count")),
        (" sum( total ) ", Aggregate("sum", "total")),
        ("last(context.country)", Aggregate("last", "context.country")),
        ("last_k(product_id, k=16)", Aggregate("last_k", "product_id", {"k": 16.0})),
        ("decayed_count(half_life=1.5h)", Aggregate("decayed_count", "", {}, {"half_life": round(1.5 * HOUR)})),
        (
            "decayed_top_k(category,k=4,half_life=7d,weights={viewed:1,added: 2.5})",
            Aggregate("decayed_top_k", "category", {"k": 4.0}, {"half_life": 7 * DAY}, {"viewed": 1.0, "added": 2.5}),
        ),
        ("decayed_count(half_life=250ms, weights={})", Aggregate("decayed_count", "", {}, {"half_life": 250})),
    ],
)
def test_an_aggregate_is_read(text: str, parsed: Aggregate) -> None:
    assert parse_aggregate(text, "feature 'f'") == parsed


@pytest.mark.parametrize(
    ("text", "expected", "column"),
    [
        ("", "expected a name, got the end", 0),
        ("7d", "expected a name, got '7d'", 2),
        ("sum(total", "expected ','", 9),
        ("sum(total, price)", "expected one field only", 16),
        ("sum(total) again", "expected the end, got 'again'", 16),
        ("count(half_life=)", "expected a number, a duration or weights={...}", 17),
        ("count(k=1 half_life=2d)", "expected ',', got 'half_life'", 19),
        ("count(weights={a: 7d})", "expected a number, got '7d'", 20),
        ("count(weights={a 7})", "expected ':'", 18),
        ("count(other={a: 7})", "expected a number, a duration or weights={...}", 13),
        ("sum[total]", "expected a name, number, duration or mark, got '['", 3),
        ("__import__('os')", "expected a name, number, duration or mark", 11),
    ],
)
def test_a_mistake_is_told_with_what_was_expected_and_its_column(text: str, expected: str, column: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_aggregate(text, "feature 'f'")
    assert caught.value.reason == "BAD_AGGREGATE"
    assert expected in caught.value.message
    assert f"at column {column}, in feature 'f'" in caught.value.message


@given(st.text(alphabet="abk_.,:=(){} 17dmsé'\"\n", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = parse_aggregate(text, "feature 'f'")
    except ConfigurationError as error:
        assert error.reason == "BAD_AGGREGATE"
    else:
        assert parsed.name in text
