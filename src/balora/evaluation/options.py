"""Options of an evaluation, checked on construction."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from balora.errors import BALoraError

Engine = Literal["transformers", "vllm"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Model that rates MT-Bench answers through an OpenAI-compatible endpoint."""

    base_url: str
    """Base URL such as ``https://api.openai.com/v1``; ``/chat/completions`` is appended."""
    model: str
    """Name of the judge model at the endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key. If it is unset or empty, no key is sent."""
    timeout: float = 120.0
    """Seconds to wait for one judgment."""
    attempts: int = 6
    """Requests per judgment if the endpoint fails, times out or limits the rate."""
    max_tokens: int = 2048
    """Maximum number of tokens of a judgment."""
    pause: float = 1.0
    """Seconds before the second request; each further pause is twice as long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation.

    Raises:
        BALoraError: An option is out of range, or two options contradict each other.
    """

    data: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    """Local file, directory or hub id to read in place of a task's default data, by task name."""
    limit: int | None = None
    """Number of rows to evaluate, from the first row of each task. Default: all."""
    batch_size: int = 8
    """Prompts or rows per batch."""
    max_new_tokens: int | None = None
    """Maximum number of tokens of an answer. Default: the task's."""
    samples: int = 1
    """Generated programs per problem, for pass@k."""
    ks: tuple[int, ...] = (1,)
    """Values of k in pass@k."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy. Default: the task's, which is greedy for all tasks except MT-Bench."""
    top_p: float = 1.0
    """Probability mass of the tokens to sample from (nucleus sampling)."""
    seed: int = 42
    """Random seed of sampling."""
    prompt_template: str | None = None
    """none, alpaca, chat, or a text with {prompt}. Default: the run's, else the task's."""
    engine: Engine = "transformers"
    """Library that generates the answers."""
    device: str | None = None
    """Device such as cpu or cuda:1. Default: a GPU if there is one."""
    dtype: str | None = None
    """Dtype of the weights: float32, bfloat16, float16 or auto. Default: the run's, else the stored one."""
    scale: float = 1.0
    """Part a of a run's change to evaluate: W + a·ΔW."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow code that comes with a model to run."""
    allow_pickle: bool = False
    """Allow weights in pickle format."""
    few_shot: int | None = None
    """Examples in the prompt of a task of lm-evaluation-harness. Default: the task's."""
    unsafe_code: bool = False
    """Run generated programs without a sandbox."""
    code_timeout: float = 15.0
    """Seconds that a generated program may run."""
    workers: int | None = None
    """Parallel programs or judge requests. Default: one program per CPU core, 4 judge requests."""
    judge: JudgeOptions | None = None
    """Judge of MT-Bench."""

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
                f"samples is {self.samples}, but greedy generation writes the same program each time. Give a temperature (0.2 is "
                "usual for pass@1, 0.8 for larger k), or set samples to 1."
            )
        large = [k for k in self.ks if not 1 <= k <= self.samples]
        if large:
            raise BALoraError(
                f"pass@{large[0]} needs at least {large[0]} samples per problem, but samples is {self.samples}. Increase samples."
            )
        if self.code_timeout <= 0:
            raise BALoraError(f"code_timeout must be above 0, not {self.code_timeout:g}.")
        if isinstance(self.scale, bool) or not math.isfinite(self.scale):
            raise BALoraError(f"scale must be a finite number, not {self.scale!r}.")
        if self.dtype not in (None, "auto", "float32", "bfloat16", "float16"):
            raise BALoraError(f"dtype must be float32, bfloat16, float16 or auto, not {self.dtype!r}.")
        if self.engine not in ("transformers", "vllm"):
            raise BALoraError(f"engine must be transformers or vllm, not {self.engine!r}.")
