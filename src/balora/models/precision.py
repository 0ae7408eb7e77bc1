"""Dtype of computations under autocast."""

import torch


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return autocast's dtype on a type of device; None if autocast is off or not available there (the meta device)."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
