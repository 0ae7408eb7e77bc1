"""Encoders: examples of each form as tokens and labels. `balora.data.prompts` defines how texts are put together."""

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

_UNLIMITED = 1_000_000  # transformers writes 1e30 if a tokenizer has no limit


@dataclasses.dataclass(frozen=True)
class Limit:
    """Maximum number of tokens of an example or of a part of it."""

    tokens: int
    origin: str
    """Source of the number, for messages: a config key, the tokenizer or the model."""
    of: str = "rows"
    """Part that is cut, for messages: rows, prompts or responses."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example as tokens."""

    input_ids: list[int]
    labels: list[int] | int | float
    needed: int = 1
    """Smallest number of tokens with a learnt one among them; 0 if there is no learnt token."""
    total: int = 1
    """Number of tokens before cutting."""
    cut: tuple[Limit, ...] = ()
    """Limits at which the example was cut. Prompt and response of a seq2seq example have one each."""
    token_type_ids: list[int] | None = None


Batch = dict[str, list[Any]]
Encoder = Callable[[Batch], Iterator[Encoded]]


def make_encoder(
    form: Form,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    task: str,
    limit: Limit,
    target_tokenizer: PreTrainedTokenizerBase | None,
    max_positions: int | None,
) -> Encoder:
    """Make the function that encodes a batch of examples of this form."""
    template = template_of(data)
    if task == "seq2seq":
        target = target_tokenizer or tokenizer
        key = "max_length" if data.max_target_length is None else "max_target_length"
        target_limit = limit_of(target, getattr(data, key), f"data.{key}", max_positions, of="responses")
        return functools.partial(_seq2seq, tokenizer, target, template, limit, target_limit)
    if form == "pair":
        return functools.partial(_pairs, tokenizer, template, separator_of(template, data.separator), limit)
    if form == "messages":
        require_chat_template(tokenizer)
        return functools.partial(_chats, tokenizer, limit)
    return functools.partial(_texts if form == "text" else _labelled, tokenizer, limit)


def limit_of(
    tokenizer: PreTrainedTokenizerBase, asked: int, key: str, max_positions: int | None, *, of: str = "rows"
) -> Limit:
    """Return the smallest of the configured limit and those of tokenizer and model.

    Args:
        tokenizer: Tokenizer, whose ``model_max_length`` is a limit.
        asked: Configured limit.
        key: Config key of that limit, for messages.
        max_positions: Number of positions of the model, if known.
        of: Part that is cut, for messages.
    """
    limits = [Limit(asked, key, of)]
    if tokenizer.model_max_length < _UNLIMITED:
        limits.append(Limit(int(tokenizer.model_max_length), "the tokenizer's model_max_length", of))
    if max_positions is not None:
        limits.append(Limit(max_positions, "the model's number of positions", of))
    return min(limits, key=lambda limit: limit.tokens)


def _mask_and_cut(ids: list[int], learnt: list[bool], limit: Limit) -> Encoded:
    """Label the learnt tokens and cut on the right. The first token is never a target, since no token precedes it."""
    first = next((at for at, is_learnt in enumerate(learnt) if is_learnt and at > 0), None)
    labels = [token if is_learnt else IGNORED for token, is_learnt in zip(ids, learnt, strict=True)]
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
    tokenizer: PreTrainedTokenizerBase, template: str, separator: str, limit: Limit, batch: Batch
) -> Iterator[Encoded]:
    """Encode prompt and response; the response is learnt."""
    start = start_ids(tokenizer)
    prompts = [render_prompt(template, p, i) + separator for p, i in zip(batch["prompt"], batch["input"], strict=True)]
    prompts_ids = bare_ids(tokenizer, prompts)
    texts_ids = bare_ids(tokenizer, [p + r for p, r in zip(prompts, batch["response"], strict=True)])
    for prompt_ids, text_ids, response in zip(prompts_ids, texts_ids, batch["response"], strict=True):
        # If a token spans the seam, the response is tokenized alone, so that the prompt's tokens are those of inference.
        joint = text_ids[: len(prompt_ids)] == prompt_ids
        response_ids = text_ids[len(prompt_ids) :] if joint else bare_ids(tokenizer, [response])[0]
        response_ids = _with_end(tokenizer, response_ids)
        before = start + prompt_ids
        yield _mask_and_cut(before + response_ids, [False] * len(before) + [True] * len(response_ids), limit)


def _chats(tokenizer: PreTrainedTokenizerBase, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode conversations; the assistant's messages are learnt."""
    bad = BadRows()
    for messages, location in zip(batch["messages"], batch["location"], strict=True):
        try:
            yield _mask_and_cut(*encode_chat(tokenizer, messages), limit)
        except Unrenderable as problem:
            bad.add(location, str(problem))
    bad.raise_if_any()


def _texts(tokenizer: PreTrainedTokenizerBase, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode plain text; every token is learnt."""
    start = start_ids(tokenizer)
    for bare in bare_ids(tokenizer, batch["text"]):
        ids = start + _with_end(tokenizer, bare)
        yield _mask_and_cut(ids, [True] * len(ids), limit)


def _seq2seq(
    tokenizer: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    template: str,
    limit: Limit,
    target_limit: Limit,
    batch: Batch,
) -> Iterator[Encoded]:
    """Encode the prompt for the encoder and the response for the decoder, with the special tokens of their tokenizers."""
    prompts = [render_prompt(template, p, i) for p, i in zip(batch["prompt"], batch["input"], strict=True)]
    sources = _with_special_tokens(tokenizer, {"text": prompts}, limit)
    targets = _with_special_tokens(target, {"text_target": batch["response"]}, target_limit)
    for source, response in zip(sources, targets, strict=True):
        labels = response.input_ids
        yield Encoded(source.input_ids, labels, needed=1 if labels else 0, cut=source.cut + response.cut)


def _labelled(tokenizer: PreTrainedTokenizerBase, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode a text or pair of texts with its class or score. Of a pair the longer text is cut first."""
    texts: dict[str, list[str]] = {name: batch[name] for name in ("text", "text_pair") if name in batch}
    for row, label in zip(_with_special_tokens(tokenizer, texts, limit), batch["labels"], strict=True):
        yield dataclasses.replace(row, labels=label)


def _with_special_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]], limit: Limit
) -> list[Encoded]:
    """Encode texts with the tokenizer's special tokens, which cutting keeps. The labels are still empty."""
    rows = _encode(tokenizer, texts)
    long = [at for at, row in enumerate(rows) if len(row.input_ids) > limit.tokens]
    if long:
        again = {name: [values[at] for at in long] for name, values in texts.items()}
        for at, row in zip(long, _encode(tokenizer, again, truncation=True, max_length=limit.tokens), strict=True):
            rows[at] = dataclasses.replace(row, cut=(limit,))
    return rows


def _encode(tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]], **options: Any) -> list[Encoded]:
    encoded: Any = tokenizer(**texts, verbose=False, **options)
    types = encoded.get("token_type_ids") or [None] * len(encoded["input_ids"])
    return [Encoded(list(i), [], token_type_ids=t) for i, t in zip(encoded["input_ids"], types, strict=True)]
