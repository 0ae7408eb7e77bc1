"""The config of a run: read from a file, checked completely before any model or data is loaded.

`load_run_config` reads and checks a file. `RunConfig.dump_yaml` writes the resolved config, which the run directory keeps.
`differences` lists the keys that prevent resuming a run. Paths are relative to the current directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, ValidationInfo, model_validator

from balora.anchors import Anchors
from balora.config.data_columns import data_problems
from balora.config.data_loading import loading_problems
from balora.config.foreign_keys import program_of
from balora.config.plain_values import value_problems
from balora.config.sections import DataConfig, EarlyStopping, MethodConfig, Section, Whole
from balora.config.validation import (
    Problems,
    build_regularization,
    check_anchor,
    check_audit,
    check_training,
    describe,
    password_problems,
)
from balora.config.yaml_loader import apply_overrides, dump_yaml, read_config
from balora.errors import raise_all
from balora.methods.registry import METHODS
from balora.regularization import RegularizationConfig

Task = Literal["generation", "seq2seq", "classification", "regression"]

HARMLESS = (
    # Location and name of the run.
    *("output", "resume", "training.run_name", "training.project", "training.report_to"),
    # Permissions to load; the weights themselves are compared by checksum.
    *("allow_pickle", "trust_remote_code"),
    # Memory that holds the teacher's values.
    "teacher_offload",
    # Logging and saving. Evaluation is missing here because it draws from the random generator.
    *("training.logging_steps", "training.logging_strategy", "training.logging_first_step", "training.log_level"),
    *("training.log_level_replica", "training.log_on_each_node", "training.disable_tqdm"),
    *("training.save_steps", "training.save_strategy", "training.save_total_limit"),
    # Transport of batches; their content stays the same.
    *("training.dataloader_num_workers", "training.dataloader_pin_memory", "training.dataloader_prefetch_factor"),
)
"""Dotted keys that may change when a run is resumed, because they do not change the weights."""


def _regularization(value: Any, info: ValidationInfo) -> RegularizationConfig:
    method = info.data.get("method")
    regularized = METHODS[method.name].regularized if method else True
    own = METHODS[method.name].objective if method else {}
    return build_regularization(value, info.data.get("task", "generation"), regularized, own)


def _anchor_values(anchors: Anchors | None) -> dict[str, Any] | None:
    return None if anchors is None else anchors.to_dict()


class RunConfig(Section):
    """Complete config of one run; every default is filled in on construction.

    `RunConfig.from_dict` raises `BALoraError` with all problems. The constructor makes the same checks and raises pydantic's
    own error.
    """

    model: str = Field(min_length=1, description="a hub id or a folder")
    tokenizer: str | None = Field(default=None, description="a hub id or a folder, if it is not the model's")
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub model, in quotes if it is a number"
    )
    task: Task = Field(description="task to train for")
    data: DataConfig = Field(description="the examples")
    method: MethodConfig = Field(default_factory=MethodConfig, description="the fine-tuning method and its size")
    regularization: Annotated[
        RegularizationConfig, PlainValidator(_regularization), PlainSerializer(RegularizationConfig.to_dict)
    ] = Field(
        default=None,
        validate_default=True,
        description="changes to the paper's values for the task, or on, or off; default: on for method balora, off for all others",
    )
    anchor: Annotated[Anchors | None, PlainValidator(check_anchor), PlainSerializer(_anchor_values)] = Field(
        default=None,
        description="text on which the model is held to the pre-trained one: generated (it writes the text itself), a file, a "
        "hub id, or a section; off by default",
    )
    audit: Annotated[dict[str, Any] | None, PlainValidator(check_audit)] = Field(
        default=None,
        description="what `balora train` audits after the run: on, or a section with the settings of `balora audit`, such as "
        "text, generate, tasks or fail_if; off by default",
    )
    training: Annotated[dict[str, Any], PlainValidator(check_training)] = Field(
        default_factory=dict, description="fields of transformers.TrainingArguments"
    )
    early_stopping: EarlyStopping | None = Field(
        default=None,
        description="evaluations without a better training.metric_for_best_model (default: loss) after which the run stops, and "
        "takes the best checkpoint; a number, or a section with patience and min_delta",
    )
    output: str = Field(min_length=1, description="the run directory")
    seed: Whole = Field(
        default=42,
        ge=0,
        lt=2**32,
        description="random seed of the adapter's initial values, the order of the data and dropout",
    )
    loss_path: Literal["fused", "plain"] = Field(
        default="fused", description="fused: fast, never stores all logits; plain: the reference formulas, for checking"
    )
    teacher_cache: str = Field(
        default="auto",
        min_length=1,
        description="a folder that `balora teacher` built (generation, seq2seq); auto: a classifier's teacher runs once for "
        "each example; off: the teacher runs at every step",
    )
    teacher_offload: bool = Field(
        default=False,
        description="store the adapter's initial values, which make the teacher, in host memory: this needs less GPU memory, and "
        "one copy for each forward pass of the teacher",
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="float32", description="dtype of the model's weights; auto: the dtype in the checkpoint"
    )
    allow_pickle: bool = Field(default=False, description="allow loading weights in pickle form")
    trust_remote_code: bool = Field(default=False, description="let Python code from the model's repository run")
    resume: Literal["auto", "never"] = Field(
        default="auto", description="auto: continue an interrupted run in the run directory; never: do not"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_problems(cls, values: Any, build: Callable[[Any], Self]) -> Self:
        """Report wrong combinations of keys together with wrong single values."""
        problems: list[str] = []
        try:
            config = build(values)
        except ValidationError as error:
            problems = describe(error, cls)
        further = value_problems(values) if isinstance(values, Mapping) else {}
        problems += [text for key, text in further.items() if not any(p.startswith(f"{key} ") for p in problems)]
        problems += [*_combination_problems(values), *password_problems(values)]
        if problems:
            raise Problems(list(dict.fromkeys(problems)))
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "The config") -> RunConfig:
        """Check plain values and fill in every default.

        Args:
            values: Content of a config file.
            source: Name of the config, for the heading of an error.

        Raises:
            BALoraError: The config has problems; the message lists all of them by dotted key.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            program = program_of(values)
            whose = f", which looks like a config of {program}," if program else ""
            raise_all(describe(error, cls), f"{source}{whose} cannot be used")
            raise  # not reached: a ValidationError has at least one problem

    def to_dict(self) -> dict[str, Any]:
        """Return every key as plain values. `from_dict` turns them back into an equal object."""
        return self.model_dump(mode="json")

    def dump_yaml(self) -> str:
        """Return the resolved config as YAML, with every key. `load_run_config` reads an equal object back."""
        return dump_yaml(self.to_dict())


def _combination_problems(values: Any) -> list[str]:
    """List the keys that do not fit together. Single values may be wrong as well."""
    if (
        not isinstance(values, Mapping)
        or not isinstance(values.get("task"), str)
        or values["task"] not in get_args(Task)
    ):
        return []
    data = values.get("data")
    written = data.model_dump(exclude_defaults=True) if isinstance(data, DataConfig) else data
    if not isinstance(written, Mapping):
        return []
    return [*data_problems(written, values["task"]), *loading_problems(values, written)]


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply overrides, and check the result.

    Args:
        path: Path of the YAML file.
        overrides: Changes such as ``training.learning_rate=2e-5``; values are read as YAML.

    Raises:
        BALoraError: The file is missing, is not YAML, or has problems; the message lists all of them.
    """
    return RunConfig.from_dict(apply_overrides(read_config(path), overrides), source=str(path))


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """List the dotted keys in which two configs differ, except those that do not change the weights (`HARMLESS` and ``audit``).

    Example:
        >>> one = RunConfig.from_dict({"model": "m", "task": "generation", "output": "runs/a",
        ...     "data": {"train": "d.jsonl", "text": "story"}})
        >>> differences(one, one.model_copy(update={"seed": 7, "output": "runs/b"}))
        ['seed']
    """
    left, right = flatten(a.to_dict()), flatten(b.to_dict())
    keys = dict.fromkeys([*left, *right])
    harmless = {key for key in keys if key in HARMLESS or key.partition(".")[0] == "audit"}
    return [key for key in keys if key not in harmless and left.get(key, ...) != right.get(key, ...)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one mapping by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
