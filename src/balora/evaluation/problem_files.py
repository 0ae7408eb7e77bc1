"""Read a directory tree with one JSON file per problem, such as the original MATH: ``MATH/test/algebra/12.json``."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balora.errors import BALoraError

_NUMBERED = re.compile(r"\d+\.json", re.IGNORECASE)


def read_problem_files(folder: Path, splits: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the rows of a tree of numbered JSON files, ordered by directory and number; None if this is no such tree.

    If the directory has subdirectories for splits, the first of ``splits`` that exists is read.

    Raises:
        BALoraError: A file is not a JSON object, or the tree has other splits only.
    """
    if not folder.is_dir():
        return None
    chosen = next((folder / split for split in splits if (folder / split).is_dir()), folder)
    files = [path for path in chosen.rglob("*") if _NUMBERED.fullmatch(path.name) and path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(chosen).parts)]
    others = [
        path
        for path in chosen.iterdir()
        if path.is_file() and path not in files and path.suffix in (".jsonl", ".parquet")
    ]
    if not files or others:
        return None
    if chosen == folder and (folder / "train").is_dir():
        raise BALoraError(
            f"The directory {folder} has no directory {' or '.join(splits)}, only train and others. Give the path of the "
            "directory to evaluate (--data TASK=DIR)."
        )
    files.sort(key=lambda path: (path.relative_to(chosen).parent.parts, int(path.stem)))
    return [_read_problem(path) for path in files]


def _read_problem(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BALoraError(f"{path} cannot be read as one problem: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise BALoraError(f"{path} is not one problem: it holds a {type(content).__name__}, not a JSON object.")
    return content
