"""Readers of the data sections of axolotl, LLaMA-Factory and TRL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.config.foreign_data import add_sources, roles_by_name, unknown_message_keys
from balora.config.translation import Translation, brief, set_given, take


def read_axolotl(given: dict[str, Any], translation: Translation, folder: Path) -> None:
    """Translate the data and the batch sizes of an axolotl config, and take what was translated out of ``given``."""
    data, training = translation.values["data"], translation.values["training"]
    sources = take(given, "datasets") or []
    sections = []
    for source in sources if isinstance(sources, list) else [sources]:
        if not isinstance(source, Mapping):
            raise ValueError(f"datasets: {brief(source)} is no section with a path")
        sections.append(_axolotl_data(dict(source), translation))
    add_sources(data, sections, translation.left_out)
    set_given(data, "max_length", take(given, "sequence_len"))
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
    set_given(training, "per_device_train_batch_size", take(given, "micro_batch_size"))
    set_given(training, "per_device_eval_batch_size", take(given, "eval_batch_size"))
    set_given(training, "num_train_epochs", take(given, "num_epochs"))
    for name in ("save", "eval"):
        per_epoch = take(given, f"{name}s_per_epoch")
        if per_epoch:
            training[f"{name}_strategy"] = "epoch"
            if per_epoch != 1:
                translation.remarks.append(
                    f"{name}s_per_epoch: {per_epoch} became once an epoch (training.{name}_strategy)."
                )
    if training.get("eval_strategy") and "eval" not in data:
        del training["eval_strategy"]


def _axolotl_data(source: dict[str, Any], translation: Translation) -> dict[str, Any]:
    kind = source.pop("type", None)
    data_files = source.pop("data_files", None)
    section: dict[str, Any] = {"train": data_files or source.pop("path", None)}
    source.pop("path", None)
    set_given(section, "name", source.pop("name", None))
    set_given(section, "split", source.pop("split", None))
    name = str(kind).partition(".")[0] if isinstance(kind, str) else ""
    if name == "alpaca":
        section |= {"prompt": "instruction", "input": "input", "response": "output", "prompt_template": "alpaca"}
    elif name in ("chat_template", "sharegpt"):
        default = "messages" if name == "chat_template" else "conversations"
        section["messages"] = source.pop("field_messages", default)
        odd = unknown_message_keys(source.pop("message_property_mappings", None) or {})
        translation.left_out += [f"datasets.message_property_mappings: {key}" for key in odd]
        set_given(section, "roles", roles_by_name(source.pop("roles", None) or {}) or None)
        if source.get("roles_to_train") in (["assistant"], ["gpt"], ["assistant", "gpt"]):
            del source["roles_to_train"]
        if source.get("train_on_eos") == "turn":
            del source["train_on_eos"]
        source.pop("conversation", None)
    elif name == "completion":
        section["text"] = source.pop("field", "text")
    elif isinstance(kind, dict) and kind.get("field_instruction") and kind.get("field_output"):
        section |= {"prompt": kind["field_instruction"], "response": kind["field_output"]}
        template, further = kind.get("format"), kind.get("field_input")
        if isinstance(template, str) and "{instruction}" in template:
            section["prompt_template"] = template.replace("{instruction}", "{prompt}")
            section["separator"] = ""
        if further and "{input}" in section.get("prompt_template", ""):
            section["input"] = further
        elif further:
            translation.left_out.append(
                f"datasets.type.field_input: {further} (a template with {{input}} would use it)"
            )
        for name in ("no_input_format", "system_prompt", "field_system"):
            if kind.get(name):
                translation.left_out.append(f"datasets.type.{name}: {brief(kind[name])}")
    elif kind is not None:
        translation.left_out.append(f"datasets.type: {brief(kind)} (name the columns in data yourself)")
    source.pop("ds_type", None)
    translation.left_out += [f"datasets.{key}: {brief(value)}" for key, value in source.items() if value is not None]
    return section


def read_llama_factory(given: dict[str, Any], translation: Translation, folder: Path) -> None:
    """Translate the data of a LLaMA-Factory config, whose datasets are described in a file beside it."""
    data, training = translation.values["data"], translation.values["training"]
    names = take(given, "dataset")
    names = names.split(",") if isinstance(names, str) else list(names or [])
    place = Path(str(given.get("dataset_dir", "data")))
    candidates = [place / "dataset_info.json", folder / place / "dataset_info.json", folder / "dataset_info.json"]
    path = next((one for one in candidates if one.is_file()), None)
    known = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    plain = given.get("stage") == "pt"
    sections = [_llama_factory_data(n, known.get(n), path, translation, plain=plain) for n in map(str.strip, names)]
    add_sources(data, sections, translation.left_out)
    _mixture(given, len(sections), translation)
    set_given(data, "max_length", take(given, "cutoff_len"))
    if given.get("max_samples") and len(sections) > 1:
        translation.remarks.append("max_samples counts the rows of each dataset, data.subsample those of all together.")
    set_given(data, "subsample", take(given, "max_samples"))
    share = take(given, "val_size")
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


def _mixture(given: dict[str, Any], sources: int, translation: Translation) -> None:
    """Keep the probabilities of the sources for `balora init`, which counts their rows."""
    strategy, given_values = take(given, "mix_strategy"), take(given, "interleave_probs")
    if sources < 2 or strategy in (None, "concat") or given_values is None:
        return
    values = given_values.split(",") if isinstance(given_values, str) else list(given_values)
    if len(values) == sources == 1 + len(translation.values["data"].get("also", ())):
        translation.probabilities = [float(value) for value in values]
    else:
        translation.left_out.append(f"interleave_probs: {brief(given_values)}")


def _llama_factory_data(
    name: str, entry: Any, path: Path | None, translation: Translation, *, plain: bool
) -> dict[str, Any]:
    if not isinstance(entry, dict):
        translation.remarks.append(
            f"dataset: {name} is described in LLaMA-Factory's dataset_info.json, which was not found; it is taken for a hub id "
            "or a file."
        )
        if plain:
            translation.text = "text"
        return {"train": name}
    assert path is not None
    file = entry.get("file_name")
    section: dict[str, Any] = {"train": str(path.parent / file) if file else entry.get("hf_hub_url", name)}
    set_given(section, "split", entry.get("split"))
    set_given(section, "name", entry.get("subset"))
    columns = entry.get("columns", {})
    if plain:
        section["text"] = columns.get("prompt", "text")
    elif entry.get("formatting") == "sharegpt":
        section["messages"] = columns.get("messages", "conversations")
        for kind in ("tools", "system"):
            set_given(section, kind, columns.get(kind))
        tags = entry.get("tags") or {}
        named = {"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag", "tool": "observation_tag"}
        set_given(section, "roles", roles_by_name({role: tags.get(tag) for role, tag in named.items()}) or None)
        keys = {part: tags[f"{part}_tag"] for part in ("role", "content") if f"{part}_tag" in tags}
        translation.left_out += [f"tags of {name}: {key}" for key in unknown_message_keys(keys)]
    else:
        section |= {"prompt": columns.get("prompt", "instruction"), "response": columns.get("response", "output")}
        further = columns.get("query", "input")
        section |= {"input": further, "prompt_template": "alpaca"} if further else {}
    return section


def read_trl(given: dict[str, Any], translation: Translation, folder: Path) -> None:
    """Translate the data of a TRL config."""
    data = translation.values["data"]
    mixture = take(given, "datasets")
    if isinstance(mixture, list) and mixture:
        sections = [
            {"train": source.get("data_files") or source.get("path")}
            | {key: source[key] for key in ("name", "split") if source.get(key)}
            for source in mixture
        ]
        add_sources(data, sections, translation.left_out)
    set_given(data, "train", take(given, "dataset_name"))
    set_given(data, "name", take(given, "dataset_config"))
    set_given(data, "split", take(given, "dataset_train_split"))
    test = take(given, "dataset_test_split")
    if given.get("eval_strategy", "no") != "no" and not given.get("test_split_size"):
        data["eval"] = test or "test"
    data["max_length"] = take(given, "max_length", "max_seq_length") or 1024
    field = take(given, "dataset_text_field")
    if field and field != "text":
        data["text"] = field
    translation.text = field
    share = take(given, "test_split_size")
    if share and "eval" not in data:
        data["eval"] = float(share)
    template = take(given, "chat_template_path")
    if not given.get("assistant_only_loss") and not given.get("completion_only_loss"):
        translation.remarks.append(
            "TRL learns every token of a conversation unless assistant_only_loss is on; balora learns the assistant's messages."
        )
    set_given(data, "chat_template", template if template and Path(str(template)).is_file() else None)
