"""Measure the loss without the model, forward and backward: torch form, Triton form and lower bound. A part of `gpu.py`.

The lower bound of the token terms is the time of their three products with the head (student, teacher, gradient), each in
one piece and nothing between them: a perfect kernel would still need it. So ``tokens`` over ``products`` is the largest
speed-up that a kernel can reach. ``copy`` is the memory traffic that the torch form cannot avoid: float32 logits of student
and teacher, written and read once.

The Triton form is measured on a GPU, or anywhere with TRITON_INTERPRET=1, to try the script.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from balora.losses import SpectralBasis, generation_loss, triton_token_terms
from balora.losses.triton_token_terms import Kernel, kernel_problems
from reference import CONSISTENCY, DIVERSITY, SPECTRAL, SPECTRAL_RANK, TEMPERATURE, TOP_K
from result_rows import Rows, ratios, summary
from shapes import Shape

REPEATS = 5
"""Calls of a measurement; a single one takes a few milliseconds on a GPU."""
LAUNCHES = ((512, 4), (1024, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8))
"""Lanes and warps of a row that are tried beside the kernel's own, which were chosen without a GPU."""


def measure(rows: Rows, shape: Shape, rounds: int, device: str, decaying: bool = True) -> None:
    """Write a row with the seconds of each part, their ratios, and the rates of the products and the copy.

    ``triton`` in the row is None without a GPU. If the Triton form cannot run on the GPU, it has the reason. Otherwise it
    has the differences of the two forms, the ratios of their times and the seconds of ``tokens`` by lanes and warps.
    """
    calls, flops, moved = _calls(shape, device, decaying)
    compared = [name for name in calls if f"{name}, triton" in calls]
    triton: dict[str, object] | None = None
    try:
        triton = {"differences": _differences(calls)} if compared else None
    except Exception as error:  # measure the rest even if the kernel does not compile
        triton = {"failed": f"{type(error).__name__}: {error}"}
        calls = {name: call for name, call in calls.items() if not name.endswith("triton")}
        compared = []
    if device == "cuda" and triton is None:
        triton = {"failed": " ".join(kernel_problems("triton", torch.device(device)))}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            found = _seconds(call, device)
            if turn:  # the first round is a warm-up
                seconds[name].append(found)
    if compared:
        triton["torch_over_triton"] = {n: ratios(seconds[n], seconds[f"{n}, triton"]) for n in compared}
        triton["launches"] = _launches(calls["tokens, triton"], device)
    found = {name: summary(times) for name, times in seconds.items()}
    rows.add(
        kind="loss", shape=shape, spectrum="decaying" if decaying else "flat", triton=triton, seconds=found,
        tokens=shape.batch * (shape.length - int(shape.prompt * shape.length)),
        most_a_kernel_could_win=found["tokens"]["median"] / found["products"]["median"],
        product_tflops=flops / found["products"]["median"] / 1e12, copy_gbytes=moved / found["copy"]["median"] / 1e9,
    )  # fmt: skip


def _seconds(call: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    begun = time.perf_counter()
    for _ in range(REPEATS):
        call()
    wait()
    return (time.perf_counter() - begun) / REPEATS


def _differences(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the relative differences of the Triton form's loss and gradient from the torch form's."""
    pairs = zip(calls["tokens, triton"](), calls["tokens"](), strict=True)
    value, gradient = (float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)
    return {"loss": value, "gradient": gradient}


def _launches(call: Callable[[], object], device: str) -> dict[str, float]:
    """Return seconds by lanes and warps, the better of two measurements: other numbers may be faster."""
    own, found = (triton_token_terms.BLOCK, triton_token_terms.WARPS), {}
    for block, warps in LAUNCHES:
        triton_token_terms.BLOCK, triton_token_terms.WARPS = block, warps
        call()  # compiles
        found[f"{block} / {warps}"] = min(_seconds(call, device) for _ in range(2))
    triton_token_terms.BLOCK, triton_token_terms.WARPS = own
    return found


def _calls(shape: Shape, device: str, decaying: bool) -> tuple[dict[str, Callable[[], object]], float, float]:
    """Return the measured functions by name, the floating-point operations of the products and the bytes of the copy."""
    dtype = getattr(torch, shape.dtype)
    tokens = shape.batch * (shape.length - int(shape.prompt * shape.length))
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device)

    # Columns of unlike size, as the hidden states of language models have: the spectral term takes longest on flat spectra.
    columns_D = 1.0 + 10.0 / torch.arange(1, shape.hidden + 1, device=device).sqrt()
    hidden_MD = (draw(tokens, shape.hidden) * (columns_D if decaying else 1.0)).to(dtype).requires_grad_()
    teacher_MD = (hidden_MD.detach() + 0.1 * draw(tokens, shape.hidden)).to(dtype)
    head_VD = (0.02 * draw(shape.vocabulary, shape.hidden)).to(dtype)
    labels_M = torch.randint(shape.vocabulary, (tokens,), generator=generator, device=device)
    basis = SpectralBasis.from_head(head_VD)
    logits_MV = torch.empty(2 * tokens, shape.vocabulary, device=device)
    other_MV = torch.empty_like(logits_MV)

    def loss(spectral: float, kernel: Kernel = "torch") -> tuple[torch.Tensor, torch.Tensor]:
        parts = generation_loss(
            hidden_MD, labels_M, head_VD, teacher_MD, consistency=CONSISTENCY, diversity=DIVERSITY, spectral=spectral,
            temperature=TEMPERATURE, top_k=TOP_K, spectral_rank=SPECTRAL_RANK, spectral_basis=basis, kernel=kernel,
        )  # fmt: skip
        return parts.loss.detach(), torch.autograd.grad(parts.loss, hidden_MD)[0]

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
    if not kernel_problems("triton", torch.device(device)):
        calls |= {
            "all, triton": lambda: loss(SPECTRAL, "triton"),
            "tokens, triton": lambda: loss(0.0, "triton"),
        }
    flops = 6.0 * tokens * shape.hidden * shape.vocabulary
    return calls, flops, 2.0 * logits_MV.numel() * logits_MV.element_size()
