r"""Format of a training example: prompt and response as one text, and that text as tokens. Evaluation uses the same code.

Generation: ``start + prompt + separator + response + end``.

* ``start``: tokens that the tokenizer puts before every text (``<s>`` for Llama, nothing for GPT-2 and Qwen).
* ``prompt``: text of the prompt column, put into the template.
* ``separator``: a new line by default; nothing after the user's own template, which has its own ending.
* ``end``: the tokenizer's end token, so that the model learns to stop. It is missing if a response is cut off.
* Prompt and response are tokenized together. If this changes the prompt's tokens (one token spans the seam), the response is
  tokenized alone: at inference the model sees the prompt alone, and its tokens must be the same.
* Only the response and ``end`` are learnt; labels are -100 before them.
* If the text is longer than ``max_length``, the response is cut on the right, never the prompt.

Encoder-decoder models take ``prompt`` in the encoder, without separator, and ``response`` in the decoder, each with the special
tokens of its tokenizer, which truncation keeps. If the response is a class or score as text, the text columns are the prompt:
see `template_of`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from balora.config.sections import DataConfig
from balora.data.special_text import encode, has_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INTRO = "Below is an instruction that describes a task{0}. Write a response that appropriately completes the request."
_NAMED = {"none": "{prompt}", "alpaca": _INTRO.format("") + "\n\n### Instruction:\n{prompt}\n\n### Response:"}
# Alpaca's second form, for rows with an input.
_WITH_INPUT = {
    "alpaca": _INTRO.format(", paired with an input that provides further context")
    + "\n\n### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:"
}
_FIELD = re.compile(r"\{(prompt|input)\}")


def render_prompt(template: str, prompt: str, given: str = "") -> str:
    r"""Put a prompt and further input into a template: ``none``, ``alpaca``, or a text with ``{prompt}`` and maybe ``{input}``.

    Other braces are text. If the input is empty, Alpaca's shorter form is used.

    Example:
        >>> render_prompt("Q: {prompt}\nA: ", "2 + 2?")
        'Q: 2 + 2?\nA: '
        >>> render_prompt("alpaca", "Add.", "2 and 2").splitlines()[-3:]
        ['2 and 2', '', '### Response:']
    """
    named = _WITH_INPUT if given.strip() and template in _WITH_INPUT else _NAMED
    values = {"prompt": prompt, "input": given}
    return _FIELD.sub(lambda field: values[field[1]], named.get(template, template))


def template_of(data: DataConfig) -> str:
    """Return a config's template with the field names of `render_prompt`.

    ``{text}`` becomes ``{prompt}`` and ``{text_pair}`` becomes ``{input}``. Without a template, a space joins the two texts.

    Example:
        >>> template_of(DataConfig(train="d.tsv", text=("a", "b"), label="l", prompt_template="rte 1: {text} 2: {text_pair}"))
        'rte 1: {prompt} 2: {input}'
    """
    template = data.prompt_template
    if data.form not in ("labelled", "scored"):
        return template
    if template == "none":
        return "{prompt} {input}" if isinstance(data.text, tuple) and len(data.text) == 2 else template
    return template.replace("{text}", "{prompt}").replace("{text_pair}", "{input}")


def separator_of(template: str, separator: str | None = None) -> str:
    r"""Return the text between prompt and response: ``separator`` if given, else a new line, or nothing after an own template.

    Example:
        >>> separator_of("alpaca"), separator_of("Q: {prompt} A:"), separator_of("none", " => ")
        ('\n', '', ' => ')
    """
    return ("\n" if template in _NAMED else "") if separator is None else separator


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a tokenizer puts before every text."""
    bare = bare_ids(tokenizer, ["a"])[0]
    ids = list(tokenizer("a", verbose=False)["input_ids"])
    positions = range(len(ids) - len(bare) + 1)
    return next((ids[:at] for at in positions if ids[at : at + len(bare)] == bare), [])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize a rendered prompt with its separator, for generation. The tokens are those that training used."""
    return start_ids(tokenizer) + bare_ids(tokenizer, [text])[0]


def bare_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokenize texts without special tokens and without cutting. Text that `balora.data.special_text` marked is plain text."""
    if has_marks(texts):
        return [encode(tokenizer, text)[0] for text in texts]
    encoded: Any = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return list(encoded["input_ids"])
