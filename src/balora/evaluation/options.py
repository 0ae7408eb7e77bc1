"""Options of an evaluation, checked on construction."""

import dataclasses
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from balora.errors import BALoraError, suggest

Engine = Literal["transformers", "vllm"]
CodePrompt = Literal["harness", "dataset"]


class InvalidOption(BALoraError):
    """Raised for an option that is out of range. Its message has the name of the field, or the flag of the command.

    Args:
        template: Message, in which names of options are in backticks and ``{name}`` stands for a value.
        **values: Values by name.

    Example:
        >>> error = InvalidOption("`batch_size` must be at least 1, not {value}.", value=0)
        >>> str(error), error.for_command()
        ('batch_size must be at least 1, not 0.', '--batch-size must be at least 1, not 0.')
    """

    def __init__(self, template: str, **values: object) -> None:
        self._template, self._values = template, values
        super().__init__(template.replace("`", "").format(**values))

    def for_command(self) -> str:
        """Return the message with the flags of ``balora evaluate`` in place of the names of the fields."""
        text = re.sub(r"`(\w+)`", lambda match: flag_of(match[1]), self._template)
        return text.format(**self._values)


_FLAGS = {"ks": "--k", "base_url": "--judge-url", "model": "--judge-model", "key_variable": "--judge-key-variable"}


def flag_of(name: str) -> str:
    """Return the flag of ``balora evaluate`` for the name of an option."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def check_prompt_template(template: str) -> None:
    """Raise `InvalidOption` for a text that is neither the name of a template nor a template."""
    if template not in ("none", "alpaca", "chat") and "{prompt}" not in template:
        raise InvalidOption(
            "`prompt_template` must be none, alpaca, chat, or a text that contains {{prompt}}, not {value!r}.",
            value=template,
        )


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
    """Seconds that one request may take in all."""
    attempts: int = 6
    """Requests per judgment if the endpoint fails, times out or limits the rate."""
    max_tokens: int = 2048
    """Maximum number of tokens of a judgment."""
    pause: float = 1.0
    """Seconds before the second request; each further pause is twice as long."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise InvalidOption("`judge_timeout` must be above 0 seconds, not {value:g}.", value=self.timeout)


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
    code_prompt: CodePrompt = "harness"
    """Code that a base model continues on HumanEval and MBPP. ``harness``: as in the BigCode Evaluation Harness, which the paper
    used (HumanEval's prompt without its last newline, MBPP's with one test). ``dataset``: the dataset's (HumanEval's prompt as
    it is, MBPP's with all tests)."""
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
    task_code: bool = False
    """Allow the task files of lm-evaluation-harness that the user gives to run Python code (``!function``, ``class``)."""
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
            self._check(name, 1)
        for name in ("temperature", "few_shot", "seed"):
            self._check(name, 0)
        if not 0 < self.top_p <= 1:
            raise InvalidOption("`top_p` must be above 0 and at most 1, not {value:g}.", value=self.top_p)
        if self.samples > 1 and not self.temperature:
            raise InvalidOption(
                "`samples` is {value}, but greedy generation writes the same program each time. Give a `temperature` (0.2 is "
                "usual for pass@1, 0.8 for larger k), or set `samples` to 1.",
                value=self.samples,
            )
        if not self.ks:
            raise InvalidOption("`ks` has no value. Give at least one k, such as 1.")
        for k in self.ks:
            if not 1 <= k <= self.samples:
                raise InvalidOption(
                    "pass@{k} needs at least {k} samples per problem, but `samples` is {value}. Increase `samples`."
                    if k > 0
                    else "`ks` must be whole numbers of at least 1, not {k}.",
                    k=k,
                    value=self.samples,
                )
        if not 0 < self.code_timeout < float("inf"):
            raise InvalidOption("`code_timeout` must be above 0 seconds, not {value:g}.", value=self.code_timeout)
        if isinstance(self.scale, bool) or not math.isfinite(self.scale):
            raise InvalidOption("`scale` must be a finite number, not {value!r}.", value=self.scale)
        if self.prompt_template is not None:
            check_prompt_template(self.prompt_template)
        self._check_choice("dtype", (None, "auto", "float32", "bfloat16", "float16"))
        self._check_choice("engine", get_args(Engine))
        self._check_choice("code_prompt", get_args(CodePrompt))

    def _check(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not least <= value < float("inf"):  # NaN fails, too
            raise InvalidOption(f"`{name}` must be at least {least}, not {{value:g}}.", value=value)

    def _check_choice(self, name: str, choices: tuple[str | None, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            known = [choice for choice in choices if choice is not None]
            listed = f"{', '.join(known[:-1])} or {known[-1]}"
            hint = suggest(str(value), known)
            raise InvalidOption(f"`{name}` must be {listed}, not {{value!r}}.{{hint}}", value=value, hint=hint)
