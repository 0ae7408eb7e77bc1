"""Cases for the tests of exports: families, methods, and models with changed weights."""

from __future__ import annotations

import torch

import balora
from balora.methods import METHODS
from bench import adapted, rows_for
from tiny import pad_rows, tiny_bert, tiny_causal, tiny_gpt2, tiny_llama

MAKERS = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "bert": tiny_bert,
    "mixtral": lambda: tiny_causal("Mixtral"),
}
LOW_RANK = [name for name, method in METHODS.items() if method.low_rank]
NOT_IN_EXPERTS = ("dora", "adalora", "corda", "cordapp")


def trained(make, method, **options):
    """Return a model with changed weights, its teacher and a batch."""
    model = adapted(make, method, **options)
    teacher = balora.PretrainedTeacher(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                noise = torch.randn(p.shape, generator=generator)
                p.add_((20.0 if ".lora_E." in name else 0.05) * (p.abs().mean() + 0.1) * noise)
                if ".lora_E." in name:
                    p[1::3] = 0  # pruned
    batch = {k: v for k, v in pad_rows(rows_for(make())[:4]).items() if k != "labels"}
    return model, teacher, batch


def cases(chosen) -> list[tuple[str, str]]:
    """Return all methods on Llama, and on other models the methods with other adapters or weights there."""
    kinds = ("lora", "pissa", "dora", "adalora", "cordapp", "bitfit", "full")
    return [
        (family, method)
        for family in MAKERS
        for method in chosen
        if (family == "llama" or method in kinds)
        and not (family == "mixtral" and method in NOT_IN_EXPERTS)
        and not (family in ("llama", "mixtral") and method == "bitfit")
    ]
