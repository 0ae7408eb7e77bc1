"""Model class for lm-evaluation-harness that journals its answers."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from balora.evaluation.model_under_test import LoadedModel
from balora.evaluation.results import Journal

_BLOCK = 32
"""Batches between two writes of the journal."""


class JournaledModel(HFLM):
    """Transformers model class of the library, for a loaded model. Journaled answers are not computed again.

    Args:
        loaded: Model and tokenizer.
        batch_size: Requests per batch.
        journal: Journal of the answers.
        say: Function that receives progress messages.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int, journal: Journal, say: Callable[[str], None]) -> None:
        super().__init__(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            backend="seq2seq" if loaded.task == "seq2seq" else "causal",
            batch_size=batch_size,
        )
        self._journal = journal
        self._block = _BLOCK * batch_size
        self._say = say

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        answers = self._answer("loglikelihood", requests, super().loglikelihood)
        return [(_log_likelihood(value), bool(greedy)) for value, greedy in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each text."""
        answers = self._answer("loglikelihood_rolling", requests, super().loglikelihood_rolling)
        return [_log_likelihood(value) for value in answers]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Generate the answer of each request, up to its stop strings."""
        return [str(text) for text in self._answer("generate_until", requests, super().generate_until)]

    def get_model_info(self) -> dict[str, Any]:
        """Return nothing: the library would look the model up on the hub. The result file describes the model."""
        return {}

    def _answer(self, kind: str, requests: Sequence[Any], ask: Callable[..., Sequence[Any]]) -> list[Any]:
        names = _sample_names(kind, requests)
        missing = set(self._journal.missing(names, "answer"))
        pending = [(name, request) for name, request in zip(names, requests, strict=True) if name in missing]
        if len(pending) < len(requests):
            self._say(f"  {len(requests) - len(pending):,} of {len(requests):,} requests are answered already")
        for start in range(0, len(pending), self._block):
            block = pending[start : start + self._block]
            answers = ask([request for _, request in block], disable_tqdm=True)
            for (name, _), answer in zip(block, answers, strict=True):
                self._journal.add(name, answer=answer)
        return [self._journal.records[name]["answer"] for name in names]


def _sample_names(kind: str, requests: Sequence[Any]) -> list[str]:
    """Name each request by a digest of its content and a number, because sampling makes equal requests."""
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for request in requests:
        content = json.dumps([kind, *request.args], default=str, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:24]
        names.append(f"{digest}/{seen[digest]}")
        seen[digest] += 1
    return names


def _log_likelihood(value: float | None) -> float:
    """Return a log-likelihood from the journal, which writes minus infinity as None."""
    return float("-inf") if value is None else float(value)


__all__ = ["JournaledModel"]
