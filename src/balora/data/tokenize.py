"""`tokenize_examples`: examples as tokens and labels, cut to length. Rows without a learnt token are left out.

`balora.data.prompts` defines how texts are put together.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from balora.config.data_columns import Form
from balora.config.sections import DataConfig
from balora.data.collate import IGNORED
from balora.data.conversations.chat import ChatEncoder
from balora.data.conversations.messages import read_conversation
from balora.data.conversations.rendering import Unrenderable, require_chat_template
from balora.data.conversations.turn_frames import FramesFail
from balora.data.data_cache import cached, fingerprint
from balora.data.examples import Examples
from balora.data.files.tables import BadRows
from balora.data.parallel_encoding import Batch, Encoded, Encoder, Limit, Notes, Outcome, encode_rows
from balora.data.prompts import bare_ids, render_prompt, separator_of, start_ids, template_of
from balora.data.special_text import Marker, has_marks, reader_of_marks
from balora.data.tokenizer_digest import tokenizer_digest
from balora.errors import BALoraError

logger = logging.getLogger("balora")
_UNLIMITED = 1_000_000  # transformers writes 1e30 if a tokenizer has no limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Rows for the Trainer: ``input_ids`` and ``labels``, and for pairs of texts ``token_type_ids``."""

    train: Any
    """A `datasets.Dataset`; with ``data.streaming`` a `datasets.IterableDataset` without end."""
    eval: Dataset | None
    notes: tuple[str, ...]
    """Sentences about rows that were cut or left out; they were logged as warnings."""


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
    job = _Job(examples, tokenizer, data, task, target_tokenizer, max_positions)
    if examples.cache is None:
        made = job.run(None)
        tokenized = Tokenized(train=made.train, eval=made.eval, notes=tuple(made.notes))
    else:
        section = data.model_dump(mode="json", exclude={"num_proc"})
        tokens = tokenizer_digest(tokenizer, target_tokenizer)
        key = fingerprint("tokens", section, task, tokens, tokenizer.model_max_length, max_positions)
        tokenized = cached(Path(examples.cache) / key, lambda directory: job.run(directory).facts(), _read_back)
    for note in tokenized.notes:
        logger.warning(note)
    return tokenized


@dataclasses.dataclass
class _Made:
    """Tokens of all parts, with the files that have them."""

    train: Dataset
    eval: Dataset | None
    notes: list[str]
    files: dict[str, list[str]]

    def facts(self) -> dict[str, Any]:
        return {"notes": self.notes, "files": self.files}


def _read_back(directory: Path, facts: dict[str, Any]) -> Tokenized:
    parts: dict[str, Dataset | None] = {"train": None, "eval": None}
    for part, names in facts["files"].items():
        rows = [Dataset.from_file(str(directory / name)) for name in names]
        parts[part] = rows[0] if len(rows) == 1 else concatenate_datasets(rows)
    assert parts["train"] is not None
    return Tokenized(train=parts["train"], eval=parts["eval"], notes=tuple(facts["notes"]))


@dataclasses.dataclass(frozen=True)
class _Job:
    """Everything that the tokens of a run depend on."""

    examples: Examples
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    task: str
    target: PreTrainedTokenizerBase | None
    max_positions: int | None

    def run(self, directory: Path | None) -> _Made:
        """Tokenize all parts; write them to the directory, or keep them in memory."""
        data, task = self.data, self.task
        of = "prompts" if task == "seq2seq" else "rows"
        limit = limit_of(self.tokenizer, data.max_length, "data.max_length", self.max_positions, of=of)
        notes: list[str] = []
        if task == "generation" and self.tokenizer.eos_token_id is None:
            notes.append(
                f"The tokenizer {self.tokenizer.name_or_path} has no end token, so the model cannot learn to stop."
            )
        files: dict[str, list[str]] = {}
        train = self._part("train", self.examples.train, "training", limit, directory, notes, files)
        evaluation = None
        if self.examples.eval is not None:
            evaluation = self._part("eval", self.examples.eval, "evaluation", limit, directory, notes, files)
        return _Made(train, evaluation, notes, files)

    def _part(
        self,
        name: str,
        dataset: Dataset,
        part: str,
        limit: Limit,
        directory: Path | None,
        notes: list[str],
        files: dict[str, list[str]],
    ) -> Dataset:
        path = None if directory is None else directory / name
        make = functools.partial(
            make_encoder,
            self.examples.form,
            self.tokenizer,
            self.data,
            self.task,
            limit,
            self.target,
            self.max_positions,
        )
        processes = self.data.num_proc
        try:
            written, rows, outcome, found = encode_rows(make, dataset, limit, path, processes)
        except FramesFail:
            careful = functools.partial(make, quick=False)
            written, rows, outcome, found = encode_rows(careful, dataset, limit, path, processes)
        if rows is None:
            raise BALoraError(_nothing_left(part, outcome, limit))
        notes.extend(
            f"{outcome.cut[at]:,} of {outcome.rows:,} {part} {at.of} are longer than {at.tokens} tokens ({at.origin}) and "
            "were cut."
            for at in sorted(outcome.cut, key=lambda at: at.of)
        )
        if outcome.left_out:
            notes.append(
                f"{outcome.left_out:,} of {outcome.rows:,} {part} rows were left out, because they have nothing to learn "
                f"within {limit.tokens} tokens ({limit.origin})."
            )
        notes.extend(found(part))
        files[name] = [file.name for file in written]
        return rows


def _nothing_left(part: str, outcome: Outcome, limit: Limit) -> str:
    if outcome.shortest is None:
        return f"None of the {outcome.left_out:,} {part} rows has a token to learn from."
    needed, total = outcome.shortest
    return (
        f"None of the {outcome.left_out:,} {part} rows keeps a token to learn from within {limit.tokens} ({limit.origin}): "
        f"the shortest has {total}, and its response begins at token {needed}. Raise data.max_length "
        "to at least that if the model can take it, or shorten the prompts."
    )


def make_encoder(
    form: Form,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    task: str,
    limit: Limit,
    target_tokenizer: PreTrainedTokenizerBase | None,
    max_positions: int | None,
    *,
    quick: bool = True,
) -> tuple[Encoder, Notes]:
    """Make the function that encodes a batch of examples of this form, and the notes about all batches.

    ``quick`` allows the quick way through conversations (`balora.data.conversations.turn_frames`).
    """
    template = template_of(data)
    marker = Marker(tokenizer, as_tokens=data.special_tokens)
    if task == "seq2seq":
        target = target_tokenizer or tokenizer
        key = "max_length" if data.max_target_length is None else "max_target_length"
        target_limit = limit_of(target, getattr(data, key), f"data.{key}", max_positions, of="responses")
        targets = Marker(target, as_tokens=data.special_tokens)
        encode: Encoder = functools.partial(_seq2seq, marker, targets, template, limit, target_limit)
        return encode, Notes(marker, targets)
    if form == "pair":
        encode = functools.partial(_pairs, marker, template, separator_of(template, data.separator), limit)
    elif form == "messages":
        require_chat_template(tokenizer)
        chats = ChatEncoder(tokenizer, marker, quick=quick)
        return functools.partial(_chats, chats, limit), Notes(chats, marker)
    else:
        encode = functools.partial(_texts if form == "text" else _labelled, marker, limit)
    return encode, Notes(marker)


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
    first = learnt.index(True, 1) if True in learnt[1:] else None
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
    rows = marker.rows(list(zip(batch["prompt"], batch["input"], batch["response"], strict=True)))
    prompts = [render_prompt(template, prompt, given) + separator for prompt, given, _ in rows]
    responses = [response for _, _, response in rows]
    prompts_ids = bare_ids(tokenizer, prompts)
    texts_ids = bare_ids(tokenizer, [p + r for p, r in zip(prompts, responses, strict=True)])
    for prompt_ids, text_ids, response in zip(prompts_ids, texts_ids, responses, strict=True):
        # If a token spans the seam, the response is tokenized alone, so that the prompt's tokens are those of inference.
        joint = text_ids[: len(prompt_ids)] == prompt_ids
        response_ids = text_ids[len(prompt_ids) :] if joint else bare_ids(tokenizer, [response])[0]
        response_ids = _with_end(tokenizer, response_ids)
        before = len(start) + len(prompt_ids)
        ids = [*start, *prompt_ids, *response_ids]
        first = before if before else 1  # the first token is never a target, since no token precedes it
        yield Encoded(
            ids[: limit.tokens],
            [*[IGNORED] * before, *response_ids][: limit.tokens],
            needed=first + 1 if first < len(ids) else 0,
            total=len(ids),
            cut=(limit,) if len(ids) > limit.tokens else (),
        )


def _chats(chats: ChatEncoder, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode conversations; the assistant's messages are learnt. A conversation can become several examples."""
    bad = BadRows()
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    for row, examples in zip(rows, chats.encode_batch([read_conversation(row) for row in rows]), strict=True):
        if isinstance(examples, Unrenderable):
            bad.add(row["location"], str(examples))
        else:
            yield from [_mask_and_cut(*example, limit) for example in examples]
    bad.raise_if_any()


def _texts(marker: Marker, limit: Limit, batch: Batch) -> Iterator[Encoded]:
    """Encode plain text; every token is learnt."""
    start = start_ids(marker.tokenizer)
    for bare in bare_ids(marker.tokenizer, [row[0] for row in marker.rows([[text] for text in batch["text"]])]):
        ids = start + _with_end(marker.tokenizer, bare)
        yield _mask_and_cut(ids, [True] * len(ids), limit)


def _seq2seq(
    marker: Marker, targets: Marker, template: str, limit: Limit, target_limit: Limit, batch: Batch
) -> Iterator[Encoded]:
    """Encode the prompt for the encoder and the response for the decoder, with the special tokens of their tokenizers."""
    rows = marker.rows(list(zip(batch["prompt"], batch["input"], strict=True)))
    responses = [row[0] for row in targets.rows([[response] for response in batch["response"]])]
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
    rows = marker.rows(list(zip(*(batch[name] for name in names), strict=True)))
    texts: dict[str, list[str]] = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    for encoded, label in zip(_with_special_tokens(marker.tokenizer, texts, limit), batch["labels"], strict=True):
        yield Encoded(
            encoded.input_ids, label, total=encoded.total, cut=encoded.cut, token_type_ids=encoded.token_type_ids
        )


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
    encoded: Any = tokenizer(**texts, return_attention_mask=False, verbose=False, **options)
    types = encoded.get("token_type_ids") or [None] * len(encoded["input_ids"])
    return [Encoded(i, [], total=len(i), token_type_ids=t) for i, t in zip(encoded["input_ids"], types, strict=True)]
