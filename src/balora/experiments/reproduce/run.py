"""Run an experiment, or say what running it would take, and write its page."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.run_directory import read_record
from balora.config.yaml_loader import apply_overrides
from balora.errors import BALoraError
from balora.experiments.compare import Cell, Comparison, EvaluationPlan, compare, lay_out
from balora.experiments.compare.engines import Engine
from balora.experiments.compare.rows import is_finished
from balora.experiments.reproduce.evaluations import missing_for
from balora.experiments.reproduce.experiment import SEEDS, Experiment, Scale, Study
from balora.experiments.reproduce.paths import Places, missing
from balora.experiments.reproduce.prepare import Preparation
from balora.files import write_text

Say = Callable[[str], None]
PAGE = "README.md"
_AROUND = 5.0
"""Seconds of a run that are neither training nor evaluation: reading model and data, writing the adapter."""
PREPARED = "prepared"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for."""

    experiment: Experiment
    scale: Scale
    output: Path
    places: Places
    seeds: Sequence[int] = SEEDS
    overrides: Sequence[str] = ()

    @property
    def here(self) -> Places:
        """The places, with this experiment's own folder for what it prepares."""
        return dataclasses.replace(self.places, prepared=self.output / PREPARED)

    @property
    def preparation(self) -> Preparation | None:
        """What is made before the runs; the paper's scale has it all on the hub."""
        return self.experiment.prepare if self.scale == "small" else None

    def config(self, study: Study) -> dict[str, Any]:
        """A study's config with the user's overrides."""
        return apply_overrides(study.config(self.here), self.overrides)

    def missing(self, study: Study) -> list[str]:
        """What a study needs that is neither on this machine nor made before the runs."""
        config = missing(self.config(study), None if self.preparation is None else self.here.prepared)
        return [*config, *missing_for(self.evaluation(study))]

    def evaluation(self, study: Study) -> EvaluationPlan | None:
        """What a study's runs are evaluated on."""
        return study.evaluation(self.here) if study.evaluation else None

    def cells(self, study: Study) -> list[Cell]:
        """A study's runs."""
        config, output = self.config(study), self.output / study.name
        return lay_out(config, study.variants, self.seeds, axes=study.axes, output=output)[0]


def dry_run(request: Request) -> list[str]:
    """The runs, what they take, and what is missing, as lines; nothing is run or written.

    Raises:
        BALoraError: A study's settings cannot be used.
    """
    lines = [
        f"{request.experiment.name}: {request.experiment.title} ({request.experiment.source}), scale {request.scale}"
    ]
    total, everything_timed = 0.0, True
    first = request.preparation
    if first is not None:
        made = first.is_made(request.here)
        total += 0.0 if made else first.seconds
        lines.append(f"  first: {first.title}{' (made already)' if made else f', about {first.seconds:.0f} s'}")
        lines += [f"    missing: {what}" for what in first.missing(request.here)]
    for study in request.experiment.studies(request.scale):
        cells = request.cells(study)
        left = [cell for cell in cells if not is_finished(cell, request.evaluation(study))]
        each = _seconds(study, cells)
        everything_timed &= each is not None
        total += (each or 0.0) * len(left)
        cost = "time not known" if each is None else f"about {each:.0f} s each"
        names = ", ".join(variant.name for variant in study.variants)
        axes = "".join(f" × {key} {list(values)}" for key, values in study.axes.items())
        lines.append(f"  {study.title}: {len(cells)} runs, {len(cells) - len(left)} finished, {cost}")
        lines.append(f"    {names}{axes} × seeds {', '.join(map(str, request.seeds))}")
        if (evaluation := request.evaluation(study)) is not None:
            lines.append(f"    each evaluated on {', '.join(evaluation.tasks)}")
        lines += [f"    missing: {what}" for what in request.missing(study)]
    if request.experiment.alone:
        lines.append("  It measures time: one run after the other, whatever --jobs says")
    halved = "" if request.experiment.alone else " (--jobs 2: half on two cores, two thirds on two threads of one)"
    if everything_timed:
        lines.append(f"  about {total / 60:.0f} min one after the other on one core{halved}")
    else:
        lines.append(
            f"  `balora validate {request.places.recipes}/...` estimates memory and steps of a run once its model can be read"
        )
    return lines


def reproduce(request: Request, engine: Engine, say: Say = lambda line: None) -> Path:
    """Run what is missing of an experiment and write its page.

    Returns:
        The page.

    Raises:
        BALoraError: Something it needs is not here, or a study cannot be run. A run that fails is a row of its table.
    """
    experiment, studies = request.experiment, request.experiment.studies(request.scale)
    if experiment.alone and engine.jobs != 1:
        raise BALoraError(
            f"{experiment.name} measures time, so its runs cannot share a machine. Use an engine with one job."
        )
    for study in studies:  # a mistake in the settings comes before hours of runs, and before what is missing
        request.cells(study)
    first = request.preparation
    absent = [what for study in studies for what in request.missing(study) if "no such" in what]
    absent = list(dict.fromkeys([*(first.missing(request.here) if first else []), *absent]))
    if absent:
        raise BALoraError(
            f"{experiment.name} at scale {request.scale} needs what is not here: {'; '.join(absent)}. Say where it is with "
            "--shared."
        )
    if first is not None:
        say(f"\n{first.title}")
        first.ensure(request.here)
    made: dict[str, Comparison] = {}
    for study in studies:
        say(f"\n{study.title}")
        made[study.name] = compare(
            request.config(study),
            study.variants,
            request.seeds,
            axes=study.axes,
            baseline=study.baseline,
            output=request.output / study.name,
            evaluation=request.evaluation(study),
            engine=engine,
            say=say,
        )
        # After every study, so that an interrupted experiment leaves a page too.
        write_text(request.output / PAGE, _page(request, made))
    return request.output / PAGE


def _page(request: Request, made: Mapping[str, Comparison]) -> str:
    experiment, studies = request.experiment, request.experiment.studies(request.scale)
    own = experiment.source.startswith("not of the paper")
    source = f"{experiment.source[0].upper()}{experiment.source[1:]}" if own else f"Of the paper: {experiment.source}"
    head = [f"# {experiment.name}: {experiment.title}", f"{source}. {experiment.reported}"]
    if request.scale == "small":
        head.append(f"**This is a small stand-in, not the paper's experiment.** {experiment.limits}")
    changed = f" with {' '.join(request.overrides)}" if request.overrides else ""
    head.append(f"Made by `balora reproduce {experiment.name} --scale {request.scale}`{changed}.")
    undone = [study.title for study in studies if study.name not in made]
    tail = [f"Not run yet: {', '.join(undone)}."] if undone else []
    failed = sum(len(comparison.failures) for comparison in made.values())
    tail += [f"{failed} runs have no result; the studies' own tables say why."] if failed else []
    tail.append("\n".join(f"- [{study.title}]({study.name}/table.md)" for study in studies if study.name in made))
    return "\n\n".join([*head, *experiment.show(made, studies, request.output), *tail]) + "\n"


def _seconds(study: Study, cells: Sequence[Cell]) -> float | None:
    """Mean time of the study's finished runs here, else what was measured elsewhere."""
    found = []
    for cell in cells:
        with contextlib.suppress(BALoraError):  # a damaged record is reported when the run's turn comes
            metrics = (read_record(cell.run_directory) or {}).get("metrics") or {}
            if "train_runtime" in metrics:
                found.append(metrics["train_runtime"] + metrics.get("eval_runtime", 0.0) + _AROUND)
    return sum(found) / len(found) if found else study.seconds
