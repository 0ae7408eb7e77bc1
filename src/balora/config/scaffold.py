"""Write the values of a config as YAML with a comment beside each key, for `balora init`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from balora.config.yaml_loader import parse_yaml

WIDTH = 100
"""Columns of a line with its comment; a longer comment goes above its key."""
_COMMENTS = {
    "model": "a hub id or a folder",
    "task": "generation | seq2seq | classification | regression",
    "data.train": "a file, a folder, a hub id, or a list of them",
    "data.messages": "column of the conversations; the assistant's messages are learnt",
    "data.prompt": "column of the prompt, which is not learnt",
    "data.input": "column of further input for the template",
    "data.response": "column of the response, which is learnt",
    "data.prompt_template": "none, alpaca, or a text with {prompt}",
    "data.chat_template": "writes conversations as text; for a model without a template of its own",
    "data.text": "column of the text, or a list of two",
    "data.label": "column of the class",
    "data.score": "column of the number to predict",
    "data.max_length": "tokens of an example at most; longer ones are cut",
    "data.eval": "rows to evaluate on: a fraction of the rows, a split, or a file",
    "method.name": "see `balora methods`; lora and pissa are the baselines",
    "method.rank": "size of the adapter",
    "method.alpha": "the scaling is alpha / rank",
    "regularization": "changes to the paper's values, or on, or off",
    "early_stopping": "evaluations without a better score after which the run stops",
    "training": "any field of transformers.TrainingArguments",
    "training.per_device_train_batch_size": "examples on a device at a time",
    "training.gradient_accumulation_steps": "batches that make one step",
    "training.logging_steps": "steps between two lines with the loss",
    "output": "the run directory",
}


def render(values: Mapping[str, Any], heading: Sequence[str], hints: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return a config as YAML text.

    Args:
        values: Plain values of the config. Sections are mappings.
        heading: Lines of comment at the top, without the number sign.
        hints: Lines of comment to put after the keys of a section, by its key; ``""`` stands for the end of the file.

    Example:
        >>> print(render({"model": "m", "data": {"train": "d.jsonl"}}, ["A run."]))
        # A run.
        <BLANKLINE>
        model: m  # a hub id or a folder
        <BLANKLINE>
        data:
          train: d.jsonl  # a file, a folder, a hub id, or a list of them
        <BLANKLINE>
    """
    hints = hints or {}
    lines = [f"# {line}".rstrip() for line in heading] + [""]
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += ["", *_line("", key, None, _COMMENTS.get(key, ""), section=True)]
            for name, item in value.items():
                lines += _line("  ", name, item, _COMMENTS.get(f"{key}.{name}", ""))
            lines += [f"  # {hint}" for hint in hints.get(key, ())]
            lines.append("")
        else:
            lines += _line("", key, value, _COMMENTS.get(key, ""))
    lines += [f"# {hint}" for hint in hints.get("", ())]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n") + "\n"


def _line(indent: str, key: str, value: Any, comment: str, *, section: bool = False) -> list[str]:
    line = f"{indent}{scalar(key)}:" if section else f"{indent}{scalar(key)}: {scalar(value)}"
    if not comment:
        return [line]
    if len(line) + len(comment) + 4 <= WIDTH:
        return [f"{line}  # {comment}"]
    return [f"{indent}# {comment}", line]


def scalar(value: Any) -> str:
    """Write one value in YAML's flow style, so that `parse_yaml` reads the same value.

    Example:
        >>> scalar("2e-5"), scalar(2e-05), scalar(["a", "b: c"])
        ('"2e-5"', '2.0e-05', "[a, 'b: c']")
    """
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("...").rstrip("\n")
    if "\n" not in text and parse_yaml(text) == value:
        return text
    return json.dumps(value, ensure_ascii=False)  # PyYAML follows YAML 1.1, where other texts need quotation marks
