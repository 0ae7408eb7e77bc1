"""Our own experiment beside the paper's, and how far a page says its intervals can be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from balora.experiments.compare import Comparison, Row, summarise
from balora.experiments.compare.statistics import bootstrap
from balora.experiments.reproduce import EXPERIMENTS, Places, Request
from balora.experiments.reproduce.columns import by_chance, caution, verdict
from balora.experiments.reproduce.fitted_head import show

EXPERIMENT = EXPERIMENTS["fitted-head"]


def made(values: dict[str, list[float]], baseline: str = "pissa") -> Comparison:
    rows = [
        Row(run=f"{name}-{seed}", variant=name, method="pissa", regularized=False, axes={}, seed=seed, status="finished",
            scores={"accuracy": value}, provenance={})
        for name, found in values.items() for seed, value in enumerate(found)
    ]  # fmt: skip
    groups = summarise(rows, ["accuracy"], baseline)
    return Comparison(groups=groups, rows=rows, scores=["accuracy"], baseline=baseline, about={})


def test_only_the_last_row_has_terms_and_every_other_with_head_has_the_head_alone():
    asked = Request(experiment=EXPERIMENT, scale="small", output=Path("out"), places=Places(), seeds=[1])
    for study in EXPERIMENT.small:
        found = {cell.variant.name: cell.config for cell in asked.cells(study)}
        for name, settings in found.items():
            terms = settings.regularization
            weights = [terms.consistency, terms.diversity, terms.spectral, terms.variance] if terms else []
            assert any(weights) == ("C+D+V+S" in name), name
            assert (terms is not None and terms.teacher_head == "probe") == ("+head" in name), name
            assert settings.method.name == name.partition("+")[0]
        rates = {name: settings.training["learning_rate"] for name, settings in found.items()}
        assert (
            rates["lora"] == rates["lora+head"] != rates["pissa"] == rates["pissa+head"] == rates["pissa+head+C+D+V+S"]
        )


def test_each_row_is_held_against_its_own_kind():
    values = {
        "lora": [0.80, 0.81], "lora+head": [0.82, 0.84], "pissa": [0.7, 0.71], "pissa+head": [0.75, 0.77],
        "pissa+head+C+D+V+S": [0.74, 0.75],
    }  # fmt: skip
    study = EXPERIMENT.small[0]
    *_, words = show({study.name: made(values)}, [study], Path())
    to_pissa, to_lora, to_head = words.splitlines()
    assert all(name in to_pissa for name in values if name != "pissa")
    assert "against lora: better: lora+head (+0.0250" in to_lora and "pissa" not in to_lora
    assert "against pissa+head: better: none; worse: pissa+head+C+D+V+S (-0.0150" in to_head


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_how_often_an_interval_excludes_0_by_chance_is_what_chance_gives(pairs: int):
    drawn = np.random.default_rng(pairs).standard_normal((1500, pairs))
    intervals = [bootstrap(row, resamples=1000) for row in drawn]
    share = np.mean([low > 0 or high < 0 for low, high in intervals])
    assert share == pytest.approx(by_chance(pairs), abs=0.03)


def test_a_page_says_how_many_seeds_its_intervals_have():
    three = {"pissa": [0.1, 0.2, 0.3], "lora": [0.2, 0.4, 0.3]}
    assert caution({"a": made(three)}).startswith(
        "With 3 seeds a bootstrap interval is too narrow: under pure chance one in 4 "
    )
    ten = {name: [0.1 * n for n in range(10)] for name in three}
    assert caution({"a": made(ten)}).startswith(
        "With 10 seeds a bootstrap interval is too narrow: under pure chance one in 10 "
    )
    # The fewest of the page count; a single pair has no interval at all.
    assert "With 3 seeds" in caution({"a": made(ten), "b": made(three)})
    assert caution({"a": made({"pissa": [0.1], "lora": [0.2]})}).startswith("One seed has no interval")


def test_a_variant_with_one_pair_is_listed_as_such():
    values = made({"pissa": [0.5, 0.5, 0.5], "lora": [0.6], "dora": [0.7, 0.8, 0.9]})
    words = verdict(values, "accuracy")
    assert "better: dora" in words
    assert words.endswith("not told apart: none; only one pair, so no interval: lora.")
    assert caution({"study": values}).startswith("With 3 seeds")


def test_two_pairs_exclude_0_where_both_have_one_sign():
    assert by_chance(2) == 0.5
    assert "one in 2 would" in caution({"study": made({"pissa": [0.5, 0.5], "lora": [0.6, 0.7]})})
