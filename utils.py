"""The face that scripts see: what an experiment is, its command line, its sweep.

Imports no ML framework, so that `--help` and a bad argument answer at once.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import harness.soak
from harness.arguments import (
    CommandLine,
    device_name,
    fraction,
    machine_name,
    names_of,
    number_or_all,
    path_name,
    seconds,
    seed,
    whole_number,
    whole_numbers,
)
from harness.awake import stay_awake
from harness.columns import MACHINE_COLUMNS, columns_of
from harness.environment import settle_environment
from harness.experiment import Experiment, Speed, Varied, batch_sizes
from harness.launch import require_script
from harness.machine import other_load
from harness.process import FreshProcess, UsageError, UserError
from harness.results import read_rows
from harness.startup import (
    one_line_errors,
    only_benchmark,
    raise_open_files_limit,
    require_saving,
    require_writable,
)
from harness.sweep import (
    failed,
    find_max_batch_size,
    goes_on,
    measure_all,
    one_by_one,
    save,
    settle,
)
from harness.terminal import announce, report, summarize
from harness.torchrun import on_ranks

__all__ = [
    "MACHINE_COLUMNS",
    "Experiment",
    "Speed",
    "UsageError",
    "UserError",
    "Varied",
    "batch_sizes",
    "columns_of",
    "sweep",
]


def parse_arguments(experiment: Experiment) -> argparse.Namespace:
    """The flags of an experiment; bad usage ends the program with exit code 2."""
    parser = CommandLine(experiment.description)
    add = parser.add_argument
    if experiment.epochs:
        add("--epochs", type=whole_number, default=experiment.epochs, help="default: %(default)s")
    for varied in experiment.varied:
        kind = whole_numbers
        if varied.choices:
            kind = names_of(varied.choices, varied.numbers)
        add(f"--{varied.flag}", type=kind, default=varied.default,
            help='comma-separated, walked in this order; default: "%(default)s"')  # fmt: skip
    if experiment.epochs and len(experiment.varied) == 1:
        add("--find_max_batch_size", action="store_true",
            help="find the largest that fits into memory, and measure that one")  # fmt: skip
    add("--repeats", type=whole_number, default=1, help="measure every point so often, in rounds")
    add(f"--shuffle_{experiment.walked}", dest="shuffle", action="store_true",
        help="walk them in random order (--seed)")  # fmt: skip
    add("--max_seconds", type=seconds, help="end each measurement after this much steady work")
    add("--data", choices=["auto", "real", "synthetic"], default="auto",
        help="auto: synthetic when the real data cannot be reached")  # fmt: skip
    add("--data_dir", type=path_name, default=Path("data"), help="default: %(default)s")
    add("--device", type=device_name, default="auto", help="auto, cpu, mps, cuda or cuda:N")
    if experiment.epochs:
        add("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
        harness.soak.add_flag(add)
        add("--compile", action=argparse.BooleanOptionalAction, default=experiment.compile,
            help="compile the model")  # fmt: skip
    if experiment.backend in ("pytorch", "tensorflow") and experiment.epochs:
        add("--num_devices", type=number_or_all, default=1,
            help="devices that train together, or all; batch sizes are those of each")  # fmt: skip
    if experiment.backend == "pytorch":
        add_rank_flags(parser)
    add_model_flags(parser, experiment)
    for name, meaning in experiment.switches.items():
        add(f"--{name}", action="store_true", help=meaning)
    add("--seed", type=seed, default=42, help="default: %(default)s")
    add("--results_dir", type=path_name, default=Path("results"), help="default: %(default)s")
    add("--machine_name", type=machine_name, help="file the results under this name")
    add("--cooldown", type=seconds, default=0.0, help="seconds of rest between measurements")
    add("--resume", action="store_true", help="skip what has a good row already")
    if experiment.add_flags:
        experiment.add_flags(parser)
    options = parser.parse_args()
    if getattr(options, "master_addr", None):
        options.main_address = f"{options.master_addr}:{options.master_port}"
    largest = max(options.batch_sizes) if experiment.epochs else 0
    if largest > experiment.samples > 0:
        parser.error(f"--batch_sizes={largest}: larger than the {experiment.samples:,} samples")
    if experiment.settle_flags:
        try:
            experiment.settle_flags(options)
        except UsageError as error:
            parser.error(str(error))
    return options


def add_rank_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--nnodes", dest="num_machines", type=whole_number, default=1,
        help="machines that train together: start the same command on each")  # fmt: skip
    add("--node_rank", dest="machine_rank", type=int, default=0,
        help="this machine's number, from 0; 0 writes the rows")  # fmt: skip
    add("--master_addr", help="machine 0 as the others reach it")
    add("--master_port", type=whole_number, default=29500, help="default: %(default)s")
    # Their names of before torchrun's.
    add("--num_machines", type=whole_number, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--machine_rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--main_address", help=argparse.SUPPRESS)
    add("--join_seconds", type=seconds, default=60.0, help="wait so long for machines to join")


def add_model_flags(parser: argparse.ArgumentParser, experiment: Experiment) -> None:
    for name, default in experiment.model_flags.items():
        flag = f"--{name}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", help="another configuration")
        elif isinstance(default, tuple):
            parser.add_argument(
                flag, choices=default, default=default[0], help="default: %(default)s"
            )
        else:
            kind = whole_number if isinstance(default, int) else fraction
            parser.add_argument(flag, type=kind, default=default, help="default: %(default)s")


def sweep(experiment: Experiment, prepare: Callable, measure: Callable) -> None:
    """Measure every point of the command line in fresh processes, and exit.

    Args:
        prepare: `prepare(options)`: fetches data, returns the columns that every row shares.
        measure: `measure(batch_size, options)`, or whatever the experiment varies: trains, returns
            the columns it measured. `options` are the command line's, with `data` as `prepare`
            settled it. Of an experiment that one process measures: `measure(points, options)`, an
            iterator of their rows.
    """
    options = parse_arguments(experiment)
    rows, files = [], []

    def keep(row: dict) -> None:
        if getattr(options, "machine_rank", 0):
            return  # machine 0 has the numbers, and writes them
        rows.append(row)
        files.append(save(path, row, experiment.header))
        report(experiment, row | experiment.scaling(row, saved))

    with ExitStack() as stack:
        stack.enter_context(one_line_errors(rows, options.results_dir))
        alone = stack.enter_context(only_benchmark())
        stay_awake()
        require_script(measure)
        environment = settle_environment()
        if hasattr(options, "num_machines"):
            prepare, measure = on_ranks(prepare, measure, options)
        if not experiment.one_process:
            measure = functools.partial(one_by_one, measure)
        raise_open_files_limit()
        require_writable(options.results_dir)
        first = stack.enter_context(FreshProcess())
        facts = settle(experiment, options, prepare, first)
        if not goes_on(experiment, options):
            first = first.leave()
        path = experiment.results_path(options.results_dir, facts["machine"], facts.get("model"))
        require_saving(path)
        _, saved = read_rows(path)
        load, busiest = other_load()
        facts["other_benchmark_running"] = not alone
        facts["environment"] = environment
        announce(experiment, options, facts, load, busiest)
        if getattr(options, "find_max_batch_size", False):
            options.batch_sizes = [find_max_batch_size(experiment, options, facts, measure)]
        measure_all(experiment, options, facts, measure, saved, keep, first)
        summarize(experiment, rows, [file for file in dict.fromkeys(files) if file], options)
    sys.exit(any(failed(row) for row in rows) or any(file != path for file in files))
