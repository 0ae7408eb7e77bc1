"""Initial values of several processes: each decomposes some of the matrices and sends the factors to the others.

The time is that of one process divided by their number, and all have the same values by construction.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch import distributed as dist

from balora.turns import division

Factors = tuple[Tensor, Tensor]


def computed_by_turns(compute: Callable[[int], Factors], count: int) -> Iterator[Factors]:
    """Yield ``compute(index)`` for each of ``count`` matrices, computed in one process or, if divided, in all by turns."""
    rank, processes = division()
    if processes == 1:
        yield from map(compute, range(count))
        return
    # All are computed before any is sent, so that no process waits for another one's decomposition.
    own = {index: compute(index) for index in range(rank, count, processes)}
    for index in range(count):
        yield _sent(own.pop(index, None), source=index % processes)


def _sent(factors: Factors | None, source: int) -> Factors:
    """Return the factors that the source has computed, on the kind of device that it has them on."""
    through = torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")
    header = [None if factors is None else [(tuple(f.shape), f.dtype, f.device.type) for f in factors]]
    dist.broadcast_object_list(header, src=source)
    received = []
    for at, (shape, dtype, device) in enumerate(header[0]):  # type: ignore[arg-type]
        if factors is None:
            tensor = torch.empty(shape, dtype=dtype, device=through)
        else:
            tensor = factors[at].contiguous().to(through)
        dist.broadcast(tensor, src=source)
        received.append(tensor.to(device) if factors is None else factors[at])
    return received[0], received[1]
