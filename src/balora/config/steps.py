"""Number of optimizer steps of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def optimizer_steps(rows: int, training: Mapping[str, Any], processes: int = 1) -> int:
    """Optimizer steps of a run, as the Trainer counts them: the last batch and the last accumulation may be short."""
    if training.get("max_steps", -1) > 0:
        return int(training["max_steps"])
    batches = rows / (training.get("per_device_train_batch_size", 8) * processes)
    batches = math.floor(batches) if training.get("dataloader_drop_last", False) else math.ceil(batches)
    per_epoch = max(1, math.ceil(batches / training.get("gradient_accumulation_steps", 1)))
    return math.ceil(per_epoch * training.get("num_train_epochs", 3.0))
