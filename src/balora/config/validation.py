"""Checks of a config. All problems are reported together, each as a sentence with its dotted key."""

import dataclasses
import enum
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from balora.anchors import Anchors
from balora.config.training_arguments import training_fields
from balora.errors import BALoraError, suggest
from balora.regularization import WEIGHTS, RegularizationConfig

NO_PUSH = (
    "only balora can read a run directory, and during training it is still being written. Leave the key out; when the run is "
    "finished, export it with `balora export RUN --to lora --output FOLDER` and upload that with `hf upload REPO FOLDER`."
)

# Fields of TrainingArguments that the training section must not hold.
_SET_ELSEWHERE = {
    "output_dir": "is set by the top-level key output; leave it out.",
    "seed": "is set by the top-level key seed; leave it out.",
    "resume_from_checkpoint": "is set by the top-level key resume; leave it out.",
    "hub_token": "does not belong in a file, because every run directory keeps its config; use `hf auth login` instead.",
}
# Names from earlier versions of transformers. A name that the installed version knows is never looked up here.
_RENAMED = {
    "warmup_ratio": "Use training.warmup_steps: a value below 1 is a fraction of all steps.",
    "evaluation_strategy": "It is training.eval_strategy.",
    "group_by_length": "Use training.train_sampling_strategy: group_by_length.",
    "no_cuda": "Use training.use_cpu: true.",
    "overwrite_output_dir": "A finished run is never overwritten; choose another output.",
}
_ABOVE_ZERO = (
    *("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "logging_steps", "save_steps", "eval_steps"),
)
_NOT_NEGATIVE = ("weight_decay", "warmup_steps", "max_grad_norm", "save_total_limit")
_BATCHWISE = "the scores here are computed over all rows together, not batch by batch; leave it out."
# By field: the test that its value must pass, and the message otherwise.
_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_ABOVE_ZERO, (lambda value: value > 0, "must be above 0, not {value!r}.")),
    **dict.fromkeys(_NOT_NEGATIVE, (lambda value: value >= 0, "must be at least 0, not {value!r}.")),
    "push_to_hub": (operator.not_, f"cannot be on during training: {NO_PUSH}"),
    "label_smoothing_factor": (operator.not_, "is not supported by the regularized objective; set it to 0."),
    "batch_eval_metrics": (operator.not_, f"cannot be true: {_BATCHWISE}"),
    "eval_do_concat_batches": (bool, f"cannot be false: {_BATCHWISE}"),
}
# Expected values by pydantic's error types, and by their first parts or the names of types.
_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a section with keys"),
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than": "below {lt}",
    "string_type": "text",
}
_KINDS = {"int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false", "str": "text"}


class Problems(ValueError):
    """Several problems of one field; `describe` lists each of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Turn the findings of pydantic about a config of class ``model`` into sentences, one per field."""
    found: dict[str, list[str]] = {}
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Problems):
            found.setdefault("\n".join(cause.problems), cause.problems)
            continue
        path, section = _locate(item["loc"], model)
        if item["type"] == "extra_forbidden":
            found[path] = [unknown_key(path, section)]
        else:  # pydantic reports every member of a union, and one sentence is enough
            found.setdefault(path, [_sentence(path, item, section)])
    return [sentence for sentences in found.values() for sentence in sentences]


def unknown_key(path: str, section: type[BaseModel]) -> str:
    """Say that a key is unknown, and suggest the section that has it or the nearest name.

    Example:
        >>> from balora.config.run_config import MethodConfig, RunConfig
        >>> unknown_key("method.rnak", MethodConfig)
        "Unknown key method.rnak. Did you mean 'rank'?"
        >>> unknown_key("learning_rate", RunConfig)
        'Unknown key learning_rate. Did you mean training.learning_rate?'
    """
    known: dict[str, Any] = {
        key: inner.model_fields
        for key, field in section.model_fields.items()
        if (inner := _section_in(field.annotation))
    }
    # The sections that are not pydantic models.
    if "regularization" in section.model_fields:
        known["regularization"] = [field.name for field in dataclasses.fields(RegularizationConfig)]
    if "training" in section.model_fields:
        known["training"] = training_fields()
    elsewhere = [f"{key}.{path}" for key, names in known.items() if path in names]
    if elsewhere:
        return f"Unknown key {path}. Did you mean {' or '.join(elsewhere)}?"
    return f"Unknown key {path}.{suggest(path.rpartition('.')[2], section.model_fields)}"


def _locate(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """Return the dotted key of a pydantic location, without union members, and the class of the section that has it."""
    names: list[str] = []
    for part in loc:
        names.append(str(part))
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _section_in(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return ".".join(names), model


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the config class in a field's annotation, also from inside a list or union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for member in typing.get_args(annotation) if (found := _section_in(member))), None)


def _sentence(path: str, item: Any, section: type[BaseModel]) -> str:
    """Describe one finding of pydantic at the dotted key ``path``."""
    field = section.model_fields.get(path.rpartition(".")[2])
    about = f" ({field.description})" if field and field.description else ""
    context, given = item.get("ctx", {}), item["input"]
    in_union = len(item["loc"]) > len(path.split("."))
    kind = "" if in_union else item["type"]
    if kind == "missing":
        return f"{path} is missing{about}."
    if kind == "value_error":
        text = f"{path} {context['error']}"
        return text if text.endswith("?") else f"{text}."
    if kind == "literal_error":
        known = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"{path} must be one of {known}, not {given!r}.{suggest(str(given), known.split(', '))}"
    expected = _EXPECTED.get(kind) or _KINDS.get(kind.partition("_")[0])
    if expected is None:
        return f"{path} cannot be {given!r}{about}."
    hint = "; put quotes around a number or date that is meant as text" if kind == "string_type" else ""
    return f"{path} must be {expected.format(**context)}, not {given!r}{hint}."


def check_training(values: Any) -> dict[str, Any]:
    """Convert the ``training`` section to the types that transformers' TrainingArguments declares; drop empty keys.

    Raises `Problems` for every wrong field. Combinations are checked later, when TrainingArguments is constructed.
    """
    if not isinstance(values, Mapping):
        raise Problems([f"training must be a section with keys, not {values!r}."])
    problems: list[str] = []
    checked: dict[str, Any] = {}
    for name, value in values.items():
        try:
            checked[name] = _check_field(str(name), value)
        except ValueError as error:
            problems.append(str(error))
    if not problems and checked.get("bf16") and checked.get("fp16"):
        problems.append("training.bf16 and training.fp16 cannot both be true; choose one.")
    if problems:
        raise Problems(problems)
    return {name: value for name, value in checked.items() if value is not None}


def _check_field(name: str, value: Any) -> Any:
    """Return the value of one training field in its declared type. A ValueError contains the sentence for the user."""
    fields = training_fields()
    if name in _SET_ELSEWHERE:
        raise ValueError(f"training.{name} {_SET_ELSEWHERE[name]}")
    if name not in fields:
        hint = f" {_RENAMED[name]}" if name in _RENAMED else suggest(name, fields)
        raise ValueError(f"Unknown key training.{name}.{hint}")
    if value is None:
        return None
    converted = _convert(name, value, fields[name])
    allowed, message = _LIMITS.get(name, (lambda value: True, ""))
    if not allowed(converted):
        raise ValueError(f"training.{name} {message.format(value=value)}")
    return converted


def _convert(name: str, value: Any, kind: Any) -> Any:
    """Convert a value to the type that a training field declares; for an enumeration, to one of its texts."""
    members = typing.get_args(kind) or (kind,)
    choices = next((m for m in members if isinstance(m, type) and issubclass(m, enum.Enum)), None)
    if choices is not None:
        known, text = [str(choice.value) for choice in choices], "no" if value is False else str(value)
        if text not in known:
            raise ValueError(f"training.{name} must be one of {', '.join(known)}, not {value!r}.{suggest(text, known)}")
        return text
    if name == "fsdp" and isinstance(value, bool):
        return value  # transformers declares text only, but takes true and false
    takes_bool = bool in members or any(typing.get_origin(m) is typing.Literal for m in members)
    try:
        if isinstance(value, bool) and not takes_bool:  # pydantic would take it for 0 or 1
            raise ValueError
        converted = TypeAdapter(kind, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValueError:
        names = [getattr(m, "__name__", str(m)) for m in members if m is not types.NoneType]
        expected = " or ".join(_KINDS.get(each, each) for each in names)
        raise ValueError(f"training.{name} must be {expected}, not {value!r}.") from None
    # An integer stays an integer: 100 steps, not 100.0.
    return value if isinstance(value, int) and isinstance(converted, float) else converted


def _listed(error: BALoraError) -> list[str]:
    """Return the problems of an error that `raise_all` raised."""
    first, *rest = str(error).split("\n  - ")
    return rest or [first]


def check_anchor(value: Any) -> Anchors | None:
    """Build the anchors of a run from the value of the ``anchor`` key. Wrong values raise `Problems`."""
    try:
        return Anchors.from_value(value)
    except BALoraError as error:
        raise Problems(_listed(error)) from error


def check_audit(value: Any) -> dict[str, Any] | None:
    """Return the settings of the audit at the end of a run; `balora.auditing.options` checks them. None without audit."""
    if value is None or value is False or value == "off":
        return None
    if value is True or value == "on":
        return {}
    if not isinstance(value, Mapping):
        raise Problems([f"audit must be on, off or a section with settings of `balora audit`, not {value!r}."])
    return {str(key): entry for key, entry in value.items() if entry is not None}


def build_regularization(
    values: Any, task: str, on_by_default: bool, objective: Mapping[str, Any] | None = None
) -> RegularizationConfig:
    """Build the regularization of a run from the value of the ``regularization`` key. Wrong values raise `Problems`.

    Args:
        values: None, ``on``/``off`` (or true/false), changes to the paper's values, or a finished `RegularizationConfig`.
        task: Task of the run, which has its own values in the paper.
        on_by_default: Whether the method regularizes if ``values`` is None.
        objective: Settings of the method's own objective, if it has one: then they take the place of the paper's values, and
            all other terms are off.
    """
    if isinstance(values, RegularizationConfig):
        return values
    if objective and values is None:
        values = {}
    if objective and isinstance(values, Mapping):
        values = {**dict.fromkeys(WEIGHTS, 0.0), **objective, **{str(k): v for k, v in values.items()}}
    if values is None:
        values = on_by_default
    if isinstance(values, str) and values.lower() in ("on", "off", "yes", "no"):
        values = values.lower() in ("on", "yes")
    if values is False:
        return RegularizationConfig.off()
    if values is not True and not isinstance(values, Mapping):
        raise Problems([f"regularization must be a section with keys, or on or off, not {values!r}."])
    changes = {} if values is True else {str(k): v for k, v in values.items() if v is not None}
    known = [field.name for field in dataclasses.fields(RegularizationConfig)]
    problems = [f"Unknown key regularization.{key}.{suggest(key, known)}" for key in changes if key not in known]
    generates = task in ("generation", "seq2seq")
    build = RegularizationConfig.for_generation if generates else RegularizationConfig.for_classification
    try:
        config = build(**{k: v for k, v in changes.items() if k in known})
    except BALoraError as error:
        problems += _listed(error)
    if problems:
        raise Problems(problems)
    return config
