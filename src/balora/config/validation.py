"""Checks of a config. All problems are reported together, each as a sentence with its dotted key."""

import dataclasses
import enum
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from balora.anchors import Anchors
from balora.config.data_columns import LARGEST
from balora.config.foreign_keys import explain
from balora.config.training_arguments import training_fields
from balora.errors import BALoraError, hide_passwords, shown, suggest
from balora.regularization import WEIGHTS, RegularizationConfig

NO_PUSH = (
    "only balora can read a run directory, and during training it is still being written. Leave the key out; when the run is "
    "finished, export it with `balora export RUN --to lora --output FOLDER` and upload that with `hf upload REPO FOLDER`."
)

_HUB = ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision")
# Fields of TrainingArguments that the training section must not hold.
SET_ELSEWHERE = {
    "output_dir": "is set by the top-level key output; leave it out.",
    "seed": "is set by the top-level key seed; leave it out.",
    "resume_from_checkpoint": "is set by the top-level key resume; leave it out.",
    "local_rank": "is set by `torchrun` or `accelerate launch`; leave it out.",
    "hub_token": "does not belong in a file, because every run directory keeps its config; use `hf auth login` instead.",
    **dict.fromkeys(_HUB, f"has no effect, because a run is not pushed to the hub: {NO_PUSH}"),
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"),
        "is read by transformers' example scripts alone: `balora train` always trains, and evaluates if data.eval is given; leave "
        "it out.",
    ),
    "remove_unused_columns": "is set by balora, which makes the columns itself; leave it out.",
    "label_names": "is set by balora, whose labels are the column that data names; leave it out.",
    "enable_jit_checkpoint": "is not needed: at SIGTERM or Ctrl-C a run saves a checkpoint by itself; leave it out.",
}
# Names from earlier versions of transformers. A name that the installed version knows is never looked up here.
_RENAMED = {
    "warmup_ratio": "Use training.warmup_steps: a value below 1 is a fraction of all steps.",
    "evaluation_strategy": "It is training.eval_strategy.",
    "group_by_length": "Use training.train_sampling_strategy: group_by_length.",
    "no_cuda": "Use training.use_cpu: true.",
    "overwrite_output_dir": "A finished run is never overwritten; choose another output.",
    "evaluate_during_training": "Use training.eval_strategy.",
    "save_safetensors": "Weights are always written as safetensors; leave it out.",
    "logging_dir": "TensorBoard's files are in the run directory, under runs; leave it out.",
    "per_gpu_train_batch_size": "It is training.per_device_train_batch_size.",
    "per_gpu_eval_batch_size": "It is training.per_device_eval_batch_size.",
    "adafactor": "Use training.optim: adafactor.",
    **dict.fromkeys(
        ("fp16_backend", "half_precision_backend", "fp16_opt_level"),
        "Mixed precision is always PyTorch's own; leave it out.",
    ),
    "use_mps_device": "The GPU of a Mac is used without a key; leave it out.",
    **dict.fromkeys(
        ("dispatch_batches", "split_batches"),
        "It is a key of training.accelerator_config, such as {split_batches: true}.",
    ),
    "include_inputs_for_metrics": "Use training.include_for_metrics: [inputs].",
    "include_tokens_per_second": "Use training.include_num_input_tokens_seen.",
    "torchdynamo": "Use training.torch_compile_backend.",
    "tpu_metrics_debug": "Use training.debug: tpu_metrics_debug.",
    "sharded_ddp": "Use training.fsdp.",
    "xpu_backend": "It is training.ddp_backend.",
    **dict.fromkeys(
        ("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
        "It is a key of training.fsdp_config, without fsdp_.",
    ),
    **dict.fromkeys(
        ("push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"),
        f"A run is not pushed to the hub: {NO_PUSH}",
    ),
    **dict.fromkeys(
        (
            "past_index",
            "jit_mode_eval",
            "use_ipex",
            "tpu_num_cores",
            "mp_parameters",
            "ray_scope",
            "use_legacy_prediction_loop",
        ),
        "transformers has removed it; leave it out.",
    ),
}
_ABOVE_ZERO = (
    *("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "logging_steps", "save_steps", "eval_steps", "eval_accumulation_steps"),
    *("dataloader_prefetch_factor", "ddp_timeout", "ddp_bucket_cap_mb"),
)
_NOT_NEGATIVE = (
    *("weight_decay", "warmup_steps", "max_grad_norm", "save_total_limit", "adam_epsilon", "eval_delay"),
    *("neftune_noise_alpha", "dataloader_num_workers", "data_seed"),
)
_MOST = {
    "num_train_epochs": 10**9,
    "dataloader_num_workers": 1024,
    "data_seed": 2**32 - 1,
    "dataloader_prefetch_factor": 1024,
}
_LEVELS = ("debug", "info", "warning", "error", "critical", "passive", "detail")
# Fields that transformers declares as text, with their values.
_TEXTS = {
    "log_level": _LEVELS,
    "log_level_replica": _LEVELS,
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
_BATCHWISE = "the scores here are computed over all rows together, not batch by batch; leave it out."
# By field: the test that its value must pass, and the message otherwise.
_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_ABOVE_ZERO, (lambda value: value > 0, "must be above 0, not {value!r}.")),
    **dict.fromkeys(_NOT_NEGATIVE, (lambda value: value >= 0, "must be at least 0, not {value!r}.")),
    "max_steps": (
        lambda value: value > 0 or value == -1,
        "must be above 0, or -1 for the steps of num_train_epochs, not {value!r}.",
    ),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2"), (lambda value: 0 <= value < 1, "must be at least 0 and below 1, not {value!r}.")
    ),
    "push_to_hub": (operator.not_, f"cannot be on during training: {NO_PUSH}"),
    "label_smoothing_factor": (operator.not_, "is not supported by the regularized objective; set it to 0."),
    "auto_find_batch_size": (
        operator.not_,
        "cannot be true: after a lack of memory, training would start again with weights that have already changed. Set "
        "training.per_device_train_batch_size; `balora validate` estimates the memory.",
    ),
    "batch_eval_metrics": (operator.not_, f"cannot be true: {_BATCHWISE}"),
    "eval_do_concat_batches": (bool, f"cannot be false: {_BATCHWISE}"),
}
# Expected values by pydantic's error types, and by their first parts or the names of types.
_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a section with keys"),
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le:,}",
    "less_than": "below {lt}",
    "string_type": "text",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "str": "text",
}


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


def password_problems(values: Any, path: str = "") -> list[str]:
    """List the keys whose value is a URL with a password or token, because every run directory keeps its config."""
    if isinstance(values, Mapping):
        return [
            p for key, value in values.items() for p in password_problems(value, f"{path}.{key}" if path else str(key))
        ]
    if isinstance(values, list | tuple):
        return [p for number, value in enumerate(values) for p in password_problems(value, f"{path}.{number}")]
    if not isinstance(values, str) or not re.match(r"\s*[\w+.-]+://", values) or hide_passwords(values) == values:
        return []
    return [
        f"{path} is a URL with a password or token, and every run directory keeps its config. Leave it out of the URL: download "
        "the file, or log in with the tool that reads the address (hf auth login)."
    ]


def unknown_key(path: str, section: type[BaseModel]) -> str:
    """Say that a key is unknown, and suggest the section that has it or the nearest name.

    Example:
        >>> from balora.config.run_config import MethodConfig, RunConfig
        >>> unknown_key("method.rnak", MethodConfig)
        "Unknown key method.rnak. Did you mean 'rank'?"
        >>> unknown_key("learning_rate", RunConfig)
        'Unknown key learning_rate. Did you mean training.learning_rate?'
    """
    name = path.rpartition(".")[2]
    foreign = explain(name)
    if foreign is not None:
        return f"Unknown key {path}{foreign}"
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
    return f"Unknown key {shown(path)[1:-1]}.{suggest(name, section.model_fields)}"


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
        return f"{path} must be one of {known}, not {shown(given)}.{suggest(str(given), known.split(', '))}"
    expected = _EXPECTED.get(kind) or _KINDS.get(kind.partition("_")[0])
    if expected is None:
        return f"{path} cannot be {shown(given)}{about}."
    hint = "; put quotes around a number or date that is meant as text" if kind == "string_type" else ""
    return f"{path} must be {expected.format(**context)}, not {shown(given)}{hint}."


def check_training(values: Any) -> dict[str, Any]:
    """Convert the ``training`` section to the types that transformers' TrainingArguments declares; drop empty keys.

    Raises `Problems` for every wrong field. Combinations are checked later, when TrainingArguments is constructed.
    """
    if not isinstance(values, Mapping):
        raise Problems([f"training must be a section with keys, not {shown(values)}."])
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
    if name in SET_ELSEWHERE:
        raise ValueError(f"training.{name} {SET_ELSEWHERE[name]}")
    if name not in fields:
        hint = f". {_RENAMED[name]}" if name in _RENAMED else explain(name) or f".{suggest(name, fields)}"
        raise ValueError(f"Unknown key training.{name}{hint}")
    if value is None:
        return None
    converted = _convert(name, value, fields[name])
    allowed, message = _LIMITS.get(name, (lambda value: True, ""))
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        most = _MOST.get(name, LARGEST if isinstance(converted, int) else math.inf)
        if (
            math.isinf(converted) and name != "max_grad_norm"
        ):  # where it means that gradients are measured, and not clipped
            raise ValueError(f"training.{name} must be a finite number, not {shown(value)}.")
        if converted > most:
            raise ValueError(f"training.{name} must be at most {most:,}, not {shown(value)}.")
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
            raise ValueError(
                f"training.{name} must be one of {', '.join(known)}, not {shown(value)}.{suggest(text, known)}"
            )
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
        raise ValueError(f"training.{name} must be {expected}, not {shown(value)}.") from None
    known_texts = _TEXTS.get(name)
    if known_texts and isinstance(converted, str) and converted not in known_texts:
        raise ValueError(
            f"training.{name} must be one of {', '.join(known_texts)}, not {shown(value)}.{suggest(converted, known_texts)}"
        )
    if name.endswith("_kwargs") and isinstance(converted, str) and not converted.lstrip().startswith("{"):
        raise ValueError(f"training.{name} must be a section with keys, not {shown(value)}.")
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
        raise Problems([f"regularization must be a section with keys, or on or off, not {shown(values)}."])
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
