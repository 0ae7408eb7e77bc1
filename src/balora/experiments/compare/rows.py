"""Result of each run of a comparison, read from its run directory."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from balora.config.run_config import differences, load_run_config
from balora.errors import BALoraError
from balora.experiments.compare.evaluation import EvaluationPlan, read_scores
from balora.experiments.compare.plan import Cell
from balora.files import read_json

if TYPE_CHECKING:
    from balora.evaluation.significance.items import Items

Status = Literal["finished", "failed", "missing"]
_NOT_SCORES = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
TRAIN_LOSS = "train_loss"
DRIFT = "anchor_drift"
"""Drift on the anchors held out, in nats per token, of a run that has anchors."""
NOT_RUN = "It has not been run yet."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one run: a line of ``rows.jsonl``."""

    run: str
    """Name of the run directory."""
    variant: str
    method: str
    regularized: bool
    axes: dict[str, Any]
    seed: int
    status: Status
    reason: str | None = None
    """Reason why there is no result, in one sentence."""
    scores: dict[str, float]
    """Evaluation metrics without their prefix ``eval_``, task scores as ``task/name``, and ``train_loss``."""
    seconds: float | None = None
    """Training time; None after a resume, because only the last part was timed."""
    peak_memory_mib: float | None = None
    """Peak memory of the run's process: GPU memory if there is a GPU, else resident memory."""
    trainable: int | None = None
    provenance: dict[str, Any]
    """Versions, hardware, commit and time of the run, and the digest of its data."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values. A score that is not finite becomes None, because JSON has no such number."""
        scores = {name: score if math.isfinite(score) else None for name, score in self.scores.items()}
        return {**dataclasses.asdict(self), "scores": scores}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """Read a line of ``rows.jsonl``. A score of None becomes NaN."""
        scores = {name: math.nan if score is None else score for name, score in values["scores"].items()}
        return cls(**{**values, "scores": scores})

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        status: Status,
        reason: str | None = None,
        task_scores: Mapping[str, float] | None = None,
        **identity: Any,
    ) -> Row:
        """Make a row from a run's ``run.json`` and the scores of its tasks. Only a finished run has numbers.

        ``identity`` gives run, variant, method, regularized, axes and seed.
        """
        digest = (record.get("data") or {}).get("digest")
        provenance = {**(record.get("provenance") or {}), "data_digest": digest}
        if status != "finished":
            return cls(**identity, status=status, reason=reason, scores={}, provenance=provenance)
        metrics: Mapping[str, Any] = record.get("metrics") or {}
        return cls(
            **identity,
            status=status,
            scores={**metric_scores(metrics), **(task_scores or {})},
            seconds=None if record.get("resumed") else metrics.get("train_runtime"),
            peak_memory_mib=metrics.get("peak_memory_mib"),
            trainable=(record.get("parameters") or {}).get("trainable"),
            provenance=provenance,
        )


def read_row(cell: Cell, reason: str = NOT_RUN, evaluation: EvaluationPlan | None = None) -> Row:
    """Read the result of a run from its directory; if there is none, the row has the reason.

    With ``evaluation``, a run is finished only after its evaluation.
    """
    from balora.checkpoints.run_directory import read_record  # imports torch: not before the arguments are checked

    record = read_record(cell.run_directory) or {}
    trained = record.get("status") == "finished"
    task_scores = read_scores(cell.run_directory, evaluation, cell.scale) if trained and evaluation else {}
    status: Status = "finished"
    metrics = record.get("metrics")
    if trained and cell.scale != 1:
        metrics = _scaled_metrics(cell)
        record = {**record, "metrics": {**_costs(record), **(metrics or {})}}
    evaluated = task_scores is not None and (cell.scale == 1 or metrics is not None)
    lacks = None if evaluated and _is_audited(cell) else "audited" if evaluated else "evaluated"
    if not trained or lacks:
        status = "missing" if reason == NOT_RUN else "failed"
        if trained:
            reason = f"It is trained, but not {lacks}. {'' if reason == NOT_RUN else reason}".strip()
    elif cell.config.audit is not None and cell.scale == 1:
        from balora.auditing.audit import read_measures  # imports torch

        task_scores = {**(task_scores or {}), **read_measures(cell.run_directory)}
    variant = cell.variant
    identity = {"variant": variant.name, "method": variant.method, "regularized": variant.regularized}
    return Row.from_record(
        record, status, reason, task_scores, run=cell.name, axes=cell.axes, seed=cell.seed, **identity
    )


def read_items(run: Path, evaluation: EvaluationPlan | None = None) -> dict[str, Items]:
    """Read the results by item that a run keeps: those of its own evaluation rows under "", those of a task under its name.

    A file that cannot be read counts as not kept: the intervals then cover seeds alone, and the table says so.
    """
    files = {"": run / "items.json"}
    files |= {task: run / "evaluation" / f"{task}.json" for task in (evaluation.tasks if evaluation else ())}
    found = {name: _read_items(path, path.stat().st_mtime_ns) for name, path in files.items() if path.is_file()}
    return {name: items for name, items in found.items() if items is not None}


@functools.lru_cache(maxsize=512)
def _read_items(path: Path, changed: int) -> Items | None:
    """Read a file with results by item; ``changed`` is its time, because a resumed run may write it again."""
    from balora.evaluation.significance.items import items_from_dict, items_of_result

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return items_from_dict(content) if path.name == "items.json" else items_of_result(content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_rows(path: Path) -> list[Row]:
    """Read ``rows.jsonl``. While a comparison runs, the line of a finished run follows an older one of the same run, and counts.

    Raises:
        ValueError, KeyError, TypeError: A line is damaged.
    """
    rows: dict[str, Row] = {}
    # Not splitlines: a name may contain U+2028. After the last line break there is nothing, or a line that a killed process
    # has begun.
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        row = Row.from_dict(json.loads(line))
        rows[row.run] = row
    return list(rows.values())


def metric_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Select the scores among a run's metrics.

    Example:
        >>> metric_scores({"eval_accuracy": 0.5, "eval_runtime": 3.0, "train_loss": 1.0, "train_runtime": 9.0})
        {'accuracy': 0.5, 'train_loss': 1.0}
    """
    evaluation = {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_") or k == DRIFT}
    scores = {k: float(v) for k, v in evaluation.items() if isinstance(v, int | float) and k not in _NOT_SCORES}
    return {**scores, **({TRAIN_LOSS: float(metrics[TRAIN_LOSS])} if TRAIN_LOSS in metrics else {})}


def is_finished(cell: Cell, evaluation: EvaluationPlan | None = None) -> bool:
    """Return whether a run, with its evaluation, has a result; refuse a finished run with another config."""
    from balora.checkpoints.run_directory import CONFIG, read_record  # imports torch

    if (read_record(cell.run_directory) or {}).get("status") != "finished":
        return False
    changed = differences(load_run_config(cell.run_directory / CONFIG), cell.config)
    if changed:
        raise BALoraError(
            f"{cell.run_directory} holds a finished run with other settings ({', '.join(changed)}). Choose another --output, or "
            "delete that directory to run it again."
        )
    if cell.scale != 1 and _scaled_metrics(cell) is None:
        return False
    evaluated = evaluation is None or read_scores(cell.run_directory, evaluation, cell.scale) is not None
    return evaluated and _is_audited(cell)


def _is_audited(cell: Cell) -> bool:
    """Return whether a run has the audit that its config asks for; with other settings it is audited again."""
    if cell.config.audit is None or cell.scale != 1:  # a part of the change is not audited
        return True
    path = cell.run_directory / "audit" / "audit.json"
    return path.is_file() and read_json(path, "Delete it, and audit again.").get("asked") == cell.config.audit


def _scaled_metrics(cell: Cell) -> dict[str, float] | None:
    from balora.training.scaled_evaluation import scaled_metrics  # imports torch

    return scaled_metrics(cell.run_directory, cell.scale)


def _costs(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a run that are the same at every scale of its change."""
    metrics: Mapping[str, Any] = record.get("metrics") or {}
    return {name: metrics[name] for name in ("train_runtime", "peak_memory_mib") if name in metrics}


def score_names(rows: Sequence[Row]) -> list[str]:
    """List the evaluation scores that at least one row has; if there are none, the training loss."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    return [name for name in names if name != TRAIN_LOSS] or names


def differing_provenance(rows: Sequence[Row]) -> list[str]:
    """Name the differences between the runs: versions, machine, code."""
    keys = (("versions", "versions"), ("machine", "hardware"), ("code", "commit"))
    values = {name: {json.dumps(row.provenance.get(key), sort_keys=True) for row in rows} for name, key in keys}
    return [name for name, found in values.items() if len(found) > 1]
