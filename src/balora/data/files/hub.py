"""Hub ids and local paths, and the messages for a hub that does not answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from balora.errors import BALoraError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_UNREACHABLE = re.compile("offline|couldn't connect|could(n't| not) reach|connection|resolve host|timed out", re.I)


def looks_local(name: str, suffixes: Iterable[str] = ()) -> bool:
    """Decide if a name means a local file or folder, which may be missing, and not a hub id.

    Example:
        >>> looks_local("./models/tiny"), looks_local("train.jsonl", [".jsonl"]), looks_local("openai/gsm8k")
        (True, True, False)
    """
    return (
        name.startswith((".", "/", "~"))
        or not _HUB_ID.fullmatch(name)
        or name.lower().endswith(tuple(suffixes))
        or Path(name).expanduser().exists()
    )


def unreachable(error: BaseException) -> bool:
    """Decide if an error of a hub client means that there is no connection, and not that the name is wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError) or _UNREACHABLE.search(str(cause)):
            return True
        cause = cause.__cause__
    return False


def load_hub_dataset(
    name: str, configuration: str | None, split: str, *, key: str = "data.train", streaming: bool = False
) -> Any:
    """Load one split of a hub dataset as a `datasets.Dataset`, or as an `IterableDataset` with ``streaming``.

    ``key`` is the config key or option that takes a local file instead, for messages.

    Raises:
        BALoraError: The hub cannot be reached, or has no such dataset, configuration or split.
    """
    import datasets  # takes a second, which the rest of this module does not need

    try:
        return datasets.load_dataset(name, configuration, split=split, **({"streaming": True} if streaming else {}))
    except Exception as error:  # the hub's clients raise many kinds of errors
        if unreachable(error):
            raise BALoraError(
                f"{name} is not a local file or folder, and as a hub id it could not be reached. Check the connection, or "
                f"give a local file in {key}."
            ) from error
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise BALoraError(
                f"There is no dataset {name}, neither locally nor on the hub; if it is private, log in (hf auth login)."
            ) from error
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise BALoraError(
            f"The hub dataset {name} could not be loaded (data.name {configuration}, split {split}): {reason}."
        ) from error
