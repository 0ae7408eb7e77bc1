"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from balora.errors import BALoraError

LOCK = ".lock"


def require_writable(folder: Path, setting: str = "output") -> None:
    """Refuse a folder that could not be made or written into, before anything is loaded for it.

    Raises:
        BALoraError: The nearest folder that there is cannot be written into, or is a file.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise BALoraError(f"{folder} cannot be made: {there} is a file. Choose another {setting}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BALoraError(f"{folder} cannot be written to: {there} is read-only here. Choose another {setting}.")


@contextlib.contextmanager
def locked(folder: Path, busy: str, setting: str = "output") -> Iterator[None]:
    """Make a folder, and keep every other process out of it while the block lasts (or this process lives).

    Args:
        folder: To be written into.
        busy: What another process is doing there, for the error: "Another process is running".
        setting: What names the folder, for the error.

    Raises:
        BALoraError: It cannot be made, or another process is in it.
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
