"""`tokenize_examples`: examples as tokens and labels, cut to length. Rows without a learnt token are left out.

`balora.data.prompts` defines how texts are put together.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from balora.config.data_columns import Form
from balora.config.sections import DataConfig
from balora.data.chat import ChatEncoder
from balora.data.collate import IGNORED
from balora.data.examples import Examples
from balora.data.messages import read_conversation
from balora.data.prompts import bare_ids, render_prompt, separator_of, start_ids, template_of
from balora.data.rendering import Unrenderable, require_chat_template
from balora.data.special_text import Marker, has_marks, reader_of_marks
from balora.data.tables import BadRows
from balora.errors import BALoraError

logger = logging.getLogger("balora")
_CHUNK = 1000
_UNLIMITED = 1_000_000  # transformers writes 1e30 if a tokenizer has no limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Rows for the Trainer: ``input_ids`` and ``labels``, and for pairs of texts ``token_type_ids``."""

    train: Any
    """A `datasets.Dataset`; with ``data.streaming`` a `datasets.IterableDataset` without end."""
    eval: Dataset | None
    notes: tuple[str, ...]
    """Sentences about rows that were cut or left out; they were logged as warnings."""


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
    """Number of tokens up to the first learnt one, inclusive; 0 if there is no learnt token."""
    total: int = 1
    """Number of tokens before cutting."""
    cut: tuple[Limit, ...] = ()
    """Limits at which the example was cut. Prompt and response of a seq2seq example have one each."""
    token_type_ids: list[int] | None = None


Batch = dict[str, list[Any]]
Encoder = Callable[[Batch], Iterator[Encoded]]
Notes = Callable[[str], list[str]]
"""Function from the name of a part of the data to sentences about what was found in it."""


def tokenize_examples(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    task: str,
    *,
    target_tokenizer: PreTrainedTokenizerBase | None = None,
    max_positions: int | None = None,
) -> Tokenized:
    """Tokenize the examples of a run. Labels are aligned with their tokens, not shifted; -100 marks tokens not to learn.

    ``target_tokenizer`` is for the responses of seq2seq, if it differs. ``max_positions`` is the model's number of positions.

    Raises:
        BALoraError: No training or evaluation row keeps a learnt token within the length, or a conversation cannot be rendered.
    """
    part = "prompts" if task == "seq2seq" else "rows"
    limit = limit_of(tokenizer, data.max_length, "data.max_length", max_positions, of=part)
    notes: list[str] = []
    if task == "generation" and tokenizer.eos_token_id is None:
        notes.append(f"The tokenizer {tokenizer.name_or_path} has no end token, so the model cannot learn to stop.")

    def encoded(dataset: Dataset, part: str) -> Dataset:
        encode, found = make_encoder(examples.form, tokenizer, data, task, limit, target_tokenizer, max_positions)
        rows = _encode_all(encode, dataset, part, limit, notes)
        notes.extend(found(part))
        return rows

    train = encoded(examples.train, "training")
    evaluation = None if examples.eval is None else encoded(examples.eval, "evaluation")
    for note in notes:
        logger.warning(note)
    return Tokenized(train=train, eval=evaluation, notes=tuple(notes))


def _encode_all(encode: Encoder, dataset: Dataset, part: str, limit: Limit, notes: list[str]) -> Dataset:
    """Encode a dataset chunk by chunk, because Python lists of all tokens would need much memory."""
    chunks: list[Dataset] = []
    left_out: list[Encoded] = []
    cut: Counter[Limit] = Counter()
    rows = 0
    for start in range(0, len(dataset), _CHUNK):
        usable = []
        for row in encode(dataset[start : start + _CHUNK]):
            if row.needed and row.needed <= limit.tokens:
                usable.append(row)
                cut.update(row.cut)
            else:
                left_out.append(row)
            rows += 1
        if usable:
            chunks.append(_to_dataset(usable))
    if not chunks:
        raise BALoraError(_nothing_left(part, left_out, limit))
    notes.extend(
        f"{cut[at]:,} of {rows:,} {part} {at.of} are longer than {at.tokens} tokens ({at.origin}) and were cut."
        for at in sorted(cut, key=lambda at: at.of)
    )
    if left_out:
        notes.append(
            f"{len(left_out):,} of {rows:,} {part} rows were left out, because they have nothing to learn within "
            f"{limit.tokens} tokens ({limit.origin})."
        )
    return concatenate_datasets(chunks)


def _nothing_left(part: str, rows: list[Encoded], limit: Limit) -> str:
    learnable = [row for row in rows if row.needed]
    if not learnable:
        return f"None of the {len(rows):,} {part} rows has a token to learn from."
    shortest = min(learnable, key=lambda row: row.needed)
    return (
        f"None of the {len(rows):,} {part} rows keeps a token to learn from within {limit.tokens} ({limit.origin}): "
        f"the shortest has {shortest.total}, and its response begins at token {shortest.needed}. Raise data.max_length "
        "to at least that if the model can take it, or shorten the prompts."
    )


def _to_dataset(rows: list[Encoded]) -> Dataset:
    first = rows[0]
    kinds: dict[str, Any] = {"input_ids": List(Value("int32"))}
    if first.token_type_ids is not None:
        kinds["token_type_ids"] = List(Value("int8"))
    number = Value("float32" if isinstance(first.labels, float) else "int64")
    kinds["labels"] = List(Value("int32")) if isinstance(first.labels, list) else number
    columns = {name: [getattr(row, name) for row in rows] for name in kinds}
    return Dataset.from_dict(columns, features=Features(kinds))


def make_encoder(
    form: Form,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    task: str,
    limit: Limit,
    target_tokenizer: PreTrainedTokenizerBase | None,
    max_positions: int | None,
) -> tuple[Encoder, Notes]:
    """Make the function that encodes a batch of examples of this form, and the function that returns notes about all batches."""
    template = template_of(data)
    marker = Marker(tokenizer, as_tokens=data.special_tokens)
    if task == "seq2seq":
        target = target_tokenizer or tokenizer
        key = "max_length" if data.max_target_length is None else "max_target_length"
        target_limit = limit_of(target, getattr(data, key), f"data.{key}", max_positions, of="responses")
        targets = Marker(target, as_tokens=data.special_tokens)
        encode: Encoder = functools.partial(_seq2seq, marker, targets, template, limit, target_limit)
        return encode, lambda part: marker.notes(part) + targets.notes(part)
    if form == "pair":
        encode = functools.partial(_pairs, marker, template, separator_of(template, data.separator), limit)
    elif form == "messages":
        require_chat_template(tokenizer)
        chats = ChatEncoder(tokenizer, marker)
        return functools.partial(_chats, chats, limit), lambda part: chats.notes(part) + marker.notes(part)
    else:
        encode = functools.partial(_texts if form == "text" else _labelled, marker, limit)
    return encode, marker.notes


def limit_of(
    tokenizer: PreTrainedTokenizerBase, asked: int, key: str, max_positions: int | None, *, of: str = "rows"
) -> Limit:
    """Return the smallest of the limit ``asked`` in the config key and those of tokenizer and model."""
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


def _pairs(marker: Marker, template: str, separator: str, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode prompt and response; the response is learnt."""
    tokenizer = marker.tokenizer
    start = start_ids(tokenizer)
    rows = [marker.row(row) for row in zip(batch["prompt"], batch["input"], batch["response"], strict=True)]
    prompts = [render_prompt(template, prompt, given) + separator for prompt, given, _ in rows]
    responses = [response for _, _, response in rows]
    prompts_ids = bare_ids(tokenizer, prompts)
    texts_ids = bare_ids(tokenizer, [p + r for p, r in zip(prompts, responses, strict=True)])
    for prompt_ids, text_ids, response in zip(prompts_ids, texts_ids, responses, strict=True):
        # If a token spans the seam, the response is tokenized alone, so that the prompt's tokens are those of inference.
        joint = text_ids[: len(prompt_ids)] == prompt_ids
        response_ids = text_ids[len(prompt_ids) :] if joint else bare_ids(tokenizer, [response])[0]
        response_ids = _with_end(tokenizer, response_ids)
        before = start + prompt_ids
        yield _mask_and_cut(before + response_ids, [False] * len(before) + [True] * len(response_ids), limit)


def _chats(chats: ChatEncoder, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode conversations; the assistant's messages are learnt. A conversation can become several examples."""
    bad = BadRows()
    for values in zip(*batch.values(), strict=True):
        row = dict(zip(batch, values, strict=True))
        try:
            yield from [_mask_and_cut(*example, limit) for example in chats.encode(*read_conversation(row))]
        except Unrenderable as problem:
            bad.add(row["location"], str(problem))
    bad.raise_if_any()


def _texts(marker: Marker, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode plain text; every token is learnt."""
    start = start_ids(marker.tokenizer)
    for bare in bare_ids(marker.tokenizer, [marker.row([text])[0] for text in batch["text"]]):
        ids = start + _with_end(marker.tokenizer, bare)
        yield _mask_and_cut(ids, [True] * len(ids), limit)


def _seq2seq(
    marker: Marker, targets: Marker, template: str, limit: Limit, target_limit: Limit, batch: Batch
) -> Iterator[Encoded]:
    """Encode the prompt for the encoder and the response for the decoder, with the special tokens of their tokenizers."""
    rows = [marker.row(row) for row in zip(batch["prompt"], batch["input"], strict=True)]
    responses = [targets.row([response])[0] for response in batch["response"]]
    prompts = [render_prompt(template, prompt, given) for prompt, given in rows]
    sources = _with_special_tokens(marker.tokenizer, {"text": prompts}, limit)
    answers = _with_special_tokens(targets.tokenizer, {"text_target": responses}, target_limit)
    for source, response in zip(sources, answers, strict=True):
        labels = response.input_ids
        cut = source.cut + response.cut
        yield Encoded(source.input_ids, labels, needed=1 if labels else 0, total=source.total, cut=cut)


def _labelled(marker: Marker, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode a text or pair of texts with its class or score. Of a pair the longer text is cut first."""
    names: list[str] = [name for name in ("text", "text_pair") if name in batch]
    rows = [marker.row(row) for row in zip(*(batch[name] for name in names), strict=True)]
    texts: dict[str, list[str]] = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    for encoded, label in zip(_with_special_tokens(marker.tokenizer, texts, limit), batch["labels"], strict=True):
        yield dataclasses.replace(encoded, labels=label)


def _with_special_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]], limit: Limit
) -> list[Encoded]:
    """Encode texts with the tokenizer's special tokens, which cutting keeps. The labels are still empty."""
    rows = _encode(tokenizer, texts)
    long = [at for at, row in enumerate(rows) if len(row.input_ids) > limit.tokens]
    if long:
        again = {name: [values[at] for at in long] for name, values in texts.items()}
        for at, row in zip(long, _encode(tokenizer, again, truncation=True, max_length=limit.tokens), strict=True):
            rows[at] = dataclasses.replace(row, total=rows[at].total, cut=(limit,))
    return rows


def _encode(tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]], **options: Any) -> list[Encoded]:
    if any(has_marks(column) for column in texts.values()):
        every = [text for column in texts.values() for text in column]
        tokenizer, every = reader_of_marks(tokenizer, every, target="text_target" in texts)
        texts = {
            name: every[at * len(column) : (at + 1) * len(column)] for at, (name, column) in enumerate(texts.items())
        }
    encoded: Any = tokenizer(**texts, verbose=False, **options)
    types = encoded.get("token_type_ids") or [None] * len(encoded["input_ids"])
    return [
        Encoded(list(i), [], total=len(i), token_type_ids=t) for i, t in zip(encoded["input_ids"], types, strict=True)
    ]
