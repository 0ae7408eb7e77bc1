"""Items, standard errors, paired intervals, McNemar's test and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score

from balora.evaluation.significance.intervals import Estimate, estimate, holm_levels, mcnemar, seeds_needed
from balora.evaluation.significance.items import Items, items_from_dict, items_of_result
from simulated_methods import ITEMS, SEEDS, found, two_methods


@pytest.mark.parametrize("seed_spread", [0.0, 0.1])
def test_false_positives_are_near_5_percent_and_power_is_above_the_t_interval_over_seeds(
    seed_spread: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("balora.evaluation.significance.intervals.RESAMPLES", 200)
    false, _, _ = found(400, 0.0, seed_spread)
    assert false < 0.085, "5 %, and three standard errors of 400 simulations"
    power, power_of_seeds, _ = found(200, 0.15, seed_spread)
    assert power > power_of_seeds


def test_both_parts_of_the_error_are_there():
    rng = np.random.default_rng(0)
    own, other = two_methods(rng, 0.1, 0.0)
    values = [a.value("accuracy") - b.value("accuracy") for a, b in zip(own, other, strict=True)]
    both = estimate(values, own, other, "accuracy")
    assert both is not None and both.basis == "seeds and items"
    matrix = np.array([a.binary["accuracy"] * 1.0 - b.binary["accuracy"] for a, b in zip(own, other, strict=True)])
    items = matrix.mean(0).var(ddof=1) / ITEMS
    noise = max(0.0, (matrix.var(axis=1, ddof=1).mean() / ITEMS - items) / 2)
    expected = math.sqrt(items + max(0.0, matrix.mean(1).var(ddof=1) / SEEDS - noise))
    assert both.error == pytest.approx(expected, rel=0.06), "the bootstrap has 1,000 resamples"
    # Far apart seeds: the interval is about Student's over seeds.
    far = estimate([0.0, 0.5, 1.0], own, other, "accuracy")
    over_seeds = estimate([0.0, 0.5, 1.0])
    assert far is not None and over_seeds is not None
    assert far.error == pytest.approx(over_seeds.error, rel=0.01) and far.degrees == pytest.approx(2, abs=0.05)


def test_seeds_alone_give_students_interval():
    gap = estimate([1.0, 2.0, 3.0])
    assert gap is not None and gap.basis == "seeds"
    assert gap.interval() == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert gap.p == pytest.approx(scipy.stats.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)
    assert estimate([0.3]) is None and estimate([]) is None
    assert estimate([0.3, 0.3, 0.3]) is None, "equal seeds say nothing about the next one"
    same = estimate([0.0, 0.0, 0.0])
    assert same is not None and same.p == 1.0 and same.interval() == (0.0, 0.0)


def test_other_items_are_not_paired():
    own = [Items.of_values(["a", "b"], {"accuracy": [1, 0]})] * 2
    other = [Items.of_values(["a", "c"], {"accuracy": [1, 0]})] * 2
    gap = estimate([0.1, 0.2], own, other, "accuracy")
    assert gap is not None and gap.basis == "seeds"


def test_one_seed_with_items_is_a_statement_about_items():
    right = np.random.default_rng(0).random(400) < 0.3
    items = Items.of_values(list(map(str, range(400))), {"accuracy": right})
    score = estimate([items.value("accuracy")], [items], (), "accuracy")
    assert score is not None and score.basis == "items"
    share = right.mean()
    assert score.error == pytest.approx(math.sqrt(share * (1 - share) / 400), rel=0.06)


def test_scores_of_items_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    labels, predicted = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    names = list(map(str, range(200)))
    items = Items.of_classes(names, labels.tolist(), predicted.tolist())
    assert items.value("accuracy") == pytest.approx(accuracy_score(labels, predicted))
    assert items.value("f1_macro") == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert items.value("matthews") == pytest.approx(matthews_corrcoef(labels, predicted))
    assert items.value("recall_1") == pytest.approx(recall_score(labels, predicted, average=None)[1])
    one = Items.of_classes(names, labels.tolist(), [0] * 200)
    assert one.value("matthews") == 0.0
    x, y = rng.normal(size=200), rng.normal(size=200)
    numbers = Items.of_numbers(names, x.tolist(), (x + y).tolist())
    assert numbers.value("pearson") == pytest.approx(scipy.stats.pearsonr(x, x + y).statistic)
    assert numbers.value("mse") == pytest.approx((y**2).mean())
    assert math.isnan(Items.of_numbers(names, x.tolist(), [1.0] * 200).value("pearson"))


def test_items_of_result_files():
    math_task = {
        "samples": [{"id": "0", "correct": True, "extracted": "4"}, {"id": "1", "correct": False}],
        "scores": {},
    }
    items = items_of_result(math_task)
    assert items is not None and (items.value("accuracy"), items.value("answered")) == (0.5, 0.5)
    programs = [{"id": f"{n}/{k}", "passed": k == 0} for n in range(2) for k in range(4)]
    code = items_of_result({"samples": programs, "scores": {}})
    assert code is not None and code.ids == ("0", "1") and code.value("pass@1") == 0.25
    glue = [{"id": "0", "label": "no", "predicted": "no", "output": [1.0, 0.0]}]
    classes = items_of_result({"samples": glue, "scores": {}})
    assert classes is not None and classes.value("accuracy") == 1.0
    scores = [{"id": str(n), "label": float(n), "output": [float(n)]} for n in range(3)]
    numbers = items_of_result({"samples": scores, "scores": {}})
    assert numbers is not None and numbers.value("mse") == 0.0
    harness = items_of_result({"samples": [{"id": "t/0", "acc": 1.0}], "scores": {"acc,none": 1.0, "main": "acc,none"}})
    assert harness is not None and harness.value("acc,none") == 1.0
    assert items_of_result({"samples": [], "scores": {}}) is None
    assert items_from_dict({"kind": "other", "ids": []}) is None


def test_mcnemar_counts_the_answers_that_differ():
    own, other = [True] * 9 + [False] * 91, [False] * 9 + [True] + [False] * 90
    assert mcnemar(own, other) == (9, 1, pytest.approx(scipy.stats.binomtest(9, 10).pvalue))
    assert mcnemar([True], [True]) == (0, 0, 1.0)


def test_an_interval_at_holms_level_excludes_0_exactly_if_holm_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        gaps = [Estimate(rng.normal(0, 2), 0.7, 4, "seeds") for _ in range(6)]
        p = [gap.p for gap in gaps]
        levels = holm_levels(p)
        order = sorted(range(6), key=lambda n: p[n])
        rejected, going = set(), True
        for rank, index in enumerate(order):
            going = going and p[index] < 0.05 / (6 - rank)
            if going:
                rejected.add(index)
        for index, gap in enumerate(gaps):
            low, high = gap.interval(1 - levels[index])
            assert (low > 0 or high < 0) == (index in rejected)
    assert holm_levels([]) == []


def test_the_number_of_seeds_has_the_power_that_it_promises():
    count, rng = int(seeds_needed(1.0, 1.2)), np.random.default_rng(0)

    def power(size: int) -> float:
        return float(np.mean(scipy.stats.ttest_1samp(rng.normal(1.0, 1.2, (4000, size)), 0, axis=1).pvalue < 0.05))

    assert power(count) > 0.785 and power(count - 1) < 0.805
    assert seeds_needed(0.001, 1.0) == "more than 1,000"
    assert seeds_needed(1.0, 0.0) == "2"
