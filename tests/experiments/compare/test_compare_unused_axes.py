"""Axes, baselines and frontiers that cannot give what was asked for are refused before any run is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import Command

DRY = ("--dry-run", "--seeds", "1", "--methods")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["lora", "--vary", "anchor.weight=1,2"],
            "--vary anchor.weight has no effect on lora: it concerns NAME+anchor.",
        ),
        (["lora", "--vary", "regularization.consistency=0,1"], "it concerns balora and NAME+reg."),
        (["full", "--vary", "method.rank=2,4"], "it concerns methods with a rank."),
        (["lora", "--frontier", "drift", "--knob", "anchor.weight=1,2", "data.eval=0.5"], "--knob anchor.weight"),
        (["lora", "--frontier", "drift"], "set data.eval"),
        (["lora", "--frontier", "drift", "--at-drift", "-1", "data.eval=0.5"], "--at-drift must be drifts above 0"),
        (["lora", "--frontier", "drift", "--at-score", "inf", "data.eval=0.5"], "--at-score must be numbers"),
        (["lora", "--baseline", "pissa"], "The baseline pissa is not among the methods lora."),
    ],
)
def test_refused(balora: Command, config: Path, arguments: list[str], message: str) -> None:
    outcome = balora("compare", config, *DRY, *arguments)
    assert outcome.status == 2 and message in " ".join(outcome.err.split())


def test_an_axis_of_one_of_the_methods_is_taken(balora: Command, config: Path) -> None:
    outcome = balora("compare", config, *DRY, "lora,balora", "--vary", "regularization.consistency=0,1")
    assert outcome.status == 0 and "3 runs in" in outcome.out
