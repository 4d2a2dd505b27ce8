from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm3dad.view.charts import draw_curve, draw_histogram, pr_points, roc_points
from tests.view.parts import Page

ROWS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=30)
CASES = ROWS.map(lambda rows: [*rows, (3, True), (4, False)])  # both labels occur


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_curves_agree_with_scikit_learn(rows):
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, labels = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    roc = roc_points(scores, labels)
    area = float(np.sum(np.diff(roc[:, 0]) * (roc[1:, 1] + roc[:-1, 1]) / 2))
    assert roc[0].tolist() == [0, 0] and roc[-1].tolist() == [1, 1]
    assert area == pytest.approx(roc_auc_score(labels, scores))
    pr = pr_points(scores, labels)
    assert float(np.sum(np.diff(pr[:, 0]) * pr[1:, 1])) == pytest.approx(average_precision_score(labels, scores))


def test_curve_is_drawn_inside_its_field():
    page = Page(draw_curve(roc_points([1, 2, 3, 3], [0, 1, 0, 1]), "a < b", "y", diagonal=True))
    points = [tuple(map(float, pair.split(","))) for pair in page.all("polyline")[0]["points"].split()]
    assert all(38 <= x <= 290 and 10 <= y <= 166 for x, y in points) and points[0] == (38.0, 166.0)
    assert len(page.all("line")) == 1 and "a < b" in page.words


def test_steps_hold_the_later_precision():
    page = Page(draw_curve(np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 0.5]]), "recall", "precision", steps=True))
    points = [tuple(map(float, pair.split(","))) for pair in page.all("polyline")[0]["points"].split()]
    assert points == [(38, 10), (38, 10), (164, 10), (164, 88), (290, 88)]


def test_histogram_counts_every_finite_score():
    page = Page(draw_histogram({"good": [1, 1, 2, np.nan], "defective": [5.0, np.inf]}, threshold=3.0, bins=4))
    bars = [rect for rect in page.all("rect") if rect["class"] != "field"]
    assert [bar["class"] for bar in bars] == ["good", "good", "defective"]
    assert float(bars[0]["height"]) == pytest.approx(2 * float(bars[1]["height"]), abs=0.2)
    assert float(page.all("line")[0]["x1"]) == pytest.approx(164)


@pytest.mark.parametrize("scores", [[2.0], [0.0, 0.0], [1e300, 1e300], [1e-300, 2e-300], [-1.0, 1e30]])
def test_odd_scores_make_a_finite_chart(scores):
    assert "nan" not in draw_histogram({"good": scores}) and "inf" not in draw_histogram({"good": scores})


def test_no_scores():
    assert "no scores" in draw_histogram({"good": []})
