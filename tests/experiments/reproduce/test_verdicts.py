"""Statements about differences, and the correction for all comparisons of a page."""

from __future__ import annotations

from pathlib import Path

from balora.experiments.reproduce import EXPERIMENTS
from balora.experiments.reproduce.verdicts import differences_to, interval_caution, verdict
from comparisons import made_up


def differences(comparison):
    return [gap for group in comparison.groups for gap in group.differences.values()]


def test_a_page_states_what_its_intervals_cover():
    three = made_up({"pissa": [0.1, 0.2, 0.3], "lora": [0.2, 0.4, 0.3]}, "pissa")
    text = interval_caution(differences(three))
    assert "over 3 seeds" in text and "1 comparison of this page by Holm's method" in text
    assert "other seeds on this test set, not other items" in text
    ten = made_up({name: [0.1 * n * n for n in range(10)] for name in ("pissa", "lora")}, "pissa")
    assert "over 3 to 10 seeds" in interval_caution([*differences(three), *differences(ten)])
    single = made_up({"pissa": [0.1], "lora": [0.2]}, "pissa")
    assert interval_caution(differences(single)).startswith("No difference has an interval")


def test_a_variant_with_one_pair_is_listed_as_such():
    comparison = made_up({"pissa": [0.5, 0.5, 0.5], "lora": [0.6], "dora": [0.7, 0.71, 0.72]}, "pissa")
    text = verdict(comparison, "accuracy")
    assert "better: dora (+0.2100)" in text
    assert text.endswith("not told apart: none; no interval: lora.")


def test_one_sign_on_three_seeds_is_no_verdict():
    comparison = made_up({"a": (0.0, 0.0, 0.0), "b": (1.0, 2.0, 3.0)}, "a", "loss")
    assert verdict(comparison, "loss") == "compared with a: better: none; worse: none; not told apart: b."


def test_another_baseline_gives_its_own_differences():
    comparison = made_up({"a": (0.1, 0.2), "b": (0.3, 0.5), "c": (0.3, 0.6)}, "a")
    ((name, gap),) = differences_to(comparison, "accuracy", "b", ["c"])
    assert name == "c" and abs(gap.mean - 0.05) < 1e-9


def test_a_page_with_more_comparisons_has_wider_intervals():
    experiment = EXPERIMENTS["table2"]
    few, many = experiment.small[:1], experiment.small
    values = {"pissa": (0.50, 0.51, 0.52), "lora": (0.60, 0.635, 0.60), "balora": (0.5, 0.52, 0.515)}
    noise = {"pissa": (0.5, 0.6, 0.7), "lora": (0.6, 0.5, 0.8), "balora": (0.7, 0.5, 0.6)}
    made = {
        study.name: made_up(values if n == 0 else noise, "pissa", study.score)
        for n, study in enumerate(experiment.small)
    }
    one = "\n".join(experiment.render(few, {few[0].name: made[few[0].name]}, Path()))
    assert "better: lora (+0.1017)" in one and "2 comparisons of this page" in one
    page = "\n".join(experiment.render(many, made, Path()))
    assert "better: lora" not in page and "8 comparisons of this page" in page, (
        "the same numbers, among eight comparisons"
    )
