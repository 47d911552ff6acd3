"""The in-process engine: everything but the network."""

from tailorbird.engine.consent import Basis, ConsentChoice, DataType, Purpose, parse_choice
from tailorbird.engine.engine import Engine
from tailorbird.engine.errors import CallerError, InternalError, TailorbirdError, Unavailable
from tailorbird.engine.items import Item
from tailorbird.engine.profile import FeatureStatus, Profile
from tailorbird.engine.requests import DecideRequest, Decision, PagePart, PageRequest, Reason, Tier
from tailorbird.engine.signals import IngestReport, Outcome, Signal, Status

__all__ = [
    "Basis",
    "CallerError",
    "ConsentChoice",
    "DataType",
    "DecideRequest",
    "Decision",
    "Engine",
    "FeatureStatus",
    "IngestReport",
    "InternalError",
    "Item",
    "Outcome",
    "PagePart",
    "PageRequest",
    "Profile",
    "Purpose",
    "Reason",
    "Signal",
    "Status",
    "TailorbirdError",
    "Tier",
    "Unavailable",
    "parse_choice",
]
