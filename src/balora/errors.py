"""The error that users see, and the hint for a misspelt name."""

import difflib
import re
import signal
from collections.abc import Iterable
from pathlib import Path

_PASSWORD_IN_URL = re.compile(
    r"(?<=://)[^/?#\s@]*:[^\s@]*(?=@)"
    r"|(?<=[?&])(?:(?:access_|auth_|api_?)?(?:token|key)|password|passwd|secret|sig|signature|x-amz-[a-z-]+)=[^&#\s'\"]+",
    re.I,
)


class BALoraError(ValueError):
    """A mistake by the user; the message says what is wrong, where, and what to do. Passwords in URLs are left out.

    The command prints the message and exits with status 2. It is never raised for a fault of balora itself.
    """

    def __init__(self, message: str = "", problems: Iterable[str] = ()) -> None:
        super().__init__(hide_passwords(message))
        self.problems = tuple(problems) or (str(self),)
        """The single problems that the message lists."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the work; the message says what is saved and how to continue."""

    def __init__(self, message: str = "", signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number
        """Exit status of the command: 130 for Ctrl-C, 143 for SIGTERM."""


def hide_passwords(text: str) -> str:
    """Replace passwords and tokens in URLs by ``***``.

    Example:
        >>> hide_passwords("https://me:secret@host/rows.jsonl?token=abc and a:b@c")
        'https://***@host/rows.jsonl?*** and a:b@c'
    """
    return _PASSWORD_IN_URL.sub("***", text)


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
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise BALoraError(f"{heading}: {len(problems)} problems.\n{lines}", problems)
