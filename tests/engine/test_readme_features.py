"""The README's declarations, as they stand there: the five categories from events to values."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import msgspec

from tailorbird.engine.pushes import PushedRow
from tests.engine.shops import EVERYTHING, START, assert_replays_to_the_same, open_shop, signal

README = Path(__file__).parents[2] / "README.md"
PAGE = {"user_agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) Mobile/15E148 Safari/604.1"}


def declared() -> str:
    found = re.search(r"^    features:\n(?:      - .*\n)+", README.read_text(), re.MULTILINE)
    assert found is not None, "the README declares features"
    return "version: 1\nlimits: {map_bytes: 134217728}\n" + textwrap.dedent(found[0])


def test_one_of_each_category_is_computed_end_to_end(tmp_path: Path) -> None:
    order = {"products": [{"product_id": "mug"}]}
    with open_shop(tmp_path, declared()) as engine:
        signals = [
            signal("v"),
            msgspec.structs.replace(signal("p", "page_viewed"), context=PAGE),
            *(signal(f"o{n}", "order_completed", revenue=10.0 * n, **order) for n in (1, 2, 3)),
            signal("r", "order_refunded", revenue=15.0),
            *(signal(f"s{stars}", "product_reviewed", product_id="mug", rating=stars) for stars in (3, 4)),
        ]
        assert {outcome.status for outcome in engine.ingest(signals).outcomes} == {"applied"}
        engine.push_features("anonymous_id", [PushedRow("v1", {"age_band": "30-39"}, START)], consent=EVERYTHING)
        found = engine.get_features("anonymous_id", ["v1"], at=START)
        numbers = dict(zip(found.names, found.values[0].tolist(), strict=True))
        assert found.texts == {"device": ["mobile"], "age_band": ["30-39"]}
        expected = {"views_1h": 1.0, "orders": 3.0, "spend": 45.0, "rating": 3.5, "average_order": 15.0, "regular": 1.0}
        assert {name: numbers[name] for name in expected} == expected
        assert found.completeness.tolist() == [0.8]  # nothing was computed in batches, nothing trained
        engine.tick()
        assert [change.segment for change in engine.segment_changes()] == ["regular"]
    assert_replays_to_the_same(tmp_path)
