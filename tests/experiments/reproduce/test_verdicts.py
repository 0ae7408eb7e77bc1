"""Statements about differences, and how far a page says that its intervals can be trusted."""

from __future__ import annotations

import numpy as np
import pytest

from balora.experiments.compare import summarise
from balora.experiments.compare.statistics import bootstrap
from balora.experiments.reproduce.verdicts import false_positive_rate, interval_caution, verdict
from comparisons import made_up


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_the_false_positive_rate_is_how_often_an_interval_excludes_0(pairs: int):
    drawn = np.random.default_rng(pairs).standard_normal((1500, pairs))
    intervals = [bootstrap(row, resamples=1000) for row in drawn]
    share = np.mean([low > 0 or high < 0 for low, high in intervals])
    assert share == pytest.approx(false_positive_rate(pairs), abs=0.03)


def test_a_page_states_how_many_seeds_its_intervals_have():
    three = {"pissa": [0.1, 0.2, 0.3], "lora": [0.2, 0.4, 0.3]}
    of_three = interval_caution([made_up(three, "pissa")])
    assert of_three.startswith("With 3 seeds the bootstrap interval is too narrow")
    assert "one interval in 4 would still exclude 0" in of_three
    ten = {name: [0.1 * n for n in range(10)] for name in three}
    of_ten = interval_caution([made_up(ten, "pissa")])
    assert of_ten.startswith("With 10 seeds ") and "one interval in 10 would" in of_ten
    # The fewest seeds of the page count; a single pair has no interval at all.
    assert interval_caution([made_up(ten, "pissa"), made_up(three, "pissa")]) == of_three
    assert interval_caution([made_up({"pissa": [0.1], "lora": [0.2]}, "pissa")]).startswith("One seed has no interval")


def test_a_variant_with_one_pair_is_listed_as_such():
    comparison = made_up({"pissa": [0.5, 0.5, 0.5], "lora": [0.6], "dora": [0.7, 0.8, 0.9]}, "pissa")
    text = verdict(comparison, "accuracy")
    assert "better: dora" in text
    assert text.endswith("no clear difference: none; only one pair: lora.")
    assert interval_caution([comparison]).startswith("With 3 seeds")


def test_two_pairs_exclude_0_if_both_have_one_sign():
    assert false_positive_rate(2) == 0.5
    assert "one interval in 2 would" in interval_caution([made_up({"pissa": [0.5, 0.5], "lora": [0.6, 0.7]}, "pissa")])


def test_students_interval_is_wider_than_the_bootstraps_with_few_pairs():
    rows = made_up({"a": (0.0, 0.0, 0.0), "b": (1.0, 2.0, 3.0)}, "a", "loss").rows
    gap = summarise(rows, ["loss"], "a")[1].differences["loss"]
    # Mean 2, deviation 1, three pairs: 2 ± 4.3027 / √3.
    assert gap.t_interval == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert gap.low is not None
    assert gap.t_interval[0] < 0 < gap.low
