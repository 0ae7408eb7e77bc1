"""The one error a user sees, and the hint that goes with a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BALoraError(ValueError):
    """A mistake in what the user asked for, said in one sentence that names the thing and the way out.

    The command prints it and exits with status 2; it is never raised for a fault of our own.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """Say which known name is nearest to a misspelt one.

    Args:
        word: What the user wrote.
        known: The names that would have been right.

    Returns:
        ``" Did you mean 'x'?"`` with a leading space, or ``""`` when nothing is near.

    Example:
        >>> suggest("consistancy", ["consistency", "diversity"])
        " Did you mean 'consistency'?"
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def raise_all(problems: list[str], heading: str) -> None:
    """Raise one error that lists every problem found; do nothing when the list is empty.

    Raises:
        BALoraError: ``problems`` is not empty. A single problem is the whole sentence; several become a list under
            ``heading``.
    """
    if len(problems) == 1:
        raise BALoraError(problems[0])
    if problems:
        raise BALoraError(f"{heading}: {len(problems)} problems.\n" + "\n".join(f"  - {p}" for p in problems))
