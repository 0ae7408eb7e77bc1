"""What is wrong with a config, all of it at once and each thing by its dotted name."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from transformers import TrainingArguments

from balora.errors import BALoraError, suggest
from balora.regularization import RegularizationConfig

Values = Mapping[str, Any]

# Fields of TrainingArguments that have their own place in a config.
_RESERVED = {"output_dir": "output", "seed": "seed", "resume_from_checkpoint": "resume"}
# Names of earlier transformers that people still write; a name the installed version knows is never looked up here.
_RENAMED = {
    "warmup_ratio": "Use training.warmup_steps: below 1 it is a share of all steps.",
    "evaluation_strategy": "It is training.eval_strategy.",
    "group_by_length": "Use training.train_sampling_strategy: group_by_length.",
    "no_cuda": "Use training.use_cpu: true.",
    "overwrite_output_dir": "A finished run is never overwritten; choose another output.",
}
_ABOVE_ZERO = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "save_steps",
    "eval_steps",
)
_UNFIT = {
    "batch_eval_metrics": (True, "would score batch by batch, and the scores here are of all rows together"),
    "eval_do_concat_batches": (False, "would hand over batch by batch, and the scores here are of all rows together"),
}
_NOT_NEGATIVE = ("weight_decay", "warmup_steps", "max_grad_norm", "save_total_limit")
_KINDS = {"int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false"}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

NO_PUSH = (
    "what lies in a run's folder is still being written, and only balora reads it. Leave it out; once the run is finished, "
    "`balora export RUN --to lora --output FOLDER` makes what everybody can load, and `hf upload REPO FOLDER` sends it."
)


class Problems(ValueError):
    """Several things wrong with one field; `describe` lists each of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Turn pydantic's findings into sentences, one per field.

    Args:
        error: What pydantic raised on building ``model``.
        model: The settings class, for the names it knows.

    Returns:
        Sentences that start with the dotted name and end with a full stop.
    """
    found: dict[str, list[str]] = {}
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Problems):
            found.setdefault("\n".join(cause.problems), cause.problems)
            continue
        path, section = _locate(item["loc"], model)
        if item["type"] == "extra_forbidden":
            found[path] = [unknown_key(path, section)]
        else:  # a union reports each of its members; one sentence is enough
            found.setdefault(path, [_sentence(path, item, section)])
    return [sentence for sentences in found.values() for sentence in sentences]


def unknown_key(path: str, section: type[BaseModel]) -> str:
    """Say that a key is unknown, and where it has its place or which one is nearest.

    Example:
        >>> from balora.config.run_config import MethodConfig, RunConfig
        >>> unknown_key("method.rnak", MethodConfig)
        "Unknown key method.rnak. Did you mean 'rank'?"
        >>> unknown_key("learning_rate", RunConfig)
        'Unknown key learning_rate. Did you mean training.learning_rate?'
    """
    places = _places(path, section)
    if places:
        return f"Unknown key {path}. Did you mean {' or '.join(places)}?"
    return f"Unknown key {path}.{suggest(path.rpartition('.')[2], section.model_fields)}"


def _places(name: str, section: type[BaseModel]) -> list[str]:
    """Dotted names under which a key that stands outside every section is known."""
    known: dict[str, Any] = {
        key: inner.model_fields
        for key, field in section.model_fields.items()
        if (inner := _section_in(field.annotation))
    }
    if "regularization" in section.model_fields:  # these two are no settings classes
        known["regularization"] = [field.name for field in dataclasses.fields(RegularizationConfig)]
    if "training" in section.model_fields:
        known["training"] = _argument_types()
    return [f"{key}.{name}" for key, names in known.items() if name in names]


def _locate(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The dotted name of what pydantic points at, and the section it is in; union members are left out."""
    names: list[str] = []
    section = model
    for part in loc:
        names.append(str(part))
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        inner = _section_in(field.annotation) if field else None
        if inner is None:
            break
        section = inner
    return ".".join(names), section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class that a field holds, itself or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for member in typing.get_args(annotation) if (found := _section_in(member))), None)


def _sentence(path: str, item: Any, section: type[BaseModel]) -> str:
    field = section.model_fields.get(path.rpartition(".")[2])
    about = f" ({field.description})" if field and field.description else ""
    context = item.get("ctx", {})
    in_union = len(item["loc"]) > len(path.split("."))
    match "" if in_union else item["type"]:
        case "missing":
            return f"{path} is missing{about}."
        case "value_error":
            text = f"{path} {context['error']}"
            return text if text.endswith("?") else f"{text}."
        case "literal_error":
            known = context["expected"].replace("'", "").replace(" or ", ", ")
            return f"{path} is one of {known}, not {item['input']!r}.{suggest(str(item['input']), known.split(', '))}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{path} is a section with keys of its own, not {item['input']!r}."
        case "greater_than_equal":
            return f"{path} must be at least {context['ge']}, not {item['input']!r}."
        case "greater_than":
            return f"{path} must be above {context['gt']}, not {item['input']!r}."
        case "less_than":
            return f"{path} must be below {context['lt']}, not {item['input']!r}."
        case "string_type":
            return f"{path} must be text, not {item['input']!r}; a number or date in place of text needs quotes."
        case kind if kind.partition("_")[0] in _KINDS:
            return f"{path} must be {_KINDS[kind.partition('_')[0]]}, not {item['input']!r}."
        case _:
            return f"{path} cannot be {item['input']!r}{about}."


def check_training(values: Any) -> dict[str, Any]:
    """Check the ``training`` section against the fields of transformers' TrainingArguments, without building it.

    Args:
        values: What the section holds.

    Returns:
        The values in the types TrainingArguments declares; ``"2e-5"`` in quotes becomes a number.

    Raises:
        Problems: A name is unknown or has another place, or a value is of the wrong type or range.
    """
    if not isinstance(values, Mapping):
        raise Problems([f"training is a section with keys of its own, not {values!r}."])
    problems: list[str] = []
    checked: dict[str, Any] = {}
    for name, value in values.items():
        problem, made = _check_argument(str(name), value)
        if problem:
            problems.append(problem)
        elif made is not None:  # a key left empty means its default
            checked[name] = made
    if not problems and checked.get("bf16") and checked.get("fp16"):
        problems.append("training.bf16 and training.fp16 cannot both be true; choose one.")
    if problems:
        raise Problems(problems)
    return checked


def _check_argument(name: str, value: Any) -> tuple[str | None, Any]:
    hints = _argument_types()
    if name == "hub_token":  # the config is kept in the run's folder, for others to read
        return "training.hub_token does not belong in a file; log in with `hf auth login` instead.", None
    if name in _RESERVED:
        return f"training.{name} has its own place in the config: {_RESERVED[name]}.", value
    if name not in hints:
        return (
            f"Unknown key training.{name}.{' ' + _RENAMED[name] if name in _RENAMED else suggest(name, hints)}",
            value,
        )
    if value is None:
        return None, None
    if name == "fsdp" and isinstance(value, bool):
        return None, value  # declared as text alone, for the form of earlier versions
    members = typing.get_args(hints[name]) or (hints[name],)
    choices = next((m for m in members if isinstance(m, type) and issubclass(m, enum.Enum)), None)
    if choices is not None and not issubclass(choices, list):
        return _check_choice(name, "no" if value is False else value, choices)
    if (
        isinstance(value, bool)
        and bool not in members
        and not any(typing.get_origin(m) is typing.Literal for m in members)
    ):
        return f"training.{name} must be {_expected(members)}, not {value!r}.", value
    try:
        made = TypeAdapter(hints[name], config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError:
        return f"training.{name} must be {_expected(members)}, not {value!r}.", value
    if isinstance(value, int) and isinstance(made, float):
        made = value  # 100 steps stay 100, not 100.0
    if name in _ABOVE_ZERO and not made > 0:
        return f"training.{name} must be above 0, not {value!r}.", value
    if name in _UNFIT and made == _UNFIT[name][0]:
        return f"training.{name}: {str(made).lower()} {_UNFIT[name][1]}; leave it out.", value
    if name == "push_to_hub" and made:
        return f"training.push_to_hub is not done in training: {NO_PUSH}", value
    if name == "label_smoothing_factor" and made:
        return "training.label_smoothing_factor does not go with the regularized objective; set it to 0.", value
    if name in _NOT_NEGATIVE and not made >= 0:
        return f"training.{name} must be at least 0, not {value!r}.", value
    return None, made


def _check_choice(name: str, value: Any, choices: type[enum.Enum]) -> tuple[str | None, Any]:
    known = [str(member.value) for member in choices]
    if str(value) in known:
        return None, str(value)
    return f"training.{name} is one of {', '.join(known)}, not {value!r}.{suggest(str(value), known)}", value


@functools.cache
def _argument_types() -> dict[str, Any]:
    """Every field of TrainingArguments with its declared type."""
    hints = typing.get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def _expected(members: tuple[Any, ...]) -> str:
    words = [_WORDS.get(m, getattr(m, "__name__", str(m))) for m in members if m is not types.NoneType]
    return " or ".join(words)


def build_regularization(values: Any, task: str, on_by_default: bool) -> RegularizationConfig:
    """The regularization of a run, from what its config says.

    Args:
        values: Nothing, ``on``/``off`` (or true/false), changes to the paper's values, or a finished config.
        task: Which of the paper's sets of values to start from.
        on_by_default: Whether the method regularizes when the config says nothing.

    Raises:
        Problems: A key is unknown or a value out of range.
    """
    if isinstance(values, RegularizationConfig):
        return values
    if values is None:
        values = on_by_default
    if isinstance(values, str) and values.lower() in ("on", "off", "yes", "no"):
        values = values.lower() in ("on", "yes")
    if values is False:
        return RegularizationConfig.off()
    if values is not True and not isinstance(values, Mapping):
        raise Problems([f"regularization is a section with keys of its own, or on or off, not {values!r}."])
    changes = {} if values is True else {str(k): v for k, v in values.items() if v is not None}
    known = [field.name for field in dataclasses.fields(RegularizationConfig)]
    problems = [f"Unknown key regularization.{key}.{suggest(key, known)}" for key in changes if key not in known]
    start = "for_generation" if task in ("generation", "seq2seq") else "for_classification"
    try:
        made = getattr(RegularizationConfig, start)(**{k: v for k, v in changes.items() if k in known})
    except BALoraError as error:
        problems += problems_of(error)
    if problems:
        raise Problems(problems)
    return made


def problems_of(error: BALoraError) -> list[str]:
    """The single problems in an error made by `balora.errors.raise_all`."""
    first, *rest = str(error).split("\n  - ")
    return rest or [first]
