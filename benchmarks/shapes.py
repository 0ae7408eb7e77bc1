"""Models and batches of the measurements: Llama models of several sizes, with random weights and tokens."""

from __future__ import annotations

import dataclasses

import torch
import transformers
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, its adapter and its batches."""

    name: str
    layers: int = 8
    hidden: int = 512
    inner: int = 1376
    heads: int = 8
    vocabulary: int = 32_000
    rank: int = 16
    batch: int = 4
    length: int = 256
    prompt: float = 0.5
    """Fraction of a sequence that is a prompt, without targets."""
    dtype: str = "float32"
    checkpointing: bool = False

    def model(self, device: str = "cpu") -> transformers.LlamaForCausalLM:
        """Return a new model with random weights, the same for the same shape."""
        config = transformers.LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.heads,
            max_position_embeddings=max(self.length, 64), use_cache=False, tie_word_embeddings=False,
        )  # fmt: skip
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))  # create it in its dtype: 7B in float32 takes 28 GB
        try:
            with torch.device(device):
                return transformers.LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)

    def batches(self, count: int, device: str = "cpu") -> list[dict[str, Tensor]]:
        """Return batches of full rows, each starting with a prompt."""
        generator = torch.Generator().manual_seed(1)
        batches = []
        for _ in range(count):
            tokens = torch.randint(4, self.vocabulary, (self.batch, self.length), generator=generator)
            labels = tokens.clone()
            labels[:, : int(self.prompt * self.length)] = -100
            batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
            batches.append({name: value.to(device) for name, value in batch.items()})
        return batches


MAIN = Shape(name="8 layers, d 512, V 32 000")
WIDE = dataclasses.replace(MAIN, name="8 layers, d 512, V 128 256", vocabulary=128_256)
SMALL = Shape(name="2 layers, d 256", layers=2, hidden=256, inner=688, heads=4, rank=8, batch=2)
"""Shape of the sweeps."""
LLAMA_7B = Shape(
    name="LLaMA-2-7B", layers=32, hidden=4096, inner=11008, heads=32, rank=128, length=512, dtype="bfloat16"
)
LLAMA_8B = dataclasses.replace(LLAMA_7B, name="8B with V 128 256", inner=14336, vocabulary=128_256)
TINY = Shape(name="tiny", layers=2, hidden=32, inner=48, heads=4, vocabulary=101, rank=4, batch=2, length=24)
"""Shape to try the scripts with."""
