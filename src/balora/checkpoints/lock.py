"""Lock a directory for one process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from balora.errors import BALoraError

LOCK = ".lock"


def require_writable(folder: Path, setting: str = "output") -> None:
    """Refuse a directory that cannot be created or written to.

    Args:
        folder: Directory to write to, which may not exist yet.
        setting: Name of the setting that gives the directory, for the error message.

    Raises:
        BALoraError: The nearest existing parent is read-only, or is a file.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise BALoraError(f"{folder} cannot be created: {existing} is a file. Choose another {setting}.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BALoraError(f"{folder} cannot be written to: {existing} is read-only here. Choose another {setting}.")


@contextlib.contextmanager
def locked(folder: Path, busy: str, setting: str = "output") -> Iterator[None]:
    """Create a directory and keep every other process out of it, until the block ends or this process dies.

    Args:
        folder: Directory to write to.
        busy: What another process is doing in it, for the error message: "Another process is running".
        setting: Name of the setting that gives the directory, for the error message.

    Raises:
        BALoraError: The directory cannot be created, or another process has locked it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise BALoraError(
            f"{folder} cannot be written to: {error.strerror or error}. Choose another {setting}."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BALoraError(f"{busy} in {folder}. Wait for it, or choose another {setting}.") from error
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
