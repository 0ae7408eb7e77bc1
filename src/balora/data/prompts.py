r"""How prompt and response become one text, and that text tokens: in this one place, for training and for evaluation.

Generation: ``start + prompt + separator + response + end``.

* ``start`` is whatever the tokenizer itself puts in front of a text (``<s>`` for Llama, nothing for GPT-2 and Qwen).
* ``prompt`` is the column's text, put into the template.
* ``separator`` is a new line by default, and nothing after a template of one's own, which has its own ending.
* ``end`` is the tokenizer's end token, so that the model learns to stop. It is missing where a response is cut off.
* Text is tokenized as a whole. Where the prompt's tokens would then differ from those of the prompt alone (a token
  across the seam), the response is tokenized by itself: at inference the prompt comes alone, and must be the same.
* Only the response and ``end`` are learnt; labels are -100 before them.
* Longer than ``max_length``: the response is cut on its right, never the prompt.

Encoder-decoder models take ``prompt`` in the encoder, without separator, and ``response`` in the decoder, each with the
special tokens that its tokenizer adds, which also survive truncation. Where the response is the word for a class or a score,
the texts are the prompt: `template_of`.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from balora.config.sections import DataConfig

_INTRO = "Below is an instruction that describes a task{0}. Write a response that appropriately completes the request."
_NAMED = {
    "none": "{prompt}",
    "alpaca": _INTRO.format("") + "\n\n### Instruction:\n{prompt}\n\n### Response:",
}
# Alpaca's second form, for rows that have an input as well.
_WITH_INPUT = {
    "alpaca": _INTRO.format(", paired with an input that provides further context")
    + "\n\n### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:",
}
_PLACE = re.compile(r"\{(prompt|input)\}")


def render_prompt(template: str, prompt: str, given: str = "") -> str:
    r"""Put a prompt into its template.

    Args:
        template: ``none``, ``alpaca``, or a text with ``{prompt}`` and perhaps ``{input}``; other braces are text.
        prompt: The instruction or question.
        given: Further input; where it is empty, Alpaca's shorter form is taken.

    Example:
        >>> render_prompt("Q: {prompt}\nA: ", "2 + 2?")
        'Q: 2 + 2?\nA: '
        >>> render_prompt("alpaca", "Add.", "2 and 2").splitlines()[-3:]
        ['2 and 2', '', '### Response:']
    """
    named = _WITH_INPUT if given.strip() and template in _WITH_INPUT else _NAMED
    values = {"prompt": prompt, "input": given}
    return _PLACE.sub(lambda place: values[place[1]], named.get(template, template))


def template_of(data: DataConfig) -> str:
    """A config's template with its places named as `render_prompt` names them.

    A text and the second of a pair take the places of prompt and input; without a template a pair is joined by a space.

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
    r"""What stands between prompt and response: as asked, else a new line, and nothing after one's own template.

    Example:
        >>> separator_of("alpaca"), separator_of("Q: {prompt} A:"), separator_of("none", " => ")
        ('\n', '', ' => ')
    """
    if separator is not None:
        return separator
    return "\n" if template in _NAMED else ""


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens a tokenizer puts in front of every text of its own accord."""
    bare = bare_ids(tokenizer, ["a"])[0]
    whole = list(tokenizer("a", verbose=False)["input_ids"])
    places = range(len(whole) - len(bare) + 1)
    return next((whole[:at] for at in places if whole[at : at + len(bare)] == bare), [])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A rendered prompt with its separator as the tokens that training saw, for generation from it."""
    return start_ids(tokenizer) + bare_ids(tokenizer, [text])[0]


def bare_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokens of texts, nothing added and nothing cut."""
    encoded: Any = tokenizer(texts, add_special_tokens=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]
