"""How a question becomes the text, and the tokens, that the model continues: as in training, or as a chat."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from balora.config.run_config import RunConfig
from balora.data.prompts import bare_ids, encode_prompt, render_prompt, separator_of
from balora.errors import BALoraError

CHAT = "chat"
Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Prompting:
    """The frame around a question.

    Args:
        template: ``none``, ``alpaca``, ``chat`` (the tokenizer's own chat template), or a text with ``{prompt}`` in it.
        separator: What stands between the prompt and the reply; None for the template's own.
    """

    template: str
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.template not in (CHAT, "none", "alpaca") and "{prompt}" not in self.template:
            raise BALoraError(
                f"prompt_template is none, alpaca, chat, or a text with {{prompt}} in it, not {self.template!r}."
            )

    def text(self, tokenizer: PreTrainedTokenizerBase, question: str, reply: str = "") -> str:
        """The text up to where the model goes on.

        Args:
            tokenizer: Whose chat template is used.
            question: What is asked.
            reply: How the reply begins, such as "Let's think step by step."

        Raises:
            BALoraError: The template is ``chat`` and the tokenizer has none.
        """
        if self.template == CHAT:
            return self.chat(tokenizer, [{"role": "user", "content": question}]) + reply
        return render_prompt(self.template, question) + separator_of(self.template, self.separator) + reply

    def chat(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
        """A conversation as the tokenizer's chat template writes it, ready for the assistant's next message.

        Raises:
            BALoraError: The tokenizer has no chat template, or it refuses the conversation.
        """
        if not tokenizer.chat_template:
            raise BALoraError(
                f"The tokenizer {tokenizer.name_or_path} has no chat template. Give another prompt template "
                "(--prompt-template alpaca), or a chat model."
            )
        try:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise BALoraError(
                f"The chat template of {tokenizer.name_or_path} refuses the conversation: {error}."
            ) from error

    def tokens(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """The tokens of such a text; a chat template writes the start token itself."""
        return bare_ids(tokenizer, [text])[0] if self.template == CHAT else encode_prompt(tokenizer, text)

    def describe(self) -> dict[str, str | None]:
        """For the record."""
        return {"template": self.template, "separator": self.separator}


def prompting_for(
    asked: str | None, settings: RunConfig | None, default: str, separator: str | None = None
) -> Prompting:
    """The frame to use: what the user asks for, else what the run was trained with, else the task's default.

    Args:
        asked: The user's template.
        settings: The run's, None for a plain model.
        default: The task's template.
        separator: The task's, with its default template.
    """
    if asked is not None:
        return Prompting(asked)
    if settings is None or settings.task not in ("generation", "seq2seq"):
        return Prompting(default, separator)
    if settings.data.messages is not None:
        return Prompting(CHAT)
    if settings.task == "seq2seq":
        return Prompting(settings.data.prompt_template, "")  # the encoder sees the prompt alone
    return Prompting(settings.data.prompt_template, settings.data.separator)


__all__ = ["CHAT", "Message", "Prompting", "prompting_for"]
