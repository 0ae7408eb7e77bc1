"""The error that users see, and the hint for a misspelt name."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class BALoraError(ValueError):
    """A mistake by the user; the message says what is wrong, where, and what to do.

    The command prints the message and exits with status 2. It is never raised for a fault of balora itself.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """Suggest the known name that is nearest to a misspelt one.

    Args:
        word: Name that the user wrote.
        known: Valid names.

    Returns:
        ``" Did you mean 'x'?"`` with a leading space, or ``""`` if no known name is near.

    Example:
        >>> suggest("consistancy", ["consistency", "diversity"])
        " Did you mean 'consistency'?"
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def suggest_path(path: Path, pattern: str = "*") -> str:
    """Suggest the file or folder beside a missing one with the nearest name.

    Args:
        path: Path that does not exist.
        pattern: Glob pattern of the names to suggest.

    Returns:
        As `suggest`.
    """
    return suggest(path.name, [sibling.name for sibling in path.parent.glob(pattern)])


def raise_all(problems: list[str], heading: str) -> None:
    """Raise one error that lists every problem; do nothing if there are none.

    Raises:
        BALoraError: ``problems`` is not empty. A single problem is the whole message; several become a list under
            ``heading``.
    """
    if len(problems) == 1:
        raise BALoraError(problems[0])
    if problems:
        raise BALoraError(f"{heading}: {len(problems)} problems.\n" + "\n".join(f"  - {p}" for p in problems))
