"""pass@k: how likely one of k programs is right, estimated without bias from n ≥ k of them."""

from __future__ import annotations

import math
from collections.abc import Iterable


def pass_at_k(samples: int, correct: int, k: int) -> float:
    r"""The unbiased estimate for one problem.

    .. math:: 1 - \binom{n - c}{k} / \binom{n}{k}

    Args:
        samples: n, the programs that were written.
        correct: c, those that are right.
        k: The programs one may try, at most n.

    Returns:
        A probability.

    Raises:
        ValueError: k is not in 1 … n, or c not in 0 … n.

    Example:
        >>> pass_at_k(samples=4, correct=1, k=2)
        0.5

    Reference: Chen et al., Evaluating large language models trained on code, 2021, section 2.1.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {correct} of {samples}.")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_pass_at_k(verdicts: Iterable[list[bool]], k: int) -> float:
    """The mean over problems.

    Args:
        verdicts: For every problem, whether each of its programs is right.
        k: The programs one may try.

    Example:
        >>> mean_pass_at_k([[True, False], [False, False]], k=1)
        0.25
    """
    estimates = [pass_at_k(len(problem), sum(problem), k) for problem in verdicts]
    return sum(estimates) / len(estimates)


__all__ = ["mean_pass_at_k", "pass_at_k"]
