"""The configuration: mistakes are refused whole, with the place, what was expected, and the name probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailorbird.engine import Engine
from tailorbird.engine.compiled import compile_configuration
from tailorbird.engine.configuration import parse_configuration, read_configuration
from tailorbird.engine.consent import DataType
from tailorbird.engine.errors import ConfigurationError
from tailorbird.server.commands import init
from tests.engine.shops import CONFIGURATION, open_shop

FEATURE = "features: [{name: views, signal: product_viewed, aggregate: count}]\n"


def refusal(text: str) -> ConfigurationError:
    """Return the error of a configuration after its version."""
    with pytest.raises(ConfigurationError) as caught:
        compile_configuration(f"version: 1\n{text}", 1, 1)
    return caught.value


def placement(rest: str) -> str:
    return f"{FEATURE}placements: [{{name: home, {rest}}}]"


@pytest.mark.parametrize(
    ("text", "typed", "meant"),
    [
        ("featuers: []", "`featuers` at `$`", "`features`"),
        ("limits: {map_byte: 5}", "`map_byte` at `$.limits`", "`map_bytes`"),
        ("statistics: {half_live: 3d}", "`half_live` at `$.statistics`", "`half_life`"),
        ("identity: {phone_regoin: GB}", "`phone_regoin` at `$.identity`", "`phone_region`"),
        ("features: [{name: a, signal: page_viewed, agregate: count}]", "`agregate` at `$.features[0]`", "`aggregate`"),
        (placement("rank: {recnt: [views]}"), "`recnt` at `$.placements[0].rank`", "`recent`"),
        (placement("retrieve: {poplar: 5}"), "`poplar` at `$.placements[0].retrieve`", "`popular`"),
        (placement("exclude_recents: [views]"), "`exclude_recents` at `$.placements[0]`", "`exclude_recent`"),
        ("features: [{name: a, signal: product_veiwed, aggregate: count}]", "'product_veiwed'", "'product_viewed'"),
        ("statistics: {signals: {order_complete: 1}}", "'order_complete'", "'order_completed'"),
        ("signals: [{name: rated, category: preferance}]", "'preferance'", "'preference'"),
        (placement("where: {brnd: [x]}"), "'brnd'", "'brand'"),
        (placement("exclude_recent: [vews]"), "'vews'", "'views'"),
    ],
)
def test_a_typo_is_answered_with_its_place_and_the_name_meant(text: str, typed: str, meant: str) -> None:
    message = refusal(text).message
    assert typed in message
    assert f"did you mean {meant}?" in message
    assert "tailorbird.yaml" in message


def test_an_unknown_field_that_is_like_none_is_answered_with_those_there_are() -> None:
    assert (
        "known are whole_catalogue, cooccurrence, popular, affinity, new"
        in refusal(placement("retrieve: {zzz: 5}")).message
    )


@pytest.mark.parametrize(
    ("text", "expected", "where"),
    [
        ("limits: {map_bytes: 1GB}", "expected `int`, got `str`", "$.limits.map_bytes"),
        ("limits: {event_age_max: 20}", "expected `str`, got `int`", "$.limits.event_age_max"),
        ("features: {views: count}", "expected `array`, got `object`", "$.features"),
        ("features: [{aggregate: count, signal: page_viewed}]", "missing required field `name`", "$.features[0]"),
        (placement("k: ten"), "expected `int`, got `str`", "$.placements[0].k"),
        (placement("k: 2.5"), "expected `int`, got `float`", "$.placements[0].k"),
        (placement("require_stock: 1"), "expected `bool`, got `int`", "$.placements[0].require_stock"),
        (placement("exclude: {bougth: 3d}"), "invalid enum value 'bougth'", "$.placements[0].exclude"),
        ("jurisdiction: optin", "invalid enum value 'optin'", "$.jurisdiction"),
        ("attributes: category", "expected `array`, got `str`", "$.attributes"),
    ],
)
def test_a_wrong_type_is_answered_with_what_was_expected_and_what_came(text: str, expected: str, where: str) -> None:
    message = refusal(text).message
    assert expected in message
    assert where in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            FEATURE.replace("]", ", {name: views, signal: page_viewed, aggregate: time_since}]"),
            "two features named 'views'",
        ),
        ("placements: [{name: home}, {name: home, k: 3}]", "two placements named 'home'"),
        (
            "signals: [{name: waved, category: behavioural}, {name: waved, category: behavioural}]",
            "two signals named 'waved'",
        ),
        ("attributes: [brand, brand]", "two attributes named 'brand'"),
    ],
)
def test_two_of_one_name_are_refused(text: str, what: str) -> None:
    error = refusal(text)
    assert error.reason == "DUPLICATE_NAME"
    assert what in error.message
    assert "rename one" in error.message


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("features: [{name: Views!, signal: page_viewed, aggregate: count}]", "BAD_NAME", "'Views!'"),
        ("statistics: {half_life: a week}", "BAD_DURATION", "statistics.half_life"),
        ("statistics: {half_life: 0d}", "BAD_DURATION", "statistics.half_life"),
        ("statistics: {strength: .nan}", "BAD_CONFIGURATION", "statistics.strength"),
        ("statistics: {signals: {order_completed: .inf}}", "BAD_CONFIGURATION", "statistics.signals.order_completed"),
        ("limits: {duplicate_window: 24}", "BAD_CONFIGURATION", "limits.duplicate_window"),
        ("limits: {duplicate_window: 24 hours}", "BAD_DURATION", "limits.duplicate_window"),
        ("limits: {batch_signals_max: 0}", "BAD_LIMIT", "limits.batch_signals_max"),
        ("limits: {map_bytes: -1}", "BAD_LIMIT", "limits.map_bytes"),
        ("embedding_dimension: -3", "BAD_CONFIGURATION", "embedding_dimension"),
        ("zone: Europe/Lundun", "BAD_CONFIGURATION", "Europe/Lundun"),
        ("zone: ../../etc/passwd", "BAD_CONFIGURATION", "zone"),
        ("state_sync: always", "BAD_CONFIGURATION", "commit or interval"),
        ("vocabulary: pizza", "BAD_CONFIGURATION", "ecommerce or none"),
        (
            "vocabulary: none\nstatistics: {signals: {}}\nfeatures: [{name: a, signal: page_viewed, aggregate: count}]",
            "UNKNOWN_SIGNAL",
            "page_viewed",
        ),
        ("signals: [{name: rated, category: preference, required: [stars]}]", "UNKNOWN_PROPERTY", "'stars'"),
        ("signals: [{name: rated, category: device}]", "BAD_CATEGORY", "behavioural, contextual, transactional"),
        (placement("k: 0"), "BAD_PLACEMENT", "limits.k_max = 200"),
        (placement("exclude: {bought: soon}"), "BAD_DURATION", "'home'"),
        (placement("rank: {recent: [views]}"), "BAD_PLACEMENT", "'views', which is count"),
        (placement("exclude_recent: [views]"), "BAD_PLACEMENT", "features of last_k"),
        (placement("rank: {affinity: {brand: views}}"), "BAD_PLACEMENT", "features of decayed_top_k"),
        (placement("rank: {vector: {features: [views]}}"), "BAD_PLACEMENT", "embedding_dimension = 0"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_used(text: str, reason: str, said: str) -> None:
    error = refusal(text)
    assert (error.reason, said in error.message) == (reason, True), error


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version: [1", "BAD_YAML"),
        ("version: !!python/object/apply:os.system [ls]\n", "BAD_YAML"),
        ("- a list", "BAD_CONFIGURATION"),
        ("", "BAD_CONFIGURATION"),
        ("features: []", "BAD_CONFIGURATION"),
        ("version: 2", "BAD_CONFIGURATION"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_configuration(text, "shop.yaml")
    assert caught.value.reason == reason
    assert "shop.yaml" in caught.value.message


def test_a_configuration_file_must_be_there_and_be_text(tmp_path: Path) -> None:
    path = tmp_path / "tailorbird.yaml"
    with pytest.raises(ConfigurationError, match=r"NO_CONFIGURATION.*tailorbird init"):
        read_configuration(path)
    path.write_bytes(b"version: 1 # \xff")
    with pytest.raises(ConfigurationError, match=r"BAD_YAML.*bad byte at 13"):
        read_configuration(path)


@pytest.mark.parametrize(
    "bad", ["featuers: []\n", "features: [{name: a, signal: page_viewed, aggregate: sum(nothing)}]\n"]
)
def test_a_bad_configuration_leaves_no_trace(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ConfigurationError):
        open_shop(tmp_path, f"version: 1\n{bad}")
    assert list(tmp_path.iterdir()) == []
    with open_shop(tmp_path) as engine:
        version, position = engine.decide(placement="home").configuration_version, engine.position
    with pytest.raises(ConfigurationError):
        open_shop(tmp_path, CONFIGURATION + bad)
    with open_shop(tmp_path) as engine:
        assert (engine.decide(placement="home").configuration_version, engine.position) == (version, position)


def test_a_configuration_comes_into_force_once(tmp_path: Path) -> None:
    for _ in range(3):
        with open_shop(tmp_path) as engine:
            assert engine.decide(placement="home").configuration_version == 1
            position = engine.position
    assert position == 1


def test_a_configuration_that_is_part_of_the_last_is_another(tmp_path: Path) -> None:
    longer = CONFIGURATION + "  - {name: cart}\n"
    with open_shop(tmp_path, longer) as engine:
        assert engine.decide(placement="cart").placement == "cart"
    with open_shop(tmp_path) as engine, pytest.raises(ValueError, match="UNKNOWN_PLACEMENT"):
        engine.decide(placement="cart")


def test_a_directory_keeps_its_own_configuration_file(tmp_path: Path) -> None:
    open_shop(tmp_path).close()
    with Engine.open(tmp_path / "shop") as engine:
        assert [p.name for p in engine.configuration.placements] == ["home"]


def test_every_preset_compiles_and_covers_its_signals() -> None:
    presets = sorted((Path(init.__file__).parents[2] / "engine" / "presets").glob("*.yaml"))
    assert presets
    for preset in presets:
        compiled = compile_configuration(preset.read_text(), 1, 1)
        assert compiled.configuration.placements
    shop = compile_configuration(next(p for p in presets if "retail" not in p.name).read_text(), 1, 1)
    categories = {shop.plans[name].type.category for f in shop.features.features for name in f.signals}
    assert categories == set(list(DataType)[:5])
