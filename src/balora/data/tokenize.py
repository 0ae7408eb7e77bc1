"""`tokenize_examples`: examples as tokens and labels, cut to length. Rows without a learnt token are left out.

`balora.data.prompts` defines how texts are put together.
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
    """Rows for the Trainer: ``input_ids`` and ``labels``, and for pairs of texts ``token_type_ids``."""

    train: Dataset
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
    """Tokenize the examples of a run.

    Args:
        examples: Examples from `load_examples`.
        tokenizer: Tokenizer of the model.
        data: The config's ``data`` section.
        task: generation, seq2seq, classification or regression.
        target_tokenizer: Tokenizer of the responses, for seq2seq, if it is another one.
        max_positions: Number of positions of the model, if its config has it (``max_position_embeddings``).

    Returns:
        Training and evaluation rows. For generation, labels are aligned with their tokens, not shifted, and -100 for tokens
        that are not learnt.

    Raises:
        BALoraError: No training or evaluation row keeps a learnt token within the length, or a conversation cannot be rendered.
    """
    part = "prompts" if task == "seq2seq" else "rows"
    limit = limit_of(tokenizer, data.max_length, "data.max_length", max_positions, of=part)
    encode = make_encoder(examples.form, tokenizer, data, task, limit, target_tokenizer, max_positions)
    notes: list[str] = []
    if task == "generation" and tokenizer.eos_token_id is None:
        notes.append(f"The tokenizer {tokenizer.name_or_path} has no end token, so the model cannot learn to stop.")
    train = _encode_all(encode, examples.train, "training", limit, notes)
    evaluation = None if examples.eval is None else _encode_all(encode, examples.eval, "evaluation", limit, notes)
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
