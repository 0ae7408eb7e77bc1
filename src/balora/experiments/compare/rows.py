"""Result of each run of a comparison, read from its run directory."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from balora.config.run_config import differences, load_run_config
from balora.errors import BALoraError
from balora.experiments.compare.evaluation import EvaluationPlan, read_scores
from balora.experiments.compare.plan import Cell
from balora.files import read_json

Status = Literal["finished", "failed", "missing"]
_NOT_SCORES = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
TRAIN_LOSS = "train_loss"
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
    task_scores = read_scores(cell.run_directory, evaluation) if trained and evaluation else {}
    status: Status = "finished"
    lacks = "evaluated" if task_scores is None else "audited" if not _is_audited(cell) else None
    if not trained or lacks:
        status = "missing" if reason == NOT_RUN else "failed"
        if trained:
            reason = f"It is trained, but not {lacks}. {'' if reason == NOT_RUN else reason}".strip()
    elif cell.config.audit is not None:
        from balora.auditing.audit import read_measures  # imports torch

        task_scores = {**(task_scores or {}), **read_measures(cell.run_directory)}
    variant = cell.variant
    identity = {"variant": variant.name, "method": variant.method, "regularized": variant.regularized}
    return Row.from_record(
        record, status, reason, task_scores, run=cell.name, axes=cell.axes, seed=cell.seed, **identity
    )


def metric_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Select the scores among a run's metrics.

    Example:
        >>> metric_scores({"eval_accuracy": 0.5, "eval_runtime": 3.0, "train_loss": 1.0, "train_runtime": 9.0})
        {'accuracy': 0.5, 'train_loss': 1.0}
    """
    evaluation = {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_")}
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
    return _is_audited(cell) and (evaluation is None or read_scores(cell.run_directory, evaluation) is not None)


def _is_audited(cell: Cell) -> bool:
    """Return whether a run has the audit that its config asks for; with other settings it is audited again."""
    if cell.config.audit is None:
        return True
    path = cell.run_directory / "audit" / "audit.json"
    return path.is_file() and read_json(path, "Delete it, and audit again.").get("asked") == cell.config.audit


def score_names(rows: Sequence[Row]) -> list[str]:
    """List the evaluation scores that at least one row has; if there are none, the training loss."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    return [name for name in names if name != TRAIN_LOSS] or names


def differing_provenance(rows: Sequence[Row]) -> list[str]:
    """Name the differences between the runs: versions, machine, code."""
    keys = (("versions", "versions"), ("machine", "hardware"), ("code", "commit"))
    values = {name: {json.dumps(row.provenance.get(key), sort_keys=True) for row in rows} for name, key in keys}
    return [name for name, found in values.items() if len(found) > 1]
