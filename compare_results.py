# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["filelock", "pandas", "psutil", "scipy", "tqdm"]
# ///
"""How many times as fast is one machine as another, and is the difference more than chance?

Compares what both measured under the same configuration: precision, compilation, memory format,
data, model, major version of the framework, version of the experiment, protocol. What differs is
named and left out unless --loose is given. The ratio is the speed of the first machine over that
of the second; its 95 % interval covers the variation within the runs, not what differs between
two days (repeat the runs for that, and see selfcheck.py's "differences below this mean nothing").
`disturbed` names the machine, first or second, that has only a run which others disturbed.

    python compare_results.py --list
    python compare_results.py Apple_M3_Pro_18GB_14_GPU_Cores NVIDIA_TITAN_RTX_24GB
    python compare_results.py --frameworks Apple_M3_Pro_18GB_14_GPU_Cores
"""

import argparse
import difflib
import itertools
import json
import math
import sys
from pathlib import Path

from harness.arguments import CommandLine, path_name
from harness.process import UsageError, UserError
from harness.startup import one_line_errors
from reporting.experiments import tag

CAUTION = (
    "Caution: frameworks are different programs. The ratios tell which of them trains this network "
    "faster on this machine; to compare machines, compare within one framework."
)


def prices(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        first = second = -1.0
    if not (0 < first < math.inf and 0 < second < math.inf):
        form = 'two prices above 0, such as "2000, 3200"'
        raise argparse.ArgumentTypeError(f"{text!r} is not {form}")
    return first, second


def parse_arguments() -> argparse.Namespace:
    parser = CommandLine(__doc__)
    add = parser.add_argument
    add("machines", nargs="*", metavar="MACHINE", help="two names, as --list shows them")
    add("--list", action="store_true", help="name the machines that have results")
    add("--frameworks", metavar="MACHINE",
        help="compare the frameworks on one machine, by the same network and data")  # fmt: skip
    add("--loose", action="store_true", help="compare different configurations too, and say so")
    add(
        "--prices",
        type=prices,
        help='of both, "2000, 3200", if not in prices.csv: adds the ratio of speed per price',
    )
    add("--format", choices=["table", "csv", "markdown", "json"], default="table")
    add("--results_dir", type=path_name, default=Path("results"), help="default: %(default)s")
    options = parser.parse_args()
    if not (options.list or options.frameworks) and len(options.machines) != 2:
        parser.error("give two machines, --frameworks and one, or --list")
    if options.frameworks and (options.machines or options.loose or options.prices):
        parser.error("--frameworks takes one machine, and neither --loose nor --prices")
    return options


def find_machine(name: str, machines: list[str]) -> str:
    """The machine of that name; upper and lower case, spaces and underscores are the same.

    Raises:
        UserError: there is none; it names the nearest ones.
    """
    names = {machine.lower(): machine for machine in machines}
    if found := names.get(tag(name).lower()):
        return found
    nearest = difflib.get_close_matches(tag(name).lower(), names, n=3, cutoff=0.3)
    hint = f"nearest: {', '.join(names[near] for near in nearest)}" if nearest else "see --list"
    raise UserError(f"no results of {name!r}; {hint}")


# What can be compared


def measured(results) -> list[dict]:
    """Every good number of every machine, with the `facts` that two must share to be compared."""
    from reporting.speeds import is_good, speeds

    rows = speeds(results, also_by=("data", "framework_major", "project_version"))
    return [
        {
            "experiment": (experiment := results.experiments[row["experiment"]]).title,
            "trained_by": trained_by(experiment, row),
            "device": row["settings"].get("device"),  # where it is not the machine's usual one
            "network": (experiment.task, experiment.model, experiment.dataset),
            "facts": facts(row),
            **{name: row[name] for name in ("machine", "configuration", "test", "unit")},
            **{name: row[name] for name in ("speed", "ci95", "higher_is_better", "disturbed")},
        }
        for row in rows[is_good(rows)].to_dict("records")
    ]


def trained_by(experiment, row: dict) -> tuple[str, str]:
    """The framework, and Keras' backend with it; and the rest of the test, such as `batch 32`."""
    named = [
        (varied.column == f"{experiment.backend}_backend", varied.named(value))
        for varied, value in zip(experiment.varied, row["varied"], strict=True)
    ]
    framework = " on ".join([experiment.title.partition(", ")[0], *(n for own, n in named if own)])
    return framework, ", ".join(n for own, n in named if not own)


def facts(row: dict) -> dict:
    """What keeps two numbers apart where it differs; what is off or unknown is left out."""
    both = {
        **{name: value for name, value in row["settings"].items() if name != "device"},
        "framework": row["framework_major"],
        **{name: row[name] for name in ("data", "project_version", "protocol")},
    }
    return {n: v for n, v in both.items() if v not in (None, False, "") and v == v}


def pair_up(numbers: list[dict], a: str, b: str, loose: bool) -> tuple[list[dict], list[str]]:
    """The comparisons of two machines, and what was refused, one line each."""
    tests = dict.fromkeys((n["experiment"], n["test"]) for n in numbers)  # in this order
    compared, refused = [], {}
    for test in tests:
        of_a, of_b = (
            [n for n in numbers if n["machine"] == m and (n["experiment"], n["test"]) == test]
            for m in (a, b)
        )
        pairs = [(x, y, differences(x, y)) for x in of_a for y in of_b]
        same = [pair for pair in pairs if not pair[2]]
        if pairs and not same:
            nearest = min(pairs, key=lambda pair: len(pair[2]))
            if loose:
                same = [nearest]
            else:
                reason = (test[0], "; ".join(nearest[2]))
                refused.setdefault(reason, []).append(test[1])
        compared += [comparison(x, y, differing) for x, y, differing in same]
    lines = [
        f"{experiment} ({', '.join(refused[experiment, reason])}): {reason}"
        for experiment, reason in refused
    ]
    return compared, lines


def pair_frameworks(numbers: list[dict], machine: str) -> list[dict]:
    """The comparisons of two frameworks on a machine: same network, data, sizes and precision.

    Each trains as its users do by default, which for some means compiled.
    """
    mine = [number for number in numbers if number["machine"] == machine]
    compared = []
    for x, y in itertools.combinations(mine, 2):
        (first, test), (second, other_test) = x["trained_by"], y["trained_by"]
        alike = all(x[name] == y[name] for name in ("network", "unit", "device"))
        alike = alike and test == other_test and as_usual(x) == as_usual(y)
        if not alike or first == second:
            continue
        if not differences(x, y, but=("framework", "compile")):
            # Titles begin with the framework.
            network = x["experiment"].partition(", ")[2]
            title = f"{network}: {first} / {second}"
            compared.append(comparison(x, y, []) | {"experiment": title, "test": test})
    return sorted(compared, key=lambda row: row["experiment"])


def as_usual(number: dict) -> str:
    """How a number's configuration differs from how the framework's users train."""
    words = number["configuration"]
    on_jax = number["trained_by"][0].endswith(" on jax")  # which always compiles
    return words.replace("compiled", "").strip() if on_jax else words


def differences(x: dict, y: dict, but: tuple[str, ...] = ()) -> list[str]:
    """What keeps two numbers from being compared, such as `data: real / synthetic`.

    Args:
        but: facts that may differ.
    """
    return [
        f"{name}: {x['facts'].get(name, 'none')} / {y['facts'].get(name, 'none')}"
        for name in dict.fromkeys([*x["facts"], *y["facts"]])
        if name not in but and x["facts"].get(name) != y["facts"].get(name)
    ]


# Ratios and their intervals


def comparison(x: dict, y: dict, differing: list[str]) -> dict:
    above, below = (x, y) if x["higher_is_better"] else (y, x)
    ratio, low, high = ratio_ci95(above["speed"], above["ci95"], below["speed"], below["ci95"])
    disturbed = " and ".join(n for n, one in (("first", x), ("second", y)) if one["disturbed"])
    return {
        **{name: x[name] for name in ("experiment", "configuration", "test")},
        **{"first": x["speed"], "second": y["speed"], "unit": x["unit"]},
        **{"ratio": ratio, "low": low, "high": high, "differs": "; ".join(differing)},
        "disturbed": disturbed,
    }


def ratio_ci95(
    above: float, above_ci95: float, below: float, below_ci95: float
) -> tuple[float, float, float]:
    """above / below with the limits of its 95 % interval, from the half-widths of both.

    The method of variance estimates recovery (MOVER): Donner and Zou, "Closed-form confidence
    intervals for functions of the normal mean and standard deviation", Statistical Methods in
    Medical Research 21 (2012), after Zou and Donner, Statistics in Medicine 27 (2008). Limits are
    NaN where a half-width is unknown.
    """
    ratio = above / below
    if math.isnan(above_ci95) or math.isnan(below_ci95):
        return ratio, math.nan, math.nan
    if below_ci95 >= below:
        return ratio, 0.0, math.inf
    # With symmetric intervals l(2m - l) = u(2m - u) = m**2 - h**2: the result is Fieller's.
    width = below**2 - below_ci95**2
    root = math.sqrt((above * below) ** 2 - (above**2 - above_ci95**2) * width)
    return ratio, (above * below - root) / width, (above * below + root) / width


def geometric_mean(rows: list[dict], **names) -> dict:
    """Of ratios, those of comparisons or means themselves, with the limits of its 95 % interval.

    Their errors are independent, so the half-widths of their logarithms add as squares.
    """
    mean = sum(math.log(row["ratio"]) for row in rows) / len(rows)
    below, above = (
        math.sqrt(sum(math.log(row[limit] / row["ratio"]) ** 2 for row in rows)) / len(rows)
        if all(0 < row[limit] < math.inf for row in rows)
        else math.nan
        for limit in ("low", "high")
    )
    limits = {"low": math.exp(mean - below), "high": math.exp(mean + above)}
    marks = {
        name: "some rows" if any(row.get(name) for row in rows) else ""
        for name in ("differs", "disturbed")
    }
    return {**names, "ratio": math.exp(mean), **limits, **marks}


def summarize(compared: list[dict]) -> list[dict]:
    """The comparisons, the geometric mean below each experiment, and that of all at the end."""
    lines, means = [], []
    for title in dict.fromkeys(row["experiment"] for row in compared):
        rows = [row for row in compared if row["experiment"] == title]
        if rows:
            mean = geometric_mean(rows, experiment=title, test="geometric mean")
            means.append(mean)
            lines += [*rows, mean]
    return [*lines, geometric_mean(means, experiment="all experiments", test="geometric mean")]


def verdict(row: dict) -> str:
    if math.isnan(row["low"]) or math.isnan(row["high"]):
        return "no interval"
    if row["low"] <= 1 <= row["high"]:
        return "no significant difference"
    return "first is faster" if row["ratio"] > 1 else "second is faster"


# Output


def known_prices(results, a: str, b: str) -> tuple[float, float] | None:
    """Prices of both machines in results/prices.csv, where they are in one currency."""
    first, second = (results.prices.get(machine) for machine in (a, b))
    if not first or not second or first["currency"] != second["currency"]:
        return None
    return first["price"], second["price"]


def show(lines: list[dict], heading: dict[str, str], options: argparse.Namespace) -> None:
    """Print the comparisons.

    Args:
        heading: what is compared, such as the `first` machine and the `second`.
    """
    import pandas as pd

    table = pd.DataFrame(lines)
    table["verdict"] = [verdict(row) for row in lines]
    if options.prices:
        first, second = options.prices
        table["speed_per_price_ratio"] = table["ratio"] * second / first
    if options.format == "json":
        rows = json.loads(table.to_json(orient="records"))
        print(json.dumps({**heading, "comparisons": rows}, indent=2, allow_nan=False))
        return
    table = table.drop(columns=[n for n in ("differs", "disturbed") if not table[n].any()])
    if options.format == "csv":
        print(table.to_csv(index=False), end="")
        return
    table = table.map(to_text)
    for name, value in heading.items():
        print(f"{name}: {value}")
    print("ratio: speed of the first over the second's\n")
    print(markdown(table) if options.format == "markdown" else table.to_string(index=False))


def to_text(cell) -> str:
    """Three digits of a number; nothing for an unknown one."""
    if not isinstance(cell, float):
        return str(cell)
    if math.isnan(cell):
        return ""
    return f"{cell:,.0f}" if cell >= 100 else f"{cell:#.3g}"


def markdown(table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def list_machines(numbers: list[dict], machines: list[str]) -> None:
    for machine in machines:
        mine = [number for number in numbers if number["machine"] == machine]
        older = " (2023)" if all(n["facts"]["protocol"] == "2023" for n in mine) else ""
        experiments = len({number["experiment"] for number in mine})
        print(f"{machine}: {len(mine)} numbers of {experiments} experiments{older}")


def show_frameworks(numbers: list[dict], machine: str, options: argparse.Namespace) -> None:
    """Raises UserError where no network was trained alike in two frameworks."""
    compared = pair_frameworks(numbers, machine)
    if not compared:
        raise UserError(f"{machine} trained no network on the same data in two frameworks")
    # A mean over different pairs of frameworks would mean nothing.
    *lines, _ = summarize(compared)
    show(lines, {"machine": machine}, options)
    print(CAUTION, file=sys.stderr)


def main() -> None:
    options = parse_arguments()
    with one_line_errors([], options.results_dir):
        from reporting.tables import load_results

        results = load_results(options.results_dir)
        for problem in results.problems:
            print(f"skipped: {problem}", file=sys.stderr)
        numbers = measured(results)
        machines = sorted({number["machine"] for number in numbers})
        if not machines:
            raise UserError(f"--results_dir={options.results_dir}: no results there")
        if options.list:
            list_machines(numbers, machines)
            return
        if options.frameworks:
            show_frameworks(numbers, find_machine(options.frameworks, machines), options)
            return
        a, b = (find_machine(name, machines) for name in options.machines)
        if a == b:
            raise UsageError(f"both machines are {a}")
        compared, refused = pair_up(numbers, a, b, options.loose)
        for line in refused:
            print(f"not compared: {line} (--loose compares it)", file=sys.stderr)
        if not compared:
            raise UserError(f"{a} and {b} measured nothing in common that can be compared")
        options.prices = options.prices or known_prices(results, a, b)
        show(summarize(compared), {"first": a, "second": b}, options)


if __name__ == "__main__":
    main()
