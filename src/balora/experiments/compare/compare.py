"""The comparison: run the cells that are not there yet, and write the tables over all of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from balora.checkpoints.lock import locked
from balora.checkpoints.provenance import provenance
from balora.checkpoints.run_directory import RECORD
from balora.errors import BALoraError, suggest
from balora.experiments.compare.engine import Engine, LocalEngine
from balora.experiments.compare.evaluation import EvaluationPlan
from balora.experiments.compare.plan import Axes, Cell, Variant, plan
from balora.experiments.compare.rows import NOT_RUN, TRAIN_LOSS, Row, is_finished, mixed_origins, row_of, score_names
from balora.experiments.compare.stats import summarise
from balora.experiments.compare.tables import Comparison, to_csv, to_json, to_latex, to_markdown
from balora.experiments.compare.worker import Task, reason
from balora.files import write_text

ROWS = "rows.jsonl"
_SHOWN = 3
Say = Callable[[str], None]


def lay_out(
    config: Mapping[str, Any],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    axes: Axes | None = None,
    output: str | Path | None = None,
) -> tuple[list[Cell], Path]:
    """The runs of a comparison and its folder; nothing is written.

    Args:
        config: Plain values of a run's config.
        variants: What is compared.
        seeds: Of the runs.
        axes: Further keys to vary, with their values.
        output: The comparison's folder; default the config's output with ``-compare``.

    Raises:
        BALoraError: The settings of a cell cannot be used, or the folder is a run's.
    """
    if output is None:
        own = config.get("output")
        if not isinstance(own, str):
            raise BALoraError("The config names no output; give the comparison's folder with --output.")
        output = f"{own.rstrip('/')}-compare"
    folder = Path(output)
    if (folder / RECORD).exists():
        raise BALoraError(f"{folder} is the folder of a single run. Choose another --output for the comparison.")
    return plan(config, variants, seeds, axes or {}, folder), folder


def compare(
    config: Mapping[str, Any],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    axes: Axes | None = None,
    baseline: str | None = None,
    scores: Sequence[str] | None = None,
    output: str | Path | None = None,
    evaluation: EvaluationPlan | None = None,
    engine: Engine | None = None,
    say: Say = lambda line: None,
) -> Comparison:
    """Run what is missing of a comparison and write its tables.

    Args:
        config: Plain values of a run's config, as `balora.config.yaml_loader.read_config` gives them.
        variants: What is compared.
        seeds: Of the runs.
        axes: Further keys to vary, with their values.
        baseline: Name of the variant that differences are taken to, None for no differences.
        scores: Names of the scores to show; default all.
        output: The comparison's folder; default the config's output with ``-compare``.
        evaluation: What every run is measured on when it is trained; its scores join the others as ``task/name``.
        engine: Makes the runs; default one process at a time on this machine.
        say: Takes lines for the user.

    Returns:
        The comparison that the tables show.

    Raises:
        BALoraError: Something asked for cannot be, or another comparison is at work in the folder. A run that fails raises
            nothing: it is a row with its reason.
    """
    maker: Engine = engine or LocalEngine()
    names = [variant.name for variant in variants]
    if baseline is not None and baseline not in names:
        raise BALoraError(
            f"The baseline {baseline} is not among the methods {', '.join(names)}.{suggest(baseline, names)}"
        )
    cells, folder = lay_out(config, variants, seeds, axes=axes, output=output)
    if evaluation is not None:
        evaluation.check()
    missing = [cell for cell in cells if not is_finished(cell, evaluation)]
    with locked(folder, "Another comparison is at work", "--output"):
        write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        say(f"{len(cells)} runs in {folder}, of which {len(cells) - len(missing)} are finished already.")
        reasons: dict[str, str] = {}

        def made() -> Comparison:
            rows = [row_of(cell, reasons.get(cell.name, NOT_RUN), evaluation) for cell in cells]
            about = _about(config, seeds, axes or {}, rows, maker, evaluation)
            shown = score_names(rows) if not scores else list(scores)
            groups = summarise(rows, shown, baseline)
            return Comparison(
                groups=groups,
                rows=rows,
                scores=shown,
                baseline=baseline,
                about=about,
                notes=_notes(rows, maker),
                folder=folder,
            )

        for cell, why in _run(missing, folder, maker, say, evaluation):
            if why is not None:
                reasons[cell.name] = why
            _write(made(), folder)  # after every run, so that an interrupted comparison leaves a table too
        result = made()
        _check_scores(result)
        _write(result, folder)
    return result


def _run(
    cells: Sequence[Cell], folder: Path, engine: Engine, say: Say, evaluation: EvaluationPlan | None
) -> Iterator[tuple[Cell, str | None]]:
    """Make the runs; give each as it ends, with the reason if it failed."""
    tasks: dict[Task, Cell] = {}
    asked = None if evaluation is None else folder / "evaluation.json"
    if asked is not None and evaluation is not None:
        write_text(asked, json.dumps(evaluation.to_dict(), indent=1) + "\n")
    for cell in cells:
        task = Task(folder / "configs" / f"{cell.name}.yaml", folder / "logs" / f"{cell.name}.log", asked)
        for path in (task.config, task.log):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(task.config, cell.settings.dump_yaml())
        task.log.unlink(missing_ok=True)
        tasks[task] = cell
    began: dict[Task, float] = {}
    took: list[float] = []

    def started(task: Task) -> None:
        began[task] = time.monotonic()
        say(f"[{len(began)}/{len(tasks)}] {tasks[task].title} ...")

    for task, code in engine(list(tasks), started):
        cell = tasks[task]
        took.append(time.monotonic() - began[task])
        left = statistics.fmean(took) * (len(tasks) - len(took)) / min(engine.jobs or 1, len(tasks))
        why = None if code == 0 else reason(task.log, code)
        say(f"      {cell.title}: {_outcome(row_of(cell, why or NOT_RUN, evaluation))}{_left(left)}")
        yield cell, why


def _outcome(row: Row) -> str:
    if row.status != "finished":
        return f"FAILED. {row.reason}"
    scores = [f"{name} {row.scores[name]:.4g}" for name in score_names([row])[:_SHOWN]]
    time_taken = "" if row.seconds is None else f" in {row.seconds:.0f} s"
    return f"finished{time_taken}: " + ", ".join([*scores, f"{row.peak_memory_mib or 0:.0f} MiB"])


def _left(seconds: float) -> str:
    if seconds < 1:
        return ""
    return f"  (about {seconds / 60:.0f} min left)" if seconds >= 90 else f"  (about {seconds:.0f} s left)"


def _about(
    config: Mapping[str, Any],
    seeds: Sequence[int],
    axes: Axes,
    rows: Sequence[Row],
    engine: Engine,
    evaluation: EvaluationPlan | None,
) -> dict[str, Any]:
    digests = dict.fromkeys(row.provenance.get("data_digest") for row in rows)
    return {
        "provenance": provenance(),
        "config": dict(config),
        "seeds": list(seeds),
        "axes": {key: list(values) for key, values in axes.items()},
        **({} if evaluation is None else {"evaluation": evaluation.to_dict()}),
        "jobs": engine.jobs,
        "engine": type(engine).__name__.removesuffix("Engine").lower(),
        "data_digests": [digest for digest in digests if digest],
    }


def _notes(rows: Sequence[Row], engine: Engine) -> list[str]:
    """What a reader of the numbers has to know, beyond the numbers."""
    done = [row for row in rows if row.status == "finished"]
    notes = []
    if engine.jobs != 1:
        several = "Several" if engine.jobs is None else engine.jobs
        notes.append(
            f"{several} runs at a time shared a machine: their times compare with each other, not with a run alone."
        )
    late = sum(row.seconds is None for row in done)
    if late:
        notes.append(f"{late} run(s) were interrupted and resumed; they count for the scores, not for the time.")
    if done and score_names(done) in ([TRAIN_LOSS], []):
        lost = sum(TRAIN_LOSS not in row.scores for row in done)
        if lost:
            notes.append(
                f"{lost} of them have no training loss: it was not logged for every step before the resume. A save_steps that "
                "is a multiple of logging_steps keeps it."
            )
        notes.append(
            "There are no evaluation rows (data.eval), so the training loss is all there is; it holds the weighted regularizers "
            "where they are on, so it does not compare methods."
        )
    notes += [f"Not all runs were made with the same {what}; {ROWS} has each run's." for what in mixed_origins(done)]
    return notes


def _check_scores(made: Comparison) -> None:
    known = list(dict.fromkeys(name for row in made.rows for name in row.scores))
    unknown = [name for name in made.scores if name not in known]
    if unknown and known:
        raise BALoraError(
            f"No run has the score {unknown[0]}.{suggest(unknown[0], known)} There are {', '.join(known)}; the runs are kept."
        )


def _write(made: Comparison, folder: Path) -> None:
    write_text(folder / ROWS, "".join(json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in made.rows))
    for name, form in (("md", to_markdown), ("csv", to_csv), ("json", to_json), ("tex", to_latex)):
        write_text(folder / f"table.{name}", form(made))
