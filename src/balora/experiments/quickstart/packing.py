"""Token blocks of the corpus, for pre-training the packaged model and for measuring its drift.

Shapes: N blocks, L tokens per block.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.experiments.quickstart.corpus import documents
from balora.experiments.quickstart.writer import Split

_BATCH = 256  # documents tokenized in one call


def token_blocks(
    tokenizer: PreTrainedTokenizerBase,
    n_blocks: int,
    length: int,
    seed: int = 0,
    *,
    split: Split = "train",
    texts: Iterator[str] | None = None,
) -> Tensor:
    """Concatenate documents, each between the begin and end tokens, and cut them into blocks.

    The packaged model was trained on blocks of 128 tokens of the training split. Drift is measured on held-out blocks: the distance
    of the fine-tuned model's next-token distributions from the pre-trained model's.

    ``texts`` replaces the documents of the seed and split: an iterator without end.

    Returns:
        N x L token ids (``n_blocks`` x ``length``), int64, without padding. A block may begin or end inside a document.

    Raises:
        BALoraError: ``n_blocks`` or ``length`` is too small, or the tokenizer lacks a begin or end token.
    """
    if n_blocks < 1 or length < 2:
        raise BALoraError(f"Need at least 1 block of at least 2 tokens, not {n_blocks} of {length}.")
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise BALoraError("The tokenizer has no begin or no end token. Set its bos_token and eos_token.")
    tokens: list[int] = []
    stream = texts or (document.text for document in documents(seed, split=split))
    while len(tokens) < n_blocks * length:
        batch = [f"{tokenizer.bos_token}{text}{tokenizer.eos_token}" for text in islice(stream, _BATCH)]
        tokens += [token for ids in tokenizer(batch, add_special_tokens=False)["input_ids"] for token in ids]
    return torch.tensor(tokens[: n_blocks * length], dtype=torch.int64).view(n_blocks, length)
