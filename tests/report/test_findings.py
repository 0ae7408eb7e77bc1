"""Warnings of a report about the training data of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from balora.experiments.compare import Row
from balora.report.findings import find_warnings
from balora.report.sections import Section


def section(runs: list[tuple[str, int, str, dict[str, Any]]], comparison: dict[str, Any] | None) -> Section:
    """Make a section of runs, each given by variant, seed, data digest and varied values."""
    rows = [
        Row(run=f"{variant}-{seed}-{n}", variant=variant, method="lora", regularized=False, axes=axes, seed=seed,
            status="finished", scores={}, provenance={"data_digest": digest})
        for n, (variant, seed, digest, axes) in enumerate(runs)
    ]  # fmt: skip
    return Section(title="t", directory=Path("t"), runs=[], rows=rows, comparison=comparison)


SUBSAMPLED = [("lora", 1, "a", {}), ("pissa", 1, "a", {}), ("lora", 2, "b", {}), ("pissa", 2, "b", {})]
"""Subsampled data: the rows depend on the seed and are the same for all methods."""


def data_warnings(section: Section) -> list[str]:
    return [text for text in find_warnings(section) if "training data" in text]


def test_a_comparison_may_have_other_data_for_each_seed():
    assert data_warnings(section(SUBSAMPLED, {})) == []


def test_runs_without_a_comparison_must_be_compared_within_a_seed():
    assert data_warnings(section(SUBSAMPLED, None)) == [
        "Compare only runs with the same seed: runs with different seeds had different training data."
    ]


@pytest.mark.parametrize("comparison", [{}, None])
def test_different_data_with_the_same_seed_gives_a_warning(comparison: dict[str, Any] | None):
    (warning,) = data_warnings(section([*SUBSAMPLED[:3], ("pissa", 2, "other", {})], comparison))
    assert warning.startswith("Do not compare all scores directly: some runs with the same seed")


def test_a_varied_key_may_change_the_data():
    noise = [(name, 1, digest, {"data.label_noise": digest}) for name in ("lora", "pissa") for digest in ("a", "b")]
    assert data_warnings(section(noise, {})) == []
