"""A results file that came through a spreadsheet, an editor or git keeps all of its rows."""

import csv

import pytest
import result_files as files

from harness.columns import COLUMNS
from harness.private import without_names
from harness.results import UnreadableResults, append_row, read_rows
from reporting.check import check_folder
from reporting.tables import load_results

MACHINE = "Apple_M3_Pro_18GB_14_GPU_Cores"


def row(size, seconds, **changed):
    return files.training_row(MACHINE, size, seconds, 50_000, **changed)


@pytest.fixture
def path(tmp_path):
    path = files.training_path(tmp_path, "pytorch_cv", MACHINE, files.TRAINING[0][1])
    append_row(path, row(32, 123.5, extrapolated=True), COLUMNS)
    append_row(path, row(64, 98.25, compile=True), COLUMNS)
    return path


def with_semicolons(text):
    rows = list(csv.reader(text.splitlines()))
    decimal = [[cell.replace(".", ",") if is_number(cell) else cell for cell in r] for r in rows]
    return "".join(";".join(cells) + "\r\n" for cells in decimal)


def is_number(text):
    try:
        return float(text) is not None
    except ValueError:
        return False


def joined(text):
    header, first, second = text.splitlines()
    return "\n".join([header, first, header, second, ""])


CHANGES = {
    "Excel's byte-order mark and line ends": lambda t: "\ufeff" + t.replace("\n", "\r\n"),
    "Sheets: no end of the last line": lambda t: t.replace("\n", "\r\n").removesuffix("\r\n"),
    "an editor: no end of the last line": lambda t: t.removesuffix("\n"),
    "TRUE and FALSE": lambda t: t.replace("True", "TRUE").replace("False", "FALSE"),
    "1 and 0": lambda t: t.replace("True", "1").replace("False", "0"),
    "semicolons and decimal commas": with_semicolons,
    "blank lines": lambda t: t + "\n\n" + "," * t.partition("\n")[0].count(",") + "\n",
    "trailing empty columns": lambda t: t.replace("\n", ",,\n"),
    "a second header in the middle": joined,
    "joined, with a mark in the middle": lambda t: joined(t).replace("batch_", "\ufeffbatch_"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_is_read_as_it_was_and_an_append_loses_nothing(path, tmp_path, change):
    before, text = read_rows(path), path.read_text()
    changed = change(text)
    assert changed != text
    path.write_bytes(changed.encode())
    assert read_rows(path) == before
    assert path.read_bytes() == changed.encode()  # reading rewrites nothing
    results = load_results(tmp_path)
    assert results.problems == [] and list(results.measurements["batch_size"]) == [32, 64]
    assert list(results.measurements["extrapolated"]) == [True, False]
    append_row(path, row(128, 80.0), COLUMNS)
    header, (*older, newest) = read_rows(path)
    assert (header, older) == before and newest["batch_size"] == "128"
    with path.open(newline="") as file:
        assert [r["avg_time_per_epoch"] for r in csv.DictReader(file)] == ["123.5", "98.25", "80"]


def test_a_torn_line_is_no_whole_one(path):
    text = path.read_text()
    for cut in (2, 9, 20, len(text.splitlines()[-1]) - 3):
        path.write_text(text[:-cut])
        with pytest.raises(UnreadableResults, match=str(path)):
            read_rows(path)


def test_an_unfinished_merge_is_said_and_left_alone(path):
    header, first, second = path.read_text().splitlines()
    text = "\n".join([header, "<<<<<<< HEAD", first, "=======", second, ">>>>>>> other", ""])
    path.write_text(text)
    with pytest.raises(UnreadableResults, match="unfinished merge.*delete the lines"):
        read_rows(path)
    assert append_row(path, row(128, 80.0), COLUMNS) != path
    assert path.read_text() == text


def test_a_column_twice_is_said_because_one_would_be_lost(path):
    text = path.read_text().replace("train_loss", "epochs", 1)
    path.write_text(text)
    with pytest.raises(UnreadableResults, match="'epochs' is there twice"):
        read_rows(path)


def test_other_encodings_and_unreadable_files_are_said(path):
    text = path.read_text()
    path.write_bytes(text.replace("ok", "öl").encode("utf-16"))
    with pytest.raises(UnreadableResults, match="UTF-8"):
        read_rows(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnreadableResults, match="Is a directory"):
        read_rows(path)


def test_a_long_answer_is_read(tmp_path):
    path = tmp_path / "x.csv"
    append_row(path, {"answer": "word " * 40_000}, ["answer"])
    assert len(read_rows(path)[1][0]["answer"]) == 199_999


def test_a_changed_date_costs_no_row_and_is_said(path, tmp_path):
    started = read_rows(path)[1][0]["started_at"]
    text = path.read_text().replace(started, "3/1/26 10:00").replace("\n", "\r\n")
    path.write_bytes(text.removesuffix("\r\n").encode())
    results = load_results(tmp_path)
    assert list(results.measurements["batch_size"]) == [32, 64]
    assert len(results.problems) == 2 and "changed by a spreadsheet" in results.problems[0]


def test_hidden_files_are_passed_over_and_copies_are_named(path, tmp_path):
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    checkpoint = path.parent / ".ipynb_checkpoints" / f"{path.stem}-checkpoint.csv"
    checkpoint.parent.mkdir()
    checkpoint.write_text(path.read_text())
    assert check_folder(tmp_path)[0] == 1
    assert load_results(tmp_path).problems == []
    for name in (f"{path.stem} (1).csv", f"{path.stem} copy 2.csv"):
        (path.parent / name).write_text(path.read_text())
    results = load_results(tmp_path)
    assert len(results.measurements) == 2
    assert len(results.problems) == 2 and "a copy of another file" in results.problems[0]
    _, problems = check_folder(tmp_path)[:2]
    assert len([p for p in problems if "a copy of another file" in p]) == 2


# Nobody is named


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("OSError: /home/me/data/x.bin is gone", "OSError: ~/data/x.bin is gone"),
        ("/home/meagan/x and '/Users/ann.b/y'", "/home/USER/x and '/Users/USER/y'"),
        (r"C:\Users\carl\z", r"C:\Users\USER\z"),
        ("/Users/Shared/models", "/Users/Shared/models"),
        ("/tmp/xanthippe_cache/a, user=xanthippe", "/tmp/xanthippe_cache/a, user=USER"),
        ("CUDA error: out of memory", "CUDA error: out of memory"),
    ],
)
def test_errors_name_no_home_folder_and_no_user(monkeypatch, path, text, written):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LOGNAME", "xanthippe")
    assert without_names(text) == written
    append_row(path, files.failed_row(MACHINE, 512, "error", error=text), COLUMNS)
    assert read_rows(path)[1][-1]["error"] == written


def test_check_results_refuses_a_home_folder(path, tmp_path):
    append_row(path, files.failed_row(MACHINE, 512, "error", error="bad"), COLUMNS)
    assert check_folder(tmp_path)[1] == []
    path.write_text(path.read_text().replace(",bad,", ",/Users/ann/x is bad,"))
    (problem,) = check_folder(tmp_path)[1]
    assert "home folder of 'ann'" in problem
