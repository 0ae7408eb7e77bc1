"""From examples of each form to tokens and labels; how texts are put together is said in `.prompts`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from balora.config.data_columns import Form
from balora.config.sections import DataConfig
from balora.data.chat import Unrenderable, encode_chat, require_chat_template
from balora.data.collate import IGNORED
from balora.data.prompts import bare_ids, render_prompt, separator_of, start_ids, template_of
from balora.data.readers import BadRows

_UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer knows no limit


@dataclasses.dataclass(frozen=True)
class Limit:
    """Most tokens of an example or of a part of it, and where that number is from."""

    tokens: int
    origin: str
    of: str = "rows"
    """What is cut there, for messages: rows, prompts or responses."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example as tokens."""

    input_ids: list[int]
    labels: list[int] | int | float
    needed: int = 1
    """The fewest tokens with one to learn from among them; 0 if there is none at any length."""
    total: int = 1
    """Tokens before cutting."""
    cut: tuple[Limit, ...] = ()
    """The limits at which it was cut; prompt and response of a seq2seq example have one each."""
    token_type_ids: list[int] | None = None


Encoder = Callable[[dict[str, list[Any]]], Iterator[Encoded]]


def make_encoder(
    form: Form,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    task: str,
    limit: Limit,
    target_tokenizer: PreTrainedTokenizerBase | None,
    max_positions: int | None,
) -> Encoder:
    """The way from a batch of examples of this form to tokens."""
    template = template_of(data)
    if task == "seq2seq":
        target = target_tokenizer or tokenizer
        most, key = (
            (data.max_length, "data.max_length")
            if data.max_target_length is None
            else (data.max_target_length, "data.max_target_length")
        )
        target_limit = limit_of(target, most, key, max_positions, of="responses")
        return functools.partial(_seq2seq, tokenizer, target, template, limit, target_limit)
    if form == "pair":
        return functools.partial(_pairs, tokenizer, template, separator_of(template, data.separator), limit)
    if form == "messages":
        require_chat_template(tokenizer)
        return functools.partial(_chats, tokenizer, limit)
    if form == "text":
        return functools.partial(_texts, tokenizer, limit)
    return functools.partial(_labelled, tokenizer, limit)


def limit_of(
    tokenizer: PreTrainedTokenizerBase, asked: int, key: str, max_positions: int | None, *, of: str = "rows"
) -> Limit:
    """The smallest of what was asked for and what tokenizer and model can take."""
    bounds = [Limit(asked, key, of)]
    if tokenizer.model_max_length < _UNLIMITED:
        bounds.append(Limit(int(tokenizer.model_max_length), "the tokenizer's model_max_length", of))
    if max_positions is not None:
        bounds.append(Limit(max_positions, "the model's number of positions", of))
    return min(bounds, key=lambda bound: bound.tokens)


def _learnt(ids: list[int], said: list[bool], limit: Limit) -> Encoded:
    """Cut on the right, and label what is learnt. The first token is never a target: nothing comes before it."""
    first = next((at for at, is_said in enumerate(said) if is_said and at > 0), None)
    labels = [token if is_said else IGNORED for token, is_said in zip(ids, said, strict=True)]
    return Encoded(
        ids[: limit.tokens],
        labels[: limit.tokens],
        needed=0 if first is None else first + 1,
        total=len(ids),
        cut=(limit,) if len(ids) > limit.tokens else (),
    )


def _with_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    end: Any = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _pairs(
    tokenizer: PreTrainedTokenizerBase, template: str, separator: str, limit: Limit, batch: dict[str, list[Any]]
) -> Iterator[Encoded]:
    """Prompt and response, of which the response is learnt."""
    start = start_ids(tokenizer)
    prompts = [render_prompt(template, p, i) + separator for p, i in zip(batch["prompt"], batch["input"], strict=True)]
    prompt_ids = bare_ids(tokenizer, prompts)
    whole_ids = bare_ids(tokenizer, [p + r for p, r in zip(prompts, batch["response"], strict=True)])
    for prompt, whole, response in zip(prompt_ids, whole_ids, batch["response"], strict=True):
        seam = len(prompt)
        said = whole[seam:] if whole[:seam] == prompt else bare_ids(tokenizer, [response])[0]
        said = _with_end(tokenizer, said)
        before = start + prompt
        yield _learnt(before + said, [False] * len(before) + [True] * len(said), limit)


def _chats(tokenizer: PreTrainedTokenizerBase, limit: Limit, batch: dict[str, list[Any]]) -> Iterator[Encoded]:
    """Conversations, of which the assistant's messages are learnt."""
    bad = BadRows()
    for messages, place in zip(batch["messages"], batch["place"], strict=True):
        try:
            yield _learnt(*encode_chat(tokenizer, messages), limit)
        except Unrenderable as problem:
            bad.add(place, str(problem))
    bad.raise_if_any()


def _texts(tokenizer: PreTrainedTokenizerBase, limit: Limit, batch: dict[str, list[Any]]) -> Iterator[Encoded]:
    """Plain text, of which every token is learnt."""
    start = start_ids(tokenizer)
    for bare in bare_ids(tokenizer, batch["text"]):
        ids = start + _with_end(tokenizer, bare)
        yield _learnt(ids, [True] * len(ids), limit)


def _seq2seq(
    tokenizer: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    template: str,
    limit: Limit,
    target_limit: Limit,
    batch: dict[str, list[Any]],
) -> Iterator[Encoded]:
    """Prompt for the encoder, response for the decoder, each as its tokenizer frames it."""
    prompts = [render_prompt(template, p, i) for p, i in zip(batch["prompt"], batch["input"], strict=True)]
    sources = _framed(tokenizer, {"text": prompts}, limit)
    targets = _framed(target, {"text_target": batch["response"]}, target_limit)
    for source, response in zip(sources, targets, strict=True):
        labels = response.input_ids
        yield Encoded(source.input_ids, labels, needed=1 if labels else 0, cut=source.cut + response.cut)


def _labelled(tokenizer: PreTrainedTokenizerBase, limit: Limit, batch: dict[str, list[Any]]) -> Iterator[Encoded]:
    """A text or a pair of texts with its class or score; of a pair the longer text is cut first."""
    texts: dict[str, list[str]] = {name: batch[name] for name in ("text", "text_pair") if name in batch}
    for row, label in zip(_framed(tokenizer, texts, limit), batch["labels"], strict=True):
        yield dataclasses.replace(row, labels=label)


def _framed(tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]], limit: Limit) -> list[Encoded]:
    """Texts with the special tokens that the tokenizer adds, which survive cutting; labels are still to come."""
    rows = _frame(tokenizer, texts)
    long = [at for at, row in enumerate(rows) if len(row.input_ids) > limit.tokens]
    if long:
        again = {name: [values[at] for at in long] for name, values in texts.items()}
        for at, row in zip(long, _frame(tokenizer, again, truncation=True, max_length=limit.tokens), strict=True):
            rows[at] = dataclasses.replace(row, cut=(limit,))
    return rows


def _frame(tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]], **how: Any) -> list[Encoded]:
    encoded: Any = tokenizer(**texts, verbose=False, **how)
    kinds = encoded.get("token_type_ids") or [None] * len(encoded["input_ids"])
    return [Encoded(list(i), [], token_type_ids=k) for i, k in zip(encoded["input_ids"], kinds, strict=True)]
