"""Compare mathematical answers with math-verify, in a separate process.

An answer may contain a power that no computer can evaluate, and Python cannot interrupt such a computation. The process
that compares has limited memory, and is restarted if a comparison takes too long.

This file is also the program of that process. It imports balora only inside `EquivalenceChecker`, so that the process
starts without it.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import selectors
import subprocess
import sys
from typing import Any

_MAX_LENGTH = 2000
"""Characters. A longer answer is a solution that was taken for an answer."""
_MAX_MEMORY = 2 * 2**30
"""Bytes of the process that compares."""


class EquivalenceChecker:
    """Compares answers, each within a number of seconds; use it in a ``with`` block."""

    def __init__(self, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> EquivalenceChecker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def is_correct(self, truth: str, found: str | None) -> bool:
        """Return True if the answer equals the true one and does not contradict it (see `math_answers.contradicts`)."""
        from balora.evaluation.scoring.math_answers import contradicts

        return found is not None and not contradicts(truth, found) and self.equal(truth, found)

    def equal(self, truth: str, found: str | None) -> bool:
        """Return True if the answer means the same as the true one in LaTeX.

        None, a text that is longer than any answer, and an answer that cannot be evaluated in time are wrong.
        """
        from balora.evaluation.scoring.math_answers import same_text

        if found is None or len(found) > _MAX_LENGTH:
            return False
        return same_text(truth, found) or self._ask_worker(truth, found)

    def _ask_worker(self, truth: str, found: str) -> bool:
        worker = self._running_worker()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps({"truth": truth, "found": found}) + "\n")
            worker.stdin.flush()
        except BrokenPipeError:
            self._stop()
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            ready = selector.select(self.timeout)
        reply = worker.stdout.readline() if ready else ""
        if not reply:  # the time or memory limit was reached
            self._stop()
            return False
        return bool(json.loads(reply))

    def _running_worker(self) -> subprocess.Popen[str]:
        if self._worker is None or self._worker.poll() is not None:
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self._worker = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, stderr=null, text=True)
            assert self._worker.stdout is not None
            # The worker says when it is ready: importing sympy takes seconds, which do not count as comparison time.
            if self._worker.stdout.readline().strip() != "ready":
                from balora.errors import BALoraError

                raise BALoraError("math-verify, which compares answers, cannot be started: pip install math-verify.")
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


def _verify(truth: str, found: str) -> bool:
    """Compare two answers with math-verify, and refuse what it takes for equal by rounding."""
    from math_verify import parse, verify

    parsed = [parse(f"${_readable(text)}$", parsing_timeout=None) for text in (truth, found)]
    if not verify(*parsed, timeout_seconds=None, allow_set_relation_comp=True):
        return False
    try:
        return not _differ(parsed[0][0], parsed[1][0])
    except Exception:  # a value that sympy cannot compute; math-verify has decided
        return True


def _readable(text: str) -> str:
    r"""Write ``\sqrt(2)``, of which math-verify drops the root, as ``\sqrt{2}``."""
    text, count = text.strip().strip("$"), 1
    while count:
        text, count = re.subn(r"\\sqrt\s*\(((?:[^()]|\([^()]*\))*)\)", r"\\sqrt{\1}", text)
    return text


def _differ(one: Any, other: Any) -> bool:
    """Return True if two parsed answers have different values.

    math-verify rounds: for it, two tiny numbers are equal, and so are pi and a decimal near it. Here only a fraction may be
    rounded (0.333333 is 1/3). Expressions are compared at one positive value of each symbol.
    """
    import sympy

    one, other = (side.rhs if isinstance(side, sympy.Eq) and side.lhs.is_Symbol else side for side in (one, other))
    if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
        return _differ(one.start, other.start) or _differ(one.end, other.end)
    if isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet):
        return not all(any(not _differ(a, b) for b in other.args) for a in one.args)
    if isinstance(one, sympy.Tuple) and isinstance(other, sympy.Tuple):
        return any(_differ(a, b) for a, b in zip(one, other, strict=False))
    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase):
        return any(_differ(a, b) for a, b in zip(one, other, strict=False))
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    if one.has(sympy.UnevaluatedExpr) or other.has(sympy.UnevaluatedExpr):
        return False  # a percentage: it is equal to its number with or without the percent sign
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    places = {symbol: sympy.Rational(7 + 2 * index, 5) for index, symbol in enumerate(symbols)}
    exact = [_exact(side).subs(places).doit() for side in (one, other)]
    if not all(side.is_number and side.is_finite for side in exact):
        return False
    decimal = one.has(sympy.Float) or other.has(sympy.Float)
    rounded = decimal and not symbols and all(sympy.simplify(side).is_rational for side in exact)
    allowed = sympy.Float("1e-5" if rounded else "1e-40")
    difference = exact[0] - exact[1]
    return bool(abs(difference.evalf(60)) > abs(exact[0].evalf(60)) * allowed) and difference.equals(0) is not True


def _exact(expression: Any) -> Any:
    """Replace each decimal by the fraction that is written."""
    import sympy

    return expression.xreplace({number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)})


def _serve() -> None:
    """Compare the pairs on the standard input, line by line, until it ends."""
    logging.disable(logging.CRITICAL)  # math-verify warns that its time-outs are off; the parent process has one
    _verify("1", "2")
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            answer = _verify(pair["truth"], pair["found"])
        except Exception:  # the parser may raise anything on malformed text, which is no correct answer
            answer = False
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
