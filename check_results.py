# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["filelock", "pandas", "psutil", "scipy", "tqdm"]
# ///
"""Are the results files whole: columns, types, units in range, machine as in the file's name?

Files of the older, published format and Geekbench ML's table are checked as such. One line per
problem, exit code 1 if there is any. What looks odd (over the peak that selfcheck measured, far
from others of the same name) is said too, for a human to look at, and is no problem.

    python check_results.py results
"""

import sys
from pathlib import Path

from harness.arguments import CommandLine, path_name
from harness.process import UsageError
from harness.startup import one_line_errors


def main() -> None:
    parser = CommandLine(__doc__)
    add = parser.add_argument
    add("results_dir", nargs="?", type=path_name, default=Path("results"),
        help="default: %(default)s")  # fmt: skip
    results_dir = parser.parse_args().results_dir
    with one_line_errors([], results_dir):
        if not results_dir.is_dir():
            raise UsageError(f"{results_dir} is not a folder")
        from reporting.check import check_folder
        from reporting.plausible import implausible
        from reporting.tables import load_results

        files, problems = check_folder(results_dir)
        odd = implausible(load_results(results_dir)) if files else []
        odd = [f"look at: {line}" for line in odd]
        print("\n".join([*problems, *odd, f"{files} files, {len(problems)} problems"]))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
