# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "filelock", "matplotlib", "packaging", "pandas", "psutil", "scipy", "tqdm", "vl-convert-python",
# ]
# ///
"""How fast is this machine at all of it? Every experiment that it can run, in the time one has.

Each script is started for one number at a time (`--max_seconds`), in rounds, so that heat and drift
fall on all alike. What a start costs is learnt from the first ones; the rest of the time is divided
among the numbers that still fit. A run that was cut short goes on where it was when it is started
again with the same flags. Charts, the page, and how near other machines are come at the end.
Every script can be run by hand, and for longer, at any time.

    python run_all.py --minutes=30
"""

import argparse
import itertools
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

from tqdm import tqdm

from harness.arguments import CommandLine, device_name, machine_name, names_of, path_name, seconds
from harness.experiment import Experiment
from harness.launch import missing_packages
from harness.process import UsageError, UserError, run_in_fresh_process
from harness.results import UnreadableResults, read_rows
from harness.startup import one_line_errors, only_benchmark, require_writable
from harness.turns import Budget, Turn, memory_taken, recall, remember, run, too_large
from reporting.experiments import ROOT, find_experiments, script_of

PICTURES = 20.0  # seconds kept for charts and comparison
LOOK = 120.0  # with less than so many seconds for each experiment, each has its quick look only
INTERRUPTED = (129, 130, 143)  # exit codes of a script that a signal ended: HUP, INT, TERM
PRECISIONS = ("fp32", "bf16", "fp16")


def parse_arguments() -> argparse.Namespace:
    parser = CommandLine(__doc__)
    add = parser.add_argument
    add("--minutes", type=minutes, default=30.0, help="for everything; default: 30")
    add("--only", help='scripts whose names hold one of these, such as "pytorch, llama"')
    add("--skip", help="leave out scripts whose names hold one of these")
    add("--data", choices=["auto", "real", "synthetic"], default="auto")
    add("--device", type=device_name, default="auto", help="auto, cpu, mps, cuda or cuda:N")
    add("--precisions", type=names_of(PRECISIONS), default="fp32", help='such as "fp32, bf16"')
    add("--results_dir", type=path_name, default=Path("results"), help="default: %(default)s")
    add("--machine_name", type=machine_name, help="file the results under this name")
    add("--share", action="store_true", help="run nothing; bundle what this machine has measured")
    add("--dry_run", action="store_true", help="show the plan, run nothing")
    return parser.parse_args()


def minutes(text: str) -> float:
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0") from None


# What there is to do


def choose_experiments(options) -> tuple[list[Experiment], list[str]]:
    """The experiments to run, in the README's order, and a line for each one that cannot.

    Raises:
        UsageError: none is left.
    """
    chosen, left_out = [], []
    for experiment in sorted(find_experiments(), key=lambda e: e.place):
        script = script_of(experiment)
        if not named(script, options.only or "") or options.skip and named(script, options.skip):
            continue
        if missing := missing_packages(ROOT / script):
            install = f"python -m pip install {' '.join(missing)}"
            left_out.append(f"{script} needs {', '.join(missing)}: {install}")
        else:
            chosen.append(experiment)
    others = [experiment for experiment in chosen if experiment.backend != "mlx"]
    asked = "mlx" in (options.only or "")
    if others != chosen and not asked and mlx_computes_on(options.device) == "cpu":
        chosen = others
        left_out.append("MLX computes on the processor here, for hours; --only=mlx measures it")
    if not chosen:
        raise UsageError("; ".join(["--only, --skip: no experiment is left", *left_out]))
    return chosen, left_out


def named(script: str, parts: str) -> bool:
    """Whether the script's name holds one of the comma-separated parts."""
    return any(part.strip() in script for part in parts.split(","))


def mlx_computes_on(device: str) -> str | None:
    """The type of device that MLX takes for `--device`; None where it takes none."""
    return run_in_fresh_process(mlx_device_type, device).get("value")


def mlx_device_type(device: str) -> str:
    from harness.frameworks import mlx

    return mlx.choose_device(device).type


def all_turns(experiments: list[Experiment], options) -> list[Turn]:
    """Every number, in rounds: within a round first one of each framework, then the seconds."""
    quick = 60 * options.minutes / len(experiments) < LOOK
    ranked = []
    for number, experiment in enumerate(experiments):
        rank = sum(other.backend == experiment.backend for other in experiments[:number])
        points = [experiment.quick] if quick else default_points(experiment)
        precisions = [{"precision": name} for name in options.precisions]
        walk = itertools.product(precisions if experiment.epochs else [{}], points)
        for round_, (precision, point) in enumerate(walk):
            turn = Turn(ROOT / script_of(experiment), experiment, point | precision)
            ranked.append(((round_, rank, number), turn))
    return [turn for _, turn in sorted(ranked, key=lambda pair: pair[0])]


def default_points(experiment: Experiment) -> list[dict[str, str]]:
    """The flags of each point that the script would walk by itself."""
    lists = [
        [(varied.flag, value.strip()) for value in varied.default.split(",")]
        for varied in experiment.varied
    ]
    return [dict(point) for point in itertools.product(*lists)]


def show_plan(turns: list[Turn], budget: Budget) -> None:
    chosen, steady = budget.divide(turns)
    end = datetime.now() + timedelta(seconds=budget.left + PICTURES)
    print(f"{len(chosen)} of {len(turns)} numbers, about {steady:.0f} s of steady work for each:")
    for turn in chosen:
        print(f"  {turn.name}: about {budget.cost(turn) + steady:.0f} s")
    print(f"It ends at {end:%H:%M}; Ctrl-C is safe, the same command goes on.", flush=True)


# Running


def still_to_do(turns: list[Turn], state: dict) -> list[Turn]:
    """The turns that have not run; those too large, by what this run has seen, are named."""
    left = []
    for turn in turns:
        if turn.key in state["done"]:
            continue
        if why := too_large(turn, state["memory"]):
            tqdm.write(f"left out: {turn.name}: {why}")
        else:
            left.append(turn)
    return left


def run_turns(turns: list[Turn], budget: Budget, state: dict, options) -> None:
    """Start scripts until the time is used; what was done is remembered after each."""
    shared = {name: getattr(options, name) for name in ("data", "device", "results_dir")}
    if options.machine_name:
        shared["machine_name"] = options.machine_name
    with tqdm(total=round(budget.total), unit=" s", disable=None) as bar:
        while True:
            chosen, steady = budget.divide(turns)
            if not chosen:
                return
            turn = chosen[0]
            bar.set_description(turn.experiment.title)
            bar.update(round(budget.used) - bar.n)
            before = rows_of(turn.experiment, options)
            began = time.monotonic()
            code = run(turn, steady, shared, log_path(options))
            if code in INTERRUPTED:
                raise KeyboardInterrupt
            budget.learn(turn, time.monotonic() - began - steady)
            rows = rows_since(before, turn.experiment, options)
            tqdm.write(f"{turn.name}: {outcome(turn, rows, code)}")
            state["done"].append(turn.key)
            state["memory"] += memory_taken(turn, rows)
            state["machines"] += sorted({row["machine"] for row in rows} - {*state["machines"]})
            state |= {"used": budget.used, "costs": budget.costs}
            remember(state_path(options), state)
            turns = still_to_do(turns, state)


def rows_of(experiment: Experiment, options) -> dict[Path, list[dict[str, str]]]:
    """The rows of each file that holds an experiment's results."""
    own = experiment.results_path(options.results_dir, "*", "*")
    rows = {}
    for path in own.parent.glob(f"{own.stem}*.csv"):
        try:
            rows[path] = read_rows(path)[1]
        except UnreadableResults:
            continue  # its script, the charts and check_results.py say so
    return rows


def rows_since(before: dict[Path, list], experiment: Experiment, options) -> list[dict[str, str]]:
    """What was added to an experiment's files; they only grow, and only at their ends."""
    now = rows_of(experiment, options)
    return [row for path, rows in now.items() for row in rows[len(before.get(path, ())) :]]


def outcome(turn: Turn, rows: list[dict[str, str]], code: int) -> str:
    """What a turn has brought: the number, or why there is none."""
    speed = turn.experiment.speeds[0]
    numbers = [float(row[speed.column]) for row in rows if row.get(speed.column)]
    if numbers:
        return f"{sum(numbers) / len(numbers):,.4g} {speed.unit}"
    errors = [row["error"] for row in rows if row.get("error")]
    return errors[-1] if errors else f"no number (exit code {code}), see run_all.log"


# Pictures, and this machine among the others


def log_path(options) -> Path:
    return options.results_dir / "run_all.log"


def state_path(options) -> Path:
    return options.results_dir / ".run_all.json"


def show_results(options, machines: list[str]) -> None:
    from reporting.charts import draw_all
    from reporting.page import write_page
    from reporting.speeds import neighbours
    from reporting.tables import load_results

    results = load_results(options.results_dir)
    pictures = draw_all(results, options.results_dir)
    print(f"\nCharts: {len(pictures)} of them, in {options.results_dir}")
    print(f"Page: {write_page(results, options.results_dir)}")
    for machine in machines:
        print("\n".join(neighbours(results, machine, most=5)))


def newest_machine(options) -> str:
    """The machine of the newest row.

    Raises:
        UserError: there is no row.
    """
    files = [rows for e in find_experiments() for rows in rows_of(e, options).values()]
    rows = [row for rows in files for row in rows if row.get("machine")]  # older formats have none
    if not rows:
        raise UserError(f"--results_dir={options.results_dir}: no results there")
    return max(rows, key=lambda row: row["started_at"])["machine"]


def share(options) -> None:
    """Check the results, and bundle those of this machine."""
    from reporting.check import check_folder
    from reporting.share import bundle

    _, problems = check_folder(options.results_dir)
    if problems:
        raise UserError(f"--share: mend these first\n{chr(10).join(problems)}")
    path = bundle(options.results_dir, options.machine_name or newest_machine(options))
    print(f"Bundle: {path}\nUnpack it in a fork of the project, look at it, open a pull request.")


def main() -> None:
    options = parse_arguments()
    with one_line_errors([], options.results_dir), only_benchmark("run_all") as alone:
        require_writable(options.results_dir)
        if options.share:
            share(options)
            return
        if not alone:
            print("Note: another run_all.py is running: the two slow each other")
        experiments, left_out = choose_experiments(options)
        for line in left_out:
            print(f"left out: {line}")
        flags = {n: str(value) for n, value in vars(options).items() if n != "dry_run"}
        state = recall(state_path(options), flags)
        budget = Budget(60 * options.minutes - PICTURES, state["used"], state["costs"])
        if state["done"]:
            print(f"Going on: {len(state['done'])} numbers were measured before.")
        turns = still_to_do(all_turns(experiments, options), state)
        show_plan(turns, budget)
        if options.dry_run:
            return
        try:
            run_turns(turns, budget, state, options)
        except KeyboardInterrupt:
            print("\nThe same command goes on from here.", file=sys.stderr)
            raise
        state_path(options).unlink(missing_ok=True)
        if not state["done"]:
            raise UserError(f"--minutes={options.minutes:g}: too short for any number")
        if not state["machines"]:
            raise UserError(f"nothing was measured; why is in {log_path(options)}")
        show_results(options, state["machines"])


if __name__ == "__main__":
    main()
