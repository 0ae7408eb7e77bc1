"""The loss alone, forward and backward, beside its floor: a part of `gpu.py`, which decides whether a Triton form can pay.

The floor of the token terms is their three products with the head (student, teacher, gradient), each in one piece and
nothing between them: a kernel that fused all the rest for nothing would still take that long. So ``tokens`` over
``products`` bounds what such a kernel could win. ``copy`` is the traffic that the torch form cannot avoid: both sides'
float32 logits written and read once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from balora.losses import SpectralBasis, generation_loss
from reference import CONSISTENCY, DIVERSITY, SPECTRAL, SPECTRAL_RANK, TEMPERATURE, TOP_K
from rows import Rows, summary
from shapes import Shape

REPEATS = 5
"""Calls to a measurement: one alone is a few milliseconds on a GPU."""


def measure(rows: Rows, shape: Shape, rounds: int, device: str) -> None:
    """Write a row with the seconds of each, their ratio, and the rates of the products and the copy."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    calls, flops, moved = _calls(shape, device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            wait()
            begun = time.perf_counter()
            for _ in range(REPEATS):
                call()
            wait()
            if turn:  # the first warms
                seconds[name].append((time.perf_counter() - begun) / REPEATS)
    found = {name: summary(times) for name, times in seconds.items()}
    rows.add(
        kind="loss", shape=shape, tokens=shape.batch * (shape.length - int(shape.prompt * shape.length)), seconds=found,
        most_a_kernel_could_win=found["tokens"]["median"] / found["products"]["median"],
        product_tflops=flops / found["products"]["median"] / 1e12, copy_gbytes=moved / found["copy"]["median"] / 1e9,
    )  # fmt: skip


def _calls(shape: Shape, device: str) -> tuple[dict[str, Callable[[], object]], float, float]:
    """What is measured by name, the floating-point operations of the products and the bytes of the copy."""
    dtype = getattr(torch, shape.dtype)
    tokens = shape.batch * (shape.length - int(shape.prompt * shape.length))
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device)

    hidden_MD = draw(tokens, shape.hidden).to(dtype).requires_grad_()
    teacher_MD = (hidden_MD.detach() + 0.1 * draw(tokens, shape.hidden)).to(dtype)
    head_VD = (0.02 * draw(shape.vocabulary, shape.hidden)).to(dtype)
    labels_M = torch.randint(shape.vocabulary, (tokens,), generator=generator, device=device)
    basis = SpectralBasis.from_head(head_VD)
    logits_MV = torch.empty(2 * tokens, shape.vocabulary, device=device)
    other_MV = torch.empty_like(logits_MV)

    def loss(spectral: float) -> None:
        parts = generation_loss(
            hidden_MD, labels_M, head_VD, teacher_MD, consistency=CONSISTENCY, diversity=DIVERSITY, spectral=spectral,
            temperature=TEMPERATURE, top_k=TOP_K, spectral_rank=SPECTRAL_RANK, spectral_basis=basis,
        )  # fmt: skip
        parts.loss.backward()
        hidden_MD.grad = None

    @torch.no_grad()
    def products() -> torch.Tensor:
        student_MV = hidden_MD @ head_VD.T
        _ = teacher_MD @ head_VD.T
        return student_MV @ head_VD

    calls = {
        "all": lambda: loss(SPECTRAL),
        "tokens": lambda: loss(0.0),
        "products": products,
        "copy": lambda: other_MV.copy_(logits_MV),
    }
    flops = 6.0 * tokens * shape.hidden * shape.vocabulary
    return calls, flops, 2.0 * logits_MV.numel() * logits_MV.element_size()
