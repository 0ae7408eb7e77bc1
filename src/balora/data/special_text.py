r"""Text of special tokens in data: ``</s>`` in a prompt is four characters, and only a template writes the end token.

`mark` replaces the text of special tokens in data by as many private characters, before a template is rendered. `encode` then
reads the marked places as plain text, and the special tokens that a template wrote as tokens.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from balora.errors import BALoraError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

# Marks are private characters of Unicode's plane 16. Plane 15 has the names of special tokens in a copy of the tokenizer.
_MARKS, _FILL, _NAMES = 0x100000, "\U0010fffd", range(0xF0000, 0xFFFFE)
_MARK = re.compile(f"([\U00100000-\U0010fffc]){_FILL}*")


class Marker:
    """Marking of the rows of a data set, with counts for a note."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, as_tokens: bool = False) -> None:
        self.tokenizer = tokenizer
        self.as_tokens = as_tokens
        """True if the text of special tokens is read as these tokens, so that nothing is marked."""
        self._rows = 0
        self._tokens: Counter[str] = Counter()

    def row(self, texts: Sequence[str]) -> list[str]:
        """Mark the texts of one row."""
        found = find(self.tokenizer, texts)
        self.count(found)
        marked: list[str] = mark(self.tokenizer, texts, found) if found and not self.as_tokens else list(texts)
        return marked

    def rows(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        """Mark the texts of several rows, as `row` does. Rows without the text of a special token are not looked at one by one."""
        every = "\0".join(text for row in rows for text in row)
        if not any(name in every for name in special_tokens(self.tokenizer)):
            return [list(row) for row in rows]
        return [self.row(row) for row in rows]

    def counts(self) -> tuple[int, Counter[str]]:
        """Return what was counted for the note, to add it up over processes."""
        return self._rows, self._tokens

    def add(self, counts: tuple[int, Counter[str]]) -> None:
        """Add what another process counted."""
        self._rows += counts[0]
        self._tokens.update(counts[1])

    def count(self, found: Collection[str]) -> None:
        """Count one row in which these special tokens were found."""
        self._rows += bool(found)
        self._tokens.update(found)

    def notes(self, part: str) -> list[str]:
        """Return a sentence about the rows that contain the text of special tokens, if there are any."""
        if not self._rows:
            return []
        shown = ", ".join(token for token, _ in self._tokens.most_common(3))
        texts = f"{self._rows:,} {part} {'row has' if self._rows == 1 else 'rows have'} the text of special tokens ({shown})"
        if self.as_tokens:
            return [f"{texts}, which is read as these tokens (data.special_tokens)."]
        return [f"{texts}, which is read as plain text. If it is meant as tokens, set data.special_tokens: true."]


def find(tokenizer: PreTrainedTokenizerBase, value: Any) -> set[str]:
    """Return the special tokens whose text is in a text, or in the texts of a list or an object."""
    names = special_tokens(tokenizer)
    found: set[str] = set()

    def note(match: re.Match[str]) -> str:
        found.add(match[0])
        return match[0]

    if names:
        _substitute(value, _pattern(names), note)
    return found


def mark(tokenizer: PreTrainedTokenizerBase, value: Any, tokens: Collection[str] | None = None) -> Any:
    """Return a text, or a list or an object of texts, with the text of special tokens marked; all of them by default."""
    names = special_tokens(tokenizer)
    if not names:
        return value
    numbers = {name: number for number, name in enumerate(names) if tokens is None or name in tokens}

    def marked(match: re.Match[str]) -> str:
        name = match[0]
        return chr(_MARKS + numbers[name]) + _FILL * (len(name) - 1) if name in numbers else name

    return _substitute(value, _pattern(names), marked)


def _substitute(value: Any, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(new, value)
    if isinstance(value, dict):
        return {_substitute(key, pattern, new): _substitute(item, pattern, new) for key, item in value.items()}
    return [_substitute(item, pattern, new) for item in value] if isinstance(value, list | tuple) else value


def unmark(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a marked text as it was."""
    names = special_tokens(tokenizer)

    def name(match: re.Match[str]) -> str:
        number = ord(match[1]) - _MARKS
        return names[number] if number < len(names) and len(names[number]) == len(match[0]) else match[0]

    return _MARK.sub(name, text)


def has_marks(texts: Iterable[str]) -> bool:
    """Check if a text has marks."""
    return any(not text.isascii() and _MARK.search(text) for text in texts)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a text that may have marks, without adding special tokens. Return ids and the characters of each token.

    A slow tokenizer gives no characters.
    """
    fast, reader = tokenizer.is_fast, tokenizer
    if has_marks([text]):
        if not fast:
            return _encode_slowly(tokenizer, text), []
        reader, (text,) = reader_of_marks(tokenizer, [text])
    encoded: Any = reader(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"]) if fast else []


def _encode_slowly(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize a marked text with a slow tokenizer: a template's special tokens one by one, and the text between them."""
    names = special_tokens(tokenizer)
    ids: list[int] = []
    for piece in re.split(f"({_pattern(names).pattern})", text):
        if piece in names:
            ids.append(int(tokenizer.convert_tokens_to_ids(piece)))  # type: ignore[arg-type]
        elif piece:
            plain: Any = unmark(tokenizer, piece)
            ids += tokenizer(plain, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def reader_of_marks(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, target: bool = False
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Return a tokenizer that reads marked texts, and the texts as it takes them.

    The tokenizer's special tokens have other names, so that the text of a special token is plain text. ``target`` is for texts
    of the decoder. A slow tokenizer reads all special tokens in the texts as plain text, also a template's.
    """
    plain = [unmark(tokenizer, text) for text in texts]
    reader = copy.copy(tokenizer)
    if not tokenizer.is_fast:
        reader.split_special_tokens = True
        return reader, plain
    old = special_tokens(tokenizer)
    renamed, names = _renamed(tokenizer, len(tokenizer), _free_block(old, "".join(plain)))
    # Translation models put the language's token before a text, by a post-processor that depends on the side.
    source: Any = tokenizer
    if target and hasattr(source, "_switch_to_target_mode"):
        source._switch_to_target_mode()
    renamed.post_processor = source.backend_tokenizer.post_processor
    if target and hasattr(source, "_switch_to_input_mode"):
        source._switch_to_input_mode()
    vars(reader).update(_tokenizer=renamed, _switch_to_target_mode=_nothing, _switch_to_input_mode=_nothing)
    by_template = [_pattern(old).sub(lambda match: names[match[0]], text) for text in texts]
    return reader, [unmark(tokenizer, text) for text in by_template]


def _nothing() -> None:
    """Leave the post-processor as it is."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts of a tokenizer's special tokens."""
    return _special_tokens(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[str, ...]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys(name for name in [*added, *tokenizer.all_special_tokens] if name.strip()))


@functools.lru_cache(maxsize=16)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))


def _free_block(names: Sequence[str], text: str) -> int:
    """Return the first of as many private characters as there are special tokens, none of which is in the text."""
    used = {ord(character) for character in set(text)}
    for first in range(_NAMES.start, _NAMES.stop - len(names) - 1, len(names) + 1):
        if used.isdisjoint(range(first, first + len(names) + 1)):
            return first
    raise BALoraError("A text uses all private characters of Unicode, so its special tokens cannot be told apart.")


@functools.lru_cache(maxsize=8)
def _renamed(tokenizer: PreTrainedTokenizerBase, size: int, first: int) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Copy a fast tokenizer and give its special tokens names of private characters, of the same length and with the same ids.

    The text of a special token is then plain text for the copy. Returns the new names by the old ones too.
    """
    import tokenizers

    old = special_tokens(tokenizer)
    names = {name: chr(first + 1 + i) + chr(first) * (len(name) - 1) for i, name in enumerate(old)}
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:  # Unigram: pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint([*pair, "".join(pair)])]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return tokenizers.Tokenizer.from_str(json.dumps(content)), names
