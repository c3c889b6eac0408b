"""Depth and parallel in the table of speeds and in the chart, and rows of before them."""

import pytest
import result_files as files

from harness.llm.experiment import COLUMNS
from harness.results import append_row, read_rows
from reporting import charts
from reporting.speeds import token_speeds
from reporting.tables import load_results

PATH = "results_llama2/{}_llama-2-7b-chat.Q4_0_results.csv"


def add(folder, machine, question, **changed):
    """A row like the machine's newest, of another question."""
    path = folder / PATH.format(machine)
    _, rows = read_rows(path)
    append_row(path, rows[-1] | {"question": question} | changed, COLUMNS)


def panels(folder):
    results = load_results(folder)
    (experiment,) = [e for e in results.experiments.values() if e.backend == "llamacpp"]
    figure = charts.of_experiment(results, experiment)
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_panels_only_where_there_are_rows(tmp_path):
    files.write_machine(tmp_path, "A", 1.0)
    files.write_machine(tmp_path, "B", 2.0)
    before = panels(tmp_path)
    assert len(before) == 4
    add(tmp_path, "A", "tg128@d4096", tokens_per_second="9", prompt_tokens_per_second="")
    shown = panels(tmp_path)
    (new,) = set(shown) - set(before)
    assert new == "llama-bench tg128 by tokens in the cache"
    # A machine with no more than the usual depth is not in it.
    (line,) = [line for line in shown[new].lines if line.get_linestyle() == "-"]
    assert list(line.get_xdata()) == [0, 4096]
    assert list(line.get_ydata()) == pytest.approx([12.15, 9])
    add(tmp_path, "B", "pp512@p4", tokens_per_second="", prompt_tokens_per_second="400")
    assert "llama-bench pp512 by users at once, of all together" in panels(tmp_path)


def test_figures_at_depth_are_no_answers(tmp_path):
    files.write_machine(tmp_path, "A", 1.0)
    add(tmp_path, "A", "tg128@d4096", tokens_per_second="9", prompt_tokens_per_second="")
    rates = token_speeds(load_results(tmp_path)).set_index("test")["speed"]
    assert rates["tg128@d4096"] == 9
    assert rates["generation"] == rates["tg128"] == pytest.approx(12.15)


def test_older_rows_say_that_flash_attention_was_off(tmp_path):
    files.write_machine(tmp_path, "A", 1.0)
    path = tmp_path / PATH.format("A")
    later = ("depth", "parallel", "flash_attn_used", "bandwidth_percent", "weights_gb")
    columns = [name for name in COLUMNS if name not in later]
    _, rows = read_rows(path)
    path.unlink()
    for row in rows:
        append_row(path, {n: row[n] for n in columns} | {"flash_attn": "False"}, columns)
    results = load_results(tmp_path)
    assert results.problems == []
    assert set(token_speeds(results)["configuration"]) == {"flash attention off"}
