"""Chat templates for tokenizers without one: built-in ones by name, or a file (``data.chat_template``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from balora.errors import BALoraError, suggest, suggest_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_START = "{% for message in messages %}{% if message['role'] == 'assistant' %}"
# Both mark the assistant's part, so that it is learnt together with the token that ends it.
CHAT_TEMPLATES = {
    "zephyr": (
        _START
        + "{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}"
        "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "chatml": (
        _START
        + "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{{ '\\n' }}{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}
"""Templates by name. ``zephyr`` ends a turn with the tokenizer's end token, so it suits every tokenizer that has one."""
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Give a tokenizer a built-in chat template or the one in a file.

    Raises:
        BALoraError: There is no such template or file, or the tokenizer lacks a token that the built-in template needs.
    """
    if template in CHAT_TEMPLATES:
        wanted = _CHATML_TOKENS if template == "chatml" else (tokenizer.eos_token,)
        vocabulary = tokenizer.get_vocab()
        missing = [token or "an end token" for token in wanted if token not in vocabulary]
        if missing:
            other = " Use data.chat_template: zephyr." if template == "chatml" and tokenizer.eos_token else ""
            raise BALoraError(
                f"data.chat_template: {template} needs {' and '.join(missing)}, which the tokenizer {tokenizer.name_or_path} "
                f"does not have.{other}"
            )
        tokenizer.chat_template = CHAT_TEMPLATES[template]
        return
    path = Path(template).expanduser()
    if not path.is_file():
        hint = suggest(template, CHAT_TEMPLATES) or suggest_path(path)
        names = " or ".join(CHAT_TEMPLATES)
        raise BALoraError(
            f"data.chat_template must be {names}, or a file with a template; there is no {template}.{hint}"
        )
    try:
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(f"The chat template {path} (data.chat_template) cannot be read: {error}.") from error


def has_chat_template(folder: Path) -> bool:
    """Decide if the tokenizer in a folder has a chat template, without loading it."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")
