# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "xgboost>=3.2", "scikit-learn", "numpy", "filelock", "nvidia-ml-py>=12.535", "packaging",
#   "pandas", "psutil", "py-cpuinfo", "scipy", "tqdm",
# ]
# ///
"""How fast does this machine train gradient boosted trees on a table with XGBoost?

Inside the clock: `xgboost.train`, from the binned table to the last of 100 trees of depth 10
(learning rate 0.1, hist). Apart in the row: binning the table (QuantileDMatrix, which sketches the
quantiles), the first iteration, and prediction of 100,000 flights from a table in memory. On CUDA
the copy of the bins to the card is in the first iteration, and so inside. Outside: imports,
loading the table. XGBoost does not use Apple's GPU: a Mac is measured on its processor.
Data: flights in 8 columns, late or not; the settings are those of szilard's GBM-perf.

    python xgboost_test_tabular.py --rows="100_000" --threads="1, all"
"""

import time

import utils
from harness import fits

EXPERIMENT = utils.Experiment(
    title="XGBoost, airline table",
    place=120,
    chart="xgboost_tabular_airline",
    description=__doc__,
    backend="xgboost",
    task="tabular",
    dataset="airline",
    model="boosted-trees",
    input_size=8,
    varied=(fits.THREADS, fits.ROWS),
    speeds=(
        utils.Speed("million_row_trees_per_second", "million rows x trees/s",
                    "million rows x trees per second", "training", True),
        utils.Speed("predict_million_rows_per_second", "million rows/s",
                    "million rows per second", "prediction", True, "predict"),
    ),
    model_flags={"library": ("xgboost", "lightgbm"), "trees": 100, "depth": 10},
    quick={"rows": "100_000"},
    columns=utils.columns_of("XM"),
)  # fmt: skip
LEARNING_RATE = 0.1


# The two libraries: each gives a function that fits, and one that predicts


def xgboost_functions(options, threads: int):
    import xgboost

    from harness.frameworks.boosting import require_device

    class Stamps(xgboost.callback.TrainingCallback):
        """When each iteration ended."""

        def __init__(self):
            self.times = []

        def after_iteration(self, model, epoch, evals_log):
            self.times.append(time.perf_counter())

    parameters = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": options.depth,
        "learning_rate": LEARNING_RATE,
        "device": options.device,
        "nthread": threads,
        "seed": options.seed,
    }

    def fit(features, labels):
        start = time.perf_counter()
        matrix = xgboost.QuantileDMatrix(features, labels, nthread=threads)
        binned, stamps = time.perf_counter(), Stamps()
        model = xgboost.train(parameters, matrix, options.trees, callbacks=[stamps])
        end = time.perf_counter()
        require_device(model, options.device)
        return model, parts(start, binned, stamps.times[0], end)

    def predict(model, features):
        return model.predict(xgboost.DMatrix(features, nthread=threads))

    return fit, predict


def lightgbm_functions(options, threads: int):
    import lightgbm

    parameters = {
        "objective": "binary",
        "num_leaves": 2 ** (options.depth - 1),  # GBM-perf's 512 beside XGBoost's depth of 10
        "learning_rate": LEARNING_RATE,
        "num_threads": threads,
        "seed": options.seed,
        "verbosity": -1,
    }

    def fit(features, labels):
        times = []
        start = time.perf_counter()
        matrix = lightgbm.Dataset(features, labels, params=parameters).construct()
        binned = time.perf_counter()
        stamp = [lambda _: times.append(time.perf_counter())]
        model = lightgbm.train(parameters, matrix, options.trees, callbacks=stamp)
        return model, parts(start, binned, times[0], time.perf_counter())

    return fit, lambda model, features: model.predict(features, num_threads=threads)


def parts(start: float, binned: float, first_tree: float, end: float) -> dict:
    return {
        "matrix_seconds": binned - start,
        "first_iteration_seconds": first_tree - binned,
        "fit_seconds": end - binned,
    }


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness import airline
    from harness.frameworks import boosting

    return boosting.prepare(options, airline.fetch)


def measure(threads: str, rows: int, options) -> dict:
    """Train and predict at one number of threads and rows; returns the measured columns."""
    count = fits.use_threads(threads)

    from sklearn.metrics import roc_auc_score

    from harness import airline
    from harness.frameworks import boosting

    device = boosting.choose_device(options)
    options.device = str(device)
    table = airline.load(rows, options)
    functions = xgboost_functions if options.library == "xgboost" else lightgbm_functions
    fit, predict = functions(options, count)
    row, _, late = fits.measure_fits(
        fit, predict, table, options.max_seconds, device.type, device.index
    )
    row |= fits.rate_columns(
        "million_row_trees_per_second", rows * options.trees / 1e6, row, "fit_seconds"
    )
    tested = len(table.held_out_labels) / 1e6
    row |= fits.rate_columns("predict_million_rows_per_second", tested, row, "predict_seconds")
    return row | {
        "auc": roc_auc_score(table.held_out_labels, late),
        "threads_used": fits.threads_used(count),
    }


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
