"""Write small files atomically, read JSON with clear errors, and flush files to the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from balora.errors import BALoraError


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_json(path: Path, way_out: str = "") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        way_out: Sentence that tells the user what to do when the file cannot be read.

    Raises:
        BALoraError: The file is missing, damaged, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BALoraError(f"{path} is missing or damaged ({error}). {way_out}".rstrip()) from error
    if not isinstance(content, dict):
        raise BALoraError(
            f"{path} is damaged: it holds a {type(content).__name__}, not a JSON object. {way_out}".rstrip()
        )
    return content


def fsync(*paths: Path) -> None:
    """Flush files and directories to the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
