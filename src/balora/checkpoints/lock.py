"""Lock a directory for one process."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from balora.errors import BALoraError

LOCK = ".lock"


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        reason = error.strerror or error
        raise BALoraError(f"{folder} cannot be written to: {reason}. Choose another {setting}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BALoraError(f"{busy} in {folder}. Wait for it, or choose another {setting}.") from error
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file inside the block; wait while another process holds it. The empty file stays."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
