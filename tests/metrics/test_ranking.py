"""AUROC, average precision, F1-max and the bootstrap against scikit-learn and against first principles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mm3dad.errors import ConfigError, DataError, ShapeError
from mm3dad.metrics import auroc, average_precision, bootstrap_auroc, f1_max, image_metrics

METRICS = [auroc, average_precision, f1_max]


def sklearn_f1_max(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.nanmax(2 * precision * recall / np.where(precision + recall > 0, precision + recall, np.nan))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40), st.sampled_from([np.float32, np.float64, np.int64]))
def test_metrics_agree_with_scikit_learn_with_ties(pairs, dtype):
    scores, labels = np.array([p[0] for p in pairs], dtype), np.array([p[1] for p in pairs])
    if labels.all() or not labels.any():
        return
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert f1_max(scores, labels) == pytest.approx(sklearn_f1_max(labels, scores), abs=1e-12)


def test_metrics_agree_with_scikit_learn_without_ties():
    random = np.random.default_rng(0)
    labels = random.random(500) < 0.2
    scores = (random.standard_normal(500) + labels).astype(np.float32)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert f1_max(scores, labels) == pytest.approx(sklearn_f1_max(labels, scores), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_torch_numpy_and_lists_give_the_same(metric):
    scores, labels = [0.25, 0.5, 0.375, 0.75], [0, 0, 1, 1]
    expected = metric(np.array(scores), np.array(labels))
    assert metric(scores, labels) == expected
    assert metric(torch.tensor(scores, requires_grad=True), torch.tensor(labels).bool()) == expected
    assert metric(torch.tensor(scores).bfloat16(), torch.tensor(labels)) == expected
    assert isinstance(expected, float)


def test_constant_scores_are_chance():
    labels = np.array([0, 0, 0, 1])
    assert auroc(np.zeros(4), labels) == 0.5
    assert average_precision(np.zeros(4), labels) == 0.25
    assert f1_max(np.zeros(4), labels) == pytest.approx(0.4)


def test_perfect_and_inverted_orders():
    labels = np.array([0, 0, 1, 1])
    assert auroc(np.arange(4), labels) == 1.0 and auroc(-np.arange(4), labels) == 0.0
    assert average_precision(np.arange(4), labels) == 1.0 and f1_max(np.arange(4), labels) == 1.0


def test_one_class_is_an_error_or_defined():
    with pytest.raises(DataError, match="AUROC needs both classes, got 0 defective and 3 normal"):
        auroc(np.arange(3), np.zeros(3))
    with pytest.raises(DataError, match="AUROC needs both classes, got 3 defective and 0 normal"):
        auroc(np.arange(3), np.ones(3))
    for metric in (average_precision, f1_max):
        with pytest.raises(DataError, match="at least one defective"):
            metric(np.arange(3), np.zeros(3))
        assert metric(np.arange(3), np.ones(3)) == 1.0
    with pytest.raises(DataError, match="needs both classes"):
        bootstrap_auroc(np.arange(3), np.ones(3))


@pytest.mark.parametrize("metric", [*METRICS, bootstrap_auroc, image_metrics])
def test_bad_input_is_one_clear_error(metric):
    labels = np.array([0, 1, 1])
    with pytest.raises(DataError, match="2 NaN or infinite values of 3"):
        metric(np.array([np.nan, np.inf, 1.0]), labels)
    with pytest.raises(DataError, match="only 0 and 1"):
        metric(np.arange(3.0), np.array([0, 1, 2]))
    with pytest.raises(DataError, match="only 0 and 1"):
        metric(np.arange(3.0), np.array(["a", "b", "c"]))
    with pytest.raises(ShapeError, match="real numbers"):
        metric(np.array(["a", "b", "c"]), labels)
    for scores in (np.arange(4.0), np.zeros((3, 1)), np.float64(1)):
        with pytest.raises(ShapeError, match="two \\(N,\\) vectors"):
            metric(scores, labels)
    with pytest.raises(ShapeError, match="N >= 1"):
        metric(np.zeros(0), np.zeros(0))


def test_bundle_gives_none_with_the_reason():
    result = image_metrics(np.arange(3.0), np.zeros(3))
    assert result["image_auroc"] is None and result["image_ap"] is None and result["image_f1"] is None
    assert set(result["notes"]) == {"image_auroc", "image_ap", "image_f1"}
    assert "both classes" in result["notes"]["image_auroc"]


def test_bundle_equals_the_single_metrics():
    random = np.random.default_rng(1)
    scores, labels = random.integers(0, 9, 50), random.random(50) < 0.4
    result = image_metrics(scores, labels)
    assert result == {
        "image_auroc": auroc(scores, labels),
        "image_ap": average_precision(scores, labels),
        "image_f1": f1_max(scores, labels),
        "notes": {},
    }


def test_bootstrap_matches_a_plain_loop_and_repeats():
    random = np.random.default_rng(2)
    labels = np.arange(60) < 25
    scores = np.round(random.standard_normal(60) + labels, 1)
    low, high = bootstrap_auroc(scores, labels, seed=3)
    assert (low, high) == bootstrap_auroc(scores, labels, seed=3)
    assert low < auroc(scores, labels) < high
    normal, defective = scores[~labels], scores[labels]
    loop = [roc_auc_score(labels, np.concatenate([random.choice(defective, 25), random.choice(normal, 35)])) for _ in range(400)]
    assert (low, high) == pytest.approx(tuple(np.quantile(loop, (0.025, 0.975))), abs=0.04)


def test_bootstrap_of_degenerate_sets():
    scores, labels = np.arange(40) % 7, np.arange(40) % 3 == 0
    assert bootstrap_auroc(scores, labels, draws=1)[0] == bootstrap_auroc(scores, labels, draws=1)[1]
    assert bootstrap_auroc(np.arange(40), np.arange(40) > 20) == (1.0, 1.0)
    assert bootstrap_auroc(np.zeros(40), labels) == (0.5, 0.5)
    with pytest.raises(ConfigError, match="at least 1"):
        bootstrap_auroc(scores, labels, draws=0)


def test_bootstrap_of_many_items_runs_in_blocks():
    random = np.random.default_rng(4)
    labels = random.random(60_000) < 0.5
    scores = random.standard_normal(60_000) + labels
    low, high = bootstrap_auroc(scores, labels, draws=40)
    assert 0 < high - low < 0.01 and low < auroc(scores, labels) < high
