"""An experiment as data: what is compared on what, at which scale, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from balora.config.yaml_loader import read_config
from balora.errors import BALoraError
from balora.experiments.compare import Comparison, EvaluationPlan, Variant
from balora.experiments.compare.plan import Axes
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.prepare import Preparation

Scale = Literal["small", "paper"]
SEEDS = (42, 1024, 2024)
"""The paper's seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One comparison of an experiment."""

    name: str
    """Of its folder."""
    title: str
    """What it is, in a few words."""
    config: Callable[[Places], dict[str, Any]]
    """The runs' config."""
    variants: Sequence[Variant]
    baseline: str | None
    score: str
    """The score that the experiment is about."""
    further: Sequence[str] = ()
    """Other scores that the experiment shows."""
    evaluation: Callable[[Places], EvaluationPlan] | None = None
    """What each run is evaluated on when it is trained; None for its evaluation rows alone."""
    axes: Axes = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    """Of one core, training and evaluation, as measured on a busy machine (an idle one is faster); None where nobody measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure of the paper."""

    name: str
    title: str
    source: str
    """Where in the paper; of an experiment of ours "not of the paper" and a reason."""
    reported: str
    """What the authors report there, in one sentence, marked as theirs."""
    small: Sequence[Study]
    paper: Sequence[Study]
    limits: str
    """In what the small scale is a stand-in."""
    show: Callable[[Mapping[str, Comparison], Sequence[Study], Path], list[str]]
    """Writes the table or figure into a folder, and returns the Markdown that shows it."""
    alone: bool = False
    """Whether it measures time, so that runs must not share the machine."""
    prepare: Preparation | None = None
    """What the small scale makes for itself before its runs."""

    def studies(self, scale: Scale) -> Sequence[Study]:
        """The comparisons at a scale."""
        return self.small if scale == "small" else self.paper


def from_recipe(name: str, **changes: Mapping[str, Any]) -> Callable[[Places], dict[str, Any]]:
    """A study's config from a recipe.

    Args:
        name: Of the recipe, such as ``llama-2-7b/metamathqa``.
        changes: Sections to change key by key.

    Returns:
        A function of the places; it raises `BALoraError` where the recipe is not there.
    """

    def config(places: Places) -> dict[str, Any]:
        recipe = places.recipe(name)
        if not recipe.is_file():
            raise BALoraError(
                f"There is no recipe {recipe}. Say where the folder with the paper's settings is with --recipes."
            )
        values = read_config(recipe)
        for section, keys in changes.items():
            values[section] = {**(values.get(section) or {}), **keys}
        return values

    return config
