"""Run an experiment and write its page, or estimate its cost in a dry run."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.run_directory import read_record
from balora.config.yaml_loader import apply_overrides
from balora.data.files.hub import looks_local
from balora.data.files.readers import ENDINGS
from balora.errors import BALoraError
from balora.experiments.compare import Cell, Comparison, EvaluationPlan, Variant, compare, lay_out
from balora.experiments.compare.engines import Engine
from balora.experiments.compare.rows import is_finished
from balora.experiments.reproduce.experiment import SEEDS, Experiment, Paths, Preparation, Scale, Study
from balora.files import write_text

PAGE = "README.md"
_OVERHEAD_SECONDS = 5.0
"""Time of a run outside training and evaluation: reading model and data, writing the adapter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """An experiment with the user's choices."""

    experiment: Experiment
    scale: Scale
    output: Path
    paths: Paths
    seeds: Sequence[int] = SEEDS
    overrides: Sequence[str] = ()

    @property
    def studies(self) -> Sequence[Study]:
        """Studies of the chosen scale."""
        return self.experiment.studies(self.scale)

    @property
    def own_paths(self) -> Paths:
        """Paths with this experiment's own directory of prepared files."""
        return dataclasses.replace(self.paths, prepared=self.output / "prepared")

    @property
    def preparation(self) -> Preparation | None:
        """Step before the runs; None at the paper's scale, where the hub has all models and data."""
        needed = self.scale == "small" or self.experiment.always_prepared
        return self.experiment.preparation if needed else None

    def config(self, study: Study) -> dict[str, Any]:
        """Return the plain values of a study's config, with the user's overrides."""
        return apply_overrides(study.config(self.own_paths), self.overrides)

    def variants(self, study: Study) -> list[Variant]:
        """Return a study's variants; ``{prepared}`` in an override is the directory of the prepared files."""
        prepared = str(self.own_paths.prepared)
        return [
            dataclasses.replace(
                variant, overrides=tuple(text.replace("{prepared}", prepared) for text in variant.overrides)
            )
            for variant in study.variants
        ]

    def missing(self, study: Study) -> list[str]:
        """List the models, data and programs that a study needs and that are not there when its runs begin."""
        prepared = self.own_paths.prepared if self.preparation else None
        return [*missing_files(self.config(study), prepared), *missing_for_evaluation(self.evaluation(study))]

    def evaluation(self, study: Study) -> EvaluationPlan | None:
        """Return the tasks that a study's runs are evaluated on."""
        return study.evaluation(self.own_paths) if study.evaluation else None

    def cells(self, study: Study) -> list[Cell]:
        """Return a study's runs."""
        config, output = self.config(study), self.output / study.name
        return lay_out(config, self.variants(study), self.seeds, axes=study.axes, output=output)[0]


def missing_files(config: Mapping[str, Any], prepared: Path | None = None) -> list[str]:
    """List the models and data of a run's config that are not on this machine.

    Files below ``prepared`` are made before the runs, so they are not missing.
    """
    data = config.get("data") or {}
    train = data.get("train")
    listed = train if isinstance(train, list | tuple) else [train]
    named = [
        ("model", config.get("model")),
        *(("data.train", name) for name in listed),
        ("data.eval", data.get("eval")),
    ]
    found = []
    for key, name in named:
        path = name.partition("[")[0] if isinstance(name, str) else ""
        if not path or (key == "data.eval" and not path.endswith(ENDINGS)) or Path(path).exists():
            continue
        if prepared is None or not Path(path).is_relative_to(prepared):
            local = looks_local(path, ENDINGS)
            reason = "no such file or directory" if local else "to be fetched from the hub, if not cached"
            found.append(f"{key} {path}: {reason}")
    return found


def missing_for_evaluation(plan: EvaluationPlan | None) -> list[str]:
    """List the data, judge and programs that an evaluation needs and that are not on this machine."""
    if plan is None:
        return []
    found = [
        f"evaluation data of {task}: {path}: no such file or directory"
        for task, path in plan.options.get("data", {}).items()
        if looks_local(path, (".jsonl",)) and not Path(path).exists()
    ]
    if "mt_bench" in plan.tasks and not plan.options.get("judge"):
        found.append("a judge of MT-Bench's answers (--judge-url, --judge-model); without it the runs have no score")
    if {"humaneval", "mbpp"}.intersection(plan.tasks) and shutil.which("bwrap") is None:
        found.append("bubblewrap, which runs generated programs; without it HumanEval and MBPP give no score")
    return found


def dry_run(request: Request) -> list[str]:
    """Return lines that list the runs, their time and what is missing. Nothing is run or written.

    Raises:
        BALoraError: A study's config cannot be used.
    """
    experiment = request.experiment
    lines = [f"{experiment.name}: {experiment.title} ({experiment.source}), scale {request.scale}"]
    total, everything_timed = 0.0, True
    if (preparation := request.preparation) is not None:
        done = preparation.is_made(request.own_paths)
        total += 0.0 if done else preparation.seconds
        time = " (done)" if done else f", about {preparation.seconds:.0f} s"
        lines.append(f"  first: {preparation.title}{time}")
        lines += [f"    missing: {text}" for text in preparation.missing(request.own_paths)]
    for study in request.studies:
        cells, evaluation = request.cells(study), request.evaluation(study)
        finished = sum(is_finished(cell, evaluation) for cell in cells)
        seconds = _seconds_per_run(study, cells)
        everything_timed &= seconds is not None
        total += (seconds or 0.0) * (len(cells) - finished)
        time = "time not known" if seconds is None else f"about {seconds:.0f} s each"
        names = ", ".join(variant.name for variant in study.variants)
        axes = "".join(f" × {key} {list(values)}" for key, values in study.axes.items())
        lines.append(f"  {study.title}: {len(cells)} runs, {finished} finished, {time}")
        lines.append(f"    {names}{axes} × seeds {', '.join(map(str, request.seeds))}")
        lines += [f"    each evaluated on {', '.join(evaluation.tasks)}"] if evaluation else []
        lines += [f"    missing: {text}" for text in request.missing(study)]
    faster = " (--jobs 2: half on two cores, two thirds on two threads of one core)"
    if experiment.measures_time:
        lines.append("  This experiment measures time, so its runs go one after the other; --jobs has no effect")
        faster = ""
    cost = f"about {total / 60:.0f} min one after the other on one core{faster}"
    if not everything_timed:
        cost = f"`balora validate {request.paths.recipes}/...` estimates memory and steps of a run once its model can be read"
    return [*lines, f"  {cost}"]


def reproduce(request: Request, engine: Engine, say: Callable[[str], None] = lambda line: None) -> Path:
    """Run the missing runs of an experiment, write its page, and return the page's path.

    Raises:
        BALoraError: A model or file is missing, or a study cannot be run. A run that fails is a row of its table.
    """
    experiment, preparation = request.experiment, request.preparation
    if experiment.measures_time and engine.jobs != 1:
        raise BALoraError(
            f"{experiment.name} measures time, so its runs cannot share a machine. Use an engine with one job."
        )
    for study in request.studies:  # report a mistake in the config before hours of runs, and before missing files
        request.cells(study)
    missing = preparation.missing(request.own_paths) if preparation else []
    missing += [text for study in request.studies for text in request.missing(study) if "no such" in text]
    if missing:
        listed = "; ".join(dict.fromkeys(missing))
        raise BALoraError(
            f"{experiment.name} at scale {request.scale} needs files that are missing: {listed}. "
            "Give their directory with --shared."
        )
    if preparation is not None:
        say(f"\n{preparation.title}")
        preparation.ensure(request.own_paths)
    comparisons: dict[str, Comparison] = {}
    for study in request.studies:
        say(f"\n{study.title}")
        comparisons[study.name] = compare(
            request.config(study),
            request.variants(study),
            request.seeds,
            axes=study.axes,
            baseline=study.baseline,
            output=request.output / study.name,
            evaluation=request.evaluation(study),
            engine=engine,
            say=say,
        )
        # Write the page after every study, so that an interrupted experiment has one too.
        write_text(request.output / PAGE, render_page(request, comparisons))
    return request.output / PAGE


def render_page(request: Request, comparisons: Mapping[str, Comparison]) -> str:
    """Return the page of an experiment in Markdown, and write its figures beside it. Studies may be absent."""
    experiment, studies = request.experiment, request.studies
    source = experiment.source
    source = source[0].upper() + source[1:] if source.startswith("not of the paper") else f"Of the paper: {source}"
    parts = [f"# {experiment.name}: {experiment.title}"]
    if request.scale == "small":
        parts.append(
            "**This is a small stand-in, not the paper's experiment.** Do not choose a method for a large model by it; the section "
            "Limits says what differs."
        )
    parts += [experiment.advice, f"{source}. {experiment.reported}"]
    parts += experiment.render(studies, comparisons, request.output)
    if request.scale == "small":
        parts += ["## Limits", experiment.limits]
    changed = f" with {' '.join(request.overrides)}" if request.overrides else ""
    parts += ["## Runs", f"Made by `balora reproduce {experiment.name} --scale {request.scale}`{changed}."]
    if absent := [study.title for study in studies if study.name not in comparisons]:
        parts.append(f"Not run yet: {', '.join(absent)}.")
    if failed := sum(len(comparison.failures) for comparison in comparisons.values()):
        parts.append(f"{failed} runs have no result; the tables of the studies give the reasons.")
    links = [f"- [{study.title}]({study.name}/table.md)" for study in studies if study.name in comparisons]
    return "\n\n".join([*parts, "\n".join(links)]) + "\n"


def _seconds_per_run(study: Study, cells: Sequence[Cell]) -> float | None:
    """Return the mean time of the study's finished runs on this machine; if there are none, the declared time."""
    found = []
    for cell in cells:
        with contextlib.suppress(BALoraError):  # a damaged record is reported when the run is due
            metrics = (read_record(cell.run_directory) or {}).get("metrics") or {}
            if "train_runtime" in metrics:
                found.append(metrics["train_runtime"] + metrics.get("eval_runtime", 0.0) + _OVERHEAD_SECONDS)
    return sum(found) / len(found) if found else study.seconds
