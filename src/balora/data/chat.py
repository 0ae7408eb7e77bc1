"""Conversations: the tokenizer's chat template renders them, and the model learns the assistant's messages.

Templates seldom mark the assistant's messages themselves. So this module renders the conversation up to an assistant's
message, with the generation prompt, and again including that message. The difference is the message with its end-of-turn
token. The complete text is tokenized once, so the model sees exactly the text that the template makes.
"""

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError

Message = dict[str, str]


class Unrenderable(Exception):
    """A conversation cannot be rendered; the message gives the reason in a few words."""


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `BALoraError` if the tokenizer cannot render conversations or cannot map tokens to characters."""
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise BALoraError(
            f"The tokenizer {name} has no chat template, so data.messages cannot be rendered. Use the tokenizer of a chat "
            "model (tokenizer: ...), or use prompt and response columns."
        )
    if not tokenizer.is_fast:
        raise BALoraError(f"The tokenizer {name} has no fast form (tokenizer.json), which data.messages needs.")


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """Tokenize a conversation. Return the token ids, and for each token whether the model learns it.

    Raises:
        Unrenderable: The template refuses the conversation, or renders its beginning differently when it is cut there.
    """
    text = render(tokenizer, messages)
    spans = _assistant_spans(tokenizer, messages, text)
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    learnt = [any(a <= start < b and end > start for a, b in spans) for start, end in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), learnt


def _assistant_spans(tokenizer: PreTrainedTokenizerBase, messages: list[Message], text: str) -> list[tuple[int, int]]:
    """Find the assistant's messages in the text, as pairs of first character and end (exclusive)."""
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        until_end = text if number == len(messages) - 1 else render(tokenizer, messages[: number + 1])
        before = _text_before(tokenizer, messages[:number], until_end)
        if before is None or not text.startswith(until_end):
            raise Unrenderable(
                f"the chat template renders the text before message {number + 1} differently when the conversation ends "
                "there, so the assistant's part cannot be found"
            )
        spans.append((len(before), len(until_end)))
    return spans


def _text_before(tokenizer: PreTrainedTokenizerBase, messages: list[Message], until_end: str) -> str | None:
    """Render the messages before an assistant's message, with the generation prompt if ``until_end`` contains it."""
    if not messages:
        return ""
    for with_prompt in (True, False):
        before = render(tokenizer, messages, add_generation_prompt=with_prompt)
        if until_end.startswith(before):
            return before
    return None


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool = False) -> str:
    """Render a conversation with the tokenizer's chat template; raise `Unrenderable` if the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except jinja2.TemplateError as error:
        raise Unrenderable(f"the chat template refuses it ({' '.join(str(error).split())})") from error
