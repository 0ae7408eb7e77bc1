"""Tokens as pieces of text that join to the text they were made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from balora.data.collate import IGNORED

_WINDOW = 8
"""Tokens before a piece that are decoded with it: decoded alone, many tokens lose a leading space."""
_INCOMPLETE = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Piece:
    """One token, or several that make one character together."""

    text: str
    ids: tuple[int, ...]
    learnt: bool
    """Whether the loss counts the tokens."""


def split_tokens(tokenizer: Any, ids: Sequence[int], labels: Sequence[int] | None) -> list[Piece]:
    """Return the text of each token.

    Args:
        tokenizer: Tokenizer of the ids.
        ids: Tokens of one example.
        labels: Label of each token, -100 for one that is not learnt; None if no token is learnt.
    """
    learnt = [False] * len(ids) if labels is None else [label != IGNORED for label in labels]
    pieces: list[Piece] = []
    start = 0
    for end in range(1, len(ids) + 1):
        text = _text_between(tokenizer, ids, start, end)
        is_whole = not text.endswith(_INCOMPLETE) or end - start >= _WINDOW
        if is_whole or end == len(ids) or learnt[end] != learnt[start]:
            pieces.append(Piece(text, tuple(ids[start:end]), learnt[start]))
            start = end
    return pieces


def _text_between(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> str:
    first = max(0, start - _WINDOW)

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before, after = decode(ids[first:start]), decode(ids[first:end])
    return after[len(before) :] if after.startswith(before) else decode(ids[start:end])
