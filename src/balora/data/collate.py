"""Batches: padding, the pad token, and the order of rows by length.

Batches are padded on the right, also if the tokenizer pads on the left for generation, because models with absolute positions
count from the left. Padding is masked by length, not by token, so an end token that is also the pad token is still learnt.

Shapes: B sequences, T positions.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.models.classifier_head import padding_side

logger = logging.getLogger("balora")
IGNORED = -100
"""Label of a position that is not learnt."""

Row = Mapping[str, Any]
Batch = dict[str, Tensor]


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Use the end token or the unknown token as pad token, if the tokenizer has no pad token.

    The tokenizer is changed in place. Returns the logged message, or None if nothing changed.

    Raises:
        BALoraError: The tokenizer has neither an end token nor an unknown token.
    """
    if tokenizer.pad_token_id is not None:
        return None
    for kind in ("eos_token", "unk_token"):
        token = getattr(tokenizer, kind, None)
        if token is not None:
            tokenizer.pad_token = token
            notice = (
                f"The tokenizer has no pad token; its {kind} {str(token)!r} is used, masked out of attention and loss."
            )
            logger.warning(notice)
            return notice
    raise BALoraError(
        f"The tokenizer {tokenizer.name_or_path} has no pad token, and no end or unknown token to use instead; set pad_token "
        "in its tokenizer_config.json."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalCollator:
    """Batches for causal language models. Labels are aligned with their tokens; the Trainer shifts them."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Pad ``input_ids`` (B × T) and ``labels`` (B × T, -100 beyond a row's end).

        Packed rows (`balora.data.packing`) have ``position_ids`` and no attention mask: transformers keeps their examples apart
        by the positions. A padding token has position 0, so it is an example of its own, which nothing else attends to.
        """
        batch = _inputs(rows, {"input_ids": self.pad_token_id})
        if any("position_ids" in row for row in rows):
            positions = [row.get("position_ids", range(len(row["input_ids"]))) for row in rows]
            batch = {"input_ids": batch["input_ids"], "position_ids": _pad(positions, 0)}
        return {**batch, "labels": _pad([row["labels"] for row in rows], IGNORED)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqCollator:
    """Batches for encoder-decoder models. Labels are aligned with the decoder's outputs and not shifted again."""

    pad_token_id: int
    shift: Callable[[Tensor], Tensor]
    """Function from labels (B × T, -100 if not learnt) to the decoder's input (B × T)."""

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Pad ``input_ids`` and ``labels``, each to its own length, and add ``decoder_input_ids``."""
        labels_BT = _pad([row["labels"] for row in rows], IGNORED)
        batch = _inputs(rows, {"input_ids": self.pad_token_id})
        return {**batch, "decoder_input_ids": self.shift(labels_BT), "labels": labels_BT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationCollator:
    """Batches for classifiers (labels B, int64) and regressors (float32)."""

    pad_token_id: int
    pad_token_type_id: int = 0
    padding_side: str = "right"

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Pad ``input_ids`` and, if the rows have them, ``token_type_ids``."""
        fills = {"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id}
        batch = _inputs(rows, fills, self.padding_side)
        values = [row["labels"] for row in rows]
        dtype = torch.float32 if isinstance(values[0], float) else torch.int64
        return {**batch, "labels": torch.tensor(values, dtype=dtype)}


def shift_right(labels_BT: Tensor, *, start_token_id: int, pad_token_id: int) -> Tensor:
    """Make the decoder input as BART and T5 do: a start token, then all labels except the last.

    Example:
        >>> shift_right(torch.tensor([[5, 6, 2], [7, 2, -100]]), start_token_id=1, pad_token_id=0).tolist()
        [[1, 5, 6], [1, 7, 2]]
    """
    shifted_BT = torch.full_like(labels_BT, start_token_id)
    shifted_BT[:, 1:] = labels_BT[:, :-1]
    return shifted_BT.masked_fill(shifted_BT == IGNORED, pad_token_id)


Collator = CausalCollator | Seq2SeqCollator | ClassificationCollator


def make_collator(task: str, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None) -> Collator:
    """Make the collator of a task. A seq2seq collator needs the model, whose config has the decoder's start token.

    Raises:
        BALoraError: The model's config has no start token for the decoder.
    """
    pad: Any = tokenizer.pad_token_id
    assert pad is not None, "call ensure_pad_token first"
    if task == "generation":
        return CausalCollator(pad_token_id=pad)
    if task == "seq2seq":
        assert model is not None, "a sequence-to-sequence collator needs the model"
        return Seq2SeqCollator(pad_token_id=pad, shift=decoder_shift(model, pad))
    return ClassificationCollator(
        pad_token_id=pad,
        pad_token_type_id=tokenizer.pad_token_type_id,
        padding_side="right" if model is None else padding_side(model),
    )


def decoder_shift(model: Any, pad_token_id: int | None = None) -> Callable[[Tensor], Tensor]:
    """Return the function from the labels of an encoder-decoder to its decoder input.

    Raises:
        BALoraError: Neither the config nor the class of the model says how the decoder starts.
    """
    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    pad = (pad_token_id or 0) if config.pad_token_id is None else config.pad_token_id
    if start is not None:
        return functools.partial(shift_right, start_token_id=start, pad_token_id=pad)
    # mBART has no fixed start token: it starts with the language code of the text.
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is None:
        raise BALoraError(f"The config of {type(model).__name__} has no decoder_start_token_id; set it in config.json.")
    return lambda labels_BT: own(labels=labels_BT.clone())  # FSMT changes them in place


def _inputs(rows: Sequence[Row], fills: Mapping[str, int], side: str = "right") -> Batch:
    batch = {name: _pad([row[name] for row in rows], fill, side) for name, fill in fills.items() if name in rows[0]}
    return {**batch, "attention_mask": _pad([[1] * len(row["input_ids"]) for row in rows], 0, side)}


def count_packed_tokens(position_ids_BT: Tensor) -> Tensor:
    """Count the tokens of packed rows without their padding. Every example has at least two tokens.

    Example:
        >>> int(count_packed_tokens(torch.tensor([[0, 1, 2, 0, 1, 0, 0]])))
        5
    """
    return (position_ids_BT > 0).sum() + (position_ids_BT == 1).sum()


def _pad(sequences: Sequence[Sequence[int]], fill: int, side: str = "right") -> Tensor:
    """Stack sequences of different lengths into one B × T tensor, filled on one side."""
    tensors = [torch.as_tensor(sequence, dtype=torch.int64) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)


def lengths_of(rows: Dataset, column: str) -> list[int]:
    """Return the length of each list in a column, a thousand rows at a time."""
    table = rows.select_columns([column]).with_format("arrow")
    batches = (table[start : start + 1000][column] for start in range(0, len(rows), 1000))  # type: ignore[call-overload]
    return [length for batch in batches for length in pc.list_value_length(batch).to_pylist()]


def shortest_first(rows: Any) -> Any:
    """Sort rows by length, so that a batch has little padding. Rows of equal length stay in their order.

    Use it only if the order does not matter, such as for the scores of a classifier. A dataset without a length or without
    ``input_ids`` is returned unchanged.
    """
    try:
        if isinstance(rows, Dataset):
            lengths = lengths_of(rows, "input_ids")
        else:
            lengths = [len(rows[i]["input_ids"]) for i in range(len(rows))]
    except (KeyError, TypeError):
        return rows
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return rows.select(order) if isinstance(rows, Dataset) else Subset(rows, order)
