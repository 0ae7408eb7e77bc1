"""Translate the configs of TRL, axolotl and LLaMA-Factory, as far as they go, and list what has no counterpart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from balora.config.training_arguments import training_fields
from balora.config.validation import SET_ELSEWHERE
from balora.errors import BALoraError

Tool = Literal["TRL", "axolotl", "LLaMA-Factory"]
_MARKS: dict[Tool, tuple[str, ...]] = {
    "axolotl": ("base_model", "datasets", "micro_batch_size", "sequence_len"),
    "LLaMA-Factory": ("finetuning_type", "stage", "cutoff_len", "dataset_dir", "lora_rank", "template"),
    "TRL": ("dataset_name", "dataset_train_split", "use_peft", "lora_r", "max_seq_length", "max_length"),
}
"""Keys that only one of the tools has. TRL shares lora_r with axolotl, which has the others too."""
# Keys that ask for what balora does anyway.
_IMPLIED = (
    *("do_train", "do_eval", "use_peft", "adapter", "finetuning_type", "stage", "plot_loss", "overwrite_output_dir"),
    *("overwrite_cache", "lora_target_linear", "strict", "preprocessing_num_workers", "model_type", "tokenizer_type"),
    *("template", "dataset_dir", "load_in_4bit", "load_in_8bit", "quantization_bit", "assistant_only_loss"),
    *("completion_only_loss", "quantization_method", "dataset_prepared_path", "dataset_num_proc"),
)
_OPTIMIZER_NAMES = {"adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


@dataclasses.dataclass
class Translation:
    """A foreign config in balora's keys."""

    tool: Tool
    values: dict[str, Any]
    remarks: list[str] = dataclasses.field(default_factory=list)
    """Sentences about keys whose meaning differs."""
    left_out: list[str] = dataclasses.field(default_factory=list)
    """Keys without a counterpart, as ``key: value``."""


def tool_of(values: Mapping[str, Any]) -> Tool | None:
    """Return the tool whose config this is, by the keys that only it has; None if it is of none of them.

    Example:
        >>> tool_of({"base_model": "m", "datasets": [], "lora_r": 8}), tool_of({"model": "m"})
        ('axolotl', None)
    """
    found = {tool: sum(mark in values for mark in marks) for tool, marks in _MARKS.items()}
    best = max(found, key=lambda tool: found[tool])
    return best if found[best] else None


def translate(values: Mapping[str, Any], folder: Path) -> Translation:
    """Translate a config of another tool.

    Args:
        values: Content of the file.
        folder: Folder of the file, for files that it names (LLaMA-Factory's ``dataset_info.json``).

    Raises:
        BALoraError: It is of none of the known tools, or for another kind of training than supervised fine-tuning.
    """
    tool = tool_of(values)
    if tool is None:
        raise BALoraError(
            "This config is not one of TRL, axolotl or LLaMA-Factory: it has none of their keys (such as dataset_name, "
            "base_model or finetuning_type)."
        )
    given = {str(key): value for key, value in values.items() if value is not None}
    _refuse_other_training(given)
    translation = Translation(
        tool, {"model": "", "data": {}, "method": {}, "training": {}, "output": "runs/translated"}
    )
    readers: dict[Tool, Callable[[dict[str, Any], Translation, Path], None]] = {
        "axolotl": _axolotl,
        "LLaMA-Factory": _llama_factory,
        "TRL": _trl,
    }
    _common(given, translation)
    readers[tool](given, translation, folder)
    _training(given, translation)
    translation.left_out += [f"{key}: {_shown(value)}" for key, value in given.items() if not _is_implied(key, value)]
    if not translation.values["model"]:
        raise BALoraError("The config names no model.")
    if not translation.values["data"].get("train"):
        raise BALoraError("The config names no data that balora can read; write a config with `balora init DATA`.")
    return translation


def _is_implied(key: str, value: Any) -> bool:
    """Decide if a key that was not translated says nothing new: balora does so anyway, or it is switched off."""
    return key in _IMPLIED or value in (False, 0, "", "none", [], {})


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_other_training(given: dict[str, Any]) -> None:
    kind = given.get("rl") or (given.get("stage") if given.get("stage") not in (None, "sft", "pt") else None)
    if kind:
        raise BALoraError(f"The config is for {kind}, and balora does supervised fine-tuning only.")


def _take(given: dict[str, Any], *names: str) -> Any:
    """Remove keys that mean the same, and return the value of the first one that is given."""
    found = [given.pop(name) for name in names if name in given]
    return found[0] if found else None


def _set(section: dict[str, Any], key: str, value: Any) -> None:
    if value is not None:
        section[key] = value


def _common(given: dict[str, Any], translation: Translation) -> None:
    """Translate what the tools have in common: model, adapter, output, seed."""
    values, method = translation.values, translation.values["method"]
    values["model"] = str(_take(given, "model_name_or_path", "base_model") or "")
    _set(values, "revision", _take(given, "model_revision", "revision_of_model"))
    _set(values, "trust_remote_code", _take(given, "trust_remote_code"))
    tokenizer = _take(given, "tokenizer_config", "tokenizer_name_or_path")
    if isinstance(tokenizer, str) and tokenizer != values["model"]:
        values["tokenizer"] = tokenizer
    dtype = _take(given, "dtype", "torch_dtype")
    if dtype in ("float32", "bfloat16", "float16", "auto"):
        values["dtype"] = dtype
    is_full = given.get("finetuning_type") == "full" or (translation.tool == "axolotl" and not given.get("adapter"))
    is_full = is_full or (translation.tool == "TRL" and not given.get("use_peft"))
    bits = 4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else given.get("quantization_bit")
    dora = _take(given, "use_dora", "peft_use_dora")
    if is_full:
        method["name"] = "full"
        for name in ("lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_target_modules"):
            given.pop(name, None)
    else:
        method["name"] = "qlora" if bits or given.get("adapter") == "qlora" else "dora" if dora else "lora"
        if method["name"] == "qlora" and bits in (4, 8):
            method["bits"] = bits
        method["rank"] = (
            _take(given, "lora_r", "lora_rank") or {"TRL": 16, "axolotl": 8, "LLaMA-Factory": 8}[translation.tool]
        )
        alpha = _take(given, "lora_alpha")
        method["alpha"] = alpha or {"TRL": 32, "axolotl": 16, "LLaMA-Factory": 2 * method["rank"]}[translation.tool]
        _set(method, "dropout", _take(given, "lora_dropout"))
        targets = _take(given, "lora_target_modules", "lora_target")
        if isinstance(targets, str):
            targets = targets if "," not in targets else [name.strip() for name in targets.split(",")]
        if targets and targets not in ("all", ["all"], "all-linear", ["all-linear"]):
            method["target_modules"] = targets
    values["output"] = str(_take(given, "output_dir") or values["output"])
    _set(values, "seed", _take(given, "seed"))


def _training(given: dict[str, Any], translation: Translation) -> None:
    """Take over the fields that are transformers' own."""
    training, fields = translation.values["training"], training_fields()
    ratio = _take(given, "warmup_ratio")
    if ratio and "warmup_steps" not in given:
        training["warmup_steps"] = ratio  # below 1 it is a share of the steps
    optimizer = _take(given, "optimizer")
    _set(training, "optim", _OPTIMIZER_NAMES.get(str(optimizer), optimizer))
    _set(training, "lr_scheduler_type", _take(given, "lr_scheduler"))
    for key in list(given):
        if key in fields and key not in SET_ELSEWHERE and key not in ("report_to", "push_to_hub"):
            training[key] = given.pop(key)
    for name in ("bf16", "fp16", "tf32"):
        if training.get(name) == "auto":
            del training[name]
            translation.remarks.append(f"{name}: auto has no counterpart; set training.{name} for your device.")
    for name in ("learning_rate", "weight_decay"):
        if isinstance(training.get(name), str):
            training[name] = float(training[name])


def _axolotl(given: dict[str, Any], translation: Translation, folder: Path) -> None:
    data, training = translation.values["data"], translation.values["training"]
    sources = _take(given, "datasets") or []
    for number, source in enumerate(sources if isinstance(sources, list) else [sources]):
        section = _axolotl_data(dict(source), translation)
        if number == 0:
            data.update(section)
        elif section:
            data.setdefault("also", []).append(section)
    _set(data, "max_length", _take(given, "sequence_len"))
    share = given.pop("val_set_size", None)
    if share:
        if float(share) < 1:
            data["eval"] = float(share)
        else:
            translation.left_out.append(f"val_set_size: {share}")
    if isinstance(given.get("chat_template"), str):
        name = given.pop("chat_template")
        if name == "chatml":
            data["chat_template"] = name
        elif name not in ("tokenizer_default", "tokenizer_default_fallback_chatml"):
            translation.remarks.append(
                f"chat_template: {name} is not taken over; the tokenizer's own template is used."
            )
    _set(training, "per_device_train_batch_size", _take(given, "micro_batch_size"))
    _set(training, "per_device_eval_batch_size", _take(given, "eval_batch_size"))
    _set(training, "num_train_epochs", _take(given, "num_epochs"))
    for name in ("save", "eval"):
        per_epoch = _take(given, f"{name}s_per_epoch")
        if per_epoch:
            training[f"{name}_strategy"] = "epoch"
            if per_epoch != 1:
                translation.remarks.append(
                    f"{name}s_per_epoch: {per_epoch} became once an epoch (training.{name}_strategy)."
                )
    if training.get("eval_strategy") and "eval" not in data:
        del training["eval_strategy"]
    patience = _take(given, "early_stopping_patience")
    if patience and "eval" in data:
        translation.values["early_stopping"] = patience


def _axolotl_data(source: dict[str, Any], translation: Translation) -> dict[str, Any]:
    kind = source.pop("type", None)
    data_files = source.pop("data_files", None)
    section: dict[str, Any] = {"train": data_files or source.pop("path", None)}
    source.pop("path", None)
    _set(section, "name", source.pop("name", None))
    _set(section, "split", source.pop("split", None))
    name = str(kind).partition(".")[0] if isinstance(kind, str) else ""
    if name == "alpaca":
        section |= {"prompt": "instruction", "input": "input", "response": "output", "prompt_template": "alpaca"}
    elif name in ("chat_template", "sharegpt"):
        default = "messages" if name == "chat_template" else "conversations"
        section["messages"] = source.pop("field_messages", default)
        source.pop("message_property_mappings", None)
        source.pop("conversation", None)
    elif name == "completion":
        section["text"] = source.pop("field", "text")
    elif isinstance(kind, dict) and kind.get("field_instruction") and kind.get("field_output"):
        section |= {"prompt": kind["field_instruction"], "response": kind["field_output"]}
    elif kind is not None:
        translation.left_out.append(f"datasets.type: {_shown(kind)} (name the columns in data yourself)")
    source.pop("ds_type", None)
    translation.left_out += [f"datasets.{key}: {_shown(value)}" for key, value in source.items() if value is not None]
    return section


def _llama_factory(given: dict[str, Any], translation: Translation, folder: Path) -> None:
    data, training = translation.values["data"], translation.values["training"]
    names = _take(given, "dataset")
    names = names.split(",") if isinstance(names, str) else list(names or [])
    place = Path(str(given.get("dataset_dir", "data")))
    candidates = [place / "dataset_info.json", folder / place / "dataset_info.json", folder / "dataset_info.json"]
    path = next((one for one in candidates if one.is_file()), None)
    known = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    for number, name in enumerate(map(str.strip, names)):
        section = _llama_factory_data(name, known.get(name), path, translation)
        if number == 0:
            data.update(section)
        else:
            data.setdefault("also", []).append(section)
    _set(data, "max_length", _take(given, "cutoff_len"))
    _set(data, "subsample", _take(given, "max_samples"))
    share = _take(given, "val_size")
    if share:
        if float(share) < 1:
            data["eval"] = float(share)
        else:
            translation.left_out.append(f"val_size: {share}")
    if given.get("template"):
        translation.remarks.append(
            f"template: {given['template']} is not taken over: conversations use the tokenizer's own chat template, and "
            "instructions Alpaca's."
        )
    if training.get("eval_strategy") and "eval" not in data:
        del training["eval_strategy"]


def _llama_factory_data(name: str, entry: Any, path: Path | None, translation: Translation) -> dict[str, Any]:
    if not isinstance(entry, dict):
        translation.remarks.append(
            f"dataset: {name} is described in LLaMA-Factory's dataset_info.json, which was not found; it is taken for a hub id "
            "or a file."
        )
        return {"train": name}
    assert path is not None
    file = entry.get("file_name")
    section: dict[str, Any] = {"train": str(path.parent / file) if file else entry.get("hf_hub_url", name)}
    _set(section, "split", entry.get("split"))
    _set(section, "name", entry.get("subset"))
    columns = entry.get("columns", {})
    if entry.get("formatting") == "sharegpt":
        section["messages"] = columns.get("messages", "conversations")
    else:
        section |= {"prompt": columns.get("prompt", "instruction"), "response": columns.get("response", "output")}
        further = columns.get("query", "input")
        section |= {"input": further, "prompt_template": "alpaca"} if further else {}
    return section


def _trl(given: dict[str, Any], translation: Translation, folder: Path) -> None:
    data = translation.values["data"]
    mixture = _take(given, "datasets")
    if isinstance(mixture, list) and mixture:
        for number, source in enumerate(mixture):
            section = {"train": source.get("path")} | {key: source[key] for key in ("name", "split") if source.get(key)}
            if number == 0:
                data.update(section)
            else:
                data.setdefault("also", []).append(section)
    _set(data, "train", _take(given, "dataset_name"))
    _set(data, "name", _take(given, "dataset_config"))
    _set(data, "split", _take(given, "dataset_train_split"))
    test = _take(given, "dataset_test_split")
    if given.get("eval_strategy", "no") != "no":
        data["eval"] = test or "test"
    data["max_length"] = _take(given, "max_length", "max_seq_length") or 1024
    field = _take(given, "dataset_text_field")
    if field and field != "text":
        data["text"] = field
    template = _take(given, "chat_template_path")
    if not given.get("assistant_only_loss") and not given.get("completion_only_loss"):
        translation.remarks.append(
            "TRL learns every token of a conversation unless assistant_only_loss is on; balora learns the assistant's messages."
        )
    _set(data, "chat_template", template if template and Path(str(template)).is_file() else None)
