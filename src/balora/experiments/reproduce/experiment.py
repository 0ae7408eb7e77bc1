"""Experiments as data: the studies at each scale, and the parts of the page that shows them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from balora.experiments.compare import Comparison, EvaluationPlan, Variant
from balora.experiments.compare.plan import Axes
from balora.experiments.reproduce.paths import Paths
from balora.experiments.reproduce.preparation import Preparation

Scale = Literal["small", "paper"]
Config = Callable[[Paths], dict[str, Any]]
"""Function that returns the plain values of a run's config."""
SEEDS = (42, 1024, 2024)
"""Seeds of the paper."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One comparison of an experiment."""

    name: str
    """Name of the study's directory."""
    title: str
    config: Config
    variants: Sequence[Variant]
    _: dataclasses.KW_ONLY
    baseline: str | None = "pissa"
    score: str = "loss"
    """Score that the experiment is about."""
    further: Sequence[str] = ()
    """Other scores that the page shows."""
    evaluation: Callable[[Paths], EvaluationPlan] | None = None
    """Tasks that each run is evaluated on after training; None for the run's own evaluation rows alone."""
    axes: Axes = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    """Time of one run on one core, training and evaluation, measured on a busy machine; None if not measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Comparisons of an experiment's finished studies."""

    studies: Sequence[Study]
    comparisons: Mapping[str, Comparison]
    """Comparison by the study's name; studies that have not run yet are absent."""
    directory: Path
    """Directory of the page and its figures."""
    experiment: Experiment

    def by_score(self, *, finished: bool = True) -> list[Study]:
        """Repeat each study once for each score that the page shows.

        Args:
            finished: Leave out studies without a comparison.
        """
        return [
            dataclasses.replace(study, score=score)
            for study in self.studies
            if study.name in self.comparisons or not finished
            for score in (study.score, *study.further)
        ]


Part = Callable[[Results], Iterable[str]]
"""Function that returns paragraphs (Markdown) of a page, and writes the figures that they show."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure of the paper, or a question of ours. `declare` reads the texts from ``experiments.yaml``."""

    name: str
    title: str
    source: str
    """Section and number in the paper. For an experiment of ours: "not of the paper" and the reason."""
    reported: str
    """Finding that the authors report, marked as theirs."""
    advice: str
    """Instruction for the reader: which numbers to compare with which."""
    limits: str
    """Differences between the small scale and the paper's experiment."""
    paper_numbers: Mapping[str, Any] | None = None
    """Table of the paper: ``source``, ``columns``, ``rows``, perhaps a ``note``."""
    small: Sequence[Study]
    paper: Sequence[Study]
    page: Sequence[Part]
    """Parts of the page, in order: findings, numbers, doubts."""
    measures_time: bool = False
    """Run one after the other, because runs that share a machine take longer."""
    preparation: Preparation | None = None
    """Step of the small scale before its runs."""

    def studies(self, scale: Scale) -> Sequence[Study]:
        """Return the studies of a scale."""
        return self.small if scale == "small" else self.paper

    def render(self, studies: Sequence[Study], comparisons: Mapping[str, Comparison], directory: Path) -> list[str]:
        """Return the page's paragraphs about the results, and write its figures into ``directory``."""
        results = Results(studies=studies, comparisons=comparisons, directory=directory, experiment=self)
        return [text for part in self.page for text in part(results)]


def declare(name: str, **declared: Any) -> Experiment:
    """Return an experiment with the texts of that name in ``experiments.yaml``.

    Args:
        name: Name of the experiment.
        declared: Other fields of `Experiment`.
    """
    return Experiment(name=name, **_texts()[name], **declared)


@functools.cache
def _texts() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("experiments.yaml").read_text(encoding="utf-8")
    texts: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return texts
