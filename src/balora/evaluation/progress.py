"""Report from the first seconds how far a long piece of work is."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

_FIRST_REPORT = 10.0
"""Seconds to the first report. The pauses between reports grow up to `_LONGEST_PAUSE`."""
_LONGEST_PAUSE = 60.0


@contextlib.contextmanager
def progress(say: Callable[[str], None], what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Report how far the work of a ``with`` block is. A thread reports, so that a slow first batch is reported, too.

    Args:
        say: Function that receives the reports.
        what: Work without an end to count to ("loading the model"), or the things that are counted ("answers").
        total: Number of things; None for work that is not counted.

    Yields:
        Function that adds a number of things that are done.
    """
    done, started, finished = 0, time.monotonic(), threading.Event()

    def add(count: int = 1) -> None:
        nonlocal done
        done += count

    def report() -> None:
        pause = _FIRST_REPORT
        while not finished.wait(pause):
            say(f"  {_line(what, total, done, time.monotonic() - started)}")
            pause = min(2 * pause, _LONGEST_PAUSE)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield add
    finally:
        finished.set()
        thread.join(1.0)


def _line(what: str, total: int | None, done: int, seconds: float) -> str:
    """Return one report.

    Example:
        >>> _line("answers", 1319, 40, 90), _line("answers", 1319, 0, 10), _line("loading the model", None, 0, 10)
        ('40 of 1,319 answers after 2 min, about 48 min left', '0 of 1,319 answers after 10 s', 'loading the model: 10 s')
    """
    if total is None:
        return f"{what}: {_duration(seconds)}"
    left = f", about {_duration(seconds * (total - done) / done)} left" if done else ""
    return f"{done:,} of {total:,} {what} after {_duration(seconds)}{left}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
