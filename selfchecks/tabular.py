"""What measuring costs tabular fits: ratios of two things measured in one run, interleaved.

XGBoost, HistGradientBoosting: `fit_seconds` of our own fit against the bare call of the same work,
and how far their AUC lie apart.
"""

import argparse
import time

import sklearn_test_tabular
import xgboost_test_tabular
from harness import airline
from selfchecks.pairs import interleaved_ratios


def options(**flags) -> argparse.Namespace:
    chosen = dict(data="synthetic", seed=42, trees=100, depth=10, device="cpu", library="xgboost")
    return argparse.Namespace(**{**chosen, **flags})


def seconds_of(side) -> float:
    """Each side says itself how long its fit took."""
    return side()


def xgboost_ratios(rows: int, pairs: int, threads: int) -> tuple[list[float], list[float]]:
    """The ratios, and the AUC of ours and of the bare call."""
    import xgboost
    from sklearn.metrics import roc_auc_score

    table = airline.load(rows, options())
    fit, predict = xgboost_test_tabular.xgboost_functions(options(), threads)
    parameters = {"objective": "binary:logistic", "max_depth": 10, "learning_rate": 0.1,
                  "tree_method": "hist", "nthread": threads}  # fmt: skip
    models = {}

    def ours() -> float:
        models["ours"], seconds = fit(table.features, table.labels)
        return seconds["fit_seconds"]

    def bare() -> float:
        matrix = xgboost.QuantileDMatrix(table.features, table.labels)
        start = time.perf_counter()
        models["bare"] = xgboost.train(parameters, matrix, num_boost_round=100)
        return time.perf_counter() - start

    found = interleaved_ratios(ours, bare, pairs, seconds_of)
    late = table.held_out_labels
    scores = [predict(model, table.held_out_features) for model in models.values()]
    return found, [roc_auc_score(late, score) for score in scores]


def histogram_ratios(rows: int, pairs: int, threads: int) -> list[float]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    table = airline.load(rows, options())

    def ours() -> float:
        fit = sklearn_test_tabular.fit_function("HistGradientBoosting", threads, options())
        return fit(table.features, table.labels)[1]["fit_seconds"]

    def bare() -> float:
        model = HistGradientBoostingClassifier(early_stopping=False, random_state=42)
        start = time.perf_counter()
        model.fit(table.features, table.labels)
        return time.perf_counter() - start

    return interleaved_ratios(ours, bare, pairs, seconds_of)
