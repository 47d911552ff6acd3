"""Order lines of a web shop (UCI Online Retail, doi 10.24432/C5BW33) as orders, refunds and catalogue items.

An invoice is one signal: `order_completed`, or `order_refunded` where its number begins with C. Customers are known by
`crm_id`; a basket without a customer is a visitor of its own, `anonymous_id` "guest-" and the invoice number.

- Times in the file are the shop's local time, Europe/London; signals carry UTC.
- A product code is five digits with up to three letters (85123A), two to six letters with four digits (SP1002,
DCGS0066P),
  or DCGS with letters. Everything else (POST, M, BANK CHARGES, gift_0001_20, ...) is a charge, not a product. Codes are
  put in upper case: 85123a and 85123A are one product.
- A line is a purchase when its quantity and its price are above zero. Invoices that begin with another letter are
  adjustments of the books. Lines of negative quantity outside a refund are corrections of the stock.
- An item is put when its code is first bought, and looked at again after 2, 4, 8, ... lines: it is put again when the
  most used description since the last look has changed, or the most used price by more than 5 %. So an item is written
  at most log2(lines) times.
- `source_offset` is the line an invoice begins at: reading a file again, whole, mended or grown, repeats no offset for
  anything new. The lines of an invoice may be interrupted by other invoices; up to `OPEN_INVOICES_MAX` are held open.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tailorbird.engine.consent import ConsentChoice
from tailorbird.engine.errors import CallerError, Unavailable
from tailorbird.engine.items import Item
from tailorbird.engine.signals import Signal
from tailorbird.server.sources.batch import SIGNALS_PER_BATCH, Batch, Counts
from tailorbird.server.sources.text_lines import TextLines, source_name

COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
ZONE = "Europe/London"
CURRENCY = "GBP"
OPEN_INVOICES_MAX = 8
LINES_PER_ORDER_MAX = 2_000
PRICE_CHANGE_MIN = 0.05
_PRODUCT_CODE = re.compile(r"\d{5}[A-Z]{0,3}|[A-Z]{2,6}\d{4}[A-Z]?|DCGS[A-Z]+")


def product_id(stock_code: str) -> str | None:
    """Return the canonical id of a product code, None for a charge."""
    code = stock_code.strip().upper()
    return code if _PRODUCT_CODE.fullmatch(code) else None


def read(path: Path, *, consent: ConsentChoice | None = None, counts: Counts | None = None) -> Iterator[Batch]:
    """Yield the file's batches in order; see `Reader`.

    Beside `Reader`'s errors raises `CallerError` MISSING_COLUMN. An invoice that is still open where the file breaks
    off is not yielded: it comes whole when the file is read again.
    """
    return _Reading(path, consent, Counts() if counts is None else counts).batches()


class _Product:
    """What is known of one product code, and what was last put."""

    __slots__ = ("line_count", "look_at", "name", "names", "price", "prices")

    def __init__(self) -> None:
        self.line_count = 0
        self.look_at = 1
        self.names: Counter[str] = Counter()
        self.prices: Counter[float] = Counter()
        self.name = ""
        self.price = 0.0

    def look(self, code: str) -> Item | None:
        """Return the item to put, None when the one put before still holds."""
        self.look_at *= 2
        name = self.names.most_common(1)[0][0] if self.names else self.name
        price = self.prices.most_common(1)[0][0]
        self.names.clear()
        self.prices.clear()
        if name == self.name and abs(price - self.price) <= PRICE_CHANGE_MIN * self.price:
            return None
        self.name, self.price = name, price
        return Item(id=code, name=name, price=price, currency=CURRENCY)


class _Invoice:
    """An invoice whose lines are still coming."""

    __slots__ = ("country", "customer", "date", "line", "products", "refund", "revenue")

    def __init__(self, line: int, date: str, customer: str, country: str, *, refund: bool) -> None:
        self.line = line
        self.date = date
        self.customer = customer
        self.country = country
        self.refund = refund
        self.products: list[dict[str, Any]] = []
        self.revenue = 0.0


class _Reading:
    """One pass over one file."""

    def __init__(self, path: Path, consent: ConsentChoice | None, counts: Counts) -> None:
        self.path = path
        self.consent = consent
        self.counts = counts
        self.lines = TextLines(path)
        self.products: dict[str, _Product] = {}
        self.ids: dict[str, str | None] = {}
        self.open: OrderedDict[str, _Invoice] = OrderedDict()
        self.times: dict[str, int] = {}
        self.items: list[Item] = []
        self.signals: list[Signal] = []
        try:
            self.zone = ZoneInfo(ZONE)
        except ZoneInfoNotFoundError:
            raise Unavailable(
                "NO_TIME_ZONES", f"expected time zone data for {ZONE}, found none; `pip install tzdata` brings it"
            ) from None

    def batches(self) -> Iterator[Batch]:
        self.source = source_name("online-retail", self.path)
        rows = csv.reader(iter(self.lines))
        try:
            columns = self._columns(_header(rows))
            yield from self._rows(rows, columns)
        except CallerError:
            yield from self._rest()
            raise
        while self.open:
            self._close(self.open.popitem(last=False))
        yield from self._rest()

    def _columns(self, header: list[str]) -> list[int]:
        names = [name.strip().removeprefix("\ufeff") for name in header]
        missing = [column for column in COLUMNS if column not in names]
        if missing:
            raise CallerError(
                "MISSING_COLUMN",
                f"expected the columns {', '.join(COLUMNS)}, got {', '.join(names)[:200] or 'none'}: "
                f"{', '.join(missing)} missing, in {self.path} line 1; add the header or choose another --format",
            )
        return [names.index(column) for column in COLUMNS]

    def _rows(self, rows: Iterator[list[str]], columns: list[int]) -> Iterator[Batch]:
        at_invoice, at_code, at_name, at_quantity, at_date, at_price, at_customer, at_country = columns
        width = max(columns) + 1
        counts, ids, used, left_out = self.counts, self.ids, self.counts.used, self.counts.left_out
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                counts.lines += 1
                counts.malform(self.lines.line, f"expected a CSV line, got: {error}")
                continue
            if row is None:
                return
            if not row:
                continue
            counts.lines += 1
            if len(row) < width:
                counts.malform(self.lines.line, f"expected at least {width} fields, got {len(row)}")
                continue
            number, stock_code = row[at_invoice], row[at_code]
            try:
                quantity, price = int(row[at_quantity]), float(row[at_price])
            except ValueError:
                counts.malform(
                    self.lines.line,
                    "expected a whole Quantity and a decimal UnitPrice, got "
                    f"{row[at_quantity][:40]!r} and {row[at_price][:40]!r}",
                )
                continue
            if not number or not stock_code or not math.isfinite(price):
                counts.malform(self.lines.line, "expected an InvoiceNo, a StockCode and a finite UnitPrice")
                continue
            refund = number[0] in "Cc"
            if not refund and not number[0].isdigit():
                left_out["adjustment"] += 1
                continue
            try:
                code = ids[stock_code]
            except KeyError:
                code = ids[stock_code] = product_id(stock_code)
            if code is None:
                left_out["not_a_product"] += 1
                continue
            if (quantity < 0) != refund or quantity == 0:
                left_out["stock_correction"] += 1
                continue
            if price <= 0:
                left_out["zero_price"] += 1
                continue
            invoice = self.open.get(number)
            if invoice is None:
                date = row[at_date]
                if not self._known_time(date):
                    counts.malform(
                        self.lines.line, f"expected an InvoiceDate like 2010-12-01 08:26:00, got {date[:40]!r}"
                    )
                    continue
                customer = row[at_customer].strip().removesuffix(".0")
                invoice = _Invoice(self.lines.line, date, customer, row[at_country].strip(), refund=refund)
                self.open[number] = invoice
                if len(self.open) > OPEN_INVOICES_MAX:
                    self._close(self.open.popitem(last=False))
                    if len(self.signals) >= SIGNALS_PER_BATCH:
                        yield self._batch()
            elif len(invoice.products) == LINES_PER_ORDER_MAX:
                counts.malform(self.lines.line, f"expected at most {LINES_PER_ORDER_MAX} product lines in one invoice")
                continue
            name = row[at_name].strip()
            if refund:
                used["refund_lines"] += 1
            else:
                used["product_lines"] += 1
                self._observe(code, name, price)
            invoice.revenue += quantity * price
            invoice.products.append({"product_id": code, "name": name, "price": price, "quantity": abs(quantity)})

    def _observe(self, code: str, name: str, price: float) -> None:
        product = self.products.get(code)
        if product is None:
            product = self.products[code] = _Product()
        product.line_count += 1
        if name:
            product.names[name] += 1
        product.prices[price] += 1
        if product.line_count == product.look_at:
            item = product.look(code)
            if item is not None:
                self.items.append(item)

    def _known_time(self, date: str) -> bool:
        if date in self.times:
            return True
        try:
            local = datetime.fromisoformat(date)
            moment = (local if local.tzinfo else local.replace(tzinfo=self.zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            return False
        if len(self.times) > 4 * OPEN_INVOICES_MAX:
            # Kept for the open invoices and their neighbours; a file holds one time per invoice.
            for stale in list(self.times)[: 2 * OPEN_INVOICES_MAX]:
                if all(invoice.date != stale for invoice in self.open.values()):
                    del self.times[stale]
        self.times[date] = round(moment.timestamp() * 1000)
        return True

    def _close(self, numbered: tuple[str, _Invoice]) -> None:
        number, invoice = numbered
        if invoice.customer:
            identifiers = {"crm_id": invoice.customer}
        else:
            identifiers = {"anonymous_id": f"guest-{number}"}
            self.counts.facts["guest_invoices"] += 1
        kind = "order_refunded" if invoice.refund else "order_completed"
        self.counts.signals[kind] += 1
        self.signals.append(
            Signal(
                type=kind,
                event_time=self.times[invoice.date],
                identifiers=identifiers,
                properties={
                    "order_id": number,
                    "revenue": round(invoice.revenue, 2),
                    "currency": CURRENCY,
                    "products": invoice.products,
                },
                context={"country": invoice.country} if invoice.country else {},
                source=self.source,
                source_offset=invoice.line,
                consent=self.consent,
            )
        )

    def _batch(self) -> Batch:
        batch = Batch(tuple(self.items), tuple(self.signals))
        self.counts.items += len(self.items)
        self.items, self.signals = [], []
        return batch

    def _rest(self) -> Iterator[Batch]:
        if self.items or self.signals:
            yield self._batch()


def _header(rows: Iterator[list[str]]) -> list[str]:
    try:
        return next(rows, [])
    except csv.Error:
        return []
