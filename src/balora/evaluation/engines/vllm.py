"""Text from a model through vLLM, where it is installed: the same prompts, tokens and stops, another engine."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from balora.data.collate import ensure_pad_token
from balora.errors import BALoraError
from balora.evaluation.engines.transformers import Answer, Sampling, cut_at, fit, seed_of
from balora.evaluation.model_under_test import ModelUnderTest
from balora.exporting.export import export

_CHUNK = 256
"""Prompts that are handed to vLLM together: what is done is on disk before the next ones begin."""


class VllmGenerator:
    """Generates through vLLM. A run's adapter is merged into a plain model first, which vLLM then loads.

    Args:
        subject: What is evaluated.

    Raises:
        BALoraError: vLLM is not installed, or the model is no causal language model.
    """

    def __init__(self, subject: ModelUnderTest) -> None:
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise BALoraError(
                "vLLM is not installed (pip install vllm). Leave --engine out to generate through transformers."
            ) from error
        if subject.saved is not None and subject.saved.task != "generation":
            raise BALoraError(
                f"{subject.name} was trained for {subject.saved.task}; vLLM is for causal language models. Leave --engine out."
            )
        self._subject = subject
        if subject.adapter is not None:
            raise BALoraError(f"{subject.name} is an adapter; export it merged for vLLM (balora export --to merged).")
        self._open = contextlib.ExitStack()

    def __enter__(self) -> VllmGenerator:
        place = self._subject.name
        if self._subject.saved is not None:
            folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="balora-merged-"))) / "model"
            export(self._subject.saved.run or self._subject.saved.folder, to="merged", output=folder)
            place = str(folder)
        saved = self._subject.saved
        tokenizer = (
            AutoTokenizer.from_pretrained(place, revision=self._subject.options.revision)
            if saved is None
            else saved.tokenizer()
        )
        assert tokenizer is not None, "a run has a tokenizer"
        self.tokenizer: Any = tokenizer
        ensure_pad_token(self.tokenizer)
        revision = self._subject.options.revision
        where = {} if revision is None else {"revision": revision}
        self._engine = self._vllm.LLM(
            model=place, tokenizer=self.tokenizer.name_or_path, dtype=self._subject.dtype or "auto", **where
        )
        self._positions = int(self._engine.llm_engine.model_config.max_model_len)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Continue prompts; vLLM makes its own batches, and after some hundred prompts their answers are handed on.

        Every sample draws by its own name.
        """
        names = names or [str(number) for number in range(len(prompts))]
        for start in range(0, len(prompts), _CHUNK):
            part = prompts[start : start + _CHUNK]
            cut = [fit(ids, sampling.max_new_tokens, self._positions) for ids in part]
            how = [self._parameters(sampling, name) for name in names[start : start + _CHUNK]]
            outputs = self._engine.generate([{"prompt_token_ids": ids} for ids in cut], how)
            for number, output in enumerate(outputs):
                first = output.outputs[0]
                answer = Answer(
                    text=cut_at(first.text, sampling.stops),
                    tokens=len(first.token_ids),
                    ended=first.finish_reason == "stop",
                    prompt_cut=len(cut[number]) < len(part[number]),
                )
                yield start + number, answer

    def _parameters(self, sampling: Sampling, name: str) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            # One seed for all would write the same program again and again for pass@k.
            seed=seed_of(sampling.seed, name) if sampling.temperature else None,
            stop=list(sampling.stops) or None,
        )


__all__ = ["VllmGenerator"]
