"""Texts of the anchors from a file, folder or hub dataset: plain text, prompts with responses, or conversations."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from balora.anchors import Anchors
from balora.data.conversations.rendering import Unrenderable, render_chat
from balora.data.files.paragraphs import read_paragraphs
from balora.data.files.sources import open_source
from balora.errors import BALoraError

logger = logging.getLogger("balora")


def read_anchor_texts(anchors: Anchors, tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """Return the texts of anchors that have a text as their source.

    A ``.txt`` file has one text in each paragraph. Rows without text are left out.

    Raises:
        BALoraError: The file is missing, lacks the column, or has no text.
    """
    if not isinstance(anchors.text, str):
        return anchors.text or ()
    name = anchors.text
    path = Path(name).expanduser()
    if path.suffix.lower() == ".txt" and path.is_file():
        found = read_paragraphs(path)
    else:
        columns = [c for c in (anchors.messages, anchors.prompt, anchors.response) if c] or [anchors.column]
        try:
            table = open_source(name, anchors.name, set(columns)).read(anchors.split or "train")
        except BALoraError as error:
            raise BALoraError(f"anchor.text: {str(error).replace('data.train', 'anchor.text')}") from error
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise BALoraError(
                f"anchor.text: {table.name} has no column {missing[0]!r}; it has {', '.join(table.columns)}. Name the column of "
                "the text in anchor.column, of conversations in anchor.messages, or both of prompt and response."
            )
        found = [text for row in table.rows if (text := _text_of(row, anchors, tokenizer))]
        if found and len(found) < len(table.rows):
            logger.warning(
                "Anchors: %s of %s rows of %s have no text in %s and are left out.",
                f"{len(table.rows) - len(found):,}", f"{len(table.rows):,}", table.name, " and ".join(columns),
            )  # fmt: skip
    if not found:
        raise BALoraError(f"anchor.text: {name} has no text in it.")
    return found


def _text_of(row: dict[str, Any], anchors: Anchors, tokenizer: PreTrainedTokenizerBase) -> str:
    if anchors.messages is not None:
        if not isinstance(row[anchors.messages], list):
            raise BALoraError(
                f"anchor.text: the column {anchors.messages!r} of {anchors.text} has a row without a list of messages. Name plain "
                "text in anchor.column."
            )
        try:
            return render_chat(tokenizer, row[anchors.messages])
        except Unrenderable as error:
            raise BALoraError(f"anchor.text: a conversation of {anchors.text} cannot be rendered: {error}.") from error
    if anchors.prompt is not None and anchors.response is not None:
        parts = [row.get(anchors.prompt), row.get(anchors.response)]
        return "\n".join(str(part) for part in parts if part)
    value = row.get(anchors.column)
    return value.strip() if isinstance(value, str) else ""
