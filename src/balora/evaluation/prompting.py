"""Turn a question into the text and tokens that the model continues: as in training, or as a chat."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from balora.config.run_config import RunConfig
from balora.data.conversations.rendering import Unrenderable, render_chat
from balora.data.prompts import bare_ids, encode_prompt, render_prompt, separator_of
from balora.data.special_text import mark
from balora.errors import BALoraError
from balora.evaluation.options import check_prompt_template

CHAT = "chat"
Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Prompting:
    """Prompt format of an evaluation.

    Args:
        template: ``none``, ``alpaca``, ``chat`` (the tokenizer's chat template), or a text that contains ``{prompt}``.
        separator: Text between the prompt and the reply; None for the template's own.
    """

    template: str
    separator: str | None = None

    def __post_init__(self) -> None:
        check_prompt_template(self.template)

    def text(self, tokenizer: PreTrainedTokenizerBase, question: str, reply: str = "") -> str:
        """Return the prompt of a question, followed by the first words of the reply."""
        if self.template == CHAT:
            return self.chat(tokenizer, [{"role": "user", "content": question}]) + reply
        if tokenizer is not None:  # reference answers need none
            question = mark(tokenizer, question)
        return render_prompt(self.template, question) + separator_of(self.template, self.separator) + reply

    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Message],
        context: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a conversation with the tokenizer's chat template, up to the assistant's next message.

        ``context`` has further variables of the template, such as ``tools``.
        """
        if not tokenizer.chat_template:
            raise BALoraError(
                f"The tokenizer {tokenizer.name_or_path} has no chat template. Give another prompt template "
                "(--prompt-template alpaca), or a chat model."
            )
        try:
            marked = mark(tokenizer, list(messages)), mark(tokenizer, dict(context or {}))
            return render_chat(tokenizer, *marked, add_generation_prompt=True)
        except Unrenderable as error:
            raise BALoraError(
                f"The chat template of {tokenizer.name_or_path} cannot render a conversation: {error}."
            ) from error

    def tokens(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Tokenize a text that `text` or `chat` returned. A chat template has already written the start token.

        The text of special tokens in a question is marked there, and is plain text (`balora.data.special_text`).
        """
        return bare_ids(tokenizer, [text])[0] if self.template == CHAT else encode_prompt(tokenizer, text)


def prompting_for(
    template: str | None, config: RunConfig | None, default: str, separator: str | None = None
) -> Prompting:
    """Choose the prompt format: the user's template, else the one of the run's training, else the task's default.

    The separator is the task's; it is used with its default template. A plain model has no config.
    """
    if template is not None:
        return Prompting(template)
    if config is None or config.task not in ("generation", "seq2seq"):
        return Prompting(default, separator)
    if config.data.messages is not None:
        return Prompting(CHAT)
    if config.task == "seq2seq":
        return Prompting(config.data.prompt_template, "")  # the encoder reads the prompt without a separator
    return Prompting(config.data.prompt_template, config.data.separator)
