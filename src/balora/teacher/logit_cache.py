"""A classifier's teacher that is asked once about each example: it never changes, so its logits may be kept.

An example is known by a key over its content (`balora.teacher.row_keys`), so that shuffling, resuming, accumulation or
rows that change between epochs cannot mix it up with another one. What is kept is what the teacher said when the example
was first seen. In another batch the same example stands beside other padding, and its logits differ by the rounding of
other matrix shapes: a few units in the last place of the largest logit.
Shapes: K examples asked for, N kept, D classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from balora.checkpoints.checkpoint import read_tensors
from balora.errors import BALoraError
from balora.objective import Objective
from balora.teacher.cache import TeacherCache

FILE = "teacher_logits.safetensors"


def logit_cache_for(
    objective: Objective, teacher_cache: TeacherCache | str, processes: int
) -> TeacherCache | LogitCache | None:
    """What a run keeps its teacher's outputs in, None where it asks at every step.

    Args:
        objective: What is trained.
        teacher_cache: ``auto``, ``off``, or for generation an opened cache.
        processes: Each of several would miss what the others have seen, and their forwards wait for each other.

    Raises:
        BALoraError: It does not go with the task.
    """
    if isinstance(teacher_cache, str) and teacher_cache not in ("auto", "off"):
        raise BALoraError(f"teacher_cache is auto, off or TeacherCache(Path({teacher_cache!r})).")
    if objective.generates:
        return None if isinstance(teacher_cache, str) else teacher_cache
    if not isinstance(teacher_cache, str):
        raise BALoraError("A classifier's teacher is kept in memory: teacher_cache is auto or off.")
    return LogitCache() if teacher_cache == "auto" and objective.needs_teacher and processes == 1 else None


class LogitCache:
    """Logits by example.

    Example:
        >>> memory = LogitCache()
        >>> memory.recall([b"a", b"b"], lambda new: torch.tensor([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
        >>> memory.recall([b"b", b"c"], lambda new: torch.tensor([[3.0]]) if new == [1] else None).tolist()
        [[2.0], [3.0]]
    """

    def __init__(self) -> None:
        self._slots: dict[bytes, int] = {}
        self._table_ND: Tensor | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def recall(self, keys: Sequence[bytes], ask: Callable[[list[int]], Tensor]) -> Tensor:
        """The logits of some examples.

        Args:
            keys: One for each.
            ask: Gives the teacher's logits for the examples at some places among them; called for those not yet known.

        Returns:
            K × D, float32 or wider, on the device of the teacher's.
        """
        # The first of each key only: a batch may hold one example twice.
        new = [at for at, key in enumerate(keys) if key not in self._slots and key not in keys[:at]]
        if new:
            self._keep([keys[at] for at in new], ask(new))
        assert self._table_ND is not None
        slots = torch.tensor([self._slots[key] for key in keys])
        return self._table_ND.index_select(0, slots.to(self._table_ND.device))

    def save(self, folder: Path) -> None:
        """Write what is known into a checkpoint's folder."""
        if self._table_ND is None:
            return
        keys = torch.frombuffer(bytearray(b"".join(self._slots)), dtype=torch.uint8)
        kept_ND = self._table_ND[: len(self)].cpu().contiguous()
        save_file({"keys": keys.view(len(self), -1), "logits": kept_ND}, folder / FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """Take over what a checkpoint holds, so that a resumed run goes on with the very same numbers."""
        if not (folder / FILE).is_file():
            return
        tensors = read_tensors(folder / FILE)
        keys = [bytes(row) for row in tensors["keys"].numpy()]
        self._slots = {key: slot for slot, key in enumerate(keys)}
        self._table_ND = tensors["logits"].to(device)

    def _keep(self, keys: Sequence[bytes], logits_KD: Tensor) -> None:
        wide_KD = logits_KD.detach().to(torch.promote_types(logits_KD.dtype, torch.float32))
        needed = len(self) + len(keys)
        if self._table_ND is None or needed > len(self._table_ND):  # doubled: growing costs no more than filling
            grown_ND = wide_KD.new_empty(max(2 * needed, 1024), wide_KD.shape[1])
            if self._table_ND is not None:
                grown_ND[: len(self)] = self._table_ND[: len(self)]
            self._table_ND = grown_ND
        self._table_ND[len(self) : needed] = wide_KD
        for key in keys:
            self._slots[key] = len(self._slots)
