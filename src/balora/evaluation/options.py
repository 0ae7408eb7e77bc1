"""How to evaluate: everything a user can choose, in one frozen object that is checked on construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from balora.errors import BALoraError

Engine = Literal["transformers", "vllm"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """The model that rates MT-Bench answers, behind an OpenAI-compatible endpoint."""

    base_url: str
    """Such as ``https://api.openai.com/v1``; ``/chat/completions`` is added."""
    model: str
    """The judge's name there."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable with the key; where it is empty, none is sent."""
    timeout: float = 120.0
    """Seconds to wait for one answer."""
    attempts: int = 6
    """Tries per answer when the endpoint fails, times out or limits the rate."""
    max_tokens: int = 2048
    """Most tokens of a judgment."""
    pause: float = 1.0
    """Seconds before the second try; each further pause is twice as long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation.

    Raises:
        BALoraError: Some of them do not make sense, or not together.
    """

    data: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    """By task: a local file or folder, or a hub id, in place of the default."""
    limit: int | None = None
    """Only the first rows of every task."""
    batch_size: int = 8
    """Prompts or rows at once."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; default the task's."""
    samples: int = 1
    """Programs per problem, for pass@k."""
    ks: tuple[int, ...] = (1,)
    """The k of pass@k."""
    temperature: float | None = None
    """0 is greedy; None is the task's own, which is greedy for all but MT-Bench."""
    top_p: float = 1.0
    """Share of the probability that is sampled from."""
    seed: int = 42
    """Of sampling."""
    prompt_template: str | None = None
    """none, alpaca, chat, or a text with {prompt}; default the run's, else the task's."""
    engine: Engine = "transformers"
    """What generates."""
    device: str | None = None
    """Such as cpu or cuda:1; default a GPU where there is one."""
    dtype: str | None = None
    """In what the weights are held; default the run's, else as they are stored."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Whether code that comes with a model may run."""
    allow_pickle: bool = False
    """Whether weights in pickle form may be loaded."""
    few_shot: int | None = None
    """Examples in the prompt of an lm-evaluation-harness task; default the task's."""
    unsafe_code: bool = False
    """Run generated programs without a sandbox."""
    code_timeout: float = 15.0
    """Seconds a program may run."""
    workers: int | None = None
    """Programs run at once; default the number of cores."""
    judge: JudgeOptions | None = None
    """For MT-Bench."""

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "max_new_tokens", "samples", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BALoraError(f"{name} must be at least 1, not {value}.")
        if self.temperature is not None and self.temperature < 0:
            raise BALoraError(f"temperature must be at least 0, not {self.temperature:g}.")
        if not 0 < self.top_p <= 1:
            raise BALoraError(f"top_p must be above 0 and at most 1, not {self.top_p:g}.")
        if self.samples > 1 and not self.temperature:
            raise BALoraError(
                f"Greedy generation would write the same program {self.samples} times. Give a temperature (0.2 is usual for "
                "pass@1, 0.8 for larger k), or samples 1."
            )
        large = [k for k in self.ks if not 1 <= k <= self.samples]
        if large:
            raise BALoraError(
                f"pass@{large[0]} needs at least {large[0]} samples per problem and there are {self.samples}. Raise samples."
            )
        if self.code_timeout <= 0:
            raise BALoraError(f"code_timeout must be above 0, not {self.code_timeout:g}.")
        if self.dtype not in (None, "auto", "float32", "bfloat16", "float16"):
            raise BALoraError(f"dtype is float32, bfloat16, float16 or auto, not {self.dtype!r}.")
        if self.engine not in ("transformers", "vllm"):
            raise BALoraError(f"engine is transformers or vllm, not {self.engine!r}.")


__all__ = ["Engine", "EvaluationOptions", "JudgeOptions"]
