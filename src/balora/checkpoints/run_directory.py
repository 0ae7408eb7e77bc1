"""The run directory: its config, its record, and the checks before a run writes to it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.lock import LOCK, locked, require_writable
from balora.checkpoints.resume import check_resumable, find_best_checkpoint
from balora.config.run_config import RunConfig, differences, load_run_config
from balora.errors import BALoraError
from balora.files import read_json, write_text

CONFIG = "config.yaml"
RECORD = "run.json"
IS_MAIN = os.environ.get("RANK", "0") == "0"
"""Whether this process writes: one of those that torchrun or accelerate start for a run."""


class RunDirectory:
    """The directory of one run, ``config.output``.

    Args:
        config: Config of the run that is to write to the directory.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Create the directory, write the config, and keep every other process out of it.

        Raises:
            BALoraError: The directory cannot be created, or another process is writing to it.
        """
        if not IS_MAIN:
            yield
            return
        with locked(self.path, "Another process is running"):
            ckpt.discard_staging(self.path)
            write_text(self.path / CONFIG, self.config.dump_yaml())
            yield

    def resume_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, or None for a new run.

        Raises:
            BALoraError: The checkpoint is damaged or cannot be resumed from, or the run must not write to this directory.
        """
        self.check()
        newest = ckpt.newest_checkpoint(self.path)
        if newest is not None:
            ckpt.check_manifest(newest)
            check_resumable(newest)
            needed = bool(self.config.training.get("load_best_model_at_end"))
            find_best_checkpoint(newest, self.path, needed=needed)
        return newest

    def check_data(self, digest: str) -> None:
        """Refuse to resume with other examples: rows that were held out could become training rows.

        Args:
            digest: `Examples.digest` of the present examples.

        Raises:
            BALoraError: The run began with other examples.
        """
        stored = ((read_record(self.path) or {}).get("data") or {}).get("digest")
        if stored is not None and stored != digest:
            raise BALoraError(
                f"{self.path} holds an interrupted run on other data: the training or evaluation examples have changed since "
                "it started. Put the data back as they were to resume it, or choose another output."
            )

    def update_record(self, **entries: Any) -> None:
        """Write entries into ``run.json``; the other entries stay."""
        if IS_MAIN:
            record = {**(read_record(self.path) or {}), **entries}
            write_text(self.path / RECORD, json.dumps(record, indent=2) + "\n")

    def check(self) -> None:
        """Refuse a directory that this run must not write to.

        Raises:
            BALoraError: The path is a file or cannot be written to, or the directory holds a finished run, a run with
                another config, or files that are no run.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise BALoraError(f"{path} is a file. Give a folder for the run as output.")
        require_writable(path)
        if not path.exists():
            return
        has_config, record = (path / CONFIG).is_file(), read_record(path)
        if record is None and not has_config and any(entry.name != LOCK for entry in path.iterdir()):
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
    """Return the content of ``run.json``, or None if there is none.

    Raises:
        BALoraError: The file is damaged.
    """
    path = run / RECORD
    return read_json(path, "Delete it to resume from the newest checkpoint.") if path.is_file() else None
