"""Cache of a classifier's teacher logits in memory: the teacher never changes, so it runs once per example.

An example is found by a key over its content (`balora.teacher.row_keys`), in any order of the rows and after a resume. The
logits are those of the batch in which the example first occurred. In another batch the example has other padding, and its
logits differ by rounding: a few units in the last place of the largest logit.
Shapes: K requested examples, N cached ones, D classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from balora.checkpoints.checkpoint import read_tensors
from balora.errors import BALoraError
from balora.losses.collectives import agreed, gather_rows, world_size
from balora.objective import Objective
from balora.teacher.cache import TeacherCache
from balora.teacher.row_keys import KEY_BYTES

FILE = "teacher_logits.safetensors"


def select_caches(
    objective: Objective, teacher_cache: TeacherCache | str
) -> tuple[TeacherCache | None, LogitCache | None]:
    """Return the teacher cache of a generation run and the logit cache of a classifier; None if not used.

    ``teacher_cache`` is ``auto``, ``off``, or for generation an opened cache.
    """
    if isinstance(teacher_cache, str) and teacher_cache not in ("auto", "off"):
        raise BALoraError(f"teacher_cache is auto, off or TeacherCache(Path({teacher_cache!r})).")
    if objective.generates:
        return (None if isinstance(teacher_cache, str) else teacher_cache), None
    if not isinstance(teacher_cache, str):
        raise BALoraError("A classifier's teacher is cached in memory: teacher_cache is auto or off.")
    use_logits = teacher_cache == "auto" and objective.needs_teacher
    return None, LogitCache() if use_logits else None


class LogitCache:
    """Logits by example.

    Example:
        >>> cache = LogitCache()
        >>> cache.get_or_compute([b"a", b"b"], lambda missing: torch.tensor([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
        >>> cache.get_or_compute([b"b", b"c"], lambda missing: torch.tensor([[3.0]])).tolist()  # missing == [1]
        [[2.0], [3.0]]
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        """Device of the process group's tensors, with several processes."""
        self._slots: dict[bytes, int] = {}
        self._table_ND: Tensor | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def get_or_compute(self, keys: Sequence[bytes], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return the logits of some examples, K × D, float32 or wider; compute and store those that are missing.

        With several processes, every process must call this, with at least one example.
        ``compute`` turns positions in ``keys`` into the teacher's logits of these examples.
        """
        missing = self.missing(keys)
        if world_size() > 1:
            self._exchange([keys[at] for at in missing], missing, compute)
        elif missing:
            self._store([keys[at] for at in missing], compute(missing))
        assert self._table_ND is not None
        slots = torch.tensor([self._slots[key] for key in keys])
        return self._table_ND.index_select(0, slots.to(self._table_ND.device))

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the positions of the examples that are not cached; of an example that occurs twice, the first."""
        return [at for at, key in enumerate(keys) if key not in self._slots and key not in keys[:at]]

    def _exchange(self, keys: Sequence[bytes], missing: list[int], compute: Callable[[list[int]], Tensor]) -> None:
        """Compute the missing examples of all processes, each its own, and store them in every process.

        If any process lacks an example, all run the teacher: a sharded model gathers its weights from all processes.
        """
        device = self.device
        if agreed(not missing, device):
            return
        logits_KD = compute(missing or [0])[: len(missing)].detach().contiguous()
        names_KB = torch.frombuffer(bytearray(b"".join(keys)) or bytearray(1), dtype=torch.uint8)
        names_KB = names_KB[: KEY_BYTES * len(keys)].view(len(keys), KEY_BYTES).to(logits_KD.device)
        all_keys = [bytes(row) for row in gather_rows(names_KB).cpu().numpy()]
        logits_ND = gather_rows(logits_KD)
        # Two processes may have computed the same example; the first one's logits count in all.
        new = [at for at, key in enumerate(all_keys) if key not in self._slots and key not in all_keys[:at]]
        self._store([all_keys[at] for at in new], logits_ND[new])

    def save(self, directory: Path) -> None:
        """Write the cached logits into a checkpoint."""
        if self._table_ND is None:
            return
        keys = torch.frombuffer(bytearray(b"".join(self._slots)), dtype=torch.uint8)
        logits_ND = self._table_ND[: len(self)].cpu().contiguous()
        save_file({"keys": keys.view(len(self), -1), "logits": logits_ND}, directory / FILE)

    def load(self, directory: Path, device: torch.device) -> None:
        """Load the logits of a checkpoint, if it has them, so that a resumed run uses the same numbers."""
        if not (directory / FILE).is_file():
            return
        tensors = read_tensors(directory / FILE)
        keys = [bytes(row) for row in tensors["keys"].numpy()]
        self._slots = {key: slot for slot, key in enumerate(keys)}
        self._table_ND = tensors["logits"].to(device)

    def _store(self, keys: Sequence[bytes], logits_KD: Tensor) -> None:
        wide_KD = logits_KD.detach().to(torch.promote_types(logits_KD.dtype, torch.float32))
        needed = len(self) + len(keys)
        if self._table_ND is None or needed > len(self._table_ND):
            # Doubled, so that growing costs no more than filling.
            grown_ND = wide_KD.new_empty(max(2 * needed, 1024), wide_KD.shape[1])
            if self._table_ND is not None:
                grown_ND[: len(self)] = self._table_ND[: len(self)]
            self._table_ND = grown_ND
        self._table_ND[len(self) : needed] = wide_KD
        for key in keys:
            self._slots[key] = len(self._slots)
