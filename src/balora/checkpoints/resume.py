"""What a resume is checked for and takes over from a checkpoint, beside weights and optimizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.errors import BALoraError

STATE = "trainer_state.json"


class KeepBest(TrainerCallback):
    """Names the best checkpoint where it lies now: the stored state names where the run lay when it was written."""

    def __init__(self) -> None:
        self.best: Path | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Once, after the Trainer has read the state; it forgets a best checkpoint that is not where the state says."""
        if self.best is not None:
            state.best_model_checkpoint = str(self.best)
            self.best = None


def best_checkpoint(checkpoint: Path, run: Path, *, needed: bool) -> Path | None:
    """The best checkpoint that a checkpoint's state knows, looked for in the run's folder and beside the checkpoint.

    Args:
        checkpoint: What is resumed from.
        run: Where the run writes now.
        needed: Whether the run ends with the best model, so that it cannot do without.

    Raises:
        BALoraError: It is needed and not there.
    """
    known = _state(checkpoint).get("best_model_checkpoint")
    if known is None:
        return None
    name = Path(known).name
    found = next((place / name for place in (run, checkpoint.parent) if (place / name).is_dir()), None)
    if found is None and needed:
        raise BALoraError(
            f"{checkpoint.parent / name} is missing: it is the best model so far, and the run is to end with the best "
            "(training.load_best_model_at_end). Put it back beside the other checkpoints, or choose another output to start "
            "anew."
        )
    return found


def check_whole(checkpoint: Path) -> None:
    """Refuse to go on from weights alone: optimizer and schedule would start again, and the run would be another.

    Raises:
        BALoraError: The optimizer's or the schedule's state is not in the checkpoint.
    """
    if (checkpoint / "latest").is_file():  # DeepSpeed's own form holds both
        return
    missing = [
        f"the {of}'s"
        for of in ("optimizer", "scheduler")
        if not any(checkpoint.glob(f"{of}.*")) and not any(checkpoint.glob(f"{of}_*"))  # FSDP's shards: optimizer_0
    ]
    if missing:
        raise BALoraError(
            f"{checkpoint} lacks {' and '.join(missing)} state (training.save_only_model leaves them out), so a run cannot "
            "go on from it. Choose another output to start anew; `balora.load` and `balora export` still read this one."
        )


def loss_before(checkpoint: Path, record: Mapping[str, Any]) -> float | None:
    """The sum over all steps of the training loss up to a checkpoint, from the lines that were logged.

    Args:
        checkpoint: What is resumed from.
        record: The run's, as the process before left it.

    Returns:
        None where steps are in no line: the Trainer forgets, at a resume, what it had not logged yet at the checkpoint.
    """
    state = _state(checkpoint)
    total, last = 0.0, 0
    for line in state["log_history"]:
        if "loss" in line:
            total += line["loss"] * (line["step"] - last)
            last = line["step"]
    return total if record.get("loss_logged") and last == state["global_step"] else None


def of_whole_run(metrics: Mapping[str, float], before: float | None, resumed_at: int, steps: int) -> dict[str, float]:
    """The metrics of a resumed run with ``train_loss`` over all its steps, as a run that was never interrupted has it.

    Args:
        metrics: The Trainer's, whose loss is the mean over the steps since the resume.
        before: `loss_before`; None drops the loss.
        resumed_at: The checkpoint's step.
        steps: Of the whole run.

    Example:
        >>> of_whole_run({"train_loss": 1.0, "epoch": 2.0}, 12.0, resumed_at=4, steps=6)
        {'epoch': 2.0, 'train_loss': 2.3333333333333335}
    """
    kept = {name: value for name, value in metrics.items() if name != "train_loss"}
    if before is None:
        return kept
    return {**kept, "train_loss": (before + metrics["train_loss"] * (steps - resumed_at)) / steps}


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(_state(checkpoint)["global_step"])


def _state(checkpoint: Path) -> dict[str, Any]:
    state = json.loads((checkpoint / STATE).read_text())
    assert isinstance(state, dict)
    return state
