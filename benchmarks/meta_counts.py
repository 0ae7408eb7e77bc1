"""Count the peak memory of a step at the 7B shapes on the meta device: `python benchmarks/meta_counts.py`, a minute anywhere.

Every operation of a training step runs on shapes only, and each storage counts from the operation that makes it until the
last reference to it is gone. A GPU's allocator reports more: scratch memory of the kernels, and unused parts of its blocks.
So these numbers are predictions, and their ratios are good ones. `gpu.py` measures the same on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from balora.estimation.meta_device import on_meta
from balora.methods.adaptation import check_options
from balora.methods.registry import find_method
from result_rows import Rows
from shapes import LLAMA_7B, LLAMA_8B, TINY, Shape
from variants import TARGETS, Batch, Variant, prepare

ORDER = ("stock", "online", "offloaded", "reference")
_BLOCK = 512
"""Bytes of a block: an allocator rounds up to its multiples."""


class Count(TorchDispatchMode):
    """Counts the bytes of living storages on one kind of device.

    Args:
        device: Kind of device whose tensors count.
        tokens: Number of positions that have a target, which a mask on the meta device cannot tell.
    """

    def __init__(self, device: str, tokens: int) -> None:
        super().__init__()
        self.device, self.tokens = device, tokens
        self.allocated = self.peak = 0
        self._storages: set[int] = set()

    def reset_peak(self) -> int:
        """Reset the peak to the current bytes, and return the old one."""
        peak, self.peak = self.peak, self.allocated
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its results."""
        results = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._count(tensor.untyped_storage())
        return results

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        aten = torch.ops.aten
        if self.device == "meta":
            if func is aten.nonzero.default:
                return args[0].new_empty(self.tokens, args[0].dim(), dtype=torch.long)
            if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
                return args[0].new_empty(self.tokens, *args[0].shape[args[1][0].dim() :])
            if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
                return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # in host memory
        return func(*args, **kwargs)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._storages:
            return
        self._storages.add(key)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.allocated -= size


def peak(name: str, shape: Shape, device: str = "meta") -> dict[str, Any]:
    """Count the bytes of a second step, without what the first step makes once.

    Args:
        name: One of `ORDER`.
        shape: Model and batch.
        device: ``meta``, or ``cpu`` to count a real step.

    Returns:
        ``peak_mib``, ``loaded_mib`` (model and adapter), ``held_mib`` (between steps) and ``phases``, the peak of each.
    """
    tokens = shape.batch * (shape.length - int(shape.prompt * shape.length))
    phases: dict[str, int] = {}
    # on_meta comes first, so that it is the outer mode.
    with on_meta() if device == "meta" else contextlib.nullcontext(), Count(device, tokens) as count:
        model = adapted(shape, device)
        loaded = count.allocated
        # foreach=False: like the Trainer's fused optimizer, it then has no scratch memory of the adapter's size.
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, foreach=False)
        batches = shape.batches(1, device)
        ready, opened = prepare(name, shape, model, batches, optimizer=optimizer)
        with opened:
            ready.step(batches[0])
            between_steps = count.allocated
            with _phases(ready, count, phases):
                ready.step(batches[0])
    found = {name: size / 2**20 for name, size in phases.items()}
    return {
        "peak_mib": max(found.values()),
        "loaded_mib": loaded / 2**20,
        "held_mib": between_steps / 2**20,
        "phases": found,
    }


def adapted(shape: Shape, device: str) -> nn.Module:
    """Return the adapted model; on the meta device nothing is decomposed."""
    spec = find_method("balora")
    return spec.build(
        shape.model(device), check_options(spec, shape.rank, None, 0.0, TARGETS, 0, {"svd": "randomized"})
    )


@contextlib.contextmanager
def _phases(variant: Variant, count: Count, found: dict[str, int]) -> Iterator[None]:
    """Record the peaks of forward, backward and optimizer inside the context."""
    loss, step = variant.loss, variant.optimizer.step

    def forward(batch: Batch) -> Tensor:
        count.reset_peak()
        value = loss(batch)
        found["forward"] = count.reset_peak()
        return value

    def optimizer_step(*args: Any, **kwargs: Any) -> Any:
        found["backward"] = count.reset_peak()
        result = step(*args, **kwargs)
        found["optimizer"] = count.reset_peak()
        return result

    variant.loss, variant.optimizer.step = forward, optimizer_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        variant.loss, variant.optimizer.step = loss, step  # type: ignore[method-assign]


def main() -> None:
    """Parse the arguments and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--variants", nargs="+", default=list(ORDER), choices=ORDER)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = Rows("counted", given.output)
    for shape in (TINY,) if given.tiny else (LLAMA_7B, LLAMA_8B):
        for checkpointing in (False, True):
            here = dataclasses.replace(shape, checkpointing=checkpointing)
            found = {name: peak(name, here) for name in given.variants}
            for name, row in found.items():
                over = row["peak_mib"] / found["stock"]["peak_mib"] if "stock" in found else None
                rows.add(kind="peak", variant=name, shape=here, over_stock=over, **row)


if __name__ == "__main__":
    main()
