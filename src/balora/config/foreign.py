"""Translate the configs of TRL, axolotl and LLaMA-Factory, as far as they go, and list what has no counterpart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balora.config.foreign_data import set_early_stopping, set_packing, set_streaming
from balora.config.foreign_tools import read_axolotl, read_llama_factory, read_trl
from balora.config.training_arguments import training_fields
from balora.config.translation import Tool, Translation, brief, set_given, take
from balora.config.validation import SET_ELSEWHERE
from balora.errors import BALoraError

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
    *("completion_only_loss", "quantization_method", "dataset_prepared_path", "dataset_num_proc", "padding_free"),
    *("pad_to_sequence_len", "dataset_processes", "loss_watchdog_patience"),
)
_OPTIMIZER_NAMES = {"adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


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
        "axolotl": read_axolotl,
        "LLaMA-Factory": read_llama_factory,
        "TRL": read_trl,
    }
    try:
        _common(given, translation)
        streams, packs = bool(take(given, "streaming", "dataset_streaming")), _packing(given, tool)
        readers[tool](given, translation, folder)
        patience = {n: given.pop(n) for n in ("early_stopping_patience", "early_stopping_steps") if n in given}
        _training(given, translation)
    except (TypeError, ValueError, AttributeError, KeyError, OSError) as error:
        raise BALoraError(
            f"A value of this config is not of the kind that {tool} takes ({' '.join(str(error).split())[:200]}). Correct it, or "
            "remove its key."
        ) from error
    for key, value in patience.items():
        set_early_stopping(translation.values, key, value, translation.left_out)
    if streams:
        buffer = take(given, "buffer_size", "streaming_multipack_buffer_size")
        set_streaming(translation.values, buffer, translation.remarks, translation.left_out)
    wanted, cuts = packs
    set_packing(translation.values, wanted, translation.remarks, cuts=cuts)
    translation.left_out += [f"{key}: {brief(value)}" for key, value in given.items() if not _is_implied(key, value)]
    if not translation.values["model"]:
        raise BALoraError("The config names no model.")
    if not translation.values["data"].get("train"):
        raise BALoraError("The config names no data that balora can read; write a config with `balora init DATA`.")
    return translation


def _is_implied(key: str, value: Any) -> bool:
    """Decide if a key that was not translated says nothing new: balora does so anyway, or it is switched off."""
    return key in _IMPLIED or value in (False, 0, "", "none", [], {})


def _refuse_other_training(given: dict[str, Any]) -> None:
    kind = given.get("rl") or (given.get("stage") if given.get("stage") not in (None, "sft", "pt") else None)
    if kind:
        raise BALoraError(f"The config is for {kind}, and balora does supervised fine-tuning only.")


def _packing(given: dict[str, Any], tool: Tool) -> tuple[bool, str | None]:
    """Return whether a config asks for packing, and a remark if the tool's packing differs."""
    strategy = take(given, "packing_strategy")
    neat = take(given, "neat_packing")
    wanted = bool(take(given, "packing", "sample_packing") or neat)
    for name in ("eval_packing", "eval_sample_packing"):
        given.pop(name, None)  # evaluation rows are never packed
    if tool == "LLaMA-Factory" and not neat:
        return (
            wanted,
            "LLaMA-Factory's packing without neat_packing mixes the examples of a row; balora keeps them apart.",
        )
    if strategy == "wrapped":
        return wanted, "packing_strategy: wrapped cuts examples to fill rows; balora keeps them whole and apart."
    return wanted, None


def _common(given: dict[str, Any], translation: Translation) -> None:
    """Translate what the tools have in common: model, adapter, output, seed."""
    values, method = translation.values, translation.values["method"]
    values["model"] = str(take(given, "model_name_or_path", "base_model") or "")
    set_given(values, "revision", take(given, "model_revision", "revision_of_model"))
    set_given(values, "trust_remote_code", take(given, "trust_remote_code"))
    tokenizer = take(given, "tokenizer_config", "tokenizer_name_or_path")
    if isinstance(tokenizer, str) and tokenizer != values["model"]:
        values["tokenizer"] = tokenizer
    dtype = take(given, "dtype", "torch_dtype")
    if dtype in ("float32", "bfloat16", "float16", "auto"):
        values["dtype"] = dtype
    is_full = given.get("finetuning_type") == "full" or (translation.tool == "axolotl" and not given.get("adapter"))
    is_full = is_full or (translation.tool == "TRL" and not given.get("use_peft"))
    bits = 4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else given.get("quantization_bit")
    variants = {
        name: take(given, f"use_{name}", f"peft_use_{name}", *also)
        for name, also in (("dora", ()), ("rslora", ()), ("pissa", ("pissa_init",)))
    }
    variant = next((name for name, is_on in variants.items() if is_on), "lora")
    if is_full:
        method["name"] = "full"
        for name in ("lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_target_modules"):
            given.pop(name, None)
    else:
        method["name"] = "qlora" if bits or given.get("adapter") == "qlora" else variant
        if method["name"] == "qlora" and variant != "lora":
            translation.left_out.append(f"{variant} (with quantized weights the method is qlora)")
        if method["name"] == "qlora" and bits in (4, 8):
            method["bits"] = bits
        method["rank"] = (
            take(given, "lora_r", "lora_rank") or {"TRL": 16, "axolotl": 8, "LLaMA-Factory": 8}[translation.tool]
        )
        alpha = take(given, "lora_alpha")
        method["alpha"] = alpha or {"TRL": 32, "axolotl": 16, "LLaMA-Factory": 2 * method["rank"]}[translation.tool]
        set_given(method, "dropout", take(given, "lora_dropout"))
        targets = take(given, "lora_target_modules", "lora_target")
        if isinstance(targets, str):
            targets = targets if "," not in targets else [name.strip() for name in targets.split(",")]
        if targets and targets not in ("all", ["all"], "all-linear", ["all-linear"]):
            method["target_modules"] = targets
    values["output"] = str(take(given, "output_dir") or values["output"])
    set_given(values, "seed", take(given, "seed"))


def _training(given: dict[str, Any], translation: Translation) -> None:
    """Take over the fields that are transformers' own."""
    training, fields = translation.values["training"], training_fields()
    ratio = take(given, "warmup_ratio")
    if ratio and "warmup_steps" not in given:
        training["warmup_steps"] = ratio  # below 1 it is a share of the steps
    optimizer = take(given, "optimizer")
    set_given(training, "optim", _OPTIMIZER_NAMES.get(str(optimizer), optimizer))
    set_given(training, "lr_scheduler_type", take(given, "lr_scheduler"))
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
