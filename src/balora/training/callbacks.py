"""Trainer callbacks of a run: the metrics file and a method's work after each optimizer step."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.files import open_to_append, write_text

logger = logging.getLogger("balora")
METRICS = "metrics.jsonl"
_DISPLAYED = (
    *("loss", "task", "consistency", "diversity", "variance", "spectral", "anchor", "anchor_weight", "learning_rate"),
    *("eval_loss", "eval_accuracy", "eval_matthews", "eval_pearson"),
)
Logs = dict[str, Any] | None


class MetricsFile(TrainerCallback):
    """Append every log of the Trainer to ``metrics.jsonl``: the step, every part of the loss, every weight."""

    def __init__(self, run: Path) -> None:
        self.path = run / METRICS

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """On a resume, drop lines that were logged after the checkpoint; they are logged again."""
        if state.is_world_process_zero:
            step, lines = state.global_step, read_metrics(self.path)
            earlier = [line for line in lines if line["step"] < step]
            # Of the checkpoint's own step, the log of its state has the lines from before it was saved.
            before = sum(entry.get("step") == step for entry in state.log_history)
            kept = earlier + [line for line in lines if line["step"] == step][:before]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Logs = None, **_: Any
    ) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs:
            with open_to_append(self.path) as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; skip a last line that a killed process left incomplete."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


class EarlyStop(TrainerCallback):
    """Stop when the evaluations no longer improve.

    It reads the scores from the log of the Trainer's state, which a checkpoint has: a resumed run stops where an uninterrupted one
    would.
    """

    def __init__(self, patience: int, min_delta: float, log: Callable[[str], None]) -> None:
        self.patience, self.min_delta, self.log = patience, min_delta, log

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the evaluations since the last better one."""
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        scores = [(entry["step"], entry[name]) for entry in state.log_history if name in entry]
        sign = 1 if args.greater_is_better else -1
        best: tuple[int, float] | None = None
        since = 0
        for step, score in scores:
            if best is None or sign * (score - best[1]) > self.min_delta:
                best, since = (step, score), 0
            else:
                since += 1
        if best is not None and since >= self.patience and not control.should_training_stop:
            control.should_training_stop = True
            if state.is_world_process_zero and state.global_step < state.max_steps:
                self.log(
                    f"Stopping early at step {state.global_step} of {state.max_steps}: {name} was best at step {best[0]} "
                    f"({best[1]:.4g}), and {since} evaluations since then were not better."
                )


class AfterOptimizerStep(TrainerCallback):
    """Call a method's own step (AdaLoRA's pruning) after the optimizer step, before the gradients are cleared."""

    def __init__(self, model: nn.Module, action: Callable[[nn.Module, int], None]) -> None:
        self.model = model
        self.action = action

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Pass the number of the step, counted from 1 as in the papers; the Trainer has not counted this step yet."""
        self.action(self.model, state.global_step + 1)


class GradientCheck(TrainerCallback):
    """Say which trainable tensors get no gradient: after the first step, and at the end which never got one.

    The first step does not report experts, because a router may not have sent a token to each of them yet.
    """

    def __init__(self, model: nn.Module, notices: list[str]) -> None:
        self.model = model
        self.notices = notices
        self._waiting: dict[str, nn.Parameter] | None = None
        self._total = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note the tensors that are to be trained."""
        self._waiting = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._total, self._reported = len(self._waiting), False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note the tensors that have a gradient."""
        if not self._waiting:
            return
        self._waiting = {name: p for name, p in self._waiting.items() if p.grad is None}
        missing = [name for name in self._waiting if "expert" not in name.lower()]
        if missing and len(self._waiting) < self._total and not self._reported:
            self._say(missing, "got no gradient in the first step")
        self._reported = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report experts that never got a token, and other tensors that were not reported after the first step."""
        missing = [name for name in self._waiting or () if "expert" in name.lower()]
        if missing and len(missing) < self._total:
            self._say(missing, "never got a gradient")

    def _say(self, names: list[str], what: str) -> None:
        hint = " Leave such layers out with exclude_modules." if ".lora_" in names[0] else ""
        notice = (
            f"{len(names)} of {self._total} trainable tensors, such as {names[0]}, {what}, so they do not learn: their layer does "
            f"not run on this data, or the model reads its weight without running it.{hint}"
        )
        logger.warning(notice)
        self.notices.append(notice)


def format_logs(state: TrainerState, logs: Logs) -> str | None:
    """Format the main values of a log as one line that fits the screen; None if the log has no such value."""
    shown = [f"{n} {logs[n]:.4g}" for n in _DISPLAYED if logs and isinstance(logs.get(n), int | float)]
    return f"step {state.global_step}/{state.max_steps}  " + "  ".join(shown) if shown else None
