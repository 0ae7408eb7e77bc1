"""What a run writes while it trains: one line per logged step to a file, a short line and the time left to the screen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

METRICS = "metrics.jsonl"
_SHOWN = (
    *("loss", "task", "consistency", "diversity", "variance", "spectral", "learning_rate"),
    *("eval_loss", "eval_accuracy", "eval_matthews", "eval_pearson"),
)


class MetricsFile(TrainerCallback):
    """Appends every log of the Trainer to ``metrics.jsonl``: the step, every part, every weight."""

    def __init__(self, run: Path) -> None:
        self.path = run / METRICS

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """On a resume, drop the lines that the killed process wrote beyond the checkpoint; they will be written again."""
        if state.is_world_process_zero:
            kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
            side = self.path.with_suffix(".tmp")
            side.write_text("".join(json.dumps(line) + "\n" for line in kept))
            side.replace(self.path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a killed process left unfinished is not one."""
    lines = path.read_text().splitlines() if path.is_file() else []
    read = []
    for line in lines:
        try:
            read.append(json.loads(line))
        except ValueError:
            continue
    return read


def short_line(state: TrainerState, logs: dict[str, Any] | None) -> str | None:
    """One log in a line that fits the screen, None when it holds nothing to show; everything is in the metrics file."""
    shown = [f"{n} {logs[n]:.4g}" for n in _SHOWN if logs and isinstance(logs.get(n), int | float)]
    return f"step {state.global_step}/{state.max_steps}  " + "  ".join(shown) if shown else None


class AfterStep(TrainerCallback):
    """Calls a method's own step (AdaLoRA's pruning) after the optimizer's, while the gradients are still there."""

    def __init__(self, model: nn.Module, action: Callable[[nn.Module, int], None]) -> None:
        self.model = model
        self.action = action

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count from 1, as the schedules of the papers do; the Trainer counts the step only afterwards."""
        self.action(self.model, state.global_step + 1)


class ShortProgress(ProgressCallback):
    """transformers' progress bar (steps, time left), with a log line that fits the screen."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Print the parts that were computed."""
        line = short_line(state, logs)
        if state.is_world_process_zero and self.training_bar is not None and line:
            self.training_bar.write(line)


class ShortLines(TrainerCallback):
    """The same lines without a bar, for a log file."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Say the parts that were computed."""
        line = short_line(state, logs)
        if state.is_world_process_zero and line:
            self.say(line)
