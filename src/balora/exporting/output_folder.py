"""The folder that an export is written into: whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from balora.errors import BALoraError


def refuse_occupied(output: Path) -> None:
    """Refuse an output that would overwrite something.

    Raises:
        BALoraError: It is a file, or a folder that is not empty.
    """
    if output.exists() and not output.is_dir():
        raise BALoraError(f"{output} is a file; name a folder for the export.")
    if output.is_dir() and any(output.iterdir()):
        raise BALoraError(f"{output} is not empty, and nothing is overwritten. Name another folder, or empty it first.")


@contextlib.contextmanager
def to_the_side(output: Path) -> Iterator[Path]:
    """A folder beside the output to write into; it takes the output's name when all has gone well.

    Args:
        output: Does not exist, or is empty.

    Raises:
        BALoraError: Writing failed (a full disk, say).
    """
    side = output.absolute().with_name(f".{output.absolute().name}.exporting")
    shutil.rmtree(side, ignore_errors=True)  # of an export that was killed
    try:
        side.mkdir(parents=True)
        yield side
        _flush(side)
        os.replace(side, output)
    except (OSError, SafetensorError) as error:
        raise BALoraError(f"Writing to {output} failed: {error}. Nothing was left there.") from error
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Push all of it to the disk before it takes its name."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
