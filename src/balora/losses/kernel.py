"""Which form of the token terms runs: torch's, or the Triton kernel of `losses.triton_terms`.

Triton is imported where it is asked for, never before.
"""

from __future__ import annotations

from typing import Literal

import torch

Kernel = Literal["torch", "triton"]

ON_CUDA: Kernel = "torch"
"""What None stands for on a CUDA device; docs/explanation/decisions.md says when it may become ``"triton"``."""


def chosen(kernel: Kernel | None, device: torch.device) -> Kernel:
    """Return the form that runs: the one asked for, or what the device's default is, if that can run."""
    if kernel is not None:
        return kernel
    return "triton" if device.type == "cuda" and ON_CUDA == "triton" and not _missing(device) else "torch"


def wrong_kernel(kernel: str | None, device: torch.device) -> list[str]:
    """Say what is wrong with the kernel that was asked for."""
    if kernel not in (None, "torch", "triton"):
        return [f"kernel must be 'torch' or 'triton', or None for the default, and it is {kernel!r}."]
    missing = _missing(device) if kernel == "triton" else ""
    return [f"kernel='triton' needs {missing}; pass kernel='torch', or None for the default."] if missing else []


def _missing(device: torch.device) -> str:
    """What Triton lacks here."""
    try:
        from balora.losses import triton_token_terms as triton_terms
    except ImportError as error:
        return f"Triton, which cannot be imported ({error})"
    if device.type == "cuda" or triton_terms.INTERPRETED:
        return ""
    return f"a CUDA device, or TRITON_INTERPRET=1 before Python starts, and the tensors are on {device.type}"
