"""A made-up table of flights: columns, categories and class balance of the airline table.

Drawn in seconds, the same for everybody who gives the same seed. Imports no ML framework.
"""

from datetime import date, timedelta
from typing import NamedTuple

import numpy as np

CARRIERS, AIRPORTS = 22, 289  # as many as in benchm-ml's 100,000 rows
REGIONS = 12  # airports that share their weather
YEARS_DAYS = 730  # the real training rows are of two years, which no column tells apart
DELAYED = 0.19  # share of flights over 15 minutes late
# Standard deviations of the effects, in units of the noise's scale. Chosen so that XGBoost's 100
# trees of depth 10 reach on it what they reach on the real table: an AUC of 0.73 from 100,000 rows
# (0.7285 here) and of 0.75 from 1,000,000 (0.7538).
HOUR, CARRIER, ORIGIN, DEST, MONTH, DAY_OF_WEEK, WEATHER = 0.9, 0.35, 0.4, 0.35, 0.3, 0.25, 0.7


class Law(NamedTuple):
    """What makes flights late, and how often which flights are: the same for every table."""

    carrier_share: np.ndarray  # (CARRIERS,)
    airport_share: np.ndarray  # (AIRPORTS,)
    places: np.ndarray  # (AIRPORTS, 2), in miles
    region: np.ndarray  # (AIRPORTS,)
    carrier: np.ndarray
    origin: np.ndarray
    dest: np.ndarray
    month: np.ndarray
    day_of_week: np.ndarray
    weather: np.ndarray  # (12, 31, REGIONS)


def airline_table(rows: int, seed: int, part: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Flights in the columns of `harness.airline.COLUMNS`, and whether each was late.

    A flight's delay is the sum of an effect of each column (it grows through the day), of weather
    that airports of a region share on a day, and of logistic noise; the longest delays are late.

    Args:
        seed: of the law that makes flights late, and of the flights.
        part: 0 for a training table, 1 for the held-out one of the same law.

    Returns:
        float32 (rows, 8), categories as whole numbers from 0 on, and int8 (rows,) of 0 and 1.
    """
    law = draw_law(np.random.default_rng([seed, 2]))
    random = np.random.default_rng([seed, part])
    days = [date(2005, 1, 1) + timedelta(days) for days in range(YEARS_DAYS)]
    calendar = np.array([(day.month - 1, day.day - 1, day.weekday()) for day in days])
    month, day, weekday = calendar[random.integers(YEARS_DAYS, size=rows)].T
    minutes = random.triangular(5 * 60, 16 * 60, 24 * 60, rows).astype(np.int32)
    carrier = random.choice(CARRIERS, rows, p=law.carrier_share)
    origin = random.choice(AIRPORTS, rows, p=law.airport_share)
    dest = random.choice(AIRPORTS, rows, p=law.airport_share)
    dest[dest == origin] = (dest[dest == origin] + 1) % AIRPORTS
    distance = np.hypot(*(law.places[origin] - law.places[dest]).T) + 30
    delay = (
        HOUR * (minutes - 15 * 60) / (4 * 60)
        + CARRIER * law.carrier[carrier]
        + ORIGIN * law.origin[origin]
        + DEST * law.dest[dest]
        + MONTH * law.month[month]
        + DAY_OF_WEEK * law.day_of_week[weekday]
        + WEATHER * law.weather[month, day, law.region[origin]]
        + random.logistic(size=rows)
    )
    late = delay > np.quantile(delay, 1 - DELAYED)
    table = np.empty((rows, 8), np.float32)
    clock = minutes // 60 * 100 + minutes % 60  # 17:05 is 1705
    columns = [month, day, weekday, clock, carrier, origin, dest, distance.astype(int)]
    for place, column in enumerate(columns):
        table[:, place] = column
    return table, late.astype(np.int8)


def draw_law(random: np.random.Generator) -> Law:
    """Shares fall as 1 / rank, the ranks in random order, because codes are alphabetical."""
    return Law(
        carrier_share=shares(random, CARRIERS),
        airport_share=shares(random, AIRPORTS),
        places=random.uniform((0, 0), (2600, 1200), (AIRPORTS, 2)),
        region=random.integers(REGIONS, size=AIRPORTS),
        carrier=random.standard_normal(CARRIERS),
        origin=random.standard_normal(AIRPORTS),
        dest=random.standard_normal(AIRPORTS),
        month=random.standard_normal(12),
        day_of_week=random.standard_normal(7),
        weather=random.standard_normal((12, 31, REGIONS)),
    )


def shares(random: np.random.Generator, count: int) -> np.ndarray:
    weights = 1 / (3 + random.permutation(count))
    return weights / weights.sum()
