"""Checks of all values of a config, whatever their key: plain types, and names and paths that a file system can have."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from balora.errors import shown

# Keys whose texts are names or paths: no control characters, not blank, not longer than a file system allows.
_NAMES = {
    *("model", "tokenizer", "revision", "output", "teacher_cache"),
    *("data.train", "data.name", "data.split", "data.eval", "data.target_tokenizer"),
    *("data.prompt", "data.response", "data.input", "data.messages", "data.text", "data.label", "data.score"),
    *("data.also.train", "data.also.name", "data.also.split", "method.target_modules", "method.exclude_modules"),
}
_PATTERNS = ("method.target_modules", "method.exclude_modules")
_PATHS = (
    "model",
    "tokenizer",
    "output",
    "teacher_cache",
    "data.train",
    "data.eval",
    "data.target_tokenizer",
    "data.also.train",
)
_MOST_BYTES_OF_PATH, _MOST_BYTES_OF_NAME = 4096, 255
_PLAIN = (str, int, float, BaseModel)


def value_problems(values: Mapping[Any, Any]) -> dict[str, str]:
    """Find values of a config that no config file can hold, and names that no file can have: a sentence by dotted key.

    Example:
        >>> value_problems({"model": "m\\n", "seed": 1})
        {'model': 'model contains a line break; leave it out.'}
    """
    found = ((".".join(path), _problem(path, value)) for path, value in _leaves(values, ()))
    return {key: problem for key, problem in found if problem}


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value that is neither a list nor a section, with its keys."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, str(number)))
    else:
        yield path, value


def _problem(path: tuple[str, ...], value: Any) -> str | None:
    """Return what is wrong with one value, or None."""
    key = ".".join(path)
    named = ".".join(part for part in path if not part.isdecimal())
    plain_section = path[0] in ("training", "method", "data") or named in _NAMES
    if value is not None and plain_section and not isinstance(value, _PLAIN):
        return f"{key} must be text, a number, a list or a section, not {shown(value)}."
    if isinstance(value, float) and path[0] == "training" and math.isnan(value):
        return f"{key} must be a number, not nan."
    return _text_problem(key, named, value) if isinstance(value, str) else None


def _text_problem(key: str, named: str, text: str) -> str | None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        return f"{key} contains a control character or half of a surrogate pair: {shown(text)}."
    if named not in _NAMES:
        return None
    if not text.strip():
        return f"{key} cannot be {shown(text)}."
    if "\n" in text or "\r" in text:
        return f"{key} contains a line break; leave it out."
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        return f"{key} contains a control character: {shown(text)}."
    if named in _PATTERNS and named == key:
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            return f"{key} is not a regular expression ({error}): {shown(text)}."
    if named in _PATHS:
        if len(text.encode()) > _MOST_BYTES_OF_PATH:
            return f"{key} is too long for a path: {len(text):,} characters."
        if any(len(part.encode()) > _MOST_BYTES_OF_NAME for part in PurePath(text).parts):
            return f"{key} contains a name of more than {_MOST_BYTES_OF_NAME} bytes, which no file system takes: {shown(text)}."
    return None
