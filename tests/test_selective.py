"""Do uncertainties find mistakes: against scikit-learn, by hand, and where nothing can be said."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, rankdata
from sklearn.metrics import roc_auc_score

import common
from explain.methods import selective
from explain.methods.calibration import wilson_interval
from explain.methods.disturbances import disturbed
from explain.methods.maps import average_ranks
from explain.report import uncertainty, verdicts


def test_auroc_is_scikit_learns_also_with_ties():
    random = np.random.default_rng(0)
    for _ in range(20):
        uncertainty, mistakes = random.integers(6, size=30), random.random(30) < 0.3
        assert selective.auroc(uncertainty, mistakes) == pytest.approx(roc_auc_score(mistakes, uncertainty))
    assert np.isnan(selective.auroc(np.arange(4), np.zeros(4, bool)))
    assert np.isnan(selective.auroc(np.arange(4), np.ones(4, bool)))


def test_the_standard_error_of_auroc_by_hand():
    """Mistakes at 1 and 4, right answers at 0, 2, 3: above the mistakes' 1/3 and 1, below the others' 1, 1/2 and 1/2.

    Variances 2/9 and 1/12: the root of 1/9 + 1/36.
    """
    found = selective.auroc_standard_error(np.array([1, 4, 0, 2, 3]), np.array([True, True, False, False, False]))
    assert found == pytest.approx((1 / 9 + 1 / 36) ** 0.5)


def test_risk_coverage_by_hand_and_over_all_orders_of_ties():
    """Surest first: right, wrong, right, wrong."""
    mistakes = np.array([True, False, True, False])
    found = selective.risk_coverage(np.array([4, 1, 2, 3]), mistakes)
    assert found.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    uncertainty = np.array([1, 1, 1, 0])  # the first three in any order
    orders = [np.cumsum([False, *order]) / [1, 2, 3, 4] for order in permutations(mistakes[:3])]
    assert selective.risk_coverage(uncertainty, mistakes).tolist() == pytest.approx(np.mean(orders, 0).tolist())


def test_a_prediction_by_hand():
    judged = selective.score_prediction(np.array([0.2, 0.7, 0.1]), 0)
    assert judged["right"] is False and judged["confidence"] == 0.7
    assert judged["loss"] == pytest.approx(-np.log(0.2))
    assert judged["brier"] == pytest.approx(0.8**2 + 0.7**2 + 0.1**2)
    assert selective.score_prediction(np.array([0.0, 1.0]), 1) == {
        **dict(right=True, confidence=1.0, loss=0.0, brier=0.0),
    }


def rows_of(n: int, wrong: int, seed: int = 0) -> list[dict]:
    """Images of which the last are mistakes: the margin knows, the variance has it the wrong way round."""
    random = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        right = k < n - wrong
        judged = {"right": right, "confidence": 0.5, "loss": 1.0, "brier": 0.5}
        row = dict.fromkeys(selective.MEASURES, None) | {name: random.random() for name in selective.MEASURES}
        row |= {"single_margin": k < n - wrong, "variance": float(right), "mean": judged, "single": judged}
        rows.append(row)
    return rows


def test_measures_are_judged_beside_the_single_pass():
    found, alone = (selective.compare_measures(rows_of(60, 20), seed) for seed in (0, None))
    assert found["single_margin"]["auroc"] == 1 and found["variance"]["auroc"] == 0
    assert found["single_margin"]["auroc_interval"] == [1, 1] and found["variance"]["mistakes"] == 20
    # the surest 40 are all right: risks are (k - 40) / k from there on
    expected = sum((k - 40) / k for k in range(41, 61)) / 60
    assert found["single_margin"]["area_under_risk_coverage"] < expected + 0.01
    for name in ("predictive_entropy", "mutual_information"):  # random numbers: twice 1.96 standard errors wide
        (low, high), error = found[name]["auroc_interval"], alone[name]["auroc_standard_error"]
        assert low < found[name]["auroc"] < high and high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found["single_probability"]["above_baseline_interval"] == [0, 0]
    assert found["variance"]["above_baseline"] == -found["single_probability"]["auroc"]
    said = verdicts.best_measure(found)
    assert "the margin of the single pass finds mistakes best (AUROC 1.00), significantly better than" in said
    one_pass = [row | {"variance": None} for row in rows_of(60, 20)]
    assert selective.compare_measures(one_pass, seed=0) == {k: v for k, v in found.items() if k != "variance"}
    same = {"auroc": 1.0, "above_baseline_interval": [0, 0]}  # no other measure is better than what one pass says
    said = verdicts.best_measure({"variance": same, "single_probability": same})
    assert said.startswith("the largest probability of the single pass") and said.endswith("significantly worse: none")


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(selective, "RESAMPLES", 200)


@pytest.mark.parametrize("wrong", [0, 4, 57])
def test_with_too_few_mistakes_or_right_answers_nothing_is_said(wrong):
    results, tables = selective.summary(rows_of(60, wrong), seed=0)
    assert all(found["auroc"] is None and "auroc_interval" not in found for found in results["mistakes"].values())
    said = verdicts.find_mistakes(results)
    assert f"{wrong} mistakes and {60 - wrong} right answers on labelled images; at least 5 of each are needed" in said
    assert results["mistakes_under_shift"] == {} and [*tables] == ["measures.csv"]
    assert selective.summary([], 0) == ({}, {}) and "is unknown" in verdicts.find_mistakes({})


def test_disturbances_are_pooled_without_the_pictures_as_they_are():
    rows = rows_of(10, 0)
    for row, wrong in zip(rows, rows_of(10, 10), strict=True):
        row["disturbed"] = {"blur": wrong, "turn": rows_of(1, 0)[0]}
    results, tables = selective.summary(rows, seed=0)
    shift = results["mistakes_under_shift"]
    assert {name: of_one["accuracy"] for name, of_one in shift.items()} == {
        "none": 1.0,
        "blur": 0.0,
        "turn": 1.0,
        "pooled": 0.5,
    }
    assert shift["blur"]["variance"]["auroc"] is None and shift["pooled"]["single_margin"]["auroc"] == 1
    assert len(tables["measures_under_shift.csv"]) == 4 * 8


def test_the_figure_of_disturbances_has_the_counts_of_each():
    """Of 12 images 2 are mistakes, and 6 under blur. No line joins the kinds, and AUROC is drawn under blur alone."""
    rows = rows_of(12, 2)
    for row, wrong in zip(rows, rows_of(12, 6, seed=1), strict=True):
        row["disturbed"] = {"blur": wrong}
    shift = selective.summary(rows, seed=0)[0]["mistakes_under_shift"]
    assert (
        "auroc_standard_error" in shift["blur"]["variance"]
        and "auroc_standard_error" not in shift["pooled"]["variance"]
    )
    figure, text = uncertainty.draw_shift(shift, 12, "12 labelled images", SimpleNamespace(label="net"))
    left, right, _ = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["none (2)", "blur (6)", "pooled (6)"]
    assert all(line.get_linestyle() == "None" for line in left.lines) and "12 labelled images" in text[3]
    assert all(np.isnan(bars.lines[0].get_ydata()[0]) for bars in right.containers) and len(right.containers) == 4
    few, text = uncertainty.draw_shift(
        {"none": shift["none"], "pooled": shift["none"]}, 12, "", SimpleNamespace(label="")
    )
    assert len(few.axes) == 1 and "no AUROC is shown, since it is not measured where there are fewer than 5" in text[1]


def test_disturbances_by_hand():
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(99))
    found = disturbed(images, common.seeded_generators(0, [0, 1]))
    assert found["quarter_turn"][0, 1, 0, 3] == images[0, 1, 3, -1]
    torch.testing.assert_close(found["contrast_0.3"].mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(found["contrast_0.3"].std(), 0.3 * images.std(), rtol=0.05, atol=0)
    noise = (found["noise_0.1"] - images)[(images > 0.4) & (images < 0.6)]  # where black and white are far
    assert noise.std() == pytest.approx(0.1, rel=0.06)
    assert found["noise_0.25"].min() >= 0 and found["noise_0.25"].max() <= 1
    assert found["blur_4_px"].std() < found["blur_2_px"].std() < 0.2 * images.std()
    alone = disturbed(images[1:], common.seeded_generators(0, [1]))
    assert all(torch.equal(alone[name][0], of_both[1]) for name, of_both in found.items() if "blur" not in name)


def test_ranks_and_intervals_are_scipys():
    for k in (0, 1, 7, 20):
        interval = binomtest(k, 20).proportion_ci(method="wilson")
        assert wilson_interval(k, 20) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert wilson_interval(0, 5)[0] == 0 and wilson_interval(7, 7)[1] == 1  # not by rounding alone
    values = np.random.default_rng(0).integers(0, 5, 40)
    assert average_ranks(values).tolist() == rankdata(values).tolist()
