"""Whether two mathematical answers mean the same, decided by math-verify in a process of its own.

What a model writes may be a tower of powers that no computer can work out, and Python cannot interrupt itself there. So
the checker runs beside us with little memory, and is started again when it takes too long.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import IO

from balora.errors import BALoraError
from balora.evaluation.scoring.math_answers import same_text

_WORKER = Path(__file__).with_name("equivalence_worker.py")
_LONGEST = 2000
"""Characters. No answer is longer; what is, is a solution that was taken for one."""


class EquivalenceChecker:
    """Compares answers; use it in a ``with`` block.

    Args:
        timeout: Seconds for one comparison.
    """

    def __init__(self, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> EquivalenceChecker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def equal(self, truth: str, found: str | None) -> bool:
        """Whether the found answer means the true one; one that takes too long to understand does not.

        Args:
            truth: The true answer, LaTeX.
            found: The model's; None is never right.
        """
        if found is None or len(found) > _LONGEST:
            return False
        return same_text(truth, found) or self._ask(truth, found)

    def _ask(self, truth: str, found: str) -> bool:
        worker = self._running()
        try:
            _stdin(worker).write(json.dumps({"truth": truth, "found": found}) + "\n")
            _stdin(worker).flush()
        except BrokenPipeError:
            self._stop()
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(_stdout(worker), selectors.EVENT_READ)
            ready = selector.select(self.timeout)
        reply = _stdout(worker).readline() if ready else ""
        if not reply:  # too long, or too much memory
            self._stop()
            return False
        return bool(json.loads(reply))

    def _running(self) -> subprocess.Popen[str]:
        if self._worker is None or self._worker.poll() is not None:
            self._worker = subprocess.Popen(
                [sys.executable, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            # Importing sympy takes seconds, which are not the comparison's.
            if _stdout(self._worker).readline().strip() != "ready":
                raise BALoraError("math-verify, which compares answers, cannot be started: pip install math-verify.")
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


def _stdin(worker: subprocess.Popen[str]) -> IO[str]:
    assert worker.stdin is not None
    return worker.stdin


def _stdout(worker: subprocess.Popen[str]) -> IO[str]:
    assert worker.stdout is not None
    return worker.stdout


__all__ = ["EquivalenceChecker"]
