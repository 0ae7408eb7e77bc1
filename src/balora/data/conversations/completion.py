"""Fill in the columns and the task that a config leaves out, where the data leave no doubt.

``data: {train: chat.jsonl}`` is then enough. This works on a config's plain values, before they are checked, and imports
neither torch nor transformers.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.data.detection import Detected, detect
from balora.data.files.hub import load_hub_dataset, looks_local
from balora.data.files.readers import COMPRESSIONS, ENDINGS, SPLIT_NAMES, data_suffix, read_splits
from balora.data.files.tables import Table, row_locations
from balora.errors import BALoraError
from balora.files import read_json

COLUMN_KEYS = ("prompt", "response", "messages", "text", "label", "score")
"""Keys of the ``data`` section that decide the form of an example."""
SAMPLE = 1000
"""Rows that are read to recognise the form."""
_TASKS = {"generation": ("pair", "messages", "text"), "seq2seq": ("pair", "labelled", "scored")}
_SEQ2SEQ_NAME = re.compile(
    r"(^|[/_-])(m?t5|byt5|flan|ul2|m?bart|marian|opus-mt|nllb|m2m|pegasus|prophetnet|led)\b", re.I
)


def complete(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a config's values with the columns and the task that they leave out, and sentences that say what was filled in.

    The values stay as they are if they name a column, if there is nothing to read, or if no form is recognised: the checks of
    the config then say what is missing.

    Raises:
        BALoraError: The data can have several forms.
    """
    completed, data = dict(values), values.get("data")
    if isinstance(data, str):  # data: chat.jsonl
        data = completed["data"] = {"train": data}
    if not isinstance(data, Mapping) or any(data.get(key) is not None for key in (*COLUMN_KEYS, "also")):
        return completed, []
    names = data.get("train") if isinstance(data.get("train"), list) else [data.get("train")]
    if not names or not isinstance(names[0], str):
        return completed, []
    split = data.get("split") if isinstance(data.get("split"), str) else None
    table = sample_of(names[0], data.get("name"), split, limit=SAMPLE)
    if table is None:
        return completed, []
    task = values.get("task")
    found = [form for form in detect(table.columns, table.rows) if _fits(form, task)]
    if not found:
        columns = ", ".join(filter(None, table.columns))
        return completed, [f"The form of {names[0]} was not recognised; its columns are {columns}."]
    if len(found) > 1:
        choices = "; or ".join(form.describe() for form in found)
        raise BALoraError(f"{names[0]} can be read in several ways, so name the columns in data: {choices}.")
    form = found[0]
    completed["data"] = {**data, **_keys(form, data)}
    said = [f"Data: {form.describe()}."]
    if task is None:
        chosen = task_for(form, values.get("model"))
        if chosen is not None:
            completed["task"] = chosen
            said.append(f"Task: {chosen}.")
    return completed, said


def _fits(form: Detected, task: Any) -> bool:
    return task is None or form.form in _TASKS.get(task, (form.form if form.task == task else None,))


def _keys(form: Detected, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a form that the section does not have; a template of the user's own decides about the input."""
    keys = {key: value for key, value in form.keys.items() if data.get(key) is None}
    template = data.get("prompt_template")
    if isinstance(template, str) and template != "alpaca" and "{input}" not in template:
        keys.pop("input", None)
    return keys


def task_for(form: Detected, model: Any, *, guess: bool = False) -> str | None:
    """Return the task of a form with a model: seq2seq for an encoder-decoder. None if the model cannot be known.

    A local model's config says what it is. For a hub id its name raises a doubt, which ``guess`` resolves to seq2seq.
    """
    if form.form in ("messages", "text") or not isinstance(model, str):
        return form.task
    config = Path(model).expanduser() / "config.json"
    if config.is_file():
        return "seq2seq" if read_json(config).get("is_encoder_decoder") else form.task
    if _SEQ2SEQ_NAME.search(model):
        return "seq2seq" if guess else None
    return form.task


def sample_of(
    name: str, configuration: str | None = None, split: str | None = None, *, limit: int | None = SAMPLE
) -> Table | None:
    """Read the first rows of a source; None if it is missing or not a kind that can be looked into quickly.

    Args:
        name: File, folder or hub id, as in ``data.train``.
        configuration: Configuration of a hub dataset.
        split: Split expression; its slice is ignored.
        limit: Number of rows; None for all.

    Raises:
        BALoraError: A file is broken, or a hub dataset cannot be loaded.
    """
    wanted = (split or "train").partition("[")[0] or "train"
    if not looks_local(name, ENDINGS):
        if "://" in name:
            return None
        dataset = load_hub_dataset(name, configuration, wanted if limit is None else f"{wanted}[:{limit}]")
        classes = {
            column: tuple(feature.names) for column, feature in dataset.features.items() if hasattr(feature, "names")
        }
        title = f"{name} ({wanted})"
        rows = dataset.to_list()
        return Table(title, tuple(dataset.column_names), rows, row_locations(title, len(rows)), classes)
    path = Path(name).expanduser()
    if path.is_file():
        table = _first_lines(path, limit) if limit is not None else None
        if table is None:
            splits = read_splits(path)
            table = splits.get(SPLIT_NAMES.get(wanted, wanted)) or next(iter(splits.values()))
    elif path.exists() or "*" in name or "?" in name:
        from balora.data.files.sources import open_source  # imports datasets, which takes a second

        table = open_source(name, configuration).read(wanted)
    else:
        return None
    if limit is None:
        return table
    count = min(limit, len(table.rows))
    return Table(
        table.name, table.columns, list(table.rows[:count]), table.locations[:count], table.class_names, table.mixed
    )


def _first_lines(path: Path, limit: int) -> Table | None:
    """Read the first lines of a plain file of JSON lines; None for any other file, and for lines that `read_splits` must judge."""
    if data_suffix(path.name) not in (".jsonl", ".ndjson") or path.name.lower().endswith(COMPRESSIONS):
        return None
    try:
        with path.open(encoding="utf-8-sig") as file:
            rows = [json.loads(line) for line in itertools.islice(filter(str.strip, file), limit)]
    except (OSError, ValueError, RecursionError):
        return None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return Table(str(path), _columns(rows), rows, row_locations(str(path), len(rows)))


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows for key in row))
