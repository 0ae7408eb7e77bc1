"""Peak memory of a step at the 7B shapes, counted on the meta device: `python benchmarks/counted.py`, a minute on any machine.

Every operation of a training step runs by its sizes alone, and each storage counts from the operation that makes it until
nothing holds it any more. What a GPU's allocator reports has more in it: scratch of the kernels themselves, and what its
blocks waste. So these are predictions, and ratios of them good ones: `gpu.py` measures the same where there is a GPU.
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
from rows import Rows
from shapes import LLAMA_7B, LLAMA_8B, TINY, Shape
from variants import TARGETS, Batch, Variant, prepare

ORDER = ("stock", "online", "offloaded", "reference")
_BLOCK = 512
"""Bytes that an allocator rounds up to."""


class Count(TorchDispatchMode):
    """Counts the bytes that are held, from tensors of one kind of device; knows how many tokens a mask picks.

    Args:
        device: The kind whose tensors count.
        tokens: How many positions have a target: on the meta device no mask can say.
    """

    def __init__(self, device: str, tokens: int) -> None:
        super().__init__()
        self.device, self.tokens = device, tokens
        self.held = self.peak = 0
        self._storages: set[int] = set()

    def forget(self) -> int:
        """Start the peak anew, and return what it was."""
        peak, self.peak = self.peak, self.held
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        made = self._answered(func, args, kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._hold(tensor.untyped_storage())
        return made

    def _answered(self, func: Any, args: Any, kwargs: Any) -> Any:
        aten = torch.ops.aten
        if self.device == "meta":
            if func is aten.nonzero.default:
                return args[0].new_empty(self.tokens, args[0].dim(), dtype=torch.long)
            if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
                return args[0].new_empty(self.tokens, *args[0].shape[args[1][0].dim() :])
            if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
                return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # in the host's memory
        return func(*args, **kwargs)

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._storages:
            return
        self._storages.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.held -= size


def peak(name: str, shape: Shape, device: str = "meta") -> dict[str, Any]:
    """Bytes of a second step: what is made once is not made again.

    Args:
        name: One of `ORDER`.
        shape: Of the model and its batch.
        device: ``cpu`` counts a real step there.

    Returns:
        ``peak_mib``, ``loaded_mib`` (model and adapter), ``held_mib`` (between steps) and ``phases``, the peak of each.
    """
    tokens = shape.batch * (shape.length - int(shape.prompt * shape.length))
    phases: dict[str, int] = {}
    # Outside the count, so that whoever asks it for an answer is asked first.
    with on_meta() if device == "meta" else contextlib.nullcontext(), Count(device, tokens) as count:
        model = adapted(shape, device)
        loaded = count.held
        # One tensor after the other: like the fused one, which is the Trainer's, it has no scratch of the adapter's size.
        learnt = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=1e-5, weight_decay=0.0, foreach=False)
        batches = shape.batches(1, device)
        ready, opened = prepare(name, shape, model, batches, optimizer=optimizer)
        with opened:
            ready.step(batches[0])
            held = count.held
            with _phases(ready, count, phases):
                ready.step(batches[0])
    found = {name: size / 2**20 for name, size in phases.items()}
    return {"peak_mib": max(found.values()), "loaded_mib": loaded / 2**20, "held_mib": held / 2**20, "phases": found}


def adapted(shape: Shape, device: str) -> nn.Module:
    """The adapted model by its sizes: on the meta device nothing is decomposed."""
    spec = find_method("balora")
    return spec.build(
        shape.model(device), check_options(spec, shape.rank, None, 0.0, TARGETS, 0, {"svd": "randomized"})
    )


@contextlib.contextmanager
def _phases(variant: Variant, count: Count, found: dict[str, int]) -> Iterator[None]:
    """Inside, what is the peak of forward, backward and optimizer is written down."""
    loss, step = variant.loss, variant.optimizer.step

    def forward(batch: Batch) -> Tensor:
        count.forget()
        value = loss(batch)
        found["forward"] = count.forget()
        return value

    def stepped(*args: Any, **kwargs: Any) -> Any:
        found["backward"] = count.forget()
        answer = step(*args, **kwargs)
        found["optimizer"] = count.forget()
        return answer

    variant.loss, variant.optimizer.step = forward, stepped  # type: ignore[method-assign]
    try:
        yield
    finally:
        variant.loss, variant.optimizer.step = loss, step  # type: ignore[method-assign]


def main() -> None:
    """Read the options and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to try the script")
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
