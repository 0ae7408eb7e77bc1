"""Conversations: the tokenizer's chat template renders them, and what the assistant says is learnt.

Templates seldom mark the assistant's part themselves, so it is found by rendering beginnings: the conversation up to an
assistant's message, with the prompt for it, and the conversation including it. What the second has more is that message
with its end-of-turn token. The whole is tokenized once, so the model sees exactly the text that the template makes.
"""

from __future__ import annotations

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError

Message = dict[str, str]


class Unrenderable(Exception):
    """Why a conversation cannot be used, in a few words."""


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that conversations can be rendered and their parts found again among the tokens.

    Raises:
        BALoraError: The tokenizer has no chat template, or does not say which characters a token covers.
    """
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise BALoraError(
            f"The tokenizer {name} has no chat template, so data.messages cannot be rendered; take the tokenizer of a "
            "chat model (tokenizer: ...), or give prompt and response columns."
        )
    if not tokenizer.is_fast:
        raise BALoraError(f"The tokenizer {name} has no fast form (tokenizer.json), which data.messages needs.")


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and which of them the assistant says.

    Args:
        tokenizer: With a chat template.
        messages: Each with ``role`` and ``content``.

    Returns:
        Token ids, and for each whether it is learnt.

    Raises:
        Unrenderable: The template refuses the conversation, or renders its beginning differently when it is cut there.
    """
    text = _render(tokenizer, messages)
    spans = _assistant_spans(tokenizer, messages, text)
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    said = [any(a <= start < b and end > start for a, b in spans) for start, end in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), said


def _assistant_spans(tokenizer: PreTrainedTokenizerBase, messages: list[Message], text: str) -> list[tuple[int, int]]:
    """Where in the text the assistant speaks, as pairs of first and one past last character."""
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        through = text if number == len(messages) - 1 else _render(tokenizer, messages[: number + 1])
        before = _before(tokenizer, messages[:number], through)
        if before is None or not text.startswith(through):
            raise Unrenderable(
                f"the chat template renders what comes before message {number + 1} differently when the conversation "
                "ends there, so the assistant's part cannot be told"
            )
        spans.append((len(before), len(through)))
    return spans


def _before(tokenizer: PreTrainedTokenizerBase, messages: list[Message], through: str) -> str | None:
    """What is rendered ahead of an assistant's message, with the prompt for it where the template's own agrees."""
    if not messages:
        return ""
    for prompted in (True, False):
        before = _render(tokenizer, messages, add_generation_prompt=prompted)
        if through.startswith(before):
            return before
    return None


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except jinja2.TemplateError as error:
        raise Unrenderable(f"the chat template refuses it ({' '.join(str(error).split())})") from error
