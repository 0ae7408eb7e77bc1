"""Run a comparison: start the runs that have no result yet and write the tables over all runs."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balora.checkpoints.lock import locked
from balora.config.yaml_loader import dump_yaml
from balora.errors import BALoraError, suggest
from balora.experiments.compare.best import Best, find_best
from balora.experiments.compare.engines import Engine, LocalEngine, Task, failure_reason
from balora.experiments.compare.evaluation import EvaluationPlan, Say
from balora.experiments.compare.plan import Axes, Cell, Variant, check_baseline, plan, plan_one_by_one
from balora.experiments.compare.rows import (
    NOT_RUN,
    TRAIN_LOSS,
    Row,
    differing_provenance,
    is_finished,
    read_items,
    read_row,
    score_names,
)
from balora.experiments.compare.statistics import summarise
from balora.experiments.compare.tables import Comparison, to_csv, to_json, to_latex, to_markdown
from balora.files import open_to_append, write_text

if TYPE_CHECKING:
    from balora.evaluation.significance.items import Items

ROWS = "rows.jsonl"
_RUN_RECORD = "run.json"  # `checkpoints.run_directory.RECORD`, without its import of torch
_SCORES_ON_SCREEN = 3


def lay_out(
    config: Mapping[str, Any],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    axes: Axes | None = None,
    output: str | Path | None = None,
    one_by_one: bool = False,
) -> tuple[list[Cell], Path]:
    """List the runs of a comparison, and name its directory, without writing anything. The arguments are those of `compare`.

    Raises:
        BALoraError: The config of a run is invalid, or the directory is a run directory.
    """
    if output is None:
        own = config.get("output")
        if not isinstance(own, str):
            raise BALoraError("The config has no output. Give the directory of the comparison with --output.")
        output = f"{own.rstrip('/')}-compare"
    directory = Path(output)
    if (directory / _RUN_RECORD).exists():
        raise BALoraError(f"{directory} is the directory of a single run. Choose another --output for the comparison.")
    return (plan_one_by_one if one_by_one else plan)(config, variants, seeds, axes or {}, directory), directory


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
    one_by_one: bool = False,
) -> Comparison:
    """Start the runs that have no result yet, then write the tables over all runs.

    Args:
        config: Run config as plain values, as `balora.config.yaml_loader.read_config` returns it.
        variants: Variants to compare.
        seeds: Seeds of the runs.
        axes: Further keys to vary, with their values.
        baseline: Name of the variant to take differences to; None for no differences.
        scores: Names of the scores to report; default all.
        output: Directory of the comparison; default the config's output with ``-compare``.
        evaluation: Tasks to evaluate every run on after its training; the scores are named ``task/name``.
        engine: Starter of the runs; default one process at a time on this machine.
        say: Callback for lines to the user.
        one_by_one: Whether to vary one of the axes at a time instead of all combinations.

    Returns:
        The content of the tables.

    Raises:
        BALoraError: An argument is invalid, or another comparison is running in the directory. A failed run raises nothing: its row
            holds the reason.
    """
    engine = engine or LocalEngine()
    check_baseline(baseline, variants)
    cells, directory = lay_out(config, variants, seeds, axes=axes, output=output, one_by_one=one_by_one)
    if evaluation is not None:
        evaluation.check()
    missing = [cell for cell in cells if not is_finished(cell, evaluation)]
    results: dict[str, Row] = {}

    from balora.checkpoints.provenance import provenance  # imports torch, which an invalid argument need not wait for

    def items(row: Row) -> "Mapping[str, Items]":
        return read_items(directory / "runs" / row.run, evaluation)

    def collect() -> Comparison:
        rows = list(results.values())
        reported = list(scores) if scores else score_names(rows)
        digests = dict.fromkeys(row.provenance.get("data_digest") for row in rows)
        about = {
            "provenance": provenance(),
            "config": dict(config),
            "seeds": list(seeds),
            "axes": {key: list(values) for key, values in (axes or {}).items()},
            **({} if evaluation is None else {"evaluation": evaluation.to_dict()}),
            "jobs": engine.jobs,
            "engine": type(engine).__name__.removesuffix("Engine").lower(),
            "data_digests": [digest for digest in digests if digest],
        }
        return Comparison(
            groups=summarise(rows, reported, baseline, items),
            rows=rows,
            items=items,
            scores=reported,
            baseline=baseline,
            about=about,
            notes=_notes(rows, engine),
            directory=directory,
        )

    with locked(directory, "Another comparison is at work", "--output"):
        write_text(directory / "config.yaml", dump_yaml(dict(config)))
        say(f"{len(cells)} runs in {directory}, of which {len(cells) - len(missing)} are finished already.")
        results = {cell.name: read_row(cell, NOT_RUN, evaluation) for cell in cells}
        _write_rows(results.values(), directory)
        tables = _Tables(lambda: _write_tables(collect(), directory))
        try:
            for row in _start_runs(missing, directory, engine, say, evaluation):
                results[row.run] = row
                _append_row(row, directory)
                tables.update()
        except BaseException:
            tables.finish()  # an interrupted comparison has tables, too
            raise
        comparison = collect()
        _check_scores(comparison)
        _write_rows(comparison.rows, directory)
        _write_tables(comparison, directory, find_best(comparison))
    return comparison


class _Tables:
    """The tables of a comparison that is running. They take a time that grows with the number of runs.

    They are written after a run if that takes at most a twentieth of the time since they were last written. The work per
    finished run is therefore constant, and a comparison of some dozen runs has new tables after every run.

    Args:
        write: Computes and writes the tables.
    """

    _SHARE = 0.05

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._seconds = 0.0
        self._written_at = time.monotonic()
        self._stale = False

    def update(self) -> None:
        """Take note of a new row, and write the tables if it is time."""
        self._stale = True
        if self._seconds <= self._SHARE * (time.monotonic() - self._written_at):
            self.finish()

    def finish(self) -> None:
        """Write the tables if they lack a row."""
        if self._stale:
            begun = time.monotonic()
            self._write()
            self._written_at, self._stale = time.monotonic(), False
            self._seconds = self._written_at - begun


def _start_runs(
    cells: Sequence[Cell], directory: Path, engine: Engine, say: Say, evaluation: EvaluationPlan | None
) -> Iterator[Row]:
    """Start the runs; yield the row of each when it ends."""
    plan_file = None
    if evaluation is not None:
        plan_file = directory / "evaluation.json"
        write_text(plan_file, json.dumps(evaluation.to_dict(), indent=1) + "\n")
    tasks: dict[Task, list[Cell]] = {}
    for members in _by_run(cells):
        cell, name = members[0], members[0].run_directory.name
        task = Task(directory / "configs" / f"{name}.yaml", directory / "logs" / f"{name}.log", plan_file)
        for path in (task.config, task.log):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(task.config, cell.config.dump_yaml())
        write_text(task.scales, json.dumps({"scales": [member.scale for member in members]}) + "\n")
        task.log.unlink(missing_ok=True)
        tasks[task] = members
    start_times: dict[Task, float] = {}
    begun, total = 0, 0.0

    def started(task: Task) -> None:
        nonlocal begun
        begun += 1
        start_times[task] = time.monotonic()
        say(f"[{begun}/{len(tasks)}] {tasks[task][0].run_title} ...")

    for done, (task, status) in enumerate(engine(list(tasks), started), start=1):
        total += time.monotonic() - start_times.pop(task)
        left = total / done * (len(tasks) - done) / min(engine.jobs or 1, len(tasks))
        reason = NOT_RUN if status == 0 else failure_reason(task.log, status)
        for cell in tasks[task]:
            row = read_row(cell, reason, evaluation)
            say(f"      {cell.title}: {_outcome(row)}{_time_left(left)}")
            yield row


def _by_run(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Group the cells that need the same training."""
    groups: dict[Path, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.run_directory, []).append(cell)
    return list(groups.values())


def _outcome(row: Row) -> str:
    if row.status != "finished":
        return f"FAILED. {row.reason}"
    scores = [f"{name} {row.scores[name]:.4g}" for name in score_names([row])[:_SCORES_ON_SCREEN]]
    duration = "" if row.seconds is None else f" in {row.seconds:.0f} s"
    return f"finished{duration}: " + ", ".join([*scores, f"{row.peak_memory_mib or 0:.0f} MiB"])


def _time_left(seconds: float) -> str:
    if seconds < 1:
        return ""
    return f"  (about {seconds / 60:.0f} min left)" if seconds >= 90 else f"  (about {seconds:.0f} s left)"


def _notes(rows: Sequence[Row], engine: Engine) -> list[str]:
    """List the warnings for a reader of the numbers."""
    finished = [row for row in rows if row.status == "finished"]
    notes = []
    if engine.jobs != 1:
        several = "Several" if engine.jobs is None else engine.jobs
        notes.append(
            f"{several} runs used the machine at the same time: compare their times with each other, not with those of a run alone."
        )
    resumed = sum(row.seconds is None for row in finished)
    if resumed:
        notes.append(f"{resumed} run(s) were interrupted and resumed: their scores count, their times do not.")
    if finished and score_names(finished) in ([TRAIN_LOSS], []):
        without = sum(TRAIN_LOSS not in row.scores for row in finished)
        if without:
            notes.append(
                f"{without} finished run(s) have no training loss: some step before the resume was not logged. To keep the loss, "
                "make save_steps a multiple of logging_steps."
            )
        notes.append(
            "Do not compare methods by the training loss: it includes the weighted regularizers. There is no other score, because "
            "the config has no evaluation rows (data.eval)."
        )
    notes += [f"The runs differ in their {what}; see each run in {ROWS}." for what in differing_provenance(finished)]
    return notes


def _check_scores(comparison: Comparison) -> None:
    known = list(dict.fromkeys(name for row in comparison.rows for name in row.scores))
    unknown = [name for name in comparison.scores if name not in known]
    if unknown and known:
        raise BALoraError(
            f"No run has the score {unknown[0]}.{suggest(unknown[0], known)} The runs have {', '.join(known)}. All runs are kept: "
            "the same command with other --scores writes the tables."
        )


def _write_rows(rows: Iterable[Row], directory: Path) -> None:
    write_text(directory / ROWS, "".join(map(_line, rows)))


def _append_row(row: Row, directory: Path) -> None:
    """Add the row of a finished run to the file, which has an older line of that run."""
    with open_to_append(directory / ROWS) as file:
        file.write(_line(row))


def _line(row: Row) -> str:
    return json.dumps(row.to_dict(), ensure_ascii=False) + "\n"


def _write_tables(comparison: Comparison, directory: Path, best: Mapping[str, Best] | None = None) -> None:
    write_text(directory / "table.md", to_markdown(comparison, best))
    write_text(directory / "table.tex", to_latex(comparison, best))
    write_text(directory / "table.csv", to_csv(comparison))
    write_text(directory / "table.json", to_json(comparison))
