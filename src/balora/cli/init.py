"""`balora init`: a commented config from data."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from balora.cli.screen import say
from balora.errors import BALoraError

CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Small model to try a generation task with."""
CLASSIFIER = "distilbert/distilbert-base-uncased"
"""Small model to try a classification or regression task with."""
_CHARACTERS_PER_TOKEN = 3.5
_LENGTHS = (128, 256, 512, 1024, 2048)
_SHOWN_CLASSES = 8
_HOLD_OUT_FROM = 40
_ANCHOR_HINT = "anchor: generated      # hold what the model knew, on text that it writes itself; no data is needed"
"""Rows from which some of them are kept for evaluation."""


def init(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="File, folder or hub id. Default: the only data file in this folder.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of the config, such as data.prompt=question; they win over what is detected.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Hub id or folder of the model to train.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Config to write.")] = Path("run.yaml"),
    theirs: Annotated[
        Path | None,
        typer.Option("--from", help="Translate a config of TRL, axolotl or LLaMA-Factory.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the config if it exists.")] = False,
) -> None:
    """Write a commented config for DATA: its columns, its form (chat, prompt and response, classes, ...) and the task."""
    if data is not None and "=" in data and not Path(data).exists():  # balora init data.prompt=question
        overrides, data = [data, *(overrides or [])], None
    if output.exists() and not force:
        raise BALoraError(f"{output} exists already. Give another name (--output), or --force to overwrite it.")
    if theirs is not None:
        from balora.cli.init_from import translated

        values, said, hints = translated(theirs, data, overrides or [], model)
    else:
        values, said, hints = _values(data or _only_file(), overrides or [], model)
    from balora.config.run_config import RunConfig
    from balora.config.scaffold import render
    from balora.config.schema import FILE as SCHEMA
    from balora.config.schema import config_schema
    from balora.config.yaml_loader import parse_yaml
    from balora.files import write_text

    name = shlex.quote(str(output))
    heading = [
        f"yaml-language-server: $schema={SCHEMA}",
        f"Written by `balora init`. {said[0]}",
        f"Check: balora validate {name}    Look: balora inspect {name}    Train: balora train {name}",
    ]
    text = render(values, heading, hints)
    RunConfig.from_dict(parse_yaml(text), source=f"The config for {theirs or data or 'the data'}")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    write_text(output.with_name(SCHEMA), json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n")
    say("\n".join([*said, f"Wrote {output}, and {SCHEMA} for editors. Next:"]))
    for command, purpose in (
        (f"balora inspect {name}", "the rows as the model sees them"),
        (f"balora train {name}", "train"),
    ):
        say(f"  {command:<32} # {purpose}")


def _only_file() -> str:
    """Return the only data file of the current folder."""
    from balora.data.files.readers import is_data_file

    files = sorted(path.name for path in Path().iterdir() if path.is_file() and is_data_file(path))
    train = [name for name in files if "train" in name.lower()]
    found = train if len(train) == 1 else files
    if len(found) == 1:
        return found[0]
    choices = f" There are {', '.join(files[:6])}." if files else ""
    raise BALoraError(f"Name the data: balora init DATA, where DATA is a file, a folder or a hub id.{choices}")


def _values(
    name: str, overrides: Sequence[str], model: str | None
) -> tuple[dict[str, Any], list[str], dict[str, list[str]]]:
    """Return the values of the config, sentences about what was found, and comments by section."""
    from balora.config.yaml_loader import apply_overrides
    from balora.data.conversations.completion import COLUMN_KEYS, sample_of, task_for
    from balora.data.detection import detect
    from balora.errors import suggest_path

    given = apply_overrides({}, overrides)
    own: dict[str, Any] = given["data"] if isinstance(given.get("data"), dict) else {}
    table = sample_of(name, own.get("name"), own.get("split"), limit=None)
    if table is None:
        raise BALoraError(f"There is no file or folder {name}.{suggest_path(Path(name))}")
    columns = {key: own[key] for key in COLUMN_KEYS if own.get(key) is not None}
    found = [] if columns else detect(table.columns, table.rows)
    if not columns and not found:
        raise BALoraError(_unrecognised(name, table.columns, table.rows))
    said = [f"{len(table.rows):,} rows in {name}: " + (found[0].describe() if found else "columns as given") + "."]
    said += [f"It can also be read as {form.describe()}; to choose that, give these keys." for form in found[1:]]
    keys = {**(dict(found[0].keys) if found else columns), **own}
    form = found[0].form if found else None
    task = given.get("task") or (_task_of(columns) if form is None else None)
    if task is None:
        task = task_for(found[0], model, guess=True)
    is_text = task in ("generation", "seq2seq")
    if task == "seq2seq" and form == "messages":
        raise BALoraError(f"{model} is an encoder-decoder, which cannot learn from conversations. Use a causal model.")
    chosen = model or (CHAT_MODEL if is_text else CLASSIFIER)
    said.append(f"Task: {task}. Model: {chosen}" + ("" if model else ", a small one to try; choose with --model") + ".")
    used = [value for key in (*COLUMN_KEYS, "input") for value in _columns(keys.get(key))]
    classes = _classes(table.rows, keys.get("label"), table.class_names)
    said += [classes] if classes else []
    section: dict[str, Any] = {"train": name, **keys}
    if form == "messages" and model is not None and "chat_template" not in own and _lacks_chat_template(model):
        section["chat_template"] = "zephyr"
        said.append(f"{model} has no chat template, so data.chat_template is zephyr.")
    section.setdefault("max_length", _length(table.rows, used))
    evaluation = own.get("eval") or _evaluation(name, len(table.rows))
    if evaluation is not None:
        section["eval"] = evaluation
    said += [f"Evaluation: {_describe_eval(evaluation)}."]
    values: dict[str, Any] = {
        "model": chosen,
        "task": task,
        "data": section,
        "method": {"name": "balora", "rank": 32 if is_text else 8},
        "training": _training(len(table.rows), is_text, evaluation is not None),
        "output": f"runs/{Path(name.rstrip('/')).name.partition('.')[0] or 'run'}",
    }
    hints = {
        "method": ["target_modules: all-linear    # or a list, such as [q_proj, v_proj]"],
        "training": ["bf16: true                    # on a GPU that has it"],
        "": [
            *([_ANCHOR_HINT] if is_text else []),
            "regularization: off    # plain PiSSA; or the weights, such as {consistency: 0.025}",
        ],
    }
    return apply_overrides(values, overrides), said, hints


def _task_of(columns: Mapping[str, Any]) -> str:
    return "classification" if "label" in columns else "regression" if "score" in columns else "generation"


def _columns(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _lacks_chat_template(model: str) -> bool:
    """Return whether a local model has a tokenizer without a chat template; False for a hub id, which is not loaded here."""
    from balora.data.conversations.chat_templates import has_chat_template

    folder = Path(model).expanduser()
    return (folder / "tokenizer_config.json").is_file() and not has_chat_template(folder)


def _unrecognised(name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    shown = "; ".join(f"{column} ({_short(rows[0].get(column))})" for column in columns[:8] if column)
    return (
        f"The form of {name} is not clear. Its columns, with the first row: {shown}. Say what they are, such as "
        f"`balora init {shlex.quote(name)} data.prompt=COLUMN data.response=COLUMN`, or data.text and data.label, or "
        "data.messages."
    )


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 30 else text[:27] + "..."


def _classes(rows: Sequence[Mapping[str, Any]], label: Any, declared: Mapping[str, Sequence[str]]) -> str | None:
    """Count the classes, the most frequent first."""
    if not isinstance(label, str):
        return None
    counts = Counter(row[label] for row in rows if row.get(label) is not None)
    names = declared.get(label)
    shown = [
        f"{names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value} {count:,}"
        for value, count in counts.most_common(_SHOWN_CLASSES)
    ]
    more = f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    return f"Classes: {', '.join(shown)}{more}."


def _length(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """Estimate a maximum length that cuts about one row in a hundred, from the characters of the rows."""
    sizes = sorted(sum(_characters(row.get(column.partition("[")[0])) for column in columns) for row in rows)
    tokens = sizes[int(0.99 * (len(sizes) - 1))] / _CHARACTERS_PER_TOKEN if sizes else 0
    return next((length for length in _LENGTHS if tokens <= length), _LENGTHS[-1])


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(item) + 4 for item in value.values())
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 4


def _evaluation(name: str, rows: int) -> str | float | None:
    """Choose the rows to evaluate on: a split of the same folder, a file beside the data, or a part of the rows."""
    from balora.data.files.folders import files_by_split

    path = Path(name).expanduser()
    if path.is_dir() and not (path / "dataset_dict.json").is_file() and not (path / "state.json").is_file():
        splits = files_by_split(path)
        return "validation" if "validation" in splits else _fraction(rows)
    if path.is_file() and "train" in path.name:
        for other in ("validation", "valid", "val", "dev", "eval"):
            beside = path.with_name(path.name.replace("train", other))
            if beside.is_file():
                return str(beside)
    return _fraction(rows)


def _fraction(rows: int) -> float | None:
    if rows < _HOLD_OUT_FROM:
        return None
    return 0.1 if rows < 2000 else 0.05 if rows < 20_000 else 0.01


def _describe_eval(evaluation: Any) -> str:
    if evaluation is None:
        return f"none, because there are fewer than {_HOLD_OUT_FROM} rows"
    return f"{evaluation:.0%} of the rows, kept apart" if isinstance(evaluation, float) else f"the rows of {evaluation}"


def _training(rows: int, is_text: bool, evaluates: bool) -> dict[str, Any]:
    epochs = 3 if rows < 20_000 else 1
    batch, accumulation = (4, 4) if is_text else (16, 1)
    steps = epochs * -(-rows // (batch * accumulation))
    return {
        "learning_rate": 1e-4,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        **({"logging_steps": max(1, steps // 10)} if steps < 100 else {}),
        "save_strategy": "epoch",
        **({"eval_strategy": "epoch"} if evaluates else {}),
    }
