"""Rows that accelerate repeats to fill the last batch of several processes: they are counted as absent.

With P processes of B rows each, N rows fill N / (P · B) rounds of batches. accelerate fills the last round with rows from the
beginning, so that every process has a batch. The rows of a round are in the order of the ranks, so those of the dataset come
first. Without this correction the repeated rows would be targets, and a result would depend on P.
"""

from typing import Any

from torch import Tensor

REAL_ROWS = "balora_real_rows"
"""Name, in a batch, of the number of its rows that are not repetitions; absent if there is none."""


def num_sampled_rows(loader: Any) -> int | None:
    """Return the number of rows that a data loader draws in an epoch, over all processes; None if it is unknown."""
    batches = getattr(loader, "batch_sampler", None)
    batches = getattr(batches, "batch_sampler", batches)  # within accelerate's division among the processes
    try:
        return len(batches.sampler)  # type: ignore[union-attr]
    except (AttributeError, TypeError):
        return None


def num_real_rows(accelerator: Any, total: int | None, rows: int, batch_size: int) -> int | None:
    """Return the number of rows in this process's newest batch that are not repetitions; None if all are.

    Args:
        accelerator: accelerate's `Accelerator`; its loader has just given the batch.
        total: Result of `num_sampled_rows`; None: as accelerate has counted them.
        rows: Rows of the batch.
        batch_size: Rows of a full batch of this process. A batch that has another number of rows, because the collator
            concatenated its rows, is taken as it is.
    """
    processes, state = accelerator.num_processes, accelerator.gradient_state
    if processes == 1 or not accelerator.even_batches or rows != batch_size or not state.end_of_dataloader:
        return None
    if total is not None and getattr(state.active_dataloader, "_drop_last", False):
        return None
    left = max(state.remainder, 0) if total is None else total % (rows * processes)
    return min(max(left - accelerator.process_index * rows, 0), rows) if left else None


def without_repeated_labels(labels: Tensor, real: int | None) -> Tensor:
    """Return token labels in which the repeated rows have no target (-100); ``real`` is from `num_real_rows`."""
    if real is None:
        return labels
    labels = labels.clone()
    labels[real:] = -100
    return labels
