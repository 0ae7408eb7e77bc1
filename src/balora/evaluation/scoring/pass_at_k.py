"""Estimate pass@k: the probability that at least one of k generated programs is correct."""

import math
from collections.abc import Iterable


def pass_at_k(samples: int, correct: int, k: int) -> float:
    r"""Return the unbiased estimate of pass@k for one problem.

    .. math:: 1 - \binom{n - c}{k} / \binom{n}{k}

    Args:
        samples: Number of generated programs, n.
        correct: Number of correct programs, c.
        k: Number of programs that may be tried, at most n.

    Returns:
        Probability in [0, 1].

    Raises:
        ValueError: k is not in 1 … n, or c is not in 0 … n.

    Example:
        >>> pass_at_k(samples=4, correct=1, k=2)
        0.5

    Reference: Chen et al., Evaluating large language models trained on code, 2021, section 2.1.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {correct} of {samples}.")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_pass_at_k(verdicts: Iterable[list[bool]], k: int) -> float:
    """Return the mean of pass@k over problems; ``verdicts`` has True for each correct program of each problem.

    Example:
        >>> mean_pass_at_k([[True, False], [False, False]], k=1)
        0.25
    """
    estimates = [pass_at_k(len(problem), sum(problem), k) for problem in verdicts]
    return sum(estimates) / len(estimates)
