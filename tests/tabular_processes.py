"""What the tests of tabular experiments do in fresh processes, as a sweep does.

Imports no library: OpenMP and BLAS read their number of threads when they load.
"""

import resource
import sys

import psutil

import harness.nvidia
import sklearn_test_tabular
import xgboost_test_tabular
from harness import fits
from harness.device import Device


def xgboost_and_a_bare_train(options):
    row = xgboost_test_tabular.measure("1", 5000, options)
    import xgboost
    from sklearn.metrics import roc_auc_score

    from harness import airline

    table = airline.load(5000, options)
    bare = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 6, "learning_rate": 0.1, "nthread": 1},
        xgboost.QuantileDMatrix(table.features, table.labels),
        num_boost_round=10,
    )
    late = bare.predict(xgboost.DMatrix(table.held_out_features))
    return row, roc_auc_score(table.held_out_labels, late), "torch" in sys.modules


def trained_where_no_card_is(options):
    import xgboost

    from harness.frameworks import boosting

    if xgboost.build_info()["USE_CUDA"] and harness.nvidia.has_card():
        return "this machine has a card"
    boosting.choose_device = lambda _: Device("cuda")
    fits.energy_meter = lambda *_: None
    return xgboost_test_tabular.measure("1", 2000, options)


def measured_in_little_memory(options):
    # What has to be imported is imported, and little more than that fits.
    xgboost_test_tabular.measure("1", 1000, options)
    data = psutil.Process().memory_info().data + int(60e6)
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    return xgboost_test_tabular.measure("1", 1_000_000, options)


def lightgbm_in_its_place(options):
    options.library = "lightgbm"
    from harness.frameworks import boosting

    return xgboost_test_tabular.measure("1", 5000, options) | boosting.prepare(options, None)


def every_estimator_and_a_bare_fit(options):
    """Rows by estimator, a bare fit's AUC, the threads of every library, and whether torch came."""
    rows = {
        estimator: sklearn_test_tabular.measure("1", estimator, 5000, options)
        for estimator in sklearn_test_tabular.ESTIMATORS
    }
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_info

    from harness import airline

    table = airline.load(5000, options)
    bare = HistGradientBoostingClassifier(max_iter=10, early_stopping=False)
    late = bare.fit(table.features, table.labels).predict_proba(table.held_out_features)[:, 1]
    threads = {pool["num_threads"] for pool in threadpool_info()}
    return rows, roc_auc_score(table.held_out_labels, late), threads, "torch" in sys.modules
