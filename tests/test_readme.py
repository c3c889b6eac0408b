"""What README and CONTRIBUTING tell people to type exists, parses, and is run somewhere."""

import argparse
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from answers import Answers
from result_files import MACHINES, training_row, write_machine

import run_all
import utils
from harness import sweep
from harness.questions import figures_of, questions_to_ask
from harness.results import read_rows
from reporting.experiments import find_experiments, script_names, script_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
README = "\n".join(page.read_text() for page in PAGES if page.name != "CONTRIBUTING.md")
TESTS = "".join(p.read_text() for p in ROOT.glob("tests/test_*.py") if p != Path(__file__))

EXPERIMENTS = script_names()
TOOLS = ["run_all.py", "selfcheck.py", "compare_results.py", "check_results.py"]
SCRIPTS = [*EXPERIMENTS, *TOOLS]


def code_lines(text: str) -> list[str]:
    """The lines of fenced code blocks, one command each."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


COMMANDS = code_lines(README) + code_lines((ROOT / "CONTRIBUTING.md").read_text())


def script_and_arguments(command: str) -> tuple[str, list[str]] | None:
    """Which of the scripts a command runs, and with what; None for other programs."""
    words = shlex.split(command)
    for at, word in enumerate(words[:3]):
        if word.endswith(".py"):
            return word, words[at + 1 :]
    return None


CALLS = [call for call in map(script_and_arguments, COMMANDS) if call]


PARSE_ARGS = argparse.ArgumentParser.parse_args


class Parsed(Exception):
    """Ends a script once its command line is read."""


def parse(script: str, arguments: list[str]) -> tuple[argparse.ArgumentParser, dict]:
    """The parser of `script` and what it makes of `arguments`; nothing after that is run."""

    def parse_args(parser):
        raise Parsed(parser, vars(PARSE_ARGS(parser)))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as stopped:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return stopped.value.args


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", text))


def flags_of(script: str) -> set[str]:
    required = ["a", "b"] if script == "compare_results.py" else []
    parser, _ = parse(script, required)
    actions = parser._option_string_actions.items()
    shown = {name for name, action in actions if action.help != argparse.SUPPRESS}
    return {name for name in shown if name.startswith("--")} - {"--help"}


def make_dry_run(*words: str) -> str:
    """What `make` would run; an unknown target is an error."""
    command = ["make", "--dry-run", "--no-print-directory", "-C", ROOT, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# Of docker, and other spellings that are taken as meant.
OTHERS = {"--shm-size", "--ipc", "--batch-sizes", "--use_fp16"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_readme_names_every_flag(script):
    assert flags_of(script) <= flags(README)


@pytest.mark.parametrize("script", EXPERIMENTS)
def test_every_experiment_takes_what_run_all_gives(script):
    given = {"--data", "--device", "--max_seconds", "--results_dir", "--machine_name"}
    assert given <= flags_of(script)


def test_readme_names_no_flag_that_does_not_exist():
    known = set().union(*(flags_of(script) for script in SCRIPTS))
    others = [line for line in COMMANDS if not script_and_arguments(line)]
    prose = re.sub(r"`(xcode-select|pip|uv) [^`]*`", "", README)
    for line in others:
        prose = prose.replace(line, "")
    assert flags(prose) <= known | OTHERS


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists_and_parses(command):
    words = shlex.split(command)
    if call := script_and_arguments(command):
        parse(*call)
    elif words[0] == "make":
        make_dry_run(*words[1:])
    else:
        files = [word for word in words if re.fullmatch(r"\w+\.(txt|yml|py)", word)]
        assert all((ROOT / name).exists() for name in files)


@pytest.mark.parametrize("script", EXPERIMENTS)
def test_readme_spells_the_defaults_out(script):
    shown = [arguments for name, arguments in CALLS if name == script]
    assert [] in shown
    _, defaults = parse(script, [])
    spelled_out = [
        arguments for arguments in shown if arguments and parse(script, arguments)[1] == defaults
    ]
    assert spelled_out


def test_everything_the_readme_runs_is_run_by_a_test_or_the_quickstart():
    for script in {name for name, _ in CALLS} - set(EXPERIMENTS):
        assert Path(script).stem in TESTS, script


DESCRIBED = {script_of(experiment): experiment for experiment in find_experiments()}
SWEEPS = [call for call in CALLS if call[0] in DESCRIBED]


@pytest.mark.parametrize("script, arguments", SWEEPS)
def test_a_command_measures_what_it_says(script, arguments, tmp_path, monkeypatch):
    """The whole command runs, but for preparing and measuring."""
    experiment, measured = DESCRIBED[script], []
    row = training_row("M", 32, 1.0, 32, power="mains")
    facts = {name: row[name] for name in ("machine", "data", "device", "framework", "power")}
    if experiment.generations:  # llama-bench's table names them
        facts |= {"description": "llama", "weights_gb": 3.8, "parameters": 7e9, "n_threads": 2}
    numbers = dict.fromkeys((speed.column for speed in experiment.speeds), 1.0)

    def stand_in(function, *given):
        if "prepare" in str(function):
            return {"status": "ok", "value": dict(facts)}
        *point, options = given
        measured.append((*point, getattr(options, "epochs", None), options.max_seconds))
        return {"status": "ok", "value": numbers | (row if experiment.epochs else {})}

    for module in (sweep, utils):
        monkeypatch.setattr(module, "FreshProcess", lambda: Answers(stand_in))
    monkeypatch.setattr(utils, "other_load", lambda: (0.0, ""))
    monkeypatch.setattr(sweep.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not ended.value.code
    _, options = parse(script, arguments)
    each = (options.get("epochs"), options["max_seconds"])
    if experiment.generations:
        asked = questions_to_ask(options["questions_file"], options["num_questions"])
        figures = figures_of(options["depths"], options["parallel"])
        points = [
            *itertools.product(figures, range(1, options["bench_repetitions"] + 1)),
            *itertools.product(asked, range(1, options["num_times_per_question"] + 1)),
        ]
    else:
        points = itertools.product(*(options[varied.flag] for varied in experiment.varied))
    wanted = [(*point, *each) for point in points] * options["repeats"]
    assert sorted(measured, key=str) == sorted(wanted, key=str)
    (path,) = tmp_path.glob(f"results/{experiment.results_folder}/M_*_results.csv")
    assert len(read_rows(path)[1]) == len(wanted)


@pytest.mark.parametrize("arguments", [words for name, words in CALLS if "compare" in name])
def test_a_comparison_command_finds_its_machines(arguments, tmp_path, monkeypatch, capsys):
    for machine in MACHINES[:5]:
        write_machine(tmp_path / "results", machine, speed=1.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare_results.py", *arguments])
    runpy.run_path(str(ROOT / "compare_results.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert [word for word in arguments if word in MACHINES and word not in said] == []


def test_experiments_go_in_the_order_of_the_readmes_table(monkeypatch):
    monkeypatch.setattr(run_all, "mlx_computes_on", lambda device: "mps")
    monkeypatch.setattr(run_all, "missing_packages", lambda script: [])
    options = argparse.Namespace(only=None, skip=None, device="auto")
    experiments, _ = run_all.choose_experiments(options)
    table = re.findall(r"^\|.*\| `(\w+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert table == [script_of(experiment) for experiment in experiments]


def test_the_quickstart_has_a_quick_look_at_every_experiment(monkeypatch):
    monkeypatch.setattr(run_all, "mlx_computes_on", lambda device: "mps")
    recipe = make_dry_run("quickstart").replace("\\\n", " ")
    calls = map(script_and_arguments, recipe.splitlines())
    ((script, arguments),) = [call for call in calls if call]
    parser, found = parse(script, arguments)
    assert (found["data"], found["results_dir"]) == ("synthetic", Path("quickstart"))
    options = argparse.Namespace(**found | {"precisions": ["fp32"]})
    experiments, left_out = run_all.choose_experiments(options)
    turns = run_all.all_turns(experiments, options)
    assert sorted(turn.script.name for turn in turns) == EXPERIMENTS and not left_out
    for turn in turns:
        assert turn.experiment.quick, turn.script
        parse(turn.script.name, turn.words(turn.flags))


def test_conda_installs_what_the_lock_names():
    environment = (ROOT / "environment.yml").read_text()
    assert re.search(r"- pip:\n\s+- -r requirements\.txt$", environment, re.MULTILINE)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < 12_000


def test_every_module_is_in_the_table_of_modules():
    table = re.findall(r"`([\w*]+\.(?:py|ipynb))`", (ROOT / "CONTRIBUTING.md").read_text())
    modules = [path.name for path in [*ROOT.glob("*.py"), *ROOT.glob("*.ipynb")]]
    assert [name for name in modules if not any(fnmatch(name, row) for row in table)] == []
