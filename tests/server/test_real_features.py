"""Recency, frequency and value of every real customer, against a plain query of the same file."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from tailorbird.engine import Engine
from tailorbird.server.cli import main

ORDERS = "online-retail/transactions-2010-12-to-2011-09.csv.gz"
# Written from what the file holds, not from how it is read: invoices that begin with C take back, product codes are five
# digits with up to three letters, or letters with four digits; what has no price is given away.
QUERY = """
with lines as (
    select InvoiceNo, CustomerID::bigint::varchar as customer, InvoiceNo like 'C%' as taken_back,
           Quantity::bigint * UnitPrice::decimal(18, 4) as value,
           timezone('UTC', timezone('Europe/London', InvoiceDate::timestamp)) as placed
    from read_csv('{path}', all_varchar = true)
    where CustomerID is not null and UnitPrice::double > 0
      and regexp_full_match(upper(trim(StockCode)), '[0-9]{{5}}[A-Z]{{0,3}}|[A-Z]{{2,6}}[0-9]{{4}}[A-Z]?|DCGS[A-Z]+')
      and (InvoiceNo like 'C%' and Quantity::bigint < 0 or regexp_matches(InvoiceNo, '^[0-9]') and Quantity::bigint > 0)
), invoices as (  -- a few go on into the next minute: an invoice is of the minute it begins in
    select customer, InvoiceNo, taken_back, sum(value) as value, min(placed) as placed
    from lines group by all
)
select customer,
       count(*) filter (not taken_back) as orders,
       sum(value)::double as spend,
       epoch_ms(max(placed) filter (not taken_back)) as last_order
from invoices group by customer order by customer
"""


@pytest.fixture(scope="module")
def path(data_dir: Path) -> Path:
    return data_dir / ORDERS


def test_value_of_every_customer_is_a_plain_query_s_to_the_penny(path: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    assert main(["init", str(shop), "--preset", "online-retail"]) == 0
    consent = ("--consent", "granted:transactional", "--basis", "contract")
    assert main(["ingest", "--data", str(shop), "--format", "online-retail", str(path), *consent]) == 0
    expected = {customer: row for customer, *row in duckdb.sql(QUERY.format(path=path)).fetchall()}
    assert len(expected) > 3_000
    names = ["orders", "spend", "last_order", "recency_days", "average_order"]
    with Engine.open(shop, read_only=True) as engine:
        at = engine.latest_event_time + 86_400_000
        customers = list(expected)
        returned = 0
        for start in range(0, len(customers), 1_000):
            asked = customers[start : start + 1_000]
            table = engine.get_features("crm_id", asked, names, at=at)
            assert table.known.all()
            for customer, (orders, spend, since, days, average) in zip(asked, table.values.tolist(), strict=True):
                wanted_orders, wanted_spend, wanted_last = expected[customer]
                assert round(spend, 2) == round(wanted_spend, 2), (customer, spend, wanted_spend)
                if not wanted_orders:  # all they ever did in these months was to return
                    returned += 1
                    assert orders != orders, customer
                    continue
                assert orders == wanted_orders, customer
                assert since == (at - wanted_last) / 1_000, customer
                assert days == since / 86_400
                assert average == spend / orders
        assert 0 < returned < 100
