"""The error that users see, and the hint for a misspelt name."""

import difflib
import os
import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

_PASSWORD_IN_URL = re.compile(
    r"(?<=://)[^/?#\s@]*:[^\s@]*(?=@)"
    r"|(?<=[?&])(?:(?:access_|auth_|api_?)?(?:token|key)|password|passwd|secret|sig|signature|x-amz-[a-z-]+)=[^&#\s'\"]+",
    re.I,
)
_CLOSE = 0.7
"""Least similarity of a name that is suggested, from 0 to 1. Below it a suggestion would mislead."""
_TIE = 0.05
"""Difference of similarity that does not count."""


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
    nearest = _nearest(word, list(known))
    return f" Did you mean {nearest!r}?" if nearest is not None else ""


def _nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known name that is close to a word, or None."""
    given = _comparable(word)
    matcher = difflib.SequenceMatcher(None, "", given)
    ratios = {name: _similarity(matcher, _comparable(name), given) for name in known}
    least = max(_CLOSE, max(ratios.values(), default=0.0) - _TIE)
    close = [name for name, ratio in ratios.items() if ratio >= least]

    def rank(name: str) -> tuple[int, int]:
        plain = _comparable(name)
        return max(len(plain) - len(given), 0) - _common_start(plain, given), len(name)

    # Of about equally near names take the one with the same beginning and little more, and of those the shortest: loraa is lora,
    # not loraga, and hellaswagg is hellaswag, not hellaswag_gu.
    return min(close, key=rank, default=None)


def _similarity(matcher: difflib.SequenceMatcher[str], a: str, b: str) -> float:
    """Return how alike two texts are, from 0 to 1; 0 if they are not close. ``matcher`` has b already.

    The same letters in another order are a slip: rnu for run.
    """
    if len(a) > 2 and len(a) == len(b) and sorted(a) == sorted(b):
        return 1.0 if a == b else 1 - _TIE
    matcher.set_seq1(a)
    # The first two are upper bounds, and cheap: there may be thousands of names.
    near = matcher.real_quick_ratio() >= _CLOSE and matcher.quick_ratio() >= _CLOSE
    return matcher.ratio() if near else 0.0


def _common_start(a: str, b: str) -> int:
    """Count the characters with which both texts begin."""
    return len(os.path.commonprefix([a, b]))  # noqa: RUF071 - names, not paths


def _comparable(name: str) -> str:
    """Write a name without what is often written in another way: BA-LoRA, lora_plus, LoRA+, CorDA++."""
    plain = name.lower().replace("++", "pp").replace("+", "plus")
    return plain.replace("-", "").replace("_", "").replace(" ", "")


def shown(value: object) -> str:
    """Write a wrong value for a message, cut after about a hundred characters.

    Example:
        >>> shown("x"), len(shown(list(range(1000))))
        ("'x'", 101)
    """
    text = repr(value)
    return text if len(text) <= 101 else f"{text[:100]}…"


def suggest_path(path: Path, pattern: str = "*") -> str:
    """Suggest the file or folder beside a missing one with the nearest name.

    Args:
        path: Path that does not exist.
        pattern: Glob pattern of the names to suggest.

    Returns:
        As `suggest`.
    """
    names = [sibling.name for sibling in path.parent.glob(pattern)]
    stems = {Path(name).stem: name for name in names}
    stem = _nearest(path.stem, list(stems))
    return suggest(path.name, names) or (f" Did you mean {stems[stem]!r}?" if stem is not None else "")


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
