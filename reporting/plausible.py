"""What looks odd in results that are whole: for a human to judge, never a reason to refuse them."""

import pandas as pd

from reporting.speeds import is_good, measured_speeds, share_of_peak, speeds
from reporting.tables import Results

APART = 3.0  # times as fast or slow as the median of the same number on machines of the same name


def implausible(results: Results) -> list[str]:
    """A line for each number that a reader should look at before believing it."""
    return [
        *over_the_peak(results),
        *over_the_bandwidth(results),
        *far_from_its_like(results),
        *only_disturbed(results),
    ]


def over_the_peak(results: Results) -> list[str]:
    """More TFLOP/s than the best matrix product that was measured on the same machine."""
    shares = share_of_peak(results)
    odd = shares[shares["mfu_percent"] > 100]
    return [
        f"{row['label']}: {row['experiment']}, {row['test']}: {row['mfu_percent']:.0f} % of the "
        "peak that selfcheck measured there"
        for row in odd.to_dict("records")
    ]


def over_the_bandwidth(results: Results) -> list[str]:
    """More bytes per second than the memory was measured to give."""
    if "bandwidth_percent" not in results.generations:
        return []
    share = pd.to_numeric(results.generations["bandwidth_percent"])
    odd = results.generations[share > 110].drop_duplicates("label")
    return [
        f"{row['label']}: {row['bandwidth_percent']:.0f} % of the memory bandwidth that selfcheck "
        "measured there"
        for row in odd.to_dict("records")
    ]


def far_from_its_like(results: Results) -> list[str]:
    """Rows over `APART` times as fast or slow as others of the same number and machine name."""
    found = []
    for chart, rows in results.measurements.groupby("experiment", sort=False):
        experiment = results.experiments[chart]
        rows = measured_speeds(rows.assign(framework_major=""), experiment, experiment.speeds[0])
        rows = rows[is_good(rows)]
        key = ["protocol", "machine", "configuration", "test", "project_version"]
        like = rows.groupby(key, dropna=False)["speed"]
        ratio = rows["speed"] / like.transform("median")
        odd = rows[(like.transform("count") > 2) & ((ratio > APART) | (ratio < 1 / APART))]
        found += [
            f"{row['label']}: {experiment.title}, {row['test']}: {row['speed']:.4g} {row['unit']}, "
            f"{ratio[index]:.2g} times the median of its like ({row['started_at']})"
            for index, row in odd.iterrows()
        ]
    return found


def only_disturbed(results: Results) -> list[str]:
    """Numbers that stand on runs which others disturbed, because there are no other runs."""
    rows = speeds(results)
    rows = rows[is_good(rows) & (rows["disturbed"] == True)]  # noqa: E712
    return [
        f"{label}: {results.experiments[chart].title}, {'; '.join(group['test'])}: others "
        "disturbed every run; measure it again"
        for (label, chart), group in rows.groupby(["label", "experiment"], sort=False)
    ]
