"""Batches, and a token to pad them with where the tokenizer has none.

A batch is padded on its right, whatever side the tokenizer prefers for generation: models with absolute positions count
from the left. What is padded is known by length, not by token, so an end token that doubles as padding is still learnt.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError

logger = logging.getLogger("balora")
IGNORED = -100
"""The label of a position that is not learnt."""

Row = Mapping[str, Any]
Batch = dict[str, Tensor]


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give a tokenizer that has no pad token one of its own tokens for it, and say so once.

    Args:
        tokenizer: Changed in place where it has no pad token.

    Returns:
        The sentence that was logged, or None where there was nothing to do.

    Raises:
        BALoraError: There is neither an end nor an unknown token to take.
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
        f"The tokenizer {tokenizer.name_or_path} has no pad token, nor an end or unknown token to take for it; set "
        "pad_token in its tokenizer_config.json."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalCollator:
    """Batches for causal language models: labels beside their tokens, to be shifted by the Trainer."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Pad ``input_ids`` (B × T) and ``labels`` (B × T, -100 beyond a row's end)."""
        batch = _inputs(rows, {"input_ids": self.pad_token_id})
        return {**batch, "labels": _pad([row["labels"] for row in rows], IGNORED)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqCollator:
    """Batches for encoder-decoder models: labels aligned with the decoder's outputs, not to be shifted again."""

    pad_token_id: int
    shift: Callable[[Tensor], Tensor]
    """From labels (B × T, -100 where nothing is learnt) to what the decoder is shown (B × T)."""

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

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Pad ``input_ids`` and, for models that tell a pair's texts apart by them, ``token_type_ids``."""
        batch = _inputs(rows, {"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id})
        values = [row["labels"] for row in rows]
        dtype = torch.float32 if isinstance(values[0], float) else torch.int64
        return {**batch, "labels": torch.tensor(values, dtype=dtype)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftRight:
    """What the decoder is shown: a start token, then the labels but the last. As BART and T5 do it."""

    start_token_id: int
    pad_token_id: int

    def __call__(self, labels_BT: Tensor) -> Tensor:
        """Shift by one to the right.

        Example:
            >>> ShiftRight(start_token_id=1, pad_token_id=0)(torch.tensor([[5, 6, 2], [7, 2, -100]])).tolist()
            [[1, 5, 6], [1, 7, 2]]
        """
        shifted_BT = torch.full_like(labels_BT, self.start_token_id)
        shifted_BT[:, 1:] = labels_BT[:, :-1]
        return shifted_BT.masked_fill(shifted_BT == IGNORED, self.pad_token_id)


Collator = CausalCollator | Seq2SeqCollator | ClassificationCollator


def make_collator(task: str, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None) -> Collator:
    """The collator for a task.

    Args:
        task: generation, seq2seq, classification or regression.
        tokenizer: With a pad token (`ensure_pad_token`).
        model: For seq2seq, whose config says what the decoder starts with.

    Raises:
        BALoraError: The model does not say what its decoder starts with.
    """
    pad: Any = tokenizer.pad_token_id
    assert pad is not None, "call ensure_pad_token first"
    if task == "generation":
        return CausalCollator(pad_token_id=pad)
    if task == "seq2seq":
        assert model is not None, "a sequence-to-sequence collator needs the model"
        return Seq2SeqCollator(pad_token_id=pad, shift=_shift_of(model, pad))
    return ClassificationCollator(pad_token_id=pad, pad_token_type_id=tokenizer.pad_token_type_id)


def _shift_of(model: Any, pad_token_id: int) -> Callable[[Tensor], Tensor]:
    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    pad = pad_token_id if config.pad_token_id is None else config.pad_token_id
    if start is not None:
        return ShiftRight(start_token_id=start, pad_token_id=pad)
    own = getattr(
        model, "prepare_decoder_input_ids_from_labels", None
    )  # mBART starts with the text's own language code
    if own is None:
        raise BALoraError(f"The config of {type(model).__name__} has no decoder_start_token_id; set it in config.json.")
    return lambda labels_BT: own(labels=labels_BT)


def _inputs(rows: Sequence[Row], fills: Mapping[str, int]) -> Batch:
    batch = {name: _pad([row[name] for row in rows], fill) for name, fill in fills.items() if name in rows[0]}
    return {**batch, "attention_mask": _pad([[1] * len(row["input_ids"]) for row in rows], 0)}


def _pad(sequences: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Sequences of different length as one B × T tensor, filled on the right."""
    tensors = [torch.as_tensor(sequence, dtype=torch.int64) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
