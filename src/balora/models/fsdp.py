"""What FSDP2 (torch's `fully_shard`) changes: each process holds a shard of every parameter, and gathers it to run a layer.

A sharded parameter is a DTensor over its shard; writing to the shard is what changes the parameter, as each gathering
starts from it. Giving the parameter other `data` changes nothing, and what is gathered already stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch import distributed as dist


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` has been applied to any part of a model."""
    return next(_units(model), None) is not None


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: whole in name, a shard in this process."""
    return _is_dtensor(tensor)


def reshard(model: nn.Module) -> None:
    """Let go of every gathered parameter, so that the next forward gathers the shards as they are then."""
    for unit in _units(model):
        unit.reshard()


def gather(model: nn.Module, module: nn.Module) -> None:
    """Put one module's parameters together, and keep them so through its forward, until its backward.

    Args:
        model: What `module` is part of.
        module: Its parameters are ordinary, whole tensors afterwards.
    """
    units = set(_units(model))
    if not units:
        return
    holding = [part for part in _path(model, module) if part in units]
    if holding:
        unit: Any = holding[-1]
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def shard(parameter: Tensor) -> Tensor:
    """The tensor in this process that holds its part of a parameter (the parameter's own data where it is whole)."""
    return parameter.to_local().detach() if _is_dtensor(parameter) else parameter.data


def part_of(value: Tensor, parameter: Tensor) -> Tensor:
    """What this process's shard of a parameter would hold if the parameter had a value.

    Args:
        value: Whole, in every process the same.
        parameter: Sharded or not.
    """
    if not _is_dtensor(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    # No source: every process cuts its part out of its own copy.
    cut: Any = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    local: Tensor = cut.to_local()
    return local


def whole(named: Iterable[tuple[str, Tensor]], keep: bool = True) -> dict[str, Tensor]:
    """Put tensors together from their shards, one after the other. Every process has to call it.

    Args:
        named: Tensors by name, sharded or not.
        keep: Whether this process wants them; nothing is returned where not.

    Returns:
        Whole tensors in the host's memory.
    """
    found = {}
    for name, tensor in named:
        value = tensor.full_tensor() if _is_dtensor(tensor) else tensor
        if keep:
            found[name] = value.detach().cpu()
    return found


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, in any process's shard. Every process has to call it."""
    if not _is_dtensor(tensor):
        return bool(tensor.isfinite().all())
    broken = (~tensor.to_local().isfinite()).sum()
    dist.all_reduce(broken)
    return not bool(broken)


def _units(model: nn.Module) -> Iterator[Any]:
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    yield from (module for module in model.modules() if isinstance(module, FSDPModule))


def _path(model: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold a module, outermost first, and itself."""
    name = next(name for name, found in model.named_modules() if found is module)
    yield model
    steps = name.split(".") if name else []
    for depth in range(1, len(steps) + 1):
        yield model.get_submodule(".".join(steps[:depth]))


def _is_dtensor(tensor: Tensor) -> TypeGuard[Any]:
    # An ordinary tensor needs no import of the machinery to be told from one.
    if type(tensor) in (Tensor, nn.Parameter) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
