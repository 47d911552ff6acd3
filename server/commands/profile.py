"""`tailorbird profile`: what is known about a person, and what consent permits."""

from __future__ import annotations

import argparse

import msgspec

from tailorbird.engine.consent import ConsentMasks, DataType, Purpose, bit
from tailorbird.engine.profile import FeatureStatus, FeatureValue, Profile
from tailorbird.server.commands.arguments import add_id_argument, identifiers, moment
from tailorbird.server.commands.data_directory import add_data_argument, opened
from tailorbird.server.moments import moment_text

PAIRS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_argument(parser)
    add_id_argument(parser, "a name the person is known by; may be repeated")
    parser.add_argument("--at", metavar="TIME", help="latest, a date, or milliseconds since 1970 (default: now)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    named = identifiers(arguments)
    with opened(arguments, read_only=True) as engine:
        at = moment(arguments.at, engine.latest_event_time) if arguments.at else 0
        profile = engine.profile(named, at=at)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(profile)).decode())
    else:
        print("\n".join(profile_lines(profile)))
    return 0


def profile_lines(profile: Profile) -> list[str]:
    """Return a profile as lines for people."""
    lines = [
        f"person {profile.person_id}: {profile.member_count} fragment(s), {profile.bought_count} item(s) bought",
        f"seen {moment_text(profile.first_seen)} to {moment_text(profile.last_seen)}",
        f"as of {moment_text(profile.at)}, log position {profile.position}",
        *(f"consent {line}" for line in consent_lines(profile.consent)),
        "",
    ]
    width = max((len(feature.name) for feature in profile.features), default=0)
    lines += [f"{feature.name:<{width}}  {feature_text(feature)}" for feature in profile.features]
    return lines


def consent_lines(masks: ConsentMasks) -> list[str]:
    """Return one line per data type and verb, such as `granted: behavioural/collect+profile`."""
    lines = []
    for verb, mask in (("granted", masks.granted), ("denied", masks.denied), ("restricted", masks.restricted)):
        targets = []
        for data_type in DataType:
            purposes = [purpose.name.lower() for purpose in Purpose if mask & bit(data_type, purpose)]
            if purposes:
                targets.append(f"{data_type.name.lower()}/{'+'.join(purposes)}")
        if targets:
            lines.append(f"{verb}: {', '.join(targets)}")
    return lines or ["none given"]


def feature_text(feature: FeatureValue) -> str:
    """Return a feature's value, age and status."""
    if feature.status is not FeatureStatus.FRESH and feature.value is None:
        return feature.status.name.lower()
    match feature.value:
        case str(text):
            value = text
        case tuple(entries):
            value = ", ".join(f"{key} {weight:.4g}" for key, weight in entries[:PAIRS_SHOWN])
            value += f", and {len(entries) - PAIRS_SHOWN} more" if len(entries) > PAIRS_SHOWN else ""
        case number:
            value = f"{number:.6g}" if number is not None else "-"
    age = f"  ({age_text(feature.age_ms)} old)" if feature.age_ms >= 0 else ""
    return value + age


def age_text(age_ms: int) -> str:
    """Return a span of time in the largest unit that fits."""
    for unit, length_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if age_ms >= length_ms:
            return f"{age_ms / length_ms:.3g} {unit}"
    return f"{age_ms} ms"
