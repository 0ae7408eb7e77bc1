"""The run directory: its config, its record, the checks before a run writes to it, and the state that a resume reads."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.lock import LOCK, locked, require_writable
from balora.config.run_config import RunConfig, differences, load_run_config
from balora.errors import BALoraError, shown
from balora.files import read_json, temporary_path, write_text

CONFIG = "config.yaml"
RECORD = "run.json"
_BEFORE_CONFIG = (LOCK, ckpt.STAGING, temporary_path(Path(CONFIG)).name)
"""Entries that a run may have made when it is killed before its config is written."""
_WRITTEN = (
    CONFIG,
    RECORD,
    "README.md",
    "metrics.jsonl",
    "items.json",
    "adapter",
    "model",
    "checkpoint-*",
    "runs",
    ".*",
)
"""Patterns of the entries that a run writes or deletes."""
IS_MAIN = os.environ.get("RANK", "0") == "0"
"""True in the one process that writes, of all processes that torchrun or accelerate start for a run."""


_RECORD_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(
        ("data", "provenance", "metrics", "parameters", "provenance.versions", "provenance.hardware"), dict
    ),
    **dict.fromkeys(("status", "error", "data.digest"), str),
    **dict.fromkeys(("notices", "data.labels"), list),
    "parameters.trainable": (int, float),
}
"""Types of the entries of ``run.json`` that are read again; each may be missing or null."""


class RunDirectory:
    """The directory ``config.output``, for the run that writes to it."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output)
        self._is_locked = False

    @contextlib.contextmanager
    def lock(self, checkpoint: Path | None = None) -> Iterator[None]:
        """Create the directory, lock it against other processes, and write the config.

        The checks are made again under the lock, because another process may have finished a run or written a checkpoint since
        `resume_checkpoint` returned ``checkpoint``.
        """
        if not IS_MAIN:
            self._is_locked = True
            yield
            return
        with locked(self.path, "Another process is running"):
            self.check()
            if ckpt.newest_checkpoint(self.path) != checkpoint:
                raise BALoraError(
                    f"Another process has trained in {self.path} since this one started. Run the same command again to resume "
                    "from its last checkpoint, or choose another output."
                )
            ckpt.discard_staging(self.path)
            write_text(self.path / CONFIG, self.config.dump_yaml())
            self._is_locked = True
            yield

    def resume_checkpoint(self) -> Path | None:
        """Return the checked checkpoint to resume from, or None for a new run; refuse a directory as `check` does."""
        self.check()
        newest = ckpt.newest_checkpoint(self.path)
        if newest is not None:
            ckpt.check_manifest(newest)
            check_resumable(newest)
            needed = bool(self.config.training.get("load_best_model_at_end"))
            find_best_checkpoint(newest, self.path, needed=needed)
        return newest

    def check_data(self, digest: str) -> None:
        """Refuse to resume with other examples than the run began with: evaluation rows could become training rows.

        ``digest`` is `Examples.digest` of the present examples.
        """
        stored = ((read_record(self.path) or {}).get("data") or {}).get("digest")
        if stored is not None and stored != digest:
            raise BALoraError(
                f"{self.path} holds an interrupted run on other data: the training or evaluation examples have changed since "
                "it started. Put the data back as they were to resume it, or choose another output."
            )

    def check_world_size(self, processes: int) -> None:
        """Refuse to resume with another number of processes: every later step would have other rows than it was to have."""
        before = ((read_record(self.path) or {}).get("processes") or {}).get("world_size")
        if before is not None and before != processes:
            raise BALoraError(
                f"{self.path} holds an interrupted run of {before} {'process' if before == 1 else 'processes'}, and now there "
                f"{'is 1' if processes == 1 else f'are {processes}'}: the batches of the remaining steps would be others. Start "
                f"{before} to resume it, or choose another output."
            )

    def record_failure(self, text: str) -> None:
        """Write the failure of any process into ``run.json``. The main process may be dead, so any process may call this."""
        record = read_record(self.path) if self._is_locked else None
        if record is not None and record.get("status") != "finished":
            write_text(self.path / RECORD, json.dumps({**record, "status": "failed", "error": text}, indent=2) + "\n")

    def update_record(self, **entries: Any) -> None:
        """Write entries into ``run.json``; the other entries stay."""
        if IS_MAIN:
            record = {**(read_record(self.path) or {}), **entries}
            write_text(self.path / RECORD, json.dumps(record, indent=2) + "\n")

    def check(self) -> None:
        """Refuse a path that cannot be written to, a finished run, a run with another config, and files that are no run."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise BALoraError(f"{path} is a file. Give a folder for the run as output.")
        require_writable(path)
        if not path.exists():
            return
        links = [entry.name for entry in path.iterdir() if entry.is_symlink() and any(map(entry.match, _WRITTEN))]
        if links:
            raise BALoraError(
                f"{path / min(links)} is a symbolic link, and a run does not write through links. Replace it by the file or "
                "folder itself, or choose another output (which may be a link as a whole)."
            )
        has_config, record = (path / CONFIG).is_file(), read_record(path)
        if record is None and not has_config and any(entry.name not in _BEFORE_CONFIG for entry in path.iterdir()):
            raise BALoraError(f"{path} holds files that are not a run's. Choose a new or empty folder as output.")
        if record is not None and record.get("status") == "finished":
            raise BALoraError(
                f"{path} holds a finished run, which is not overwritten. Choose another output, or delete the folder first."
            )
        if ckpt.newest_checkpoint(path) is None:
            return
        changed = differences(load_run_config(path / CONFIG), self.config) if has_config else []
        if changed:
            raise BALoraError(
                f"{path} holds an interrupted run with other settings ({', '.join(changed)}). Resume it with its own "
                f"config ({path / CONFIG}), or choose another output."
            )
        if self.config.resume == "never":
            raise BALoraError(f"{path} holds an interrupted run, and resume is never. Choose another output.")


def read_record(run: Path) -> dict[str, Any] | None:
    """Return the content of ``run.json``, or None if there is none; raise `BALoraError` if it is damaged."""
    path, way_out = run / RECORD, "Delete it to resume from the newest checkpoint."
    if not path.exists():
        return None
    record = read_json(path, way_out)
    for keys, kinds in _RECORD_KINDS.items():
        value: Any = record
        for key in keys.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, kinds):
            raise BALoraError(f"{path} is damaged: {keys} cannot be {shown(value)}. {way_out}")
    wrong = [name for name, value in (record.get("metrics") or {}).items() if not isinstance(value, int | float | None)]
    if wrong or not all(isinstance(notice, str) for notice in record.get("notices") or []):
        raise BALoraError(
            f"{path} is damaged: {f'metrics.{wrong[0]} is no number' if wrong else 'notices must be texts'}. {way_out}"
        )
    return record


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

    With ``needed``, because the run ends with the best model, a missing one raises `BALoraError`.
    """
    stored = _trainer_state(checkpoint).get("best_model_checkpoint")
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
    """Refuse a checkpoint without the state of optimizer and schedule: a resume would give another result."""
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


def step_and_loss_sum(checkpoint: Path, record: Mapping[str, Any]) -> tuple[int, float | None]:
    """Return the step of a checkpoint, and the sum of the training loss over all steps up to it.

    The sum is None if the log lacks steps. At a resume the Trainer drops steps that were not logged before the checkpoint.
    """
    state = _trainer_state(checkpoint)
    step, total, last = int(state["global_step"]), 0.0, 0
    for line in state["log_history"]:
        if "loss" in line:
            total += line["loss"] * (line["step"] - last)
            last = line["step"]
    return step, (total if record.get("loss_logged") and last == step else None)


def metrics_over_all_steps(
    metrics: Mapping[str, float], loss_before: float | None, resumed_at: int, steps: int
) -> dict[str, float]:
    """Correct the metrics of a resumed run: ``train_loss`` becomes the mean over all steps, not those since the resume.

    ``loss_before`` is the sum from `step_and_loss_sum`; None removes the loss.

    Example:
        >>> metrics_over_all_steps({"train_loss": 1.0, "epoch": 2.0}, 12.0, resumed_at=4, steps=6)
        {'epoch': 2.0, 'train_loss': 2.3333333333333335}
    """
    others = {name: value for name, value in metrics.items() if name != "train_loss"}
    if loss_before is None:
        return others
    return {**others, "train_loss": (loss_before + metrics["train_loss"] * (steps - resumed_at)) / steps}


def _trainer_state(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / "trainer_state.json")
