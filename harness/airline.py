"""The airline table: when flights leave, and whether they are over 15 minutes late.

benchm-ml's files (github.com/szilard/benchm-ml): flights of 2005 and 2006 to train on, of 2007 to
test. Categories are coded as whole numbers, as many people feed trees.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

import harness.data
from harness.process import UsageError
from harness.twins.airline import airline_table

URL = "https://s3.amazonaws.com/benchm-ml--main/"
TRAINING_FILES = {100_000: "train-0.1m.csv", 1_000_000: "train-1m.csv"}
TEST_FILE, TEST_ROWS = "test.csv", 100_000
NUMBERED = ["Month", "DayofMonth", "DayOfWeek"]  # such as `c-12`
NAMED = ["UniqueCarrier", "Origin", "Dest"]
COLUMNS = [*NUMBERED, "DepTime", *NAMED, "Distance"]
LABEL = "dep_delayed_15min"  # Y or N


class Table(NamedTuple):
    """float32 features (rows, 8) and int8 labels (rows,), and as many held out to test on."""

    features: np.ndarray
    labels: np.ndarray
    held_out_features: np.ndarray
    held_out_labels: np.ndarray


def fetch(options) -> None:
    """Bring the files that `options.rows` needs into the data directory.

    Nobody publishes their check sums: `read` makes sure of their columns and number of rows.

    Raises:
        DataUnreachable: the server does not answer, or breaks off.
        UsageError: the table has fewer rows.
    """
    for name in sorted({TEST_FILE, *map(training_file, options.rows)}):
        harness.data.download(URL + name, None, folder(options))


def load(rows: int, options) -> Table:
    """So many flights to train on, and 100,000 held out; real or made up, as `options.data` says.

    Raises:
        UserError: a file in the data directory is damaged.
    """
    if options.data == "synthetic":
        held_out = airline_table(TEST_ROWS, options.seed, part=1)
        return Table(*airline_table(rows, options.seed), *held_out)
    name = training_file(rows)
    whole = next(count for count, file in TRAINING_FILES.items() if file == name)
    train = read(name, whole, options).head(rows)
    test = read(TEST_FILE, TEST_ROWS, options)
    return Table(*encoded(train, train, test), *encoded(test, train, test))


def training_file(rows: int) -> str:
    """The smallest file with so many rows.

    Raises:
        UsageError: there is none.
    """
    for count, name in TRAINING_FILES.items():
        if rows <= count:
            return name
    raise UsageError(
        f"--rows={rows}: the real table has {max(TRAINING_FILES):,} rows; use --data=synthetic"
    )


def folder(options) -> Path:
    return options.data_dir / "airline"


def read(name: str, rows: int, options):
    """A file as a DataFrame; it must have so many rows.

    Raises:
        UserError: it is damaged.
    """
    import pandas as pd

    path = folder(options) / name
    try:
        table = pd.read_csv(path, usecols=[*COLUMNS, LABEL])
        if len(table) != rows or not table[LABEL].isin(["Y", "N"]).all():
            raise ValueError(f"{len(table)} rows, or labels besides Y and N, instead of {rows}")
    except (OSError, ValueError) as error:
        raise harness.data.unreadable("the airline table", error, path, options.data_dir) from None
    return table


def encoded(flights, train, test) -> tuple[np.ndarray, np.ndarray]:
    """float32 features (rows, 8) and int8 labels (rows,) of `flights`.

    Names are numbered in alphabetical order, over the training and the test rows.
    """
    features = np.empty((len(flights), len(COLUMNS)), np.float32)
    for place, column in enumerate(COLUMNS):
        values = flights[column]
        if column in NUMBERED:
            values = values.str.removeprefix("c-").astype(int) - 1
        elif column in NAMED:
            names = sorted({*train[column].unique(), *test[column].unique()})
            values = values.map({name: number for number, name in enumerate(names)})
        features[:, place] = values
    return features, (flights[LABEL] == "Y").to_numpy(np.int8)
