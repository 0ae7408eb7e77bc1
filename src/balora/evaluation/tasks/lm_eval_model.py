"""The model as lm-evaluation-harness asks it, with a journal of its answers."""

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
"""Batches that are asked before their answers are written down."""


class JournaledModel(HFLM):
    """The harness's own transformers model, around one that is in memory; every request is asked once, ever.

    Args:
        loaded: The model.
        batch_size: Requests at once.
        journal: Where the answers are, and go.
        say: Takes lines for the user.
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
        """Log-likelihood of continuations, and whether each is the greedy one."""
        answers = self._asked_once("loglikelihood", requests, super().loglikelihood)
        return [(_number(value), bool(greedy)) for value, greedy in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts."""
        return [
            _number(value)
            for value in self._asked_once("loglikelihood_rolling", requests, super().loglikelihood_rolling)
        ]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Texts, up to their stops."""
        return [str(text) for text in self._asked_once("generate_until", requests, super().generate_until)]

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the harness would look the model up on the hub; the result says what it is."""
        return {}

    def _asked_once(self, kind: str, requests: Sequence[Any], ask: Callable[..., Sequence[Any]]) -> list[Any]:
        names = _names(kind, requests)
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


def _names(kind: str, requests: Sequence[Any]) -> list[str]:
    """A name for every request, by what it asks; asked several times (sampling), they are told apart by number."""
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for request in requests:
        asked = json.dumps([kind, *request.args], default=str, sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:24]
        names.append(f"{digest}/{seen[digest]}")
        seen[digest] += 1
    return names


def _number(value: float | None) -> float:
    """A log-likelihood; minus infinity is written as nothing."""
    return float("-inf") if value is None else float(value)


__all__ = ["JournaledModel"]
