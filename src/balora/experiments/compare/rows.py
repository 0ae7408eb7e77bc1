"""Rows: what came of each run of a comparison, read from the run's own folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from balora.checkpoints.run_directory import CONFIG, read_record
from balora.config.run_config import differences, load_run_config
from balora.errors import BALoraError
from balora.experiments.compare.evaluation import EvaluationPlan, measured
from balora.experiments.compare.plan import Cell

Status = Literal["finished", "failed", "missing"]
_NOT_SCORES = {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
TRAIN_LOSS = "train_loss"
NOT_RUN = "It has not been run yet."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One run, as a line of ``rows.jsonl``."""

    run: str
    """Name of its folder."""
    variant: str
    method: str
    regularized: bool
    axes: dict[str, Any]
    seed: int
    status: Status
    reason: str | None = None
    """Why it failed, in one sentence."""
    scores: dict[str, float]
    """Of the evaluation by name, without its prefix ``eval_``; those of tasks as ``task/name``; and ``train_loss``."""
    seconds: float | None = None
    """Of training; None when the run was interrupted, since only its last part was timed."""
    peak_memory_mib: float | None = None
    """Of the run's process: on the GPU where there is one, else resident."""
    trainable: int | None = None
    """Number of values that learn."""
    provenance: dict[str, Any]
    """Versions, hardware, commit and time of the run, and the digest of its data."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes None, which JSON can hold."""
        made = dataclasses.asdict(self)
        made["scores"] = {k: v if math.isfinite(v) else None for k, v in self.scores.items()}
        return made

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """A line of ``rows.jsonl``; a score of None was not finite."""
        scores = {name: math.nan if score is None else score for name, score in values["scores"].items()}
        return cls(**{**values, "scores": scores})


def row_of(cell: Cell, reason: str = NOT_RUN, evaluation: EvaluationPlan | None = None) -> Row:
    """What a cell's folder says.

    Args:
        cell: The run.
        reason: Why it has no result, if it has none.
        evaluation: What it has to be measured on, beyond its own evaluation rows, to have one.
    """
    record = read_record(cell.folder) or {}
    about: dict[str, Any] = {
        "run": cell.name,
        "variant": cell.variant.name,
        "method": cell.variant.method,
        "regularized": cell.variant.regularized,
        "axes": cell.axes,
        "seed": cell.seed,
    }
    data = record.get("data") or {}
    provenance = {**(record.get("provenance") or {}), "data_digest": data.get("digest")}
    trained = record.get("status") == "finished"
    scores = measured(cell.folder, evaluation) if trained and evaluation else {}
    if not trained or scores is None:
        status: Status = "missing" if reason == NOT_RUN else "failed"
        if trained:
            reason = f"It is trained, but not evaluated. {'' if reason == NOT_RUN else reason}".strip()
        return Row(**about, status=status, reason=reason, scores={}, provenance=provenance)
    metrics: Mapping[str, Any] = record["metrics"]
    return Row(
        **about,
        status="finished",
        scores={**scores_of(metrics), **scores},
        seconds=None if record.get("resumed") else metrics.get("train_runtime"),
        peak_memory_mib=metrics.get("peak_memory_mib"),
        trainable=(record.get("parameters") or {}).get("trainable"),
        provenance=provenance,
    )


def scores_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scores among a run's numbers.

    Example:
        >>> scores_of({"eval_accuracy": 0.5, "eval_runtime": 3.0, "train_loss": 1.0, "train_runtime": 9.0})
        {'accuracy': 0.5, 'train_loss': 1.0}
    """
    evaluation = {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_")}
    kept = {k: float(v) for k, v in evaluation.items() if isinstance(v, int | float) and k not in _NOT_SCORES}
    return {**kept, **({TRAIN_LOSS: float(metrics[TRAIN_LOSS])} if TRAIN_LOSS in metrics else {})}


def is_finished(cell: Cell, evaluation: EvaluationPlan | None = None) -> bool:
    """Whether a cell's run is there already, with the evaluation that is asked for, and need not be made again.

    Raises:
        BALoraError: There is one, with other settings.
    """
    if (read_record(cell.folder) or {}).get("status") != "finished":
        return False
    changed = differences(load_run_config(cell.folder / CONFIG), cell.settings)
    if changed:
        raise BALoraError(
            f"{cell.folder} holds a finished run with other settings ({', '.join(changed)}). Choose another --output, or delete "
            "that folder to run it again."
        )
    return evaluation is None or measured(cell.folder, evaluation) is not None


def score_names(rows: Sequence[Row]) -> list[str]:
    """Every score of an evaluation that some row has; without any, the training loss."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    return [name for name in names if name != TRAIN_LOSS] or names


def mixed_origins(rows: Sequence[Row]) -> list[str]:
    """What was not the same for all rows: versions, machine, code."""
    keys = (("versions", "versions"), ("machine", "hardware"), ("code", "commit"))
    return [
        what for what, key in keys if len({json.dumps(row.provenance.get(key), sort_keys=True) for row in rows}) > 1
    ]
