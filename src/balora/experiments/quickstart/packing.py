"""The corpus as token blocks: what the packaged model is pre-trained on, and what its drift is measured on.

Shapes: N blocks, L tokens per block.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.experiments.quickstart.corpus import documents
from balora.experiments.quickstart.writer import FLAWS, Document, Flaws, Split

_BATCH = 256  # documents tokenized in one call


def blocks(
    tokenizer: PreTrainedTokenizerBase,
    n_blocks: int,
    length: int,
    seed: int,
    *,
    split: Split = "train",
    flaws: Flaws = FLAWS,
) -> Tensor:
    """Documents, each between the begin and end tokens, laid end to end and cut into blocks.

    Args:
        tokenizer: A tokenizer with begin and end tokens, such as the packaged one.
        n_blocks: Number of blocks N, at least 1.
        length: Tokens per block L, at least 2.
        seed: Seed of the documents.
        split: Which part of the corpus.
        flaws: How much of the text is flawed.

    Returns:
        N x L token ids, int64, without padding. A block may begin or end inside a document.

    Raises:
        BALoraError: ``n_blocks`` or ``length`` is too small, or the tokenizer lacks a begin or end token.
    """
    if n_blocks < 1 or length < 2:
        raise BALoraError(f"Need at least 1 block of at least 2 tokens, not {n_blocks} of {length}.")
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise BALoraError("The tokenizer needs a begin and an end token; set bos_token and eos_token.")
    wanted = n_blocks * length
    tokens: list[int] = []
    stream = documents(seed, split=split, flaws=flaws)
    while len(tokens) < wanted:
        tokens += _encode(tokenizer, islice(stream, _BATCH))
    return torch.tensor(tokens[:wanted], dtype=torch.int64).view(n_blocks, length)


def held_out_blocks(tokenizer: PreTrainedTokenizerBase, n_blocks: int, length: int, seed: int = 0) -> Tensor:
    """Blocks of text that the packaged model has not seen, of the distribution it was trained on.

    Drift is measured here: how far the fine-tuned model's next-token distributions are from the pre-trained ones.

    Args:
        tokenizer: The packaged tokenizer.
        n_blocks: Number of blocks N, at least 1.
        length: Tokens per block L, at least 2; the model was trained with 128.
        seed: Seed of the documents.

    Returns:
        N x L token ids, int64, without padding.

    Raises:
        BALoraError: ``n_blocks`` or ``length`` is too small, or the tokenizer lacks a begin or end token.
    """
    return blocks(tokenizer, n_blocks, length, seed, split="held_out")


def _encode(tokenizer: PreTrainedTokenizerBase, told: Iterable[Document]) -> list[int]:
    texts = [f"{tokenizer.bos_token}{document.text}{tokenizer.eos_token}" for document in told]
    return [token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids]
