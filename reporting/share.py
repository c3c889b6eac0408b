"""Results of one machine as a bundle to publish: checked, without what is personal, shown first."""

import io
import zipfile
from pathlib import Path

from harness.disturbance import disturbed
from harness.process import UserError
from harness.results import read_rows, write_rows
from reporting.experiments import find_experiments, of_file, results_files

# An answer may hold what somebody asked about; its lengths and speeds stay.
PERSONAL = ("answer",)


def bundle(results_dir: Path, machine: str) -> Path:
    """Write `share_<machine>.zip` beside the results; returns its path.

    It holds the machine's files as a pull request would add them, and the request's text. All that
    is in them is printed, each text once.

    Raises:
        UserError: the machine has no results there.
    """
    chosen = files_of(results_dir, machine)
    if not chosen:
        raise UserError(f"--results_dir={results_dir}: no results of {machine}")
    path = results_dir / f"share_{machine}.zip"
    lines = [f"Results of {machine}", ""]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in chosen:
            header, rows = without_personal(source)
            text = io.StringIO()
            write_rows(text, header, rows)
            name = Path("results") / source.relative_to(results_dir)
            archive.writestr(name.as_posix(), text.getvalue())
            good = [row for row in rows if row.get("status") == "ok"]
            line = f"- `{name.as_posix()}`: {len(rows)} rows, {len(good)} of them good"
            count = sum(map(disturbed, good))
            lines.append(f"{line}, {count} of these disturbed" if count else line)
            print(f"\n{name.as_posix()}")
            print("\n".join(what_it_says(header, rows)))
        report = results_dir / "selfcheck" / f"{machine}.json"
        if report.exists():
            archive.write(report, f"results/selfcheck/{machine}.json")
            lines.append(f"- `results/selfcheck/{machine}.json`")
        archive.writestr("pull_request.md", "\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
    return path


def files_of(results_dir: Path, machine: str) -> list[Path]:
    """The results files of a machine, by the name in their rows."""
    experiments = find_experiments()
    chosen = []
    for path in results_files(results_dir):
        _, rows = read_rows(path) if of_file(path, experiments) else ([], [])
        if any(row.get("machine") == machine for row in rows):
            chosen.append(path)
    return chosen


def without_personal(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    header, rows = read_rows(path)
    empty = dict.fromkeys((name for name in PERSONAL if name in header), "")
    return header, [row | empty for row in rows]


def what_it_says(header: list[str], rows: list[dict[str, str]]) -> list[str]:
    """Every column with all its different cells, numbers as their range."""
    lines = []
    for name in header:
        cells = sorted({row.get(name, "") for row in rows} - {""})
        if not cells:
            continue
        try:
            values = sorted(map(float, cells))
            lines.append(f"  {name}: {values[0]:g} to {values[-1]:g}")
        except ValueError:
            lines.append(f"  {name}: {'; '.join(cells)}")
    return lines
