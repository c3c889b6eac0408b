"""The table of columns: what is made from it is up to date, and it says one thing of each."""

from result_files import training_row

from harness.columns import COLUMNS, EVERY, GROUPS, TABLE, columns_of
from harness.results import to_cell
from pytorch_test_computer_vision_cifar100 import EXPERIMENT
from reporting.columns_table import PAGE, with_table
from reporting.experiments import find_experiments


def test_the_page_has_the_table_that_make_docs_writes():
    assert PAGE.read_text() == with_table(PAGE.read_text())


def test_another_meaning_is_another_page(monkeypatch):
    monkeypatch.setitem(GROUPS, "T", "trainings")
    assert PAGE.read_text() != with_table(PAGE.read_text())


def test_every_column_says_what_it_means_once_for_each_group():
    assert all(column.meaning and column.unit for column in EVERY)
    assert {letter.upper() for column in TABLE for letter in column.groups} <= set(GROUPS)
    for letter in "TLSXIMR":
        names = columns_of(letter)
        assert len(names) == len(set(names))
    for column in EVERY:  # readers ask by the name alone
        alike = [other for other in EVERY if other.name == column.name]
        assert len({other._replace(groups="", meaning="") for other in alike}) == 1


def test_a_file_begins_with_what_is_varied_and_ends_with_the_machine():
    for experiment in find_experiments():
        varied = [varied.column for varied in experiment.varied]
        assert experiment.header[: len(varied)] == varied
        assert experiment.header[-1] == "started_at"
    assert COLUMNS[0] == "batch_size"


def test_two_rows_measure_the_same_whoever_wrote_or_read_them():
    row = training_row("M", 32, 1.0, 100, device="cpu", num_devices=1, thermal_protocol="cold")
    wanted = EXPERIMENT.configuration(row)
    saved = {name: to_cell(value) for name, value in row.items()}
    assert EXPERIMENT.configuration(saved) == wanted
    older = {"project_version": "0.1.0", "num_devices": "", "thermal_protocol": ""}
    assert EXPERIMENT.configuration(saved | older) == wanted
    for name, other in {
        "batch_size": 64, "epochs": 1, "data": "synthetic", "precision": "bf16", "compile": True,
        "channels_last": True, "thermal_protocol": "sustained", "num_devices": 2,
        "device": "mps", "framework": "torch 2.16.0", "project_version": "0.3.0",
    }.items():  # fmt: skip
        assert EXPERIMENT.configuration(row | {name: other}) != wanted
