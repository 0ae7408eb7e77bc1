"""Access to parameters under FSDP2 (torch's `fully_shard`), in which each process stores a shard of every parameter.

A sharded parameter is a DTensor. To change it, write to its local shard: FSDP2 gathers a layer's parameters from the shards
before it runs the layer. Assigning to `data` has no effect, and parameters that are already gathered do not change.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch import distributed as dist


def is_sharded(model: nn.Module) -> bool:
    """Return whether `fully_shard` was applied to any part of a model."""
    return next(_fsdp_modules(model), None) is not None


def is_dtensor(tensor: Tensor) -> TypeGuard[Any]:
    """Return whether a tensor is a DTensor, which is sharded over the processes."""
    # The cheap test comes first, because importing DTensor takes time.
    if type(tensor) in (Tensor, nn.Parameter) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def reshard(model: nn.Module) -> None:
    """Free all gathered parameters, so that the next forward gathers the current shards."""
    for module in _fsdp_modules(model):
        module.reshard()


def unshard_module(model: nn.Module, module: nn.Module) -> None:
    """Gather the parameters of one module of a model as ordinary tensors, until the module's backward has run."""
    sharded = set(_fsdp_modules(model))
    if not sharded:
        return
    # FSDP2 gathers the parameters of the innermost sharded module around ``module``.
    name = next(name for name, candidate in model.named_modules() if candidate is module)
    parents = [model.get_submodule(name.rsplit(".", depth)[0]) for depth in range(name.count(".") + 1)] if name else []
    owner: Any = next((parent for parent in [*parents, model] if parent in sharded), None)
    if owner is not None:
        owner.set_reshard_after_forward(False, recurse=False)
        owner.unshard()


def local_shard(parameter: Tensor) -> Tensor:
    """Return a writable view of a parameter in this process: its shard, or the full parameter without FSDP2."""
    return parameter.to_local().detach() if is_dtensor(parameter) else parameter.data


def local_slice(value: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a full tensor, equal in all processes, that belongs to this process's shard of a parameter."""
    if not is_dtensor(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Without a source rank, every process slices its own copy and nothing is sent.
    sliced: Any = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    local: Tensor = sliced.to_local()
    return local


def gather_tensors(named: Iterable[tuple[str, Tensor]], keep: bool = True) -> dict[str, Tensor]:
    """Return full tensors by name in CPU memory, gathered one by one; an empty result if not ``keep``.

    Every process must call this function, with or without ``keep``.
    """
    full = {}
    for name, tensor in named:
        value = tensor.full_tensor() if is_dtensor(tensor) else tensor
        if keep:
            full[name] = value.detach().cpu()
    return full


def is_finite(tensor: Tensor) -> bool:
    """Return whether all entries are finite, in the shards of all processes. Every process must call this function."""
    if not is_dtensor(tensor):
        return bool(tensor.isfinite().all())
    num_bad = (~tensor.to_local().isfinite()).sum()
    dist.all_reduce(num_bad)
    return not bool(num_bad)


def _fsdp_modules(model: nn.Module) -> Iterator[Any]:
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    yield from (module for module in model.modules() if isinstance(module, FSDPModule))
