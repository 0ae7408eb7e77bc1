"""What is a hub id and what a path, and what to say when the hub does not answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import datasets

from balora.errors import BALoraError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_UNREACHABLE = (
    "offline",
    "couldn't connect",
    "couldn't reach",
    "could not reach",
    "connection",
    "resolve host",
    "timed out",
)


def looks_local(name: str, suffixes: Iterable[str] = ()) -> bool:
    """Whether a name means a file or folder, there or missing, and not a hub id.

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
    """Whether an error of a hub client means no connection, and not a wrong name."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionError) or any(sign in str(seen).lower() for sign in _UNREACHABLE):
            return True
        seen = seen.__cause__
    return False


def load_hub_dataset(name: str, configuration: str | None, split: str, *, key: str = "data.train") -> datasets.Dataset:
    """Load one split of a hub dataset.

    Args:
        name: Its id.
        configuration: Its configuration, where it has several.
        split: A split expression.
        key: Where the user can name a local file instead.

    Raises:
        BALoraError: The hub cannot be reached, or has no such dataset, configuration or split.
    """
    try:
        return datasets.load_dataset(name, configuration, split=split)
    except (
        Exception
    ) as error:  # the hub's clients raise many kinds, and to the user they are one: it could not be loaded
        if unreachable(error):
            raise BALoraError(
                f"{name} is no local file or folder, and as a hub id it could not be reached; check the connection, or "
                f"give a local file in {key}."
            ) from error
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise BALoraError(
                f"There is no dataset {name}, neither here nor on the hub; if it is private, log in (hf auth login)."
            ) from error
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise BALoraError(
            f"The hub dataset {name} could not be loaded (data.name {configuration}, split {split}): {reason}."
        ) from error
