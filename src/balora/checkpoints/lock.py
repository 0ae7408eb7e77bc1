"""Lock a directory for one process."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from balora.errors import BALoraError

LOCK = ".lock"
"""Name of the lock's file. It stays in the directory: who deletes it may delete the file that another process has locked."""


def require_writable(folder: Path, setting: str = "output") -> None:
    """Refuse a directory that cannot be created or written to. The message advises to choose another ``setting``."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path(folder.anchor))
    if not existing.is_dir():
        raise BALoraError(f"{folder} cannot be created: {existing} is a file. Choose another {setting}.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BALoraError(f"{folder} cannot be written to: {existing} is read-only here. Choose another {setting}.")


@contextlib.contextmanager
def locked(folder: Path, busy: str, setting: str = "output") -> Iterator[None]:
    """Create a directory and lock it against other processes, until the block ends or this process dies.

    The message about a locked directory begins with ``busy``, and advises to choose another ``setting``.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BALoraError(f"{busy} in {folder}. Wait for it, or choose another {setting}.") from error
    except OSError as error:
        reason = f"{LOCK} is a symbolic link" if (folder / LOCK).is_symlink() else error.strerror or error
        raise BALoraError(f"{folder} cannot be written to: {reason}. Choose another {setting}.") from error
    try:
        yield
    finally:
        lock.release()
