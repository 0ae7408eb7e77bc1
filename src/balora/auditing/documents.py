"""Rows of an audit from a file, folder or hub dataset, read by the code that reads training data."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from balora.config.run_config import RunConfig
from balora.config.sections import DataConfig
from balora.data.examples import load_examples
from balora.data.files.paragraphs import read_paragraphs
from balora.data.files.sources import open_source
from balora.data.streaming import load_run_examples
from balora.data.tokenize import tokenize_examples
from balora.errors import BALoraError
from balora.evaluation.model_under_test import LoadedModel
from balora.loading.pretrained import max_positions

logger = logging.getLogger("balora")
_FORMS: dict[str, tuple[dict[str, str], ...]] = {
    "classification": tuple(
        {"text": text, "label": label}
        for text in ("text", "sentence", "review", "content") for label in ("label", "labels", "class", "sentiment")
    ),
    "pair": (
        {"prompt": "prompt", "response": "response"},
        {"prompt": "prompt", "response": "completion"},
        {"prompt": "instruction", "input": "input", "response": "output"},
        {"prompt": "instruction", "response": "output"},
        {"prompt": "instruction", "response": "response"},
        {"prompt": "question", "response": "answer"},
        {"prompt": "source", "response": "target"},
    ),
    "text": ({"text": "text"}, {"text": "content"}, {"text": "story"}, {"text": "document"}),
    "messages": ({"messages": "messages"}, {"messages": "conversations"}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of tokens with their source."""

    rows: list[dict[str, Any]]
    source: str
    classes: tuple[str, ...] | None = None
    wrong: tuple[bool, ...] | None = None
    """Whether ``data.label_noise`` changed the label of a row; None if it is not known."""


def read_rows(
    path: str, columns: Mapping[str, str], loaded: LoadedModel, *, tokens: int, count: int, seed: int, flag: str
) -> Rows:
    """Read rows in the form that a model's task needs, and draw ``count`` of them.

    Raises:
        BALoraError: The file cannot be read, or its columns are not known; the message names ``flag``.
    """
    try:
        data = _data_config(path, columns, loaded, tokens)
        return _tokenized(data, loaded, count, seed, flag=flag)
    except BALoraError as error:
        text = str(error).replace("data.train", flag)
        raise BALoraError(f"{flag} {path}: {text}" if path not in text else f"{flag}: {text}") from error


def run_rows(config: RunConfig, loaded: LoadedModel, *, count: int, seed: int, evaluation: bool = False) -> Rows:
    """Read the training rows of a run as it saw them, or its evaluation rows, which ``data.eval`` must name."""
    return _tokenized(config.data, loaded, count, seed, run_seed=config.seed, evaluation=evaluation)


def _tokenized(
    data: DataConfig,
    loaded: LoadedModel,
    count: int,
    seed: int,
    *,
    run_seed: int = 42,
    evaluation: bool = False,
    flag: str | None = None,
) -> Rows:
    """Tokenize rows as training does, and draw ``count``; messages name ``flag`` if the rows are not those of a run."""
    task = loaded.task
    head = list(loaded.labels) if loaded.labels and task == "classification" else None
    examples = load_run_examples(data, task, run_seed, head=head)
    wrong: list[bool] | None = None
    if data.label_noise and not evaluation:
        clean = load_examples(data.model_copy(update={"label_noise": 0.0}), task, run_seed, head=head)
        # A repeated row repeats its wrong label, and the same rows are repeated without noise.
        wrong = [a != b for a, b in zip(examples.train, clean.train, strict=True)]
    positions = max_positions(loaded.model.config)  # type: ignore[arg-type]
    with _other_words(flag):
        tokenized = tokenize_examples(
            examples, loaded.tokenizer, data, task, target_tokenizer=loaded.target_tokenizer, max_positions=positions
        )
    table = tokenized.eval if evaluation else tokenized.train
    assert table is not None, "the run names evaluation rows"
    if wrong is not None and len(table) != len(wrong):
        wrong = None  # rows were left out, so the numbers do not fit
    chosen = sorted(random.Random(f"audit {seed}").sample(range(len(table)), min(count, len(table))))
    rows = [{name: value for name, value in table[i].items() if value is not None} for i in chosen]
    flags = None if wrong is None else tuple(wrong[i] for i in chosen)
    source = (examples.eval_source if evaluation else None) or examples.train_source
    return Rows(rows, source, examples.label_names, flags)


@contextlib.contextmanager
def _other_words(flag: str | None) -> Iterator[None]:
    """Let messages about rows that were cut or left out name the option of an audit, which is no training."""

    def rename(record: logging.LogRecord) -> bool:
        text = record.getMessage().replace(" training ", " ").replace("data.max_length", limit)
        record.msg, record.args = f"{flag}: {text}", ()
        return True

    limit = "--tokens" if flag == "--text" else "the limit for training data"
    if flag is not None:
        logger.addFilter(rename)
    try:
        yield
    finally:
        logger.removeFilter(rename)


def _data_config(path: str, columns: Mapping[str, str], loaded: LoadedModel, tokens: int) -> DataConfig:
    values: dict[str, Any] = dict(columns)
    if Path(path).suffix.lower() == ".txt":
        raise BALoraError("a .txt file has no columns.")
    if "text_pair" in values:
        values["text"] = (values.get("text", "text"), values.pop("text_pair"))
    named = [key for key in values if key not in ("prompt_template", "separator")]
    if not named:
        values |= _guess(path, loaded.task)
    return DataConfig.model_validate({"train": path, "max_length": tokens, **values})


def _guess(path: str, task: str) -> dict[str, str]:
    """Find the columns by their names."""
    every = {column for form in _FORMS.values() for columns in form for column in columns.values()}
    known = open_source(path, None, every).read("train").columns
    kinds = {"generation": ("messages", "pair", "text"), "seq2seq": ("pair",)}.get(task, ("classification",))
    for kind in kinds:
        for columns in _FORMS[kind]:
            if all(column in known for column in columns.values()):
                return columns
    wanted = {"generation": "text, prompt and response, or messages", "seq2seq": "prompt and response"}.get(
        task, "text and label"
    )
    raise BALoraError(
        f"the columns of {wanted} were not found among {', '.join(known)}. Name them: --columns ROLE=COLUMN (for training data "
        "--data-columns), such as text=body."
    )


def read_documents(
    path: str, columns: Mapping[str, str], loaded: LoadedModel, *, tokens: int, count: int, seed: int
) -> Rows:
    """Read documents for a causal or encoder-decoder model; of a causal model's documents every token counts."""
    if loaded.task == "generation" and Path(path).suffix.lower() == ".txt":
        return _paragraphs(path, loaded, tokens, count, seed)
    found = read_rows(path, columns, loaded, tokens=tokens, count=count, seed=seed, flag="--text")
    rows = found.rows
    if loaded.task == "generation":
        rows = [{"input_ids": list(row["input_ids"])} for row in rows if len(row["input_ids"]) >= 2]
    if not rows:
        raise BALoraError(f"--text {path} has no document of two tokens or more.")
    return dataclasses.replace(found, rows=rows)


def _paragraphs(path: str, loaded: LoadedModel, tokens: int, count: int, seed: int) -> Rows:
    file = Path(path).expanduser()
    if not file.is_file():
        raise BALoraError(f"There is no file {path} (--text).")
    positions = max_positions(loaded.model.config)  # type: ignore[arg-type]
    limit = min(tokens, positions or tokens)
    texts = read_paragraphs(file)
    rows = [list(loaded.tokenizer(text, verbose=False)["input_ids"])[:limit] for text in texts]
    rows = [row for row in rows if len(row) >= 2]
    if not rows:
        raise BALoraError(f"--text {path} has no text in it.")
    chosen = sorted(random.Random(f"audit {seed}").sample(range(len(rows)), min(count, len(rows))))
    return Rows([{"input_ids": rows[i]} for i in chosen], path)
