"""Context from raw requests: what is derived, what callers say stands, what cannot be read, and that nothing raw is kept."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from tailorbird.engine import Item
from tailorbird.engine.context import RAW, ContextDeriver, Weather
from tailorbird.engine.context.devices import device_of
from tailorbird.engine.context.locations import Location, Locations
from tailorbird.engine.context.moments import moment_value
from tailorbird.engine.context.referrers import campaign_of, referrer_class
from tailorbird.engine.errors import ConfigurationError
from tests.engine.shops import START, assert_replays_to_the_same, ids, open_shop, signal

IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1"
WINDOWS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
)
IPAD = "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.6 Mobile/15E148 Safari/604.1"
PIXEL = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36"
GALAXY_TAB = (
    "Mozilla/5.0 (Linux; Android 13; SM-X700) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
)
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
LG_TV = "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/94.0.4606.128 Safari/537.36 WebAppManager"
BERLIN, AUCKLAND = "5.9.0.1", "27.252.10.10"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small database of two places."""
    writer = MMDBWriter(4, "Test-City", languages=["en"])
    for network, country, region, city, zone in (
        ("5.9.0.0/16", "DE", "BE", "Berlin", "Europe/Berlin"),
        ("27.252.0.0/16", "NZ", "AUK", "Auckland", "Pacific/Auckland"),
    ):
        writer.insert_network(
            IPSet([network]),
            {
                "country": {"iso_code": country},
                "subdivisions": [{"iso_code": region}],
                "city": {"names": {"en": city}},
                "location": {"time_zone": zone},
            },
        )
    path = tmp_path_factory.mktemp("mmdb") / "city.mmdb"
    writer.to_db_file(str(path))
    return path


def deriver(database: Path | None = None, *wanted: str) -> ContextDeriver:
    return ContextDeriver("UTC", ["shop.example"], wanted, str(database or ""))


# ---- each thing that is derived --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        (IPHONE, ("mobile", "ios", "mobile_safari")),
        (WINDOWS, ("desktop", "windows", "chrome")),
        (IPAD, ("tablet", "ios", "mobile_safari")),
        (PIXEL, ("mobile", "android", "chrome_mobile")),
        (GALAXY_TAB, ("tablet", "android", "chrome")),
        (GOOGLEBOT, ("bot", "", "googlebot")),
        (LG_TV, ("tv", "webos", "chrome")),
        ("", ("other", "", "")),
        ("\x00\ud800 nothing (((", ("other", "", "")),
    ],
)
def test_a_user_agent_says_the_device(user_agent: str, expected: tuple[str, str, str]) -> None:
    found = device_of(user_agent)
    assert found.device == expected[0]
    if expected[0] != "tv":
        assert found == expected


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_may_be_a_user_agent_a_referrer_or_a_page(text: str) -> None:
    assert device_of(text).device
    assert referrer_class(text, ["shop.example"])
    campaign_of(text)


def test_an_address_says_the_place_where_the_database_knows_it(database: Path) -> None:
    locations = Locations(database)
    assert locations.location_of(BERLIN) == Location("DE", "BE", "Berlin", "Europe/Berlin")
    assert locations.location_of(f"::ffff:{BERLIN}") == locations.location_of(BERLIN)
    for address in ("8.8.8.8", "10.0.0.1", "127.0.0.1", "::1", "5.9.0", "", "5.9.0.1; drop", "2a01:4f8::1"):
        assert locations.location_of(address) == Location()


def test_a_database_that_is_damaged_where_it_is_read_knows_nothing_there(tmp_path: Path, database: Path) -> None:
    whole, refused, lost = database.read_bytes(), 0, 0
    for place in range(0, len(whole), 3):
        for value in (0x00, 0xFF):
            path = tmp_path / f"{place}-{value}.mmdb"
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                found = [Locations(path).location_of(address) for address in (BERLIN, AUCKLAND)]
            except ConfigurationError:
                refused += 1
            else:
                lost += found.count(Location())
            path.unlink()
    assert refused > 0
    assert lost > 0


@pytest.mark.parametrize("content", [None, b"", b"no database", b"\xab\xcd\xefMaxMind.com" + b"\x00" * 40])
def test_a_broken_database_is_told_when_the_engine_opens(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "city.mmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="BAD_LOCATION_DATABASE: .*city.mmdb"):
        open_shop(tmp_path, f"version: 1\ncontext: {{location_database: {path}}}\nplacements: [{{name: home}}]\n")
    assert not (tmp_path / "shop" / "state").exists()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://www.google.co.uk/search?q=mugs", "search"),
        ("https://duckduckgo.com/", "search"),
        ("https://l.facebook.com/l.php?u=x", "social"),
        ("https://t.co/abc", "social"),
        ("https://mail.google.com/mail/u/0", "email"),
        ("https://www.shop.example/cart", "internal"),
        ("https://notshop.example/", "other"),
        ("android-app://com.google.android.gm/", "email"),
        ("", "direct"),
        ("http://[::1", "other"),
    ],
)
def test_a_referrer_has_a_class(url: str, expected: str) -> None:
    assert referrer_class(url, ["shop.example"]) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://shop.example/?utm_campaign=Spring&utm_medium=CPC", ("spring", "paid_search")),
        ("https://shop.example/?utm_medium=Newsletter", ("", "email")),
        ("https://shop.example/?gclid=abc", ("", "paid_search")),
        ("https://shop.example/?utm_medium=carrier-pigeon", ("", "other")),
        ("https://shop.example/p/1", ("", "")),
    ],
)
def test_a_page_s_address_says_the_campaign(url: str, expected: tuple[str, str]) -> None:
    assert campaign_of(url) == expected


def ms(*moment: int) -> int:
    return round(datetime(*moment, tzinfo=UTC).timestamp() * 1_000)  # type: ignore[arg-type, misc]


def test_the_local_time_is_the_visitor_s(database: Path) -> None:
    friday_evening = ms(2025, 1, 3, 19, 30)
    wanted = ("daypart", "hour", "weekday", "weekend", "season")
    derive = deriver(database, *wanted).derive

    def said(**sent: str) -> list[str]:
        found = derive(sent, friday_evening)
        return [found[name] for name in wanted]

    assert said() == ["evening", "19", "friday", "no", "winter"]
    assert said(ip=AUCKLAND) == ["morning", "8", "saturday", "yes", "summer"]
    assert said(ip=AUCKLAND, time_zone="America/New_York") == ["afternoon", "14", "friday", "no", "winter"]
    for nonsense in ("Mars/Olympus", "../../etc/passwd", "\x00", "a" * 300):
        assert said(time_zone=nonsense) == ["evening", "19", "friday", "no", "winter"]
    assert said(weekday="payday")[2] == "payday"
    assert moment_value("season", ms(2025, 10, 1), "America/Sao_Paulo") == "spring"
    for at in (-(2**63), 253_402_300_800_000, 2**63 - 1):
        assert moment_value("daypart", at, "Pacific/Auckland") in ("night", "morning", "afternoon", "evening")


def test_what_the_caller_says_stands_and_what_is_raw_goes(database: Path) -> None:
    sent = {
        "user_agent": IPHONE,
        "ip": BERLIN,
        "referrer_url": "",
        "page_url": "https://shop.example/?utm_campaign=x",
        "shop": "1",
    }
    found = deriver(database).derive(sent, START)
    assert found == {
        "shop": "1", "device": "mobile", "os": "ios", "browser": "mobile_safari", "country": "DE", "region": "BE", "city": "Berlin",
        "referrer": "direct", "campaign": "x",
    }  # fmt: skip
    said = deriver(database).derive({**sent, "device": "kiosk", "country": "FR"}, START)
    assert (said["device"], said["country"], "city" in said) == ("kiosk", "FR", False)
    assert RAW.isdisjoint(found)
    nothing = {"shop": "1"}
    assert deriver(database).derive(nothing, START) is nothing


# ---- weather ---------------------------------------------------------------------------------------------------------


def until(what: object) -> None:
    assert callable(what)
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_decision_waits_for_the_weather() -> None:
    may_answer, asked = threading.Event(), []
    now, failing = 0.0, False

    def provider(country: str, region: str, city: str) -> str | None:
        asked.append(country)
        may_answer.wait(30)
        if country == "XX" or failing:
            raise RuntimeError("no such country")
        return "rain"

    weather = Weather(provider, clock=lambda: now)
    try:
        assert weather.of("DE") is None
        assert weather.of("DE") is None
        may_answer.set()
        until(lambda: weather.of("DE") == "rain")
        assert asked == ["DE"]
        assert weather.of("XX") is None
        until(lambda: "XX" in asked)
        now = 1_000.0  # old enough to be asked for again, young enough to be used
        assert weather.of("DE") == "rain"
        until(lambda: asked.count("DE") == 2)
        failing = True
        now = 3_000.0  # a provider that fails makes nothing young again
        assert weather.of("DE") == "rain"
        until(lambda: asked.count("DE") == 3)
        now = 4_700.0
        assert weather.of("DE") is None
        may_answer.clear()
        assert weather.of("") is None
        may_answer.set()
    finally:
        weather.close()


# ---- a stranger with nothing but their request -----------------------------------------------------------------------

SHOP = """\
version: 1
limits: {map_bytes: 134217728}
context: {location_database: DATABASE, own_hosts: [shop.example]}
statistics:
  signals: {order_completed: 1}
  levels: [[country], [country, device]]
features:
  - {name: last_device, signal: page_viewed, aggregate: last(context.device)}
  - {name: last_referrer, signal: page_viewed, aggregate: last(context.referrer)}
placements:
  - {name: home, k: 2, retrieve: {whole_catalogue: true}}
"""


def order(number: int, item: str, context: dict[str, str]) -> object:
    made = signal(f"o{number}", "order_completed", who={"user_id": f"u{number}"}, products=[{"product_id": item}])
    return msgspec.structs.replace(made, context=context)


def test_raw_headers_alone_choose_the_cell_and_nothing_raw_is_kept(tmp_path: Path, database: Path) -> None:
    with open_shop(tmp_path, SHOP.replace("DATABASE", str(database))) as engine:
        engine.put_items([Item(id=name) for name in ("stein", "pretzel", "kiwi", "sheep")])
        orders, number = [], 0
        for ip, agent, item, count in (
            (BERLIN, IPHONE, "stein", 30), (BERLIN, WINDOWS, "pretzel", 30), (AUCKLAND, IPHONE, "kiwi", 30),
            (AUCKLAND, WINDOWS, "sheep", 30),
        ):  # fmt: skip
            for _ in range(count):
                number += 1
                orders.append(order(number, item, {"ip": ip, "user_agent": agent}))
        assert {outcome.status for outcome in engine.ingest(orders).outcomes} == {"applied"}
        engine.tick()

        def best(**context: str) -> str:
            return ids(engine.decide(placement="home", context=context))[0]

        assert best(ip=BERLIN, user_agent=PIXEL) == "stein"
        assert best(ip=BERLIN, user_agent=WINDOWS) == "pretzel"
        assert best(ip=AUCKLAND, user_agent=IPHONE) == "kiwi"
        assert best(country="NZ", user_agent=WINDOWS) == "sheep"
        engine.log_decisions()
        event = msgspec.structs.replace(signal("e", "page_viewed"), context={"user_agent": IPAD})
        said = engine.decide(placement="home", context={"ip": BERLIN, "user_agent": IPHONE}, events=(event,))
        assert "country=DE" in str(said)
        assert BERLIN not in str(said)
        view = msgspec.structs.replace(
            signal("p", "page_viewed"),
            context={"user_agent": IPAD, "referrer_url": "https://www.bing.com/?q=secret", "ip": BERLIN},
        )
        engine.ingest([view])
        found = engine.get_features("anonymous_id", ["v1"], ["last_device", "last_referrer"])
        assert (found.texts["last_device"], found.texts["last_referrer"]) == (["tablet"], ["search"])
    assert_replays_to_the_same(tmp_path)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "shop").rglob("*") if path.is_file())
    for raw in (BERLIN, AUCKLAND, "Mozilla", "bing.com", "secret"):
        assert raw.encode() not in stored


def test_the_weather_of_the_place_chooses_the_cell(tmp_path: Path, database: Path) -> None:
    text = SHOP.replace("DATABASE", str(database)).replace("[[country], [country, device]]", "[[weather]]")
    with open_shop(tmp_path, text) as engine:
        engine.put_items([Item(id=name) for name in ("umbrella", "sunhat")])
        orders = [
            order(n, "umbrella" if n % 2 else "sunhat", {"weather": "rain" if n % 2 else "sun"}) for n in range(60)
        ]
        engine.ingest(orders)
        engine.tick()
        engine.use_weather(lambda country, region, city: "rain" if city == "Berlin" else "sun")
        for ip, item in ((BERLIN, "umbrella"), (AUCKLAND, "sunhat")):
            until(lambda ip=ip, item=item: ids(engine.decide(placement="home", context={"ip": ip}))[0] == item)
        assert ids(engine.decide(placement="home", context={"ip": BERLIN, "weather": "sun"}))[0] == "sunhat"
