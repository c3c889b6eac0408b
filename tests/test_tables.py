"""Reading results back: ours and every older format, and which row is the best evidence."""

import json
import math

import numpy as np
import pytest
import result_files as files

import compare_results
from harness import PROJECT_VERSION
from harness.columns import COLUMNS
from harness.llm.experiment import COLUMNS as LLM_COLUMNS
from harness.process import UserError
from harness.results import append_row, read_rows
from harness.results import write_rows as write_csv
from reporting.experiments import find_experiments, of_file
from reporting.page import page_data
from reporting.speeds import (
    measurements,
    neighbours,
    relative_speeds,
    share_of_peak,
    speeds,
    token_speeds,
)
from reporting.tables import column_types, load_results

MACHINE = "Apple_M3_Pro_18GB_14_GPU_Cores"
CIFAR100 = "pytorch_cv_resnet50_cifar100"


def cifar100_path(results_dir, machine=MACHINE):
    return files.training_path(results_dir, *files.TRAINING[0][:1], machine, files.TRAINING[0][1])


def write_rows(results_dir, *rows):
    for row in rows:
        append_row(cifar100_path(results_dir, row["machine"]), row, COLUMNS)


def row(seconds=100.0, size=32, machine=MACHINE, **changed):
    return files.training_row(machine, size, seconds, 50_000, **changed)


def by_chart(chart):
    (experiment,) = [e for e in find_experiments() if e.chart == chart]
    return experiment


def best(results_dir):
    return speeds(load_results(results_dir))


def test_no_results_at_all(tmp_path):
    results = load_results(tmp_path)
    assert results.measurements.empty and results.generations.empty and results.geekbench.empty
    assert speeds(results).empty and token_speeds(results).empty
    assert relative_speeds(results).empty and share_of_peak(results).empty
    assert results.problems == []


def test_our_rows_come_back_with_their_types(tmp_path):
    write_rows(tmp_path, row(123.5), files.failed_row(MACHINE, 64))
    results = load_results(tmp_path)
    good, failed = results.measurements.to_dict("records")
    assert good["batch_size"] == 32 and good["avg_time_per_epoch"] == 123.5
    assert good["extrapolated"] is False and good["experiment"] == CIFAR100
    assert (good["protocol"], good["machine"]) == ("ours", MACHINE)
    assert good["label"] == "Apple M3 Pro 18GB 14 GPU Cores"
    assert failed["status"] == "out_of_memory" and math.isnan(failed["avg_time_per_epoch"])
    assert results.problems == []


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"extrapolated": True, "started_at": "2027-01-01T00:00:00+00:00"}),
        ({}, {"data": "synthetic", "started_at": "2027-01-01T00:00:00+00:00"}),
        ({"data": "synthetic"}, {"extrapolated": True}),
        ({}, {"project_version": "0.0.1", "started_at": "2027-01-01T00:00:00+00:00"}),
        ({"started_at": "2026-12-01T00:00:00+00:00"}, {}),
        ({}, {"other_load_percent": 71.0, "started_at": "2027-01-01T00:00:00+00:00"}),
        ({}, {"other_benchmark_running": True, "started_at": "2027-01-01T00:00:00+00:00"}),
        ({}, {"disturbance": "suspended", "started_at": "2027-01-01T00:00:00+00:00"}),
        ({"data": "synthetic", "extrapolated": True}, {"other_load_percent": 71.0}),
        ({"other_load_percent": 71.0}, {"status": "error", "error": "x"}),
        ({}, {"status": "error", "error": "x", "started_at": "2027-01-01T00:00:00+00:00"}),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_best_evidence_is_chosen_whatever_the_order(tmp_path, better, worse, turned):
    rows = [row(1.0, **better), row(2.0, **worse)]
    write_rows(tmp_path, *(rows[::-1] if turned else rows))
    assert best(tmp_path)["speed"].tolist() == [1.0]


def test_a_failed_row_stands_only_where_there_is_no_good_one(tmp_path):
    write_rows(tmp_path, row(), files.failed_row(MACHINE, 32), files.failed_row(MACHINE, 64))
    assert best(tmp_path)["status"].tolist() == ["ok", "out_of_memory"]


def test_other_configurations_are_kept_apart_and_named(tmp_path):
    write_rows(
        tmp_path,
        row(),
        row(precision="bf16", compile=True),
        row(channels_last=True),
    )
    assert set(best(tmp_path)["configuration"]) == {"", "bf16 compiled", "channels_last"}


def test_experiments_that_vary_more_or_less_stand_in_one_table(tmp_path):
    write_rows(tmp_path, row())
    tabular = by_chart("sklearn_tabular_airline")
    varied = {"estimator": "random_forest", "threads": "all", "rows": 1000}
    good = {"fit_seconds": 2.0, "predict_seconds": 1.0}
    path = tabular.results_path(tmp_path, MACHINE)
    append_row(path, row(**varied, **good), list(tabular.columns))
    assert set(best(tmp_path)["varied"].map(len)) == {1, len(tabular.varied)}
    assert len(measurements(load_results(tmp_path))) == 2


def test_flags_of_the_model_are_a_configuration(tmp_path):
    path = files.training_path(tmp_path, "tensorflow_nlp", MACHINE, files.TRAINING[5][1])
    flags = by_chart("tensorflow_nlp_imdb").model_flags
    append_row(path, row() | flags, COLUMNS)
    append_row(path, row() | flags | {"embed_dim": 64}, COLUMNS)
    assert set(best(tmp_path)["configuration"]) == {"", "embed_dim=64"}


def test_every_older_format_is_read_and_labelled(tmp_path):
    files.write_older(tmp_path)
    results = load_results(tmp_path)
    assert results.problems == []
    assert set(results.measurements["protocol"]) == {"2023"}
    assert results.measurements["label"].str.endswith("(2023)").all()
    written = {(name.partition("_")[0], folder) for folder, name, *_ in files.TRAINING}
    of_rows = map(by_chart, set(results.measurements["experiment"]))
    assert {(e.dataset, f"{e.backend}_{e.task}") for e in of_rows} == written
    assert "Tesla_V100-SXM2-16GB" in set(results.measurements["machine"])
    missing = results.measurements.query("machine == 'NVIDIA_TITAN_RTX'")["experiment"]
    assert not missing.str.contains("food101").any()


def test_older_trainer_metrics_become_time_per_epoch(tmp_path):
    files.write_older(tmp_path, {"Apple_M3": 1.0})
    rows = load_results(tmp_path).measurements.query("experiment == 'pytorch_nlp_distilbert_imdb'")
    first, *_, last = rows.to_dict("records")
    assert first["avg_time_per_epoch"] == pytest.approx(2100)
    assert first["epochs"] == 3 and first["status"] == "ok"
    assert last["status"] == "failed" and math.isnan(last["avg_time_per_epoch"])


def test_older_file_names(tmp_path):
    for folder, name, machine in (
        ("pytorch_cv", "Tesla V100-SXM2-16GB_CIFAR100_resnet50_32_pytorch", "Tesla_V100-SXM2-16GB"),
        ("tensorflow_nlp", "Apple_M1_Pro_16GB_IMDB_SmallTransformer_200", "Apple_M1_Pro_16GB"),
        ("pytorch_nlp", "A_IMDB_distilbert-base-uncased_512_pytorch", "A"),
    ):
        path = tmp_path / f"results_{folder}" / f"{name}_results.csv"
        _, found = of_file(path, find_experiments())
        assert found == machine


def test_a_file_saved_beside_an_unreadable_one_counts(tmp_path):
    write_rows(tmp_path, row(7.0))
    path = cifar100_path(tmp_path)
    path.rename(path.with_stem(f"{path.stem}_1764000000000000000"))
    assert best(tmp_path)["speed"].tolist() == [7.0]


def test_a_torn_file_is_named_and_skipped(tmp_path):
    write_rows(tmp_path, row(), row(machine="Other"))
    torn = cifar100_path(tmp_path)
    torn.write_text(torn.read_text()[:-20])
    results = load_results(tmp_path)
    assert results.measurements["machine"].tolist() == ["Other"]
    (problem,) = results.problems
    assert torn.name in problem and str(tmp_path) not in problem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",100,", ",fast,", "avg_time_per_epoch is 'fast', not a number"),
        (",False,", ",maybe,", "is 'maybe', not True or False"),
        ("\n32,", "\n,", "no batch size"),
    ],
)
def test_a_row_with_a_wrong_cell_is_named_and_skipped(tmp_path, old, new, said):
    write_rows(tmp_path, row(100.0))
    path = cifar100_path(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    write_rows(tmp_path, row(50.0, size=64))
    results = load_results(tmp_path)
    assert results.measurements["batch_size"].tolist() == [64]
    assert said in results.problems[0] and "row 2" in results.problems[0]


@pytest.mark.parametrize("cell", ["inf", "-inf", "nan", "1e999"])
def test_a_cell_that_is_no_number_counts_as_empty_in_whatever_column(tmp_path, cell):
    """A row for each column; `Infinity` in the page's data would leave it blank."""
    by_name, _ = column_types(by_chart(CIFAR100))
    columns = [name for name in COLUMNS if name in by_name]
    write_rows(tmp_path, *(row(size=size) for size in range(1, len(columns) + 1)))
    path = cifar100_path(tmp_path)
    header, rows = read_rows(path)
    changed = [old | {name: cell} for old, name in zip(rows, columns, strict=True)]
    with path.open("w") as file:
        write_csv(file, header, changed)
    results = load_results(tmp_path)
    assert results.problems == [f"{path.relative_to(tmp_path)}: row 2: no batch size"]
    read = results.measurements.set_index("batch_size")
    assert not np.isinf(read.select_dtypes("number")).any(axis=None)
    assert read.loc[2, "status"] == "ok" and math.isnan(read.loc[2, columns[1]])
    assert read.loc[columns.index("train_loss") + 1, "status"] == "nonsense"
    found = best(tmp_path).set_index("test")
    assert found.loc["batch 2", "status"] == "failed" and math.isnan(found.loc["batch 3", "ci95"])
    assert json.dumps(page_data(results, tmp_path), allow_nan=False)
    numbers = compare_results.measured(results)
    compared, _ = compare_results.pair_up(numbers, MACHINE, MACHINE, loose=False)
    assert math.isfinite(compare_results.summarize(compared)[-1]["ratio"])


@pytest.mark.parametrize("peak", ["Infinity", "NaN"])
def test_a_peak_that_is_no_number_is_unknown(tmp_path, peak):
    files.write_selfcheck(tmp_path, MACHINE, fp32=6.0)
    (path,) = (tmp_path / "selfcheck").iterdir()
    path.write_text(path.read_text().replace("6.0", peak))
    assert load_results(tmp_path).peaks == {MACHINE: {}}


def test_a_later_selfcheck_mends_the_share_of_the_bandwidth(tmp_path):
    path = tmp_path / "results_llama2" / f"{MACHINE}_m_results.csv"
    saved = {"question": "tg128", "question_iter": 1, "status": "ok", "model": "m"}
    saved |= {"machine": MACHINE, "project_version": PROJECT_VERSION, "tokens_per_second": 9.0}
    append_row(path, saved | {"bandwidth_gb_per_second": 50.0}, LLM_COLUMNS)
    assert "bandwidth_percent" not in load_results(tmp_path).generations
    append_row(path, saved | {"bandwidth_percent": 30.0}, LLM_COLUMNS)  # as it was once written
    report = tmp_path / "selfcheck" / f"{MACHINE}.json"
    report.parent.mkdir()
    for measured in (100.0, 80.0):
        found = [{"check": "memory bandwidth, STREAM triad", "value": measured}]
        known = {"machine": MACHINE, "peak_tflops_measured": {}, "findings": found}
        report.write_text(json.dumps(known))
        shares = load_results(tmp_path).generations["bandwidth_percent"]
        assert shares.tolist() == [5000 / measured, 30.0]


def test_several_devices_are_compared_with_one_as_rows_are_read(tmp_path):
    rates = {"samples_per_second": 300.0, "num_devices": 4}
    write_rows(tmp_path, row(**rates), row(**rates, precision="bf16"))
    assert "scaling_efficiency_percent" not in load_results(tmp_path).measurements
    write_rows(tmp_path, row(samples_per_second=100.0, num_devices=1))
    found = load_results(tmp_path).measurements["scaling_efficiency_percent"]
    assert found[0] == 75 and found[1:].isna().all()


def test_an_older_row_of_no_epoch_has_no_number(tmp_path):
    files.write_older(tmp_path, {"Apple_M3": 1.0})
    (path,) = tmp_path.glob("results_pytorch_nlp/*.csv")
    path.write_text(path.read_text().replace(",3.0,16,", ",0.0,16,"))
    results = load_results(tmp_path)
    assert results.problems == []
    found = best(tmp_path).query("experiment == 'pytorch_nlp_distilbert_imdb'")
    assert found["status"].tolist()[0] == "failed"


def test_files_of_something_else_are_named(tmp_path):
    for name, text in (
        ("notes.csv", "a,b\n1,2\n"),
        ("M_cifar100_resnet50_32_results.csv", "a\n1\n"),
    ):
        path = tmp_path / "results_pytorch_cv" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    results = load_results(tmp_path)
    assert results.measurements.empty and len(results.problems) == 2


def test_rates_are_means_over_the_questions_with_their_interval(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    rates = token_speeds(load_results(tmp_path)).set_index("test")
    assert rates["speed"].to_dict() == pytest.approx(
        {"generation": 12.15, "prompt": 151.5, "tg128": 12.15, "pp512": 151.5}
    )
    assert rates.loc["generation", "runs"] == 4 and rates.loc["tg128", "runs"] == 2
    # 12.1 and 12.2: Student's t for 1 degree of freedom is 12.706, the standard error 0.05.
    assert rates.loc["tg128", "ci95"] == pytest.approx(12.706 * 0.05, rel=1e-3)


def test_a_single_generation_has_no_interval(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    results = load_results(tmp_path)
    one = results._replace(generations=results.generations.query("question == 'tg128'").head(1))
    (rate,) = token_speeds(one).to_dict("records")
    assert rate["speed"] == pytest.approx(12.1) and math.isnan(rate["ci95"])


def test_real_models_stand_before_synthetic_ones(tmp_path):
    files.write_machine(tmp_path, MACHINE, 2.0, data="synthetic")
    files.write_machine(tmp_path, MACHINE, 1.0)
    rates = token_speeds(load_results(tmp_path))
    assert set(rates["data"]) == {"real"} and rates["speed"].min() == pytest.approx(12.15)


def test_of_a_repeated_generation_the_newest_counts(tmp_path):
    files.write_machine(tmp_path, MACHINE, 2.0)
    files.write_machine(tmp_path, MACHINE, 1.0)
    rates = token_speeds(load_results(tmp_path)).set_index("test")
    assert rates.loc["generation", "speed"] == pytest.approx(12.15)
    assert rates.loc["generation", "runs"] == 4


def change(results_dir, newer: bool, **cells):
    """Rows of language models like those there, ten times as fast, or those there changed."""
    (path,) = (results_dir / "results_llama2").glob("*.csv")
    _, rows = read_rows(path)
    if not newer:
        path.unlink()
    for old in rows:
        faster = {n: old[n] and 10 * float(old[n]) for n in LLM_COLUMNS if "tokens_per" in n}
        append_row(path, old | (faster if newer else {}) | cells, LLM_COLUMNS)


def test_undisturbed_generations_stand_before_disturbed_ones(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0, data="synthetic")
    later = {"started_at": "2027-01-01T00:00:00+00:00", "data": "real"}
    change(tmp_path, newer=True, other_load_percent=35.0, **later)
    rates = token_speeds(load_results(tmp_path)).set_index("test")
    assert rates["speed"].to_dict() == pytest.approx(
        {"generation": 12.15, "prompt": 151.5, "tg128": 12.15, "pp512": 151.5}
    )
    assert not rates["disturbed"].any() and rates.loc["generation", "runs"] == 4
    change(tmp_path, newer=False, other_benchmark_running="True")
    assert token_speeds(load_results(tmp_path))["disturbed"].all()


def test_a_mean_leaves_out_the_one_row_that_others_disturbed(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    (path,) = (tmp_path / "results_llama2").glob("*.csv")
    _, rows = read_rows(path)
    tg128 = [old for old in rows if old["question"] == "tg128"]
    third = {"question_iter": 3, "tokens_per_second": 1.0, "other_load_percent": 60.0}
    append_row(path, tg128[-1] | third, LLM_COLUMNS)
    rates = token_speeds(load_results(tmp_path)).set_index("test")
    assert rates.loc["tg128", "speed"] == pytest.approx(12.15)
    assert rates.loc["tg128", "runs"] == 2 and not rates.loc["tg128", "disturbed"]


def test_a_ratio_to_a_disturbed_machine_is_marked_too(tmp_path):
    write_rows(tmp_path, row(machine="A", other_load_percent=50.0), row(50.0, machine="B"))
    relative = relative_speeds(load_results(tmp_path), "A").set_index("machine")
    assert relative["disturbed"].to_dict() == {"A": True, "B": True}
    assert neighbours(load_results(tmp_path), "B", 1) == [
        "B is 2.00 times as fast as A, over 1 experiments, 1 of them disturbed"
    ]
    page = page_data(load_results(tmp_path), tmp_path)
    assert sorted(page["columns"]["disturbed"]) == [0, 1]
    write_rows(tmp_path, row(machine="A"))
    assert not relative_speeds(load_results(tmp_path), "A")["disturbed"].any()


def test_another_model_is_another_configuration(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    (path,) = (tmp_path / "results_llama2").glob("*.csv")
    path.write_text(path.read_text().replace("llama-2-7b-chat.Q4_0", "mistral-7b"))
    rates = token_speeds(load_results(tmp_path))
    assert set(rates["configuration"]) == {"mistral-7b"}


def test_relative_speeds_per_protocol(tmp_path):
    files.write_machine(tmp_path, "A", 1.0, fits=64)
    files.write_machine(tmp_path, "B", 2.0)
    files.write_older(tmp_path, {"A": 5.0, "C": 10.0})
    speeds = relative_speeds(load_results(tmp_path), reference="A")
    of_b = speeds.query("protocol == 'ours' and machine == 'B'")
    assert len(of_b) == 7
    training = of_b[~of_b["experiment"].str.contains("llama")]["log_speed"]
    assert training.tolist() == pytest.approx([math.log(2)] * 6, rel=1e-5)
    of_c = speeds.query("protocol == '2023' and machine == 'C' and experiment == @CIFAR100")
    assert of_c["log_speed"].tolist() == pytest.approx([math.log(2)])
    assert set(speeds["reference"]) == {"A"}


def test_a_reference_that_one_protocol_lacks_is_replaced_there(tmp_path):
    files.write_machine(tmp_path, "B", 2.0)
    files.write_older(tmp_path, {"A": 1.0})
    speeds = relative_speeds(load_results(tmp_path), "A")
    assert set(speeds[["protocol", "reference"]].itertuples(index=False, name=None)) == {
        ("ours", "B"),
        ("2023", "A"),
    }
    with pytest.raises(UserError, match="no results of 'C'; there are A, B"):
        relative_speeds(load_results(tmp_path), "C")


def test_share_of_the_measured_peak(tmp_path):
    write_rows(tmp_path, row(tflops_per_second=1.5), row(precision="bf16", tflops_per_second=9.0))
    files.write_selfcheck(tmp_path, MACHINE, fp32=6.0)
    (share,) = share_of_peak(load_results(tmp_path)).to_dict("records")
    assert (share["precision"], share["mfu_percent"]) == ("fp32", 25)


def test_a_damaged_report_of_selfcheck_is_named(tmp_path):
    files.write_selfcheck(tmp_path, MACHINE, fp32=6.0)
    (path,) = (tmp_path / "selfcheck").iterdir()
    path.write_text(path.read_text()[:20])
    results = load_results(tmp_path)
    assert results.peaks == {} and path.name in results.problems[0]


def test_every_file_is_known_by_its_name(tmp_path):
    for experiment in find_experiments():
        path = experiment.results_path(tmp_path, MACHINE)
        found, machine = of_file(path, find_experiments())
        assert found is experiment and machine in (MACHINE, "")


def test_rows_of_an_experiment_whose_script_is_gone_are_still_read(tmp_path):
    path = files.training_path(tmp_path, "caffe_cv", MACHINE, "mnist_lenet_28_caffe")
    append_row(path, row(3.0), COLUMNS)
    results = load_results(tmp_path)
    (speed,) = speeds(results).to_dict("records")
    assert (speed["machine"], speed["test"], speed["speed"]) == (MACHINE, "batch 32", 3.0)
    assert results.experiments[speed["experiment"]].title == "caffe, lenet, mnist"
    assert results.problems == []


def test_a_row_of_the_processor_never_stands_for_the_gpu(tmp_path):
    later = {"started_at": "2027-01-01T00:00:00+00:00"}
    write_rows(tmp_path, row(1.0, device="mps"), row(9.0, device="cpu", **later))
    found = best(tmp_path).set_index("configuration")["speed"].to_dict()
    assert found == {"": 1.0, "on the CPU": 9.0}


def test_a_sweep_over_threads_leaves_a_number_for_each(tmp_path):
    files.write_machine(tmp_path, MACHINE, 1.0)
    (path,) = (tmp_path / "results_llama2").glob("*.csv")
    _, rows = read_rows(path)
    path.unlink()
    for threads, context in ((8, 1024), (4, 1024), (1, 4096)):
        for old in rows:
            changed = {"n_threads": threads, "n_ctx": context, "cpu_cores": 8}
            append_row(path, old | changed, LLM_COLUMNS)
    found = token_speeds(load_results(tmp_path)).query("measure == 'generation'")
    assert set(found["configuration"]) == {"", "4 threads", "n_ctx=4096 1 threads"}
