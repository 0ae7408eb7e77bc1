"""Pre-training of the quickstart's architecture: the packaged model, and the two starts of the inheritance laboratory.

Shapes: B blocks in a batch, N blocks, L tokens per block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

LENGTH = 128
"""Tokens per block, three documents or so."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that determine the model.

    Attributes:
        seed: Seed of the text, the tokenizer's text and the initial weights.
        steps: Number of optimizer steps, each on ``batch`` new blocks: the text is read once.
        batch: Blocks per step.
        learning_rate: Highest rate; after 2 % of warm-up it falls to zero along a cosine.
        threads: CPU threads. Another number may change the last bits.
    """

    seed: int
    steps: int
    batch: int
    learning_rate: float
    threads: int


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Return an untrained model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, blocks_BL: Tensor) -> float:
    """Return the mean next-token loss over all blocks, in nats."""
    model.eval()
    losses = [float(model(input_ids=part_BL, labels=part_BL).loss) for part_BL in blocks_BL.split(16)]
    model.train()
    return sum(losses) / len(losses)


def learning_rate_at(step: int, settings: Settings) -> float:
    """Return the rate of one step: linear warm-up, then a cosine down to zero."""
    warmup = max(1, settings.steps // 50)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def pretrain(
    model: LlamaForCausalLM,
    blocks_NL: Tensor,
    held_out_BL: Tensor,
    settings: Settings,
    say: Callable[[str], None] = print,
) -> float:
    """Train the model once on all blocks, and report progress through ``say``.

    Returns:
        Mean training loss of the last 5 % of the steps, in nats per token.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    started = time.monotonic()
    for step, batch_BL in enumerate(blocks_NL.split(settings.batch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        loss = model(input_ids=batch_BL, labels=batch_BL).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        done = step + 1
        if done % max(1, settings.steps // 40) == 0 or done == settings.steps:
            left = (time.monotonic() - started) / done * (settings.steps - done)
            recent = losses[-50:]
            text = f"step {done}/{settings.steps}  loss {sum(recent) / len(recent):.3f}  "
            say(f"{text}held-out {mean_loss(model, held_out_BL):.3f}  {left / 60:.1f} min left")
    last = losses[-max(1, settings.steps // 20) :]
    return sum(last) / len(last)
