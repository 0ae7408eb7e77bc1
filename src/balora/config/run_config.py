"""A run's settings: the config file of ``balora train``, checked as a whole before anything is loaded.

`load_run_config` reads and checks a file, `RunConfig.dump_yaml` writes the resolved form that a run's folder keeps, and
`differences` says which settings stand in the way of resuming it. Paths are relative to the current directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, ValidationInfo, model_validator

from balora.config.data_columns import data_problems
from balora.config.sections import DataConfig, MethodConfig, Section, Whole
from balora.config.validation import Problems, build_regularization, check_training, describe
from balora.config.yaml_loader import apply_overrides, read_config
from balora.errors import raise_all
from balora.methods import METHODS
from balora.regularization import RegularizationConfig

Task = Literal["generation", "seq2seq", "classification", "regression"]

HARMLESS = (
    # Where the run lies and how it is told apart.
    *("output", "resume", "training.run_name", "training.project", "training.report_to"),
    # What may be loaded at all; the weights themselves are compared by checksum.
    *("allow_pickle", "trust_remote_code"),
    # Where the teacher's values wait.
    "teacher_offload",
    # What is written down, and how often. Evaluation is not among them: it draws from the random generator.
    *("training.logging_steps", "training.logging_strategy", "training.logging_first_step", "training.log_level"),
    *("training.log_level_replica", "training.log_on_each_node", "training.disable_tqdm"),
    *("training.save_steps", "training.save_strategy", "training.save_total_limit"),
    # How batches reach the model, not which.
    *("training.dataloader_num_workers", "training.dataloader_pin_memory", "training.dataloader_prefetch_factor"),
)
"""Dotted keys that may change between a run and its resumption: none of them changes a weight."""


def _regularization(value: Any, info: ValidationInfo) -> RegularizationConfig:
    method = info.data.get("method")
    regularized = METHODS[method.name].regularized if method else True
    return build_regularization(value, info.data.get("task", "generation"), regularized)


class RunConfig(Section):
    """One run, complete: every default is filled in on construction.

    `RunConfig.from_dict` raises `BALoraError` with everything that is wrong; the bare constructor checks the same and
    raises pydantic's own error.
    """

    model: str = Field(min_length=1, description="a hub id or a folder")
    tokenizer: str | None = Field(default=None, description="a hub id or a folder, where it is not the model's")
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub model, in quotes if it is a number"
    )
    task: Task = Field(description="what the model learns")
    data: DataConfig = Field(description="where the examples are")
    method: MethodConfig = Field(default_factory=MethodConfig, description="which parameters learn, and how they start")
    regularization: Annotated[
        RegularizationConfig, PlainValidator(_regularization), PlainSerializer(RegularizationConfig.to_dict)
    ] = Field(
        default=None,
        validate_default=True,
        description="changes to the paper's values for the task, or off; the default is on for balora, else off",
    )
    training: Annotated[dict[str, Any], PlainValidator(check_training)] = Field(
        default_factory=dict, description="fields of transformers.TrainingArguments"
    )
    output: str = Field(min_length=1, description="the run's folder")
    seed: Whole = Field(
        default=42, ge=0, lt=2**32, description="of the adapter's start, the order of the data and dropout"
    )
    loss_path: Literal["fused", "plain"] = Field(
        default="fused", description="fused: no full logits; plain: the formulas, for checking"
    )
    teacher_cache: str = Field(
        default="auto",
        min_length=1,
        description="a folder that `balora teacher` built (generation, seq2seq); auto: a classifier's teacher is asked once "
        "about each example; off: the teacher runs at every step",
    )
    teacher_offload: bool = Field(
        default=False,
        description="whether the adapter's initial values, which make the teacher, wait in the host's memory: less on the "
        "GPU, and a copy for each forward of the teacher",
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="float32", description="in what the model's weights are held; auto: as they are stored"
    )
    allow_pickle: bool = Field(default=False, description="whether weights in pickle form may be loaded")
    trust_remote_code: bool = Field(default=False, description="whether code that comes with a model may run")
    resume: Literal["auto", "never"] = Field(
        default="auto", description="whether an interrupted run in the folder is continued"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _everything_at_once(cls, values: Any, build: Callable[[Any], Self]) -> Self:
        """Report what does not fit together beside what is wrong by itself."""
        problems = _fitting_problems(values)
        try:
            made = build(values)
        except ValidationError as error:
            problems = describe(error, cls) + problems
        if problems:
            raise Problems(list(dict.fromkeys(problems)))
        return made

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "The settings") -> RunConfig:
        """Check plain values and fill in every default.

        Args:
            values: What a config file holds.
            source: What the values are, for the heading of an error.

        Raises:
            BALoraError: Something is wrong; all of it is listed, by dotted name.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise_all(describe(error, cls), f"{source} cannot be used")
            raise  # not reached: there is always a problem to raise

    def to_dict(self) -> dict[str, Any]:
        """Every setting as plain values; `from_dict` reads it back to an equal object."""
        return self.model_dump(mode="json")

    def dump_yaml(self) -> str:
        """The resolved config file: every setting written out. `load_run_config` reads it back to an equal object."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)


def _fitting_problems(values: Any) -> list[str]:
    """What in a config does not fit together, found whether or not the rest of it is right."""
    if not isinstance(values, Mapping):
        return []
    data, task = values.get("data"), values.get("task")
    known_task = task in ("generation", "seq2seq", "classification", "regression")
    written = data.model_dump(exclude_defaults=True) if isinstance(data, DataConfig) else data
    return data_problems(written, str(task)) if known_task and isinstance(written, Mapping) else []


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply dotted overrides, check everything.

    Args:
        path: A YAML file.
        overrides: Such as ``training.learning_rate=2e-5``; values are read as YAML.

    Returns:
        The settings, every default filled in.

    Raises:
        BALoraError: The file is missing or not YAML, or something in it is wrong; all problems are listed.
    """
    return RunConfig.from_dict(apply_overrides(read_config(path), overrides), source=str(path))


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """The dotted keys in which two runs differ, save those that change no weight (`HARMLESS`).

    Example:
        >>> one = RunConfig.from_dict({"model": "m", "task": "generation", "output": "runs/a",
        ...     "data": {"train": "d.jsonl", "text": "story"}})
        >>> differences(one, one.model_copy(update={"seed": 7, "output": "runs/b"}))
        ['seed']
    """
    left, right = flatten(a.to_dict()), flatten(b.to_dict())
    missing = object()
    keys = list(dict.fromkeys([*left, *right]))
    return [key for key in keys if key not in HARMLESS and left.get(key, missing) != right.get(key, missing)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


__all__ = [
    "HARMLESS",
    "DataConfig",
    "MethodConfig",
    "RunConfig",
    "Task",
    "differences",
    "flatten",
    "load_run_config",
]
