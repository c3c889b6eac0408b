"""What the terminal says beside a number: true when there is a reason, else silent."""

import pytest
from result_files import training_row

from harness.terminal import verdicts

WAITED = {"compute_samples_per_second": 143.0, "input_bound_percent": 30.0}


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, ""),
        (WAITED, "input bound"),
        (WAITED | {"samples_per_second_ci95": None}, "input bound"),
        (WAITED | {"samples_per_second_ci95": 50.0}, ""),  # as far off by chance
        ({"compute_samples_per_second": 105.0, "input_bound_percent": 5.0}, ""),
        ({"sustained_ratio": 0.8}, "throttled, or slowed by another program"),
        ({"swap_written_gb": 1.0}, "swapped"),
        ({"extrapolated": True}, "extrapolated"),
        ({"data": "synthetic"}, "synthetic data"),
    ],
)
def test_verdicts(changed, said):
    calm = {"compute_samples_per_second": 100.0, "input_bound_percent": 0.0}
    found = verdicts(training_row("M", 32, 1.0, 100, **(calm | changed)))
    assert [sentence.partition(":")[0] for sentence in found] == ([said] if said else [])
