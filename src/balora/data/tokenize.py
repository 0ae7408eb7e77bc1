"""`tokenize_examples`: examples as tokens and labels, cut to length; rows without anything to learn are left out.

How texts are put together is said in `balora.data.prompts`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from balora.config.sections import DataConfig
from balora.data.encoding import Encoded, Encoder, Limit, limit_of, make_encoder
from balora.data.examples import Examples
from balora.errors import BALoraError

logger = logging.getLogger("balora")
_CHUNK = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Examples as the Trainer takes them: ``input_ids`` and ``labels``, for pairs of texts also ``token_type_ids``."""

    train: Dataset
    eval: Dataset | None
    notes: tuple[str, ...]
    """What was cut or left out, one sentence each; they were logged as warnings."""


def tokenize_examples(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    task: str,
    *,
    target_tokenizer: PreTrainedTokenizerBase | None = None,
    max_positions: int | None = None,
) -> Tokenized:
    """Tokenize the examples of a run.

    Args:
        examples: From `load_examples`.
        tokenizer: The model's.
        data: The config's ``data`` section.
        task: generation, seq2seq, classification or regression.
        target_tokenizer: For seq2seq, the tokenizer of the responses where it is another one.
        max_positions: Positions the model has, where it says so (``config.max_position_embeddings``).

    Returns:
        Training and evaluation rows. For generation labels stand beside their tokens, unshifted, -100 where nothing is
        learnt.

    Raises:
        BALoraError: No row of a part keeps a token to learn from within the length; conversations cannot be rendered.
    """
    of = "prompts" if task == "seq2seq" else "rows"
    limit = limit_of(tokenizer, data.max_length, "data.max_length", max_positions, of=of)
    encode = make_encoder(examples.form, tokenizer, data, task, limit, target_tokenizer, max_positions)
    notes: list[str] = []
    if task == "generation" and tokenizer.eos_token_id is None:
        notes.append(f"The tokenizer {tokenizer.name_or_path} has no end token, so the model cannot learn to stop.")
    train = _run(encode, examples.train, "training", limit, notes)
    held_out = None if examples.eval is None else _run(encode, examples.eval, "evaluation", limit, notes)
    for note in notes:
        logger.warning(note)
    return Tokenized(train=train, eval=held_out, notes=tuple(notes))


def _run(encode: Encoder, dataset: Dataset, part: str, limit: Limit, notes: list[str]) -> Dataset:
    """Encode a dataset chunk by chunk, so that only one chunk is held as Python numbers."""
    chunks: list[Dataset] = []
    left_out: list[Encoded] = []
    cut: Counter[Limit] = Counter()
    rows = 0
    for start in range(0, len(dataset), _CHUNK):
        kept = []
        for row in encode(dataset[start : start + _CHUNK]):
            if row.needed and row.needed <= limit.tokens:
                kept.append(row)
                cut.update(row.cut)
            else:
                left_out.append(row)
            rows += 1
        if kept:
            chunks.append(_chunk(kept))
    if not chunks:
        raise BALoraError(_nothing_left(part, left_out, limit))
    notes.extend(
        f"{cut[at]:,} of {rows:,} {part} {at.of} are longer than {at.tokens} tokens ({at.origin}) and were cut."
        for at in sorted(cut, key=lambda at: at.of)
    )
    if left_out:
        notes.append(
            f"{len(left_out):,} of {rows:,} {part} rows were left out: within {limit.tokens} tokens ({limit.origin}) "
            "nothing is left of them to learn from."
        )
    return concatenate_datasets(chunks)


def _nothing_left(part: str, rows: list[Encoded], limit: Limit) -> str:
    within_reach = [row for row in rows if row.needed]
    if not within_reach:
        return f"None of the {len(rows):,} {part} rows has a token to learn from."
    shortest = min(within_reach, key=lambda row: row.needed)
    return (
        f"None of the {len(rows):,} {part} rows keeps a token to learn from within {limit.tokens} ({limit.origin}): "
        f"the shortest has {shortest.total}, and its response begins at token {shortest.needed}. Raise data.max_length "
        "to at least that if the model can take it, or shorten the prompts."
    )


def _chunk(rows: list[Encoded]) -> Dataset:
    columns: dict[str, list[Any]] = {"input_ids": [row.input_ids for row in rows]}
    kinds: dict[str, Any] = {"input_ids": List(Value("int32"))}
    if rows[0].token_type_ids is not None:
        columns["token_type_ids"] = [row.token_type_ids for row in rows]
        kinds["token_type_ids"] = List(Value("int8"))
    columns["labels"] = [row.labels for row in rows]
    first = rows[0].labels
    kinds["labels"] = (
        List(Value("int32")) if isinstance(first, list) else Value("float32" if isinstance(first, float) else "int64")
    )
    return Dataset.from_dict(columns, features=Features(kinds))
