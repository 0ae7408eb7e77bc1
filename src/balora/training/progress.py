"""Progress of a run on the screen: a bar on a terminal, lines anywhere else, and the result in three lines."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.config.run_config import RunConfig
from balora.terminal import printable
from balora.training.callbacks import format_logs

Detail = Literal["quiet", "normal", "verbose"]
"""Amount of output: warnings only; a bar or lines; a bar with the lines above it."""
Log = Callable[[str], None]
_HIDDEN = ("_runtime", "_per_second")


def duration(seconds: float) -> str:
    """Write a time in minutes and seconds, or hours.

    Example:
        >>> duration(7.4), duration(754), duration(7384)
        ('0:07', '12:34', '2:03:04')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Speed:
    """Tokens a second and the time left, from the tokens that the Trainer counts."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._begun = self._since = time.monotonic()
        self._first_step = 0
        self.tokens_per_second: float | None = None

    def begin(self, step: int) -> None:
        self._begun = self._since = time.monotonic()
        self._first_step = step
        self._trainer.take_tokens()

    def measure(self) -> None:
        """Measure since the last call. This waits for the device, so it is for the logged steps only."""
        now = time.monotonic()
        tokens, seconds = self._trainer.take_tokens(), now - self._since
        self._since = now
        self.tokens_per_second = tokens / seconds if tokens and seconds > 0 else None

    def left(self, state: TrainerState) -> float | None:
        """Return the seconds to the last step, at the mean speed so far."""
        done = state.global_step - self._first_step
        return None if done < 1 else (time.monotonic() - self._begun) / done * (state.max_steps - state.global_step)

    def describe(self, state: TrainerState) -> str:
        """Describe both in a few words; empty at the first step."""
        speed, left = self.tokens_per_second, self.left(state)
        parts = [f"{speed:,.0f} tok/s"] if speed else []
        return "  ".join([*parts, *([] if left is None else [f"{duration(left)} left"])])


def _without_repetition(log: Log) -> Log:
    """Leave out a line that is equal to the one before: the last epoch's evaluation is that of the result, too."""
    last = ""

    def once(line: str) -> None:
        nonlocal last
        if line != last:
            log(line)
        last = line

    return once


class ProgressLines(TrainerCallback):
    """One line for each log of the Trainer, for a file, a pipe or a screen without a bar."""

    def __init__(self, trainer: Any, log: Log) -> None:
        self._speed, self._log = _Speed(trainer), _without_repetition(log)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to measure the speed."""
        self._speed.begin(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Log one line."""
        trained = bool(logs) and "loss" in logs
        if trained:
            self._speed.measure()
        line = format_logs(state, logs)
        if state.is_world_process_zero and line:
            self._log("  ".join(filter(None, [line, self._speed.describe(state) if trained else ""])))


class ProgressBar(TrainerCallback):
    """A bar with the steps, the loss, tokens a second and the time left; another one while rows are evaluated."""

    def __init__(self, trainer: Any, console: Console, log: Log, *, lines: bool = False) -> None:
        """Args: trainer, the console of the bar, the function for lines above it, and whether every log is such a line."""
        self._speed, self._console, self._lines = _Speed(trainer), console, lines
        self._log = _without_repetition(log)
        self._progress: Progress | None = None
        self._training: TaskID | None = None
        self._evaluation: TaskID | None = None
        self._loss = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        self._speed.begin(state.global_step)
        if state.is_world_process_zero:
            self._training = self._open().add_task(
                "", total=state.max_steps, completed=state.global_step, what="step", about=""
            )
            self._update(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self._update(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Show the new loss; scores of an evaluation become a line above the bar."""
        if not logs or not state.is_world_process_zero:
            return
        if "loss" in logs:
            self._speed.measure()
            self._loss = f"loss {logs['loss']:.4g}"
            self._update(state)
        line = format_logs(state, logs)
        if line and (self._lines or any(name.startswith("eval_") for name in logs)):
            self._log(line)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Move the bar of an evaluation."""
        if not state.is_world_process_zero or not hasattr(eval_dataloader, "__len__"):
            return
        progress = self._open()
        if self._evaluation is None:
            self._evaluation = progress.add_task("", total=len(eval_dataloader), what="evaluating", about="")
        progress.advance(self._evaluation)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the evaluation's bar away."""
        if self._progress is not None and self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
        self._evaluation = None
        if self._training is None:
            self.close()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the bar away; the result follows."""
        self._training = None
        self.close()

    def close(self) -> None:
        """Leave the screen as it was, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _open(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.fields[what]} {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[about]}"),
                console=self._console,
                transient=True,
                expand=True,
            )
            self._progress.start()
        return self._progress

    def _update(self, state: TrainerState) -> None:
        if self._progress is not None and self._training is not None:
            about = "  ".join(filter(None, [self._loss, self._speed.describe(state)]))
            self._progress.update(self._training, completed=state.global_step, about=about)


class RunScreen:
    """Output of a run.

    Args:
        log: Function that gets lines for the user.
        detail: Amount of output.
        bars: Whether bars are shown; None: if both outputs are a terminal.
    """

    def __init__(self, log: Log, detail: Detail = "normal", bars: bool | None = None) -> None:
        self.detail = detail
        self.console = Console(stderr=True, highlight=False)
        self.bars = detail != "quiet" and (
            bool(bars) if bars is not None else sys.stderr.isatty() and sys.stdout.isatty()
        )
        self.log: Log = (lambda line: None) if detail == "quiet" else log

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Show what is being done, on a terminal, until the block ends."""
        if not self.bars:
            yield
            return
        with self.console.status(f"{what} ..."):
            yield

    def callback(self, trainer: Any, config: RunConfig) -> TrainerCallback:
        """Return the callback that shows the progress of a Trainer."""
        # Not args.disable_tqdm, which transformers sets if its own messages are silenced.
        if self.bars and not config.training.get("disable_tqdm"):
            return ProgressBar(trainer, self.console, self.log, lines=self.detail == "verbose")
        return ProgressLines(trainer, self.log)


def result_lines(
    config: RunConfig, metrics: dict[str, float], steps: int, saved: Path, trainable: int, notices: int = 0
) -> list[str]:
    """Describe the result of a run in three lines: the training, the evaluation, and what was saved."""
    training = [f"Trained {steps:,} steps"]
    if "train_runtime" in metrics:
        training[0] += f" in {duration(metrics['train_runtime'])}"
    if "train_loss" in metrics:
        training.append(f"loss {metrics['train_loss']:.4g}")
    scores = [
        f"{name.removeprefix('eval_')} {value:.4g}"
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith(_HIDDEN) and name != "eval_epoch"
    ]
    evaluation = f"Evaluation: {', '.join(scores)}" if scores else "Evaluation: not measured (no rows in data.eval)"
    peak = f", peak memory {metrics['peak_memory_mib']:,.0f} MiB" if "peak_memory_mib" in metrics else ""
    return [
        ", ".join([*training, *_anchor_results(metrics)]),
        evaluation,
        f"Saved in {printable(str(saved))}: {trainable:,} trained parameters of {config.model}{peak}",
    ]


def _anchor_results(metrics: dict[str, float]) -> list[str]:
    """Describe the drift on the anchors that were held out, and what a budget did."""
    if "anchor_drift" not in metrics:
        return []
    error, part = metrics.get("anchor_drift_error", math.nan), metrics.get("anchor_scale", 1.0)
    drift = f"drift {metrics['anchor_drift']:.3g}" + (f" ± {error:.1g}" if math.isfinite(error) else "")
    asked = f" (budget {metrics['anchor_budget']:g})" if "anchor_budget" in metrics else ""
    return [f"{drift} nats a token on the anchors held out{asked}"] + (
        [f"{part:.0%} of the change kept"] if part < 1 else []
    )


def next_commands(config: RunConfig, run: Path) -> list[str]:
    """Return the commands that one may want next."""
    import shlex

    name, out = shlex.quote(str(run)), shlex.quote(f"{run}-lora")
    talk = [f"balora chat {name}"] if config.task in ("generation", "seq2seq") else []
    form = "merged" if config.method.name == "full" else "lora"
    out = out if form == "lora" else shlex.quote(f"{run}-merged")
    return [*talk, f"balora report {name}", f"balora export {name} --to {form} --output {out}"]
