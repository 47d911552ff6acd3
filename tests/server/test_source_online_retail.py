"""Order lines read as orders, refunds and items: the traps of the format, and files that break off."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.errors import CallerError
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Signal
from tailorbird.server.sources import FORMATS
from tailorbird.server.sources.batch import Counts
from tailorbird.server.sources.online_retail import LINES_PER_ORDER_MAX, product_id, read

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
NOON = "2011-01-05 12:00:00"


def line(invoice: str, code: str, **changes: str) -> str:
    fields = {
        "name": f"NAME OF {code}",
        "quantity": "2",
        "date": NOON,
        "price": "1.50",
        "customer": "17850",
        "country": "France",
    }
    fields |= changes
    return ",".join([invoice, code, *fields.values()]) + "\n"


def read_all(path: Path, **options: Any) -> tuple[list[Signal], list[Item], Counts]:
    counts = Counts()
    batches = list(read(path, counts=counts, **options))
    signals = [signal for batch in batches for signal in batch.signals]
    items = [item for batch in batches for item in batch.items]
    # Whatever the file holds, every line is accounted for and offsets ascend.
    assert counts.lines == counts.used.total() + counts.left_out.total() + counts.malformed
    assert counts.signals.total() == len(signals)
    assert counts.items == len(items)
    offsets = [signal.source_offset for signal in signals]
    assert offsets == sorted(set(offsets))
    return signals, items, counts


def read_text(tmp_path: Path, text: str, **options: Any) -> tuple[list[Signal], list[Item], Counts]:
    path = tmp_path / "orders.csv"
    path.write_text(text, "utf-8", newline="")
    return read_all(path, **options)


def test_an_invoice_is_one_order_with_its_lines(tmp_path: Path) -> None:
    text = HEADER + line("536365", "85123A") + line("536365", "71053", quantity="3", price="2.25", name='"BOX, RED"')
    consent = ConsentChoice(granted=1)
    signals, items, counts = read_text(tmp_path, text, consent=consent)
    (order,) = signals
    assert (order.type, order.identifiers, order.context) == (
        "order_completed",
        {"crm_id": "17850"},
        {"country": "France"},
    )
    assert order.event_time == 1_294_228_800_000  # noon in London in January is noon UTC
    assert order.properties == {
        "order_id": "536365",
        "revenue": 9.75,
        "currency": "GBP",
        "products": [
            {"product_id": "85123A", "name": "NAME OF 85123A", "price": 1.5, "quantity": 2},
            {"product_id": "71053", "name": "BOX, RED", "price": 2.25, "quantity": 3},
        ],
    }
    assert order.consent == consent
    assert order.source.startswith("online-retail:")
    assert [(item.id, item.name, item.price, item.currency) for item in items] == [
        ("85123A", "NAME OF 85123A", 1.5, "GBP"),
        ("71053", "BOX, RED", 2.25, "GBP"),
    ]
    assert counts.used == {"product_lines": 2}


def test_summer_time_of_the_shop_is_taken_off(tmp_path: Path) -> None:
    ((order,), _, _) = read_text(tmp_path, HEADER + line("1", "85123A", date="2011-07-05 12:00:00"))
    assert order.event_time == 1_309_863_600_000  # 11:00 UTC


def test_a_guest_is_a_visitor_of_one_basket(tmp_path: Path) -> None:
    text = HEADER + line("1", "85123A", customer="") + line("2", "85123A", customer="")
    signals, _, counts = read_text(tmp_path, text)
    assert [signal.identifiers for signal in signals] == [{"anonymous_id": "guest-1"}, {"anonymous_id": "guest-2"}]
    assert counts.facts == {"guest_invoices": 2}


def test_a_cancellation_is_a_refund_of_negative_revenue_and_puts_no_item(tmp_path: Path) -> None:
    signals, items, counts = read_text(tmp_path, HEADER + line("C1", "85123A", quantity="-4"))
    assert signals[0].type == "order_refunded"
    assert signals[0].properties["revenue"] == -6.0
    assert signals[0].properties["products"][0]["quantity"] == 4
    assert not items
    assert counts.used == {"refund_lines": 1}


def test_what_is_no_purchase_is_left_out_and_counted(tmp_path: Path) -> None:
    text = (
        HEADER
        + line("1", "POST")
        + line("1", "22222", price="0.0")
        + line("1", "22222", quantity="-5")
        + line("1", "22222", quantity="0")
        + line("C2", "22222", quantity="5")
        + line("A3", "B", price="11062.06")
    )
    signals, items, counts = read_text(tmp_path, text)
    assert not signals
    assert not items
    assert counts.left_out == {"not_a_product": 1, "zero_price": 1, "stock_correction": 3, "adjustment": 1}


@pytest.mark.parametrize("code", ["22222", "85123A", "15056BL", "DCGS0003", "DCGS0066P", "DCGSSBOY", "SP1002"])
def test_product_codes(code: str) -> None:
    assert product_id(code) == code
    assert product_id(f" {code.lower()} ") == code


CHARGES = ("POST", "DOT", "M", "m", "D", "S", "C2", "B", "CRUK", "PADS", "BANK CHARGES", "AMAZONFEE", "gift_0001_20")


@pytest.mark.parametrize("code", [*CHARGES, "TEST001", "ADJUST2", "", "1234", "22222 A"])
def test_codes_of_charges(code: str) -> None:
    assert product_id(code) is None


def test_one_code_in_two_cases_is_one_product(tmp_path: Path) -> None:
    signals, items, _ = read_text(tmp_path, HEADER + line("1", "85123A") + line("2", "85123a", name="NAME OF 85123A"))
    assert {signal.properties["products"][0]["product_id"] for signal in signals} == {"85123A"}
    assert len(items) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line("1", "22222", quantity="two"), "whole Quantity"),
        (line("1", "22222", quantity="1.5"), "whole Quantity"),
        (line("1", "22222", price=""), "decimal UnitPrice"),
        (line("1", "22222", price="nan"), "finite UnitPrice"),
        (line("1", "22222", price="inf"), "finite UnitPrice"),
        (line("1", "22222", date="yesterday"), "InvoiceDate"),
        (line("1", "22222", date="0001-01-01 00:00:00+23:59"), "InvoiceDate"),
        (line("", "22222"), "InvoiceNo"),
        (line("1", ""), "StockCode"),
        ("1,22222\n", "at least 8 fields"),
        (line("1", "22222", name="x" * 140_000), "CSV"),
    ],
)
def test_a_malformed_line_is_told_with_its_number_and_the_rest_is_read(bad: str, reason: str, tmp_path: Path) -> None:
    signals, _, counts = read_text(tmp_path, HEADER + line("7", "85123A") + bad + line("8", "85123A"))
    assert [signal.properties["order_id"] for signal in signals] == ["7", "8"]
    assert counts.malformed == 1
    assert counts.problems[0].line == 3
    assert reason in counts.problems[0].reason


def test_an_interrupted_invoice_is_one_order(tmp_path: Path) -> None:
    signals, _, _ = read_text(tmp_path, HEADER + line("1", "11111") + line("2", "11111") + line("1", "22222"))
    assert [len(signal.properties["products"]) for signal in signals] == [2, 1]


def test_an_order_has_bounded_lines(tmp_path: Path) -> None:
    signals, _, counts = read_text(tmp_path, HEADER + line("1", "11111") * (LINES_PER_ORDER_MAX + 3))
    assert len(signals[0].properties["products"]) == LINES_PER_ORDER_MAX
    assert counts.malformed == 3


def test_an_item_is_put_again_only_when_it_changed_and_ever_more_rarely(tmp_path: Path) -> None:
    steady = [line(str(invoice), "11111") for invoice in range(100, 200)]
    _, items, _ = read_text(tmp_path, HEADER + "".join(steady))
    assert len(items) == 1
    alternating = [line(str(invoice), "11111", price=str(1 + invoice % 2)) for invoice in range(100, 1_100)]
    _, items, _ = read_text(tmp_path, HEADER + "".join(alternating))
    assert 1 <= len(items) <= 10
    renamed = steady + [line(str(invoice), "11111", name="NEW") for invoice in range(200, 500)]
    _, items, _ = read_text(tmp_path, HEADER + "".join(renamed))
    assert [item.name for item in items] == ["NAME OF 11111", "NEW"]


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    text = "\ufeffCountry,CustomerID,UnitPrice,InvoiceDate,Quantity,Description,StockCode,InvoiceNo,More\n"
    signals, _, _ = read_text(tmp_path, text + f"Spain,1.0,2.5,{NOON},1,BOX,11111,9,x\n")
    assert signals[0].identifiers == {"crm_id": "1"}
    assert signals[0].context == {"country": "Spain"}


@pytest.mark.parametrize("text", ["", "\n", "x" * 140_000, HEADER.replace("Quantity,", ""), "{}\n"])
def test_a_missing_column_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(CallerError, match=r"MISSING_COLUMN.*Quantity.*line 1"):
        read_text(tmp_path, text)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="NO_SUCH_FILE"):
        read_all(tmp_path / "nothing.csv")
    with pytest.raises(CallerError, match="NO_SUCH_FILE"):
        read_all(tmp_path)


def broken_reading(path: Path, reason: str) -> list[Signal]:
    signals: list[Signal] = []
    with pytest.raises(CallerError, match=reason):
        signals.extend(signal for batch in read(path) for signal in batch.signals)
    return signals


def test_bad_utf8_names_line_and_byte_and_what_came_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    good = HEADER + "".join(line(str(invoice), "11111") for invoice in range(100, 120))
    path.write_bytes(good.encode() + b"200,22222,CAF\xe9,1,2011-01-05 12:00:00,1,1,France\n")
    signals = broken_reading(path, rf"BAD_UTF8.*0xe9.*line 22 \(byte {len(good) + 13} ")
    # The invoices that may still have had lines to come are not given: they come whole once the file is mended.
    whole = [str(invoice) for invoice in range(100, 120)]
    found = [signal.properties["order_id"] for signal in signals]
    assert found == whole[: len(found)]
    assert len(found) >= 10

    path.write_text(good)
    mended, _, _ = read_all(path)
    assert mended[: len(signals)] == signals
    assert [signal.properties["order_id"] for signal in mended] == whole


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_gzip_names_the_line_and_what_came_before_stays(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "orders.csv.gz"
    text = HEADER + "".join(line(str(invoice), f"{invoice * 7919 % 100_000:05}") for invoice in range(100_000, 103_000))
    whole_bytes = gzip.compress(text.encode())
    path.write_bytes(whole_bytes)
    whole, _, _ = read_all(path)
    damaged = bytearray(whole_bytes)
    if damage == "truncated":
        del damaged[len(damaged) * 3 // 4 :]
    else:
        damaged[-6] ^= 0xFF  # the check at the end
    path.write_bytes(damaged)
    signals = broken_reading(path, r"DAMAGED_FILE.*after line \d+")
    assert len(signals) > 1_000
    # The same source and offsets, so that the whole file adds only what is missing.
    assert signals == whole[: len(signals)]


def test_a_file_that_has_grown_repeats_its_source_and_offsets(tmp_path: Path) -> None:
    text = HEADER + "".join(line(str(invoice), "11111") for invoice in range(100, 110))
    before, _, _ = read_text(tmp_path, text)
    after, _, _ = read_text(tmp_path, text + line("110", "11111"))
    assert after[:10] == before
    other, _, _ = read_text(tmp_path, HEADER + line("500", "11111"))
    assert other[0].source != before[0].source


def test_the_real_file_is_read_whole(data_dir: Path) -> None:
    path = data_dir / "online-retail" / "transactions-2010-12-to-2011-09.csv.gz"
    signals, items, counts = read_all(path)
    assert counts.lines == 370_931
    assert counts.malformed == 0
    assert counts.left_out["adjustment"] == 3
    assert counts.used["product_lines"] > 360_000
    assert counts.signals["order_completed"] > 14_000
    assert counts.signals["order_refunded"] > 2_500
    orders = [signal for signal in signals if signal.type == "order_completed"]
    bought = {product["product_id"] for order in orders for product in order.properties["products"]}
    assert bought == {item.id for item in items}
    assert len(items) < 3 * len({item.id for item in items})


def test_both_formats_are_known_by_name() -> None:
    assert set(FORMATS) >= {"online-retail", "otto"}
