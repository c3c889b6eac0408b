# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "scikit-learn", "numpy", "filelock", "packaging", "pandas", "psutil", "py-cpuinfo", "scipy",
#   "tqdm",
# ]
# ///
"""How fast does this machine fit what people use of scikit-learn to a table?

Inside the clock: `fit` on the table, and apart from it a prediction for 100,000 flights
(`predict_proba`; KMeans: `predict`, PCA: `transform`), both with scaling where the estimator needs
it. Outside: imports, loading the table. How much is computed does not depend on the machine: no
early stopping, so many trees, so many rounds of KMeans. scikit-learn computes on the processor.
Data: flights in 8 columns, late or not.

    python sklearn_test_tabular.py --rows="100_000" --estimators="RandomForest" --threads="1, all"
"""

import importlib.metadata
import time

import utils
from harness import fits

ESTIMATORS = ("HistGradientBoosting", "RandomForest", "LogisticRegression", "KMeans", "PCA")
EXPERIMENT = utils.Experiment(
    title="scikit-learn, airline table",
    place=130,
    chart="sklearn_tabular_airline",
    description=__doc__,
    backend="sklearn",
    task="tabular",
    dataset="airline",
    model="estimators",
    input_size=8,
    varied=(
        fits.THREADS,
        utils.Varied("estimator", "estimators", ", ".join(ESTIMATORS), "{}", "estimator",
                     choices=ESTIMATORS),
        fits.ROWS,
    ),
    speeds=(
        utils.Speed("fit_seconds", "s per fit", "seconds per fit", "time of a fit"),
        utils.Speed("predict_seconds", "s per 100,000 rows", "seconds per 100,000 rows",
                    "time of a prediction", name="predict"),
    ),
    model_flags={"trees": 100, "depth": 10},  # of the forest; the boosting's iterations
    quick={"rows": "100_000"},
    columns=utils.columns_of("SM"),
)  # fmt: skip
CLUSTERS, KMEANS_ROUNDS = 8, 25
COMPONENTS = 4


def build(estimator: str, threads: int, options):
    """The estimator, unfitted; with defaults where they do not make the work uncertain."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seed = options.seed
    match estimator:
        case "HistGradientBoosting":
            return HistGradientBoostingClassifier(
                max_iter=options.trees, early_stopping=False, random_state=seed
            )
        case "RandomForest":
            return RandomForestClassifier(
                options.trees, max_depth=options.depth, n_jobs=threads, random_state=seed
            )
        case "LogisticRegression":
            return make_pipeline(StandardScaler(), LogisticRegression())
        case "KMeans":
            # Without a tolerance it does all rounds, wherever the sums are rounded.
            kmeans = KMeans(CLUSTERS, max_iter=KMEANS_ROUNDS, tol=0, random_state=seed)
            return make_pipeline(StandardScaler(), kmeans)
        case "PCA":
            return make_pipeline(StandardScaler(), PCA(COMPONENTS))


def fit_function(estimator: str, threads: int, options):
    """A function that fits, and returns the model and its seconds."""

    def fit(features, labels):
        model = build(estimator, threads, options)
        start = time.perf_counter()
        model.fit(features, labels)
        return model, {"fit_seconds": time.perf_counter() - start}

    return fit


def predict(model, features):
    """Probabilities, the nearest centre, or components."""
    for method in ("predict_proba", "predict", "transform"):
        if hasattr(model, method):
            return getattr(model, method)(features)


def iterations(model) -> int | None:
    """How many the last step of the model made, where it counts them."""
    last = model[-1] if hasattr(model, "steps") else model
    found = getattr(last, "n_iter_", None)
    return None if found is None else int(max(found)) if hasattr(found, "__len__") else int(found)


def prepare(options) -> dict:
    """Settle data once per sweep; returns the columns that all rows share."""
    from harness import airline
    from harness.data import choose_data
    from harness.device import Device

    if options.device not in ("auto", "cpu"):
        raise utils.UsageError(f"--device={options.device}: scikit-learn computes on the CPU")
    fits.require_threads(options.threads)
    data = choose_data(options.data, lambda: airline.fetch(options))
    framework = f"scikit-learn {importlib.metadata.version('scikit-learn')}"
    return Device("cpu").columns(framework) | {"data": data}


def measure(threads: str, estimator: str, rows: int, options) -> dict:
    """Fit and predict with one estimator; returns the measured columns of its row."""
    count = fits.use_threads(threads)

    from sklearn.metrics import roc_auc_score

    from harness import airline

    table = airline.load(rows, options)
    fit = fit_function(estimator, count, options)
    row, model, predicted = fits.measure_fits(fit, predict, table, options.max_seconds)
    if hasattr(model, "predict_proba"):
        row["auc"] = roc_auc_score(table.held_out_labels, predicted[:, 1])
    return row | {"iterations": iterations(model), "threads_used": fits.threads_used(count)}


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
