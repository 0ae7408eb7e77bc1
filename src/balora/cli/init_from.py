"""`balora init --from`: a config of TRL, axolotl or LLaMA-Factory in balora's keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balora.config.foreign import translate
from balora.config.translation import Translation
from balora.config.yaml_loader import apply_overrides, read_config
from balora.errors import BALoraError


def translated(
    path: Path, data: str | None, overrides: Sequence[str], model: str | None
) -> tuple[dict[str, Any], list[str], dict[str, list[str]]]:
    """Return the values of a config, sentences about the translation, and comments by section.

    Args:
        path: Config of the other tool, in YAML or JSON.
        data: Data in place of those that the config names.
        overrides: Keys that win over the translation.
        model: Model in place of the one that the config names.
    """
    from balora.data.conversations.completion import COLUMN_KEYS, task_for

    given = read_config(path)
    if data is not None:
        given = (
            {**given, "dataset_name": data} if "base_model" not in given else {**given, "datasets": [{"path": data}]}
        )
        given = {key: value for key, value in given.items() if key != "dataset"}
    try:
        found = translate(given, path.parent)
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # the values may be of any kind
        reason = " ".join(str(error).split())[:200]
        raise BALoraError(f"{path} has a value of another kind than its tool takes ({reason}). Correct it.") from error
    values = found.values
    values["model"] = model or values["model"]
    section: dict[str, Any] = values["data"]
    said = [f"{path} is a config of {found.tool}."]
    form = None
    if not any(section.get(key) for key in COLUMN_KEYS):
        form = _detected(found)
    if found.probabilities is not None:
        _weigh(found)
    values["task"] = "generation" if form is None else task_for(form, values["model"], guess=True)
    values = apply_overrides(
        {key: values[key] for key in ("model", "task", *(k for k in values if k not in ("model", "task")))}, overrides
    )
    values = {key: value for key, value in values.items() if value != {}}
    said += found.remarks
    if found.left_out:
        said += ["Not translated:", *(f"  {line}" for line in found.left_out)]
    hints = {
        "method": ["name: balora    # BA-LoRA instead: remove alpha, and compare with `balora compare`"],
        "": [f"not translated: {line}" for line in found.left_out],
    }
    return values, said, hints


def _weigh(found: Translation) -> None:
    """Turn the probabilities of the sources into weights of their rows, which are counted for that."""
    from balora.config.foreign_data import weights_of
    from balora.data.conversations.completion import sample_of

    assert found.probabilities is not None
    section = found.values["data"]
    sources = [section, *section.get("also", ())]
    given = ", ".join(f"{probability:g}" for probability in found.probabilities)
    try:
        tables = [sample_of(s["train"], s.get("name"), s.get("split"), limit=None) for s in sources]
        if not all(tables):
            raise BALoraError("a source was not found")
    except BALoraError as error:
        found.left_out.append(f"interleave_probs: {given} (the rows could not be counted: {error})")
        return
    weights = weights_of(found.probabilities, [len(table.rows) for table in tables if table is not None])
    for source, weight in zip(sources[1:], weights[1:], strict=True):
        source["weight"] = weight
    found.remarks.append(
        f"interleave_probs: {given} became data.also.weight, relative to a row of the first source; an epoch takes every row of "
        "the first source once."
    )


def _detected(found: Translation) -> Any:
    """Read the columns off the data, and write them into the translation; a form that is not clear becomes a remark."""
    from balora.data.conversations.completion import sample_of
    from balora.data.detection import detect

    section = found.values["data"]
    name = section["train"] if isinstance(section["train"], str) else section["train"][0]
    try:
        table = sample_of(name, section.get("name"), section.get("split"))
        forms = detect(table.columns, table.rows) if table is not None else []
    except BALoraError as error:
        forms = []
        found.remarks.append(f"The data were not looked at: {error}")
    if len(forms) == 1:
        section |= forms[0].keys
        found.remarks.append(f"Data: {forms[0].describe()}.")
        return forms[0]
    if found.text is not None and not forms:
        section["text"] = found.text
        return None
    section["messages"] = "messages"
    found.remarks.append("data.messages: messages is a guess; name the columns that the data have.")
    return None
