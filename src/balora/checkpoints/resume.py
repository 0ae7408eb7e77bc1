"""Checks of a checkpoint before a resume, and the values that a resumed run takes over besides weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.errors import BALoraError
from balora.files import read_json

STATE = "trainer_state.json"


class RestoreBestCheckpoint(TrainerCallback):
    """Set the path of the best checkpoint at a resume: the stored path is wrong after the run directory was moved."""

    def __init__(self) -> None:
        self.best: Path | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the path once, after the Trainer has read the state and dropped a path that does not exist."""
        if self.best is not None:
            state.best_model_checkpoint = str(self.best)
            self.best = None


def find_best_checkpoint(checkpoint: Path, run: Path, *, needed: bool) -> Path | None:
    """Find the best checkpoint that a checkpoint's state names, in the run directory or beside the checkpoint.

    Args:
        checkpoint: Checkpoint to resume from.
        run: Run directory of the resumed run.
        needed: Whether the run ends with the best model (``load_best_model_at_end``).

    Raises:
        BALoraError: The best checkpoint is needed and missing.
    """
    stored = _state(checkpoint).get("best_model_checkpoint")
    if stored is None:
        return None
    name = Path(stored).name
    found = next((parent / name for parent in (run, checkpoint.parent) if (parent / name).is_dir()), None)
    if found is None and needed:
        raise BALoraError(
            f"{checkpoint.parent / name} is missing: it is the best model so far, and the run is to end with the best "
            "(training.load_best_model_at_end). Put it back beside the other checkpoints, or choose another output for a "
            "new run."
        )
    return found


def check_resumable(checkpoint: Path) -> None:
    """Refuse a checkpoint without optimizer or schedule: both would start anew, which gives another result.

    Raises:
        BALoraError: The state of the optimizer or of the schedule is missing.
    """
    if (checkpoint / "latest").is_file():  # DeepSpeed's format holds both
        return
    missing = [
        f"the {part}'s"
        for part in ("optimizer", "scheduler")
        if not any(checkpoint.glob(f"{part}.*")) and not any(checkpoint.glob(f"{part}_*"))  # FSDP shards: optimizer_0
    ]
    if missing:
        raise BALoraError(
            f"{checkpoint} lacks {' and '.join(missing)} state (training.save_only_model leaves them out), so a run cannot be "
            "resumed from it. Choose another output for a new run; `balora.load` and `balora export` still read this one."
        )


def logged_loss_sum(checkpoint: Path, record: Mapping[str, Any]) -> float | None:
    """Sum the training loss over all steps up to a checkpoint, from its log.

    Args:
        checkpoint: Checkpoint to resume from.
        record: The run's ``run.json``.

    Returns:
        The sum; None if the log lacks steps. At a resume the Trainer drops steps that were not logged before the checkpoint.
    """
    state = _state(checkpoint)
    total, last = 0.0, 0
    for line in state["log_history"]:
        if "loss" in line:
            total += line["loss"] * (line["step"] - last)
            last = line["step"]
    return total if record.get("loss_logged") and last == state["global_step"] else None


def metrics_over_all_steps(
    metrics: Mapping[str, float], loss_before: float | None, resumed_at: int, steps: int
) -> dict[str, float]:
    """Correct the metrics of a resumed run: ``train_loss`` becomes the mean over all steps of the run.

    Args:
        metrics: The Trainer's metrics, whose loss is the mean over the steps since the resume.
        loss_before: `logged_loss_sum`; None removes the loss.
        resumed_at: Step of the checkpoint.
        steps: Number of steps of the run.

    Example:
        >>> metrics_over_all_steps({"train_loss": 1.0, "epoch": 2.0}, 12.0, resumed_at=4, steps=6)
        {'epoch': 2.0, 'train_loss': 2.3333333333333335}
    """
    others = {name: value for name, value in metrics.items() if name != "train_loss"}
    if loss_before is None:
        return others
    return {**others, "train_loss": (loss_before + metrics["train_loss"] * (steps - resumed_at)) / steps}


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(_state(checkpoint)["global_step"])


def _state(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / STATE)
