"""Settings of an audit, checked on construction. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from balora.auditing.bounds import Bound, parse_bounds
from balora.errors import BALoraError, raise_all, suggest
from balora.evaluation.registry import find_tasks

BIAS_SETS = ("crows_pairs", "winobias", "stereoset")
_MEASURED = ("drift", "samples", "collapse", "noise", "bias", "weights", "tasks")
_COLUMN_KEYS = ("prompt", "response", "input", "messages", "text", "text_pair", "label", "prompt_template", "separator")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Settings of an audit.

    Raises:
        BALoraError: One or more settings are wrong; the message lists all of them.

    Example:
        >>> AuditOptions(text="general.jsonl", fail_if="drift > 0.05").bounds[0].name
        'drift'
    """

    text: str | None = None
    """File, folder or hub id with documents that are not the task's: the drift is measured on them."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Columns of ``text`` by role: text, prompt, response, input, messages, text_pair or label. Default: found by name."""
    documents: int = 200
    """Documents that are taken from ``text``, at random."""
    tokens: int = 256
    """Tokens of a document or training row that are read, from its beginning."""
    generate: int | None = None
    """Sequences that each model writes itself (causal models). Default: 64 without ``text``, else none."""
    generated_tokens: int = 128
    """Greatest length of such a sequence."""
    data: str | None = None
    """Training data of the tuned model. Default: those of the run, if it is a run of balora."""
    data_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Columns of ``data`` by role, as for ``columns``; also prompt_template and separator."""
    rows: int = 500
    """Training rows that are read, at random."""
    tasks: tuple[str, ...] = ()
    """Evaluations of `balora evaluate` for both models."""
    task_data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Local data of the evaluations, by task."""
    task_limit: int | None = None
    """Rows of each evaluation. Default: all."""
    bias: tuple[str, ...] = ()
    """Sets of pairs for social bias: crows_pairs, winobias, stereoset."""
    bias_data: str | None = None
    """Folder with the files of these sets."""
    fail_if: str | None = None
    """Bounds such as ``drift > 0.05, gsm8k < 0.3``; the audit fails if one of them is true."""
    weights: bool = True
    """Whether to compare the weight matrices."""
    batch_size: int = 8
    """Documents or rows in a batch."""
    seed: int = 42
    """Seed of what is drawn, sampled and resampled."""
    device: str | None = None
    """Device such as cpu or cuda:1. Default: a GPU if there is one."""
    dtype: str | None = None
    """float32, bfloat16 or float16. Default: that of the run or checkpoint."""
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        least = {
            "documents": 1,
            "tokens": 2,
            "generated_tokens": 4,
            "rows": 1,
            "batch_size": 1,
            "task_limit": 1,
            "seed": 0,
        }
        for name in ("tasks", "bias"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(
                    self, name, tuple(part.strip() for part in getattr(self, name).split(",") if part.strip())
                )
        problems = [
            f"{name} must be a whole number of at least {bound}, not {value!r}."
            for name, bound in least.items()
            if (value := getattr(self, name)) is not None and not (type(value) is int and value >= bound)
        ]
        if self.generate is not None and not (type(self.generate) is int and self.generate >= 0):
            problems.append(f"generate must be a whole number of at least 0, not {self.generate!r}.")
        problems += [
            f"There is no set of pairs {name!r}.{suggest(name, BIAS_SETS)} Known: {', '.join(BIAS_SETS)}."
            for name in self.bias
            if name not in BIAS_SETS
        ]
        if self.bias and self.bias_data is None:
            problems.append("bias needs the folder of its files: give bias_data (--bias-data DIR).")
        if self.bias_data is not None and not self.bias:
            problems.append(f"bias_data is given, but no set of pairs: name {', '.join(BIAS_SETS)} in bias (--bias).")
        for setting, mapping in (("columns", self.columns), ("data_columns", self.data_columns)):
            problems += [
                f"{setting} names {key!r}.{suggest(key, _COLUMN_KEYS)} Known: {', '.join(_COLUMN_KEYS)}."
                for key in mapping
                if key not in _COLUMN_KEYS
            ]
        if self.columns and self.text is None:
            problems.append("columns are given, but no text (--text) that has them.")
        if self.data_columns and self.data is None:
            problems.append("data_columns are given, but no data (--data) that have them.")
        if self.dtype not in (None, "auto", "float32", "bfloat16", "float16"):
            problems.append(f"dtype must be float32, bfloat16, float16 or auto, not {self.dtype!r}.")
        try:
            known = (
                {*_MEASURED, *self.bias, *(entry.name for entry in find_tasks(self.tasks))}
                if self.tasks
                else {*_MEASURED, *self.bias}
            )
            for bound in parse_bounds(self.fail_if):
                first = bound.name.split(".")[0]
                if first not in known and bound.name not in known:
                    problems.append(
                        f"fail_if: {first!r} is not measured.{suggest(first, known)} Measured: {', '.join(sorted(known))}."
                    )
        except BALoraError as error:
            problems.append(str(error))
        raise_all(problems, "The audit cannot be made")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "audit") -> AuditOptions:
        """Read settings that have been written in a config, or keyword arguments.

        Raises:
            BALoraError: A name is unknown, or a value is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        raise_all(
            [f"Unknown setting {where}.{name}.{suggest(name, known)}" for name in values if name not in known],
            "The audit cannot be made",
        )
        settings: dict[str, Any] = {
            name: tuple(value) if name in ("tasks", "bias") and isinstance(value, list) else value
            for name, value in values.items()
        }
        try:
            return cls(**settings)
        except (TypeError, AttributeError) as error:
            raise BALoraError(f"A setting of {where} has a value of the wrong kind ({error}).") from error

    @property
    def bounds(self) -> list[Bound]:
        """Bounds of ``fail_if``."""
        return parse_bounds(self.fail_if)
