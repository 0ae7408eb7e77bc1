"""Recognise the form of a data set from its columns and rows: conversations, prompt and response, classes, scores or text.

`detect` returns every form that the data can have. Only one means that the form is unmistakable.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from balora.config.data_columns import Form
from balora.data.conversations.messages import chat_style
from balora.data.files.tables import Row
from balora.data.values import is_missing

_CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
_PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("instruction", ("output", "response", "completion", "answer")),
    ("prompt", ("response", "completion", "output", "answer")),
    ("question", ("answer", "response")),
    ("query", ("response", "answer")),
    ("input", ("output", "response", "target")),
    ("problem", ("solution", "answer")),
    ("source", ("target",)),
    ("article", ("highlights", "summary")),
    ("document", ("summary",)),
    ("dialogue", ("summary",)),
)
"""Names of the columns of prompts, each with the names of its responses."""
_FURTHER_INPUT = ("input", "context")
_TEXT_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("text", "text_pair")),
)
_TEXTS = ("text", "sentence", "content", "review", "tweet", "utterance", "comment")
_PLAIN_TEXTS = ("text", "content", "story", "document")
_LABELS = ("label", "labels", "class", "category", "intent", "emotion", "sentiment", "target", "gold_label")
_SCORES = ("score", "similarity", "similarity_score")
_MOST_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Detected:
    """One form that the data can have."""

    form: Form
    name: str
    """Name of the form, as users know it: OpenAI, ShareGPT, Alpaca, and so on."""
    keys: Mapping[str, Any]
    """Keys of the ``data`` section that say so."""

    @property
    def task(self) -> str:
        """Task that the form is usually for, with a model that is no encoder-decoder."""
        return {"labelled": "classification", "scored": "regression"}.get(self.form, "generation")

    def describe(self) -> str:
        """Describe the form and its columns in a few words.

        Example:
            >>> Detected("pair", "prompt and response", {"prompt": "q", "response": "a"}).describe()
            'prompt and response (data.prompt: q, data.response: a)'
        """
        columns = {key: value for key, value in self.keys.items() if key != "prompt_template"}
        shown = (f"data.{key}: {value if isinstance(value, str) else list(value)}" for key, value in columns.items())
        return f"{self.name} ({', '.join(shown)})".replace("'", "")


def detect(columns: Sequence[str], rows: Sequence[Row]) -> list[Detected]:
    """Return the forms that rows with these columns can have, the likeliest first; an empty list if none is known.

    Example:
        >>> rows = [{"instruction": "Add.", "input": "2, 2", "output": "4"}]
        >>> [found.describe() for found in detect(["instruction", "input", "output"], rows)]
        ['Alpaca instructions (data.prompt: instruction, data.input: input, data.response: output)']
        >>> detect(["a", "b"], [{"a": "x", "b": "y"}])
        []
    """
    by_name = {str(name).strip().lower(): name for name in reversed(columns) if name}
    values = {name: [row[name] for row in rows if not is_missing(row.get(name))] for name in columns}
    chats = _conversations(by_name, values)
    if chats:
        return chats
    found = [form for form in (_pair(by_name, values), _labelled(by_name, values)) if form is not None]
    if found:
        return found
    text = next((by_name[name] for name in _PLAIN_TEXTS if _is_text(by_name, values, name)), None)
    if any(values.get(by_name.get(name, "")) for name in (*_LABELS, *_SCORES)):
        return []  # plain text would leave out labels that are no classes, such as lists or a different name in every row
    return [] if text is None else [Detected("text", "plain text", {"text": text})]


def _conversations(by_name: Mapping[str, str], values: Mapping[str, Sequence[Any]]) -> list[Detected]:
    """Return the columns whose values are all conversations; of several, those with a usual name."""
    styles: dict[str, str] = {}
    for column, given in values.items():
        found = {chat_style(value) for value in given}
        if given and None not in found:
            styles[column] = " and ".join(sorted(str(style) for style in found))
    usual = [by_name[name] for name in _CHATS if by_name.get(name) in styles]
    return [
        Detected("messages", f"{styles[column]} conversations", {"messages": column})
        for column in (usual[:1] or list(styles))
    ]


def _pair(by_name: Mapping[str, str], values: Mapping[str, Sequence[Any]]) -> Detected | None:
    for prompt, responses in _PAIRS:
        if not _is_text(by_name, values, prompt):
            continue
        response = next((name for name in responses if _is_text(by_name, values, name)), None)
        if response is None:
            continue
        keys: dict[str, Any] = {"prompt": by_name[prompt]}
        if prompt != "instruction":
            name = "prompt and response" if prompt in ("prompt", "query") else f"{prompt} and {response}"
            return Detected("pair", name, keys | {"response": by_name[response]})
        further = next((name for name in _FURTHER_INPUT if _is_text(by_name, values, name)), None)
        keys |= {"input": by_name[further]} if further else {}
        keys |= {"response": by_name[response], "prompt_template": "alpaca"}
        return Detected("pair", "Alpaca instructions", keys)
    return None


def _labelled(by_name: Mapping[str, str], values: Mapping[str, Sequence[Any]]) -> Detected | None:
    pairs = [pair for pair in _TEXT_PAIRS if all(_is_text(by_name, values, name) for name in pair)]
    single = next((name for name in _TEXTS if _is_text(by_name, values, name)), None)
    if pairs:
        text: Any = tuple(by_name[name] for name in pairs[0])
    elif single is not None:
        text = by_name[single]
    else:
        return None
    what = "pairs of texts" if pairs else "texts"
    for name in (*_LABELS, *_SCORES):
        given = values.get(by_name.get(name, ""), ())
        if not given or by_name[name] in text:
            continue
        if _are_scores(given) or (name in _SCORES and all(_number(value) is not None for value in given)):
            return Detected("scored", f"{what} with a score", {"text": text, "score": by_name[name]})
        if name in _LABELS and _are_classes(given):
            return Detected("labelled", f"{what} with a class", {"text": text, "label": by_name[name]})
    return None


def _is_text(by_name: Mapping[str, str], values: Mapping[str, Sequence[Any]], name: str) -> bool:
    """Decide if there is a column of this name that holds text; rows without a value are ignored."""
    given = values.get(by_name.get(name, ""), ())
    return bool(given) and all(isinstance(value, str) for value in given)


def _are_classes(given: Sequence[Any]) -> bool:
    if not all(isinstance(value, str | int | float) for value in given):
        return False
    return len({str(value) for value in given}) <= min(_MOST_CLASSES, max(2, len(given) // 2))


def _are_scores(given: Sequence[Any]) -> bool:
    """Decide if all values are numbers and some are no whole numbers."""
    numbers = [_number(value) for value in given]
    known = [number for number in numbers if number is not None]
    return len(known) == len(numbers) and any(number != int(number) for number in known)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
