"""Teacher cache on disk: for every target token the K most likely tokens of the teacher, and the rest as one tail.

A cache is a directory: ``index.json`` identifies the teacher (`TeacherIdentity`), each ``shard-*.safetensors`` contains some
rows. A row is found by a key over its content (`balora.teacher.row_keys`), and the teacher is the pre-trained model, so runs
with different methods, seeds, orders and splits can use one cache.
Shapes: M positions, V vocabulary, K cached tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from balora.errors import BALoraError, raise_all
from balora.losses import TopKTeacher
from balora.methods.fingerprint import Fingerprint, fingerprint, first_mismatch
from balora.teacher.row_keys import KEY_BYTES

if TYPE_CHECKING:
    from balora.config.run_config import RunConfig

INDEX = "index.json"
SHARDS = "shard-*.safetensors"
FORMAT = 1
_MAX_PROBABILITY_ERROR = 0.01
"""Largest accepted error of a cached probability: float16 explains 2e-4, half-precision forwards about 5e-3."""


@dataclasses.dataclass(frozen=True)
class TeacherIdentity:
    """Identity of the teacher in a cache. It contains neither the method nor the seed."""

    model: Fingerprint
    """Fingerprint of the pre-trained weights, before a method changes them."""
    tokenizer: str
    """Digest of the tokenizers (`balora.data.tokenizer_digest`)."""
    dtype: str
    temperature: float
    consistency_tokens: str = "all"
    """``non_target``: each position's distribution is without its target."""

    @classmethod
    def of_run(cls, config: RunConfig, model: nn.Module, tokenizers: str) -> TeacherIdentity:
        """Identify the teacher of a run.

        ``model`` must not have an adapter yet; ``tokenizers`` is the result of `balora.data.tokenizer_digest`.
        """
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        settings = config.regularization
        model_print = fingerprint(model.named_parameters())
        return cls(model_print, tokenizers, dtype, settings.temperature, settings.consistency_tokens)

    @classmethod
    def from_index(cls, index: Mapping[str, Any]) -> TeacherIdentity:
        """Read the identity from the index of a cache."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in index.items() if name in known})

    def mismatches(self, other: TeacherIdentity) -> list[str]:
        """List the reasons why a cache with this identity cannot be used for ``other``, one sentence each."""
        reasons = []
        if self.dtype != other.dtype:
            reasons.append(f"It was built with the model in {self.dtype}, and the run has it in {other.dtype}.")
        elif (wrong := first_mismatch(other.model, self.model)) is not None:
            reasons.append(f"It was built from other weights: {wrong} differs.")
        if self.tokenizer != other.tokenizer:
            reasons.append("It was built with another tokenizer.")
        if self.temperature != other.temperature:
            reasons.append(f"It was built at temperature {self.temperature}, and the run is at {other.temperature}.")
        if self.consistency_tokens != other.consistency_tokens:
            reasons.append(
                f"It was built for consistency_tokens {self.consistency_tokens}, and the run is at {other.consistency_tokens}."
            )
        return reasons


class TeacherCache:
    """Teacher outputs on disk, read row by row from memory-mapped files; a missing or damaged cache is an error."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index = read_index(directory)
        self.identity = TeacherIdentity.from_index(index)
        self.top_k: int = index["top_k"]
        self._shards: list[Any] = []
        self._rows: dict[bytes, tuple[int, int, int]] = {}
        for path in sorted(directory.glob(SHARDS)):
            self._open_shard(path)

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> set[bytes]:
        """Return the keys of all rows."""
        return set(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def require(self, identity: TeacherIdentity, keys: Sequence[bytes]) -> None:
        """Refuse the cache if it has another teacher or lacks rows; the message gives every reason."""
        heading = f"The teacher cache {self.directory} cannot be used; build one for this run in another directory"
        raise_all(self.identity.mismatches(identity), heading)
        self.require_rows(keys)

    def require_rows(self, keys: Sequence[bytes]) -> None:
        """Refuse the cache if it lacks rows."""
        missing = self._count_missing(keys)
        if missing:
            raise BALoraError(
                f"The teacher cache {self.directory} lacks {missing:,} of the {len(keys):,} training rows: the data or their "
                "tokenization have changed, or the build was not finished. `balora teacher` adds the missing rows."
            )

    def read(self, keys: Sequence[bytes], device: torch.device | str = "cpu") -> TopKTeacher:
        """Return the teacher's outputs for some rows, with their positions concatenated; refuse a row that is missing."""
        missing = self._count_missing(keys)
        if missing:
            raise BALoraError(
                f"The teacher cache {self.directory} lacks {missing} of the batch's {len(keys)} rows. Build it for these data "
                "with `balora teacher`, or leave teacher_cache out."
            )
        pieces: dict[str, list[Tensor]] = {"tokens": [], "log_probs": [], "log_tail": []}
        places = [self._rows[key] for key in keys]
        # Without a row, no position of any row: the tensors have the shapes of the cache.
        for shard, start, stop in places or [(*next(iter(self._rows.values()))[:2], 0)]:
            stop = stop if places else start
            for name, tensors in pieces.items():
                tensors.append(self._shards[shard].get_slice(name)[start:stop])
        tokens, log_probs, log_tail = (torch.cat(tensors).to(device, non_blocking=True) for tensors in pieces.values())
        without_target = self.identity.consistency_tokens == "non_target"
        return TopKTeacher(tokens, log_probs, log_tail, self.identity.temperature, without_target)

    def check(self, cached: TopKTeacher, logits_MV: Tensor, targets_M: Tensor) -> None:
        """Refuse the cache if a cached probability differs from the teacher's by more than rounding explains.

        ``cached`` are the cached outputs of a batch, ``logits_MV`` the teacher's logits and ``targets_M`` the targets at the
        first M positions of the batch.
        """
        cached = cached.at(slice(len(logits_MV)))
        if cached.without_target:
            logits_MV = logits_MV.scatter(1, targets_M[: len(logits_MV), None], -torch.inf)
        log_probs_MV = (logits_MV.float() / cached.temperature).log_softmax(dim=-1)
        probs_MK = log_probs_MV.gather(1, cached.tokens_MK.long()).exp()
        error = float((probs_MK - cached.log_probs_MK.float().exp()).abs().max()) if probs_MK.numel() else 0.0
        if not error <= _MAX_PROBABILITY_ERROR:
            raise BALoraError(
                f"The teacher cache {self.directory} was built from another model: a cached probability differs by {error:.2g} "
                "from the pre-trained model's. Build a cache for this run in another directory."
            )

    def _count_missing(self, keys: Sequence[bytes]) -> int:
        return sum(key not in self._rows for key in keys)

    def _open_shard(self, path: Path) -> None:
        try:
            shard = safe_open(path, framework="pt")
            keys, offsets = shard.get_tensor("keys").numpy(), shard.get_tensor("offsets").tolist()
        except (OSError, SafetensorError) as error:
            raise BALoraError(
                f"{path} is damaged ({error}). Delete it and run `balora teacher` again, which rebuilds it."
            ) from error
        assert keys.shape[1] == KEY_BYTES
        for key, start, stop in zip(keys, offsets[:-1], offsets[1:], strict=True):
            self._rows[bytes(key)] = (len(self._shards), start, stop)
        self._shards.append(shard)


def read_index(directory: Path) -> dict[str, Any]:
    """Read the index of a cache; refuse one that is missing, damaged or of another version."""
    path = directory / INDEX
    if not path.is_file():
        raise BALoraError(
            f"{directory} has no teacher cache. Build it with `balora teacher CONFIG`, or leave teacher_cache out."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BALoraError(f"{path} is damaged ({error}). Delete {directory} and build it again.") from error
    if not isinstance(index, Mapping) or index.get("format") != FORMAT:
        raise BALoraError(f"{path} has a format that this version cannot read. Delete {directory} and build it again.")
    return dict(index)


def open_cache(config: RunConfig) -> TeacherCache | None:
    """Open the cache that a run's config names, without comparing it with the run; None if the run uses no cache.

    Raises:
        BALoraError: The task uses no cache on disk, or the cache is missing or damaged.
    """
    if config.teacher_cache in ("auto", "off"):
        return None
    if config.task in ("classification", "regression"):
        raise BALoraError(
            f"Task {config.task} keeps its teacher's outputs in memory; set teacher_cache to auto or off."
        )
    return TeacherCache(Path(config.teacher_cache)) if config.regularization.consistency else None
