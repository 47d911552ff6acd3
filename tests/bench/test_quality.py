"""`bench quality` end to end on a small shop whose baskets never mix two halves of the catalogue."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from tailorbird.bench import quality
from tailorbird.engine.errors import CallerError
from tailorbird.server.sources.online_retail import COLUMNS

SEED = 20_110_801


def write_shop(path: Path, days: int = 100, orders_per_day: int = 6) -> None:
    """Write orders of 6 of the 30 products of one half; who buys from which half never changes."""
    random = np.random.default_rng(SEED)
    lines = [",".join(COLUMNS)]
    for number in range(days * orders_per_day):
        customer = int(random.integers(60))
        month, day = divmod(number // orders_per_day, 28)
        date = f"2011-{month + 5:02}-{day + 1:02} 12:00:00"
        for product in random.permutation(30)[:6]:
            code = 10_000 + 100 * (customer % 2) + int(product)
            country = "France" if customer % 5 == 0 else "United Kingdom"
            lines.append(f"{536_000 + number},{code},NAME {code},1,{date},1.25,{12_000 + customer},{country}")
    path.write_text("\n".join(lines) + "\n")


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    return parser.parse_args(words)


def test_decisions_beat_popularity_where_baskets_tell_the_half(tmp_path: Path) -> None:
    orders = tmp_path / "orders.csv"
    write_shop(orders)
    results = quality.run(options("--train", str(orders), "--split", "2011-07-15", "--data", str(tmp_path)))
    for name in ("ndcg10_known", "recall20_known", "ndcg10_anonymous", "ndcg10_cold", "ndcg10_cold_abroad"):
        assert isinstance(results[name], float)
        assert isinstance(results[f"{name}_popularity"], float)
    for name in ("ndcg10_known", "ndcg10_anonymous"):
        ratio = results[f"{name}_over_popularity"]
        assert isinstance(ratio, float)
        assert ratio > 1.2
    assert results["cut"] == "2011-07-15T00:00:00+00:00"


def test_the_same_cut_by_two_files_or_by_date_asks_the_same(tmp_path: Path) -> None:
    whole, early, late = (tmp_path / name for name in ("whole.csv", "early.csv", "late.csv"))
    write_shop(whole)
    header, *lines = whole.read_text().splitlines(keepends=True)
    early.write_text(header + "".join(line for line in lines if line.split(",")[4] < "2011-07-15"))
    late.write_text(header + "".join(line for line in lines if line.split(",")[4] >= "2011-07-15"))
    by_date = quality.run(options("--train", str(whole), "--split", "2011-07-15"))
    by_files = quality.run(options("--train", str(early), "--test", str(late)))
    for name in ("known_customers", "anonymous_baskets", "abroad_baskets", "product_lines"):
        assert by_date[name] == by_files[name]
    assert by_date["ndcg10_known"] == pytest.approx(by_files["ndcg10_known"], rel=0.02)


def test_a_cut_with_nothing_on_one_side_is_refused(tmp_path: Path) -> None:
    orders = tmp_path / "orders.csv"
    write_shop(orders, days=5)
    with pytest.raises(CallerError, match="NO_QUESTIONS"):
        quality.run(options("--train", str(orders), "--split", "2012-01-01"))
    with pytest.raises(CallerError, match="BAD_ARGUMENT"):
        quality.run(options("--train", str(orders), "--split", "August"))
