"""In which dtype a device computes."""

from __future__ import annotations

import torch


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The dtype autocast computes in on a kind of device; None where it is off, or unknown there (the meta device)."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None
