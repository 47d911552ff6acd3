"""The people of the generated shop: households, tastes, accounts, and the devices they use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.bench.worlds.catalogue import CATEGORIES
from tailorbird.bench.worlds.context import COUNTRY_SHARES, DIMENSIONS

MOBILE, DESKTOP, TABLET = range(len(DIMENSIONS["device"]))
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")


@dataclass(frozen=True, slots=True)
class People:
    """Columns over people p and devices d.

    `devices__pk` has the device number of each kind k (mobile, desktop, tablet), -1 where there is none; a tablet
    belongs to the household. Tastes are log-odds per category and brand, and a direction in the items' style space.
    """

    household__p: NDArray[np.int32]
    country__p: NDArray[np.int32]
    taste_category__pc: NDArray[np.float32]
    taste_brand__pb: NDArray[np.float32]
    taste_style__pd: NDArray[np.float32]
    activity__p: NDArray[np.float64]
    has_account__p: NDArray[np.bool_]
    has_crm__p: NDArray[np.bool_]
    refuses__p: NDArray[np.bool_]
    age_band__p: NDArray[np.int32]
    devices__pk: NDArray[np.int32]
    device_count: int

    def __len__(self) -> int:
        return len(self.household__p)

    def device_share__p(self, kind: int) -> NDArray[np.float64]:
        """Return the share of each person's visits made on a kind of device: equal over the devices they have."""
        owned__pk = self.devices__pk >= 0
        share: NDArray[np.float64] = owned__pk[:, kind] / owned__pk.sum(axis=1)
        return share


def draw_people(
    rng: np.random.Generator,
    *,
    people_count: int,
    brand_count: int,
    style_dimension: int,
    taste_strength: float,
    account_share: float,
    crm_share: float,
    shared_tablet_share: float,
    refusing_share: float,
) -> People:
    """Return the people: households of 1 to 4 in one country, log-normal activity (sigma 0.8, mean 1).

    Tastes are N(0, 0.9) per category, N(0, 0.4) per brand and N(0, 0.9) per style direction, times `taste_strength`.
    Everybody has a phone, half a desktop computer; `shared_tablet_share` of the households of two and more a tablet.
    """
    size__h = rng.choice([1, 2, 3, 4], people_count, p=[0.4, 0.3, 0.15, 0.15])
    household__p = np.repeat(np.arange(people_count, dtype=np.int32), size__h)[:people_count]
    household_count = int(household__p[-1]) + 1
    country__h = rng.choice(len(COUNTRY_SHARES), household_count, p=COUNTRY_SHARES).astype(np.int32)

    devices__pk = np.full((people_count, len(DIMENSIONS["device"])), -1, dtype=np.int32)
    devices__pk[:, MOBILE] = np.arange(people_count)
    has_desktop = rng.random(people_count) < 0.5
    devices__pk[has_desktop, DESKTOP] = people_count + np.arange(has_desktop.sum())
    device_count = people_count + int(has_desktop.sum())
    shares_tablet__h = (rng.random(household_count) < shared_tablet_share) & (size__h[:household_count] > 1)
    tablet__h = np.where(shares_tablet__h, device_count + np.cumsum(shares_tablet__h) - 1, -1)
    devices__pk[:, TABLET] = tablet__h[household__p]
    device_count += int(shares_tablet__h.sum())

    activity__p = np.exp(rng.normal(0.0, 0.8, people_count))
    has_account__p = rng.random(people_count) < account_share
    return People(
        household__p=household__p,
        country__p=country__h[household__p],
        taste_category__pc=_tastes(rng, (people_count, len(CATEGORIES)), 0.9 * taste_strength),
        taste_brand__pb=_tastes(rng, (people_count, brand_count), 0.4 * taste_strength),
        taste_style__pd=_tastes(rng, (people_count, style_dimension), 0.9 * taste_strength),
        activity__p=activity__p / activity__p.mean(),
        has_account__p=has_account__p,
        has_crm__p=has_account__p & (rng.random(people_count) < crm_share),
        refuses__p=rng.random(people_count) < refusing_share,
        age_band__p=rng.integers(0, len(AGE_BANDS), people_count, dtype=np.int32),
        devices__pk=devices__pk,
        device_count=device_count,
    )


def _tastes(rng: np.random.Generator, shape: tuple[int, int], deviation: float) -> NDArray[np.float32]:
    drawn = rng.standard_normal(shape, dtype=np.float32)
    drawn *= np.float32(deviation)
    return drawn


def user_id(person: int) -> str:
    """Return the account's id of a person."""
    return f"user-{person:07d}"


def crm_id(person: int) -> str:
    """Return the customer number of a person."""
    return f"crm-{person:07d}"


def cookie(device: int, generation: int) -> str:
    """Return the anonymous id a device carries in its nth life; clearing cookies begins another."""
    return f"visitor-{device:07d}-{generation}"
