"""Generate text through vLLM, if it is installed, with the same prompts, tokens and stop strings."""

import contextlib
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from balora.data.collate import ensure_pad_token
from balora.errors import BALoraError
from balora.evaluation.engines.transformers import Answer, Sampling, cut_at_stop, fit_prompt, sample_seed
from balora.evaluation.model_under_test import ModelUnderTest
from balora.exporting.export import export
from balora.turns import division

_CHUNK = 256
"""Prompts per call of vLLM. Their answers are on disk before the next call begins."""


class VllmGenerator:
    """Generator that runs vLLM. A run is exported to a plain model, which is removed when the stack is closed."""

    def __init__(self, model: ModelUnderTest, stack: contextlib.ExitStack) -> None:
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise BALoraError(
                "vLLM is not installed (pip install vllm). Leave --engine out to generate through transformers."
            ) from error
        if division()[1] > 1:
            raise BALoraError(
                "vLLM starts the processes that it needs itself, and several processes were started. Start balora evaluate "
                "once, or leave --engine out."
            )
        if model.saved is not None and model.saved.task != "generation":
            raise BALoraError(
                f"{model.name} was trained for {model.saved.task}; vLLM is for causal language models. Leave --engine out."
            )
        if model.adapter is not None:
            raise BALoraError(f"{model.name} is an adapter; export it merged for vLLM (balora export --to merged).")
        path, revision = model.name, {} if model.options.revision is None else {"revision": model.options.revision}
        self.tokenizer: Any
        if model.saved is None:
            self.tokenizer = AutoTokenizer.from_pretrained(path, **revision)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="balora-merged-"))
            path = str(Path(folder) / "model")
            export(model.saved.run or model.saved.folder, to="merged", output=path, scale=model.options.scale)
            self.tokenizer = model.saved.tokenizer()
        assert self.tokenizer is not None, "a run has a tokenizer"
        ensure_pad_token(self.tokenizer)
        tokenizer, dtype = self.tokenizer.name_or_path, model.dtype or "auto"
        self._engine = self._vllm.LLM(model=path, tokenizer=tokenizer, dtype=dtype, **revision)
        self._positions = int(self._engine.llm_engine.model_config.max_model_len)

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Continue prompts in chunks, which vLLM splits into batches. See `TransformersGenerator.generate`."""
        names = names or [str(index) for index in range(len(prompts))]
        for start in range(0, len(prompts), _CHUNK):
            chunk = prompts[start : start + _CHUNK]
            cut = [fit_prompt(ids, sampling.max_new_tokens, self._positions) for ids in chunk]
            parameters = [
                self._vllm.SamplingParams(
                    max_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    # One seed per sample: with one seed for all, pass@k would get the same program k times.
                    seed=sample_seed(sampling.seed, name) if sampling.temperature else None,
                    stop=list(sampling.stops) or None,
                )
                for name in names[start : start + _CHUNK]
            ]
            outputs = self._engine.generate([{"prompt_token_ids": ids} for ids in cut], parameters)
            for index, output in enumerate(outputs):
                first = output.outputs[0]
                answer = Answer(
                    text=cut_at_stop(first.text, sampling.stops),
                    tokens=len(first.token_ids),
                    ended=first.finish_reason == "stop",
                    prompt_cut=len(cut[index]) < len(chunk[index]),
                )
                yield start + index, answer
