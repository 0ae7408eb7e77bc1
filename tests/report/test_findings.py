"""What a report warns of, from rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from balora.experiments.compare import Row
from balora.report.findings import find_warnings
from balora.report.sections import Section


def section(runs: list[tuple[str, int, str, dict[str, Any]]], comparison: dict[str, Any] | None) -> Section:
    """Runs by variant, seed, digest of their data and axes."""
    rows = [
        Row(run=f"{variant}-{seed}-{n}", variant=variant, method="lora", regularized=False, axes=axes, seed=seed,
            status="finished", scores={}, provenance={"data_digest": digest})
        for n, (variant, seed, digest, axes) in enumerate(runs)
    ]  # fmt: skip
    return Section(title="t", directory=Path("t"), runs=[], rows=rows, comparison=comparison)


DRAWN = [("lora", 1, "a", {}), ("pissa", 1, "a", {}), ("lora", 2, "b", {}), ("pissa", 2, "b", {})]
"""A data condition draws rows by the seed: all methods see the same ones."""


def about_data(found: Section) -> list[str]:
    return [text for text in find_warnings(found) if "training data" in text]


def test_a_comparison_whose_seeds_draw_their_own_rows_is_sound():
    assert about_data(section(DRAWN, {})) == []


def test_runs_of_no_comparison_are_to_be_compared_within_a_seed():
    assert about_data(section(DRAWN, None)) == [
        "Compare only runs with the same seed: runs with different seeds had different training data."
    ]


@pytest.mark.parametrize("comparison", [{}, None])
def test_different_data_on_one_seed_is_said(comparison: dict[str, Any] | None):
    (said,) = about_data(section([*DRAWN[:3], ("pissa", 2, "other", {})], comparison))
    assert said.startswith("Do not compare all scores directly: some runs with the same seed")


def test_an_axis_may_be_about_the_data():
    noise = [(name, 1, digest, {"data.label_noise": digest}) for name in ("lora", "pissa") for digest in ("a", "b")]
    assert about_data(section(noise, {})) == []
