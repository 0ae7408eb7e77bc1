"""A run's folder: who may write into it, what it says about itself, and what is put there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.lock import LOCK, locked, require_writable
from balora.checkpoints.resume import best_checkpoint, check_whole
from balora.config.run_config import RunConfig, differences, load_run_config
from balora.errors import BALoraError
from balora.files import write_text

CONFIG = "config.yaml"
RECORD = "run.json"
IS_MAIN = os.environ.get("RANK", "0") == "0"
"""Of the processes that torchrun or accelerate start for one run, one writes."""


class RunDirectory:
    """The folder of one run.

    Args:
        settings: Of the run that wants the folder; ``settings.output`` is where it is.
    """

    def __init__(self, settings: RunConfig) -> None:
        self.settings = settings
        self.path = Path(settings.output)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, write the settings, and keep every other process out of it.

        Raises:
            BALoraError: The folder cannot be made, or another process is writing into it.
        """
        if not IS_MAIN:
            yield
            return
        with locked(self.path, "Another process is running"):
            ckpt.discard_staging(self.path)
            write_text(self.path / CONFIG, self.settings.dump_yaml())
            yield

    def resume_point(self) -> Path | None:
        """The checkpoint to resume from, None for a fresh run.

        Raises:
            BALoraError: It is not as it was written or lacks what a resume needs, or the run must not write into this folder.
        """
        self.check()
        newest = ckpt.newest(self.path)
        if newest is not None:
            ckpt.verify(newest)
            check_whole(newest)
            needed = bool(self.settings.training.get("load_best_model_at_end"))
            best_checkpoint(newest, self.path, needed=needed)
        return newest

    def check_data(self, digest: str) -> None:
        """Refuse to go on with other examples than the run started with; rows held out then might be trained on now.

        Args:
            digest: Of the examples as they are now, `Examples.digest`.

        Raises:
            BALoraError: They differ.
        """
        known = ((read_record(self.path) or {}).get("data") or {}).get("digest")
        if known is not None and known != digest:
            raise BALoraError(
                f"{self.path} holds an interrupted run on other data: the training or evaluation examples have changed since "
                "it started. Put the data back as they were to resume it, or choose another output."
            )

    def record(self, **facts: Any) -> None:
        """Write the run's record, keeping what was there."""
        if not IS_MAIN:
            return
        path = self.path / RECORD
        known = read_record(self.path) or {}
        write_text(path, json.dumps({**known, **facts}, indent=2) + "\n")

    def check(self) -> None:
        """Refuse a folder that this run must not write into.

        Raises:
            BALoraError: It is a file, holds a finished run, another run's settings, or something that is no run.
        """
        if not self.path.exists():
            require_writable(self.path)
            return
        if not self.path.is_dir():
            raise BALoraError(f"{self.path} is a file; output names the folder of the run.")
        require_writable(self.path)
        record = read_record(self.path)
        if record is None:
            if any(name.name != LOCK for name in self.path.iterdir()) and not (self.path / CONFIG).is_file():
                raise BALoraError(
                    f"{self.path} holds files that are not a run's. Choose a new or empty folder as output."
                )
        elif record.get("status") == "finished":
            raise BALoraError(
                f"{self.path} holds a finished run, which is not overwritten. Choose another output, or delete the folder first."
            )
        if (self.path / CONFIG).is_file() and ckpt.newest(self.path):
            changed = differences(load_run_config(self.path / CONFIG), self.settings)
            if changed:
                raise BALoraError(
                    f"{self.path} holds an interrupted run with other settings ({', '.join(changed)}). Resume it with its own "
                    f"config ({self.path / CONFIG}), or choose another output."
                )
        if self.settings.resume == "never" and ckpt.newest(self.path):
            raise BALoraError(f"{self.path} holds an interrupted run, and resume is never. Choose another output.")


def read_record(run: Path) -> dict[str, Any] | None:
    """What ``run.json`` says, None when there is none.

    Raises:
        BALoraError: It is damaged.
    """
    path = run / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise BALoraError(f"{path} is damaged ({error}). Delete it to resume from the newest checkpoint.") from error
    assert isinstance(record, dict)
    return record
