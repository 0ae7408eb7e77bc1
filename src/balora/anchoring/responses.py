"""Answers that an encoder-decoder writes itself to inputs of the task: its anchors without further data.

Sampled at temperature 1 from the full distribution, as `balora.anchoring.sampling` does for causal models.
Shapes: B rows, T positions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from balora.anchoring.rows import collate
from balora.anchoring.sampling import BATCH, end_tokens, plain_generation
from balora.models.adapted_model import base_model_of
from balora.turns import by_turns


def draw_sources(sources: Sequence[Any], count: int, seed: int) -> list[int]:
    """Return the numbers of ``count`` inputs in random order; more than there are begin another pass.

    Example:
        >>> sorted(draw_sources(["a", "b", "c"], 3, 0)), len(draw_sources(["a", "b", "c"], 5, 0))
        ([0, 1, 2], 5)
    """
    drawn: list[int] = []
    while len(drawn) < count:
        order = random.Random(f"anchor sources {seed} {len(drawn)}").sample(range(len(sources)), len(sources))
        drawn += order[: count - len(drawn)]
    return drawn


def sample_responses(
    model: nn.Module,
    tokenizer: Any,
    sources: Sequence[Sequence[int]],
    tokens: int,
    seed: int,
    *,
    batch_size: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, list[int]]]:
    """Let an encoder-decoder answer inputs. Processes that divide their work answer different batches.

    Args:
        model: The model in the state that is to write; with or without a peft adapter.
        tokenizer: Its tokenizer, for the padding and end tokens.
        sources: Inputs as tokens.
        tokens: Greatest number of tokens of an answer.
        seed: Seed of each batch; the global random state is left as it is.
        batch_size: Answers that are written at a time.
        progress: Called with the number of inputs done.

    Returns:
        Rows with ``input_ids`` and ``labels``. An answer without a token is left out.
    """
    base = base_model_of(model)
    device = next(base.parameters()).device
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id or 0
    own = base.generation_config
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_beams=1, max_new_tokens=tokens, pad_token_id=pad,
        eos_token_id=sorted(ends) or None, decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
    )  # fmt: skip

    def answer(number: int) -> list[dict[str, list[int]]]:
        begin = number * batch_size
        part = [list(source) for source in sources[begin : begin + batch_size]]
        batch = collate([{"input_ids": source} for source in part], pad, causal=False)
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed * 1_000_003 + begin)
            written = base.generate(**batch, generation_config=config).tolist()
        rows = []
        for source, tokens_of_answer in zip(part, written, strict=True):
            new = tokens_of_answer[1:]  # without the token from which every decoder starts
            end = next((at for at, token in enumerate(new, start=1) if token in ends), len(new))
            if new[:end]:
                rows.append({"input_ids": source, "labels": new[:end]})
        progress(begin + len(part))
        return rows

    with plain_generation(model):
        return [row for rows in by_turns(answer, -(-len(sources) // batch_size)) for row in rows]
