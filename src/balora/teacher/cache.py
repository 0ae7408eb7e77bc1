"""A teacher on disk: of every target token its K likeliest continuations and the rest as one tail.

A cache is a folder: ``index.json`` says whose it is (`Identity`), each ``shard-*.safetensors`` holds some rows. A row is
known by a key over its content (`balora.teacher.row_keys`), so runs with other methods, seeds, orders and splits share
one cache: the teacher is the pre-trained model, whatever the method is.
Shapes: M positions, V vocabulary, K kept tokens, R rows of a shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError, raise_all
from balora.losses import TopKTeacher
from balora.methods.fingerprint import Fingerprint, first_mismatch
from balora.teacher.row_keys import KEY_BYTES

INDEX = "index.json"
SHARDS = "shard-*.safetensors"
FORMAT = 1
_LARGEST = 0.01
"""Most that a remembered probability may be off by: float16 explains 2e-4, half-precision forwards some 5e-3."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Whose teacher a cache is of. Neither the method nor the seed is in it."""

    model: Fingerprint
    """Of the pre-trained weights, before any method has moved them."""
    tokenizer: str
    """A digest of the tokenizers."""
    dtype: str
    temperature: float

    def departures(self, other: Identity, top_k: int | None, built_top_k: int) -> list[str]:
        """Why a cache with this identity is not one for ``other``, a sentence for each reason."""
        reasons = []
        if self.dtype != other.dtype:
            reasons.append(f"It was built with the model in {self.dtype}, and the run has it in {other.dtype}.")
        elif (wrong := first_mismatch(other.model, self.model)) is not None:
            reasons.append(f"It was built from other weights: {wrong} differs.")
        if self.tokenizer != other.tokenizer:
            reasons.append("It was built with another tokenizer.")
        if self.temperature != other.temperature:
            reasons.append(f"It was built at temperature {self.temperature}, and the run is at {other.temperature}.")
        if top_k is not None and top_k != built_top_k:
            reasons.append(f"It keeps {built_top_k} tokens to a position, and {top_k} are asked for.")
        return reasons


def tokenizer_digest(*tokenizers: PreTrainedTokenizerBase | None) -> str:
    """A digest over all that decides how texts become tokens."""
    digest = hashlib.sha256()
    for tokenizer in tokenizers:
        if tokenizer is None:
            continue
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # Padding and truncation are settings of the last call, not of the tokenizer.
        inner = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
        for passing in ("padding", "truncation"):
            inner.pop(passing, None)
        parts = [inner, {k: str(v) for k, v in tokenizer.special_tokens_map.items()}, str(tokenizer.chat_template)]
        digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()


class TeacherCache:
    """Reads a cache, row by row, from memory-mapped files.

    Args:
        folder: What `balora teacher` built.

    Raises:
        BALoraError: There is no cache, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = read_index(folder)
        self.identity = Identity(**{f.name: content[f.name] for f in dataclasses.fields(Identity)})
        self.top_k: int = content["top_k"]
        self._shards: list[Any] = []
        self._rows: dict[bytes, tuple[int, int, int]] = {}
        for path in sorted(folder.glob(SHARDS)):
            self._add(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def require(self, identity: Identity, keys: Iterable[bytes]) -> None:
        """Refuse a cache of another teacher, or one that lacks rows.

        Raises:
            BALoraError: With every reason.
        """
        reasons = self.identity.departures(identity, None, self.top_k)
        keys = list(keys)
        missing = sum(key not in self._rows for key in keys)
        if missing and not reasons:
            reasons.append(
                f"It lacks {missing:,} of the {len(keys):,} training rows: the data or how they are cut and put together "
                "have changed, or it is not finished. `balora teacher` adds what is missing."
            )
        raise_all(reasons, f"The teacher cache {self.folder} cannot be used; build one for this run in another folder")

    def take(self, keys: Sequence[bytes], device: torch.device | str = "cpu") -> TopKTeacher:
        """What is remembered of some rows, their positions one after the other.

        Raises:
            BALoraError: A row is not there.
        """
        unknown = sum(key not in self._rows for key in keys)
        if unknown:
            raise BALoraError(
                f"The teacher cache {self.folder} lacks {unknown} of the batch's {len(keys)} rows. Build it for these data with "
                "`balora teacher`, or leave teacher_cache out."
            )
        found: dict[str, list[Tensor]] = {"tokens": [], "log_probs": [], "log_tail": []}
        for key in keys:
            shard, start, stop = self._rows[key]
            for name, pieces in found.items():
                pieces.append(self._shards[shard].get_slice(name)[start:stop])
        tokens, log_probs, log_tail = (torch.cat(pieces).to(device, non_blocking=True) for pieces in found.values())
        return TopKTeacher(tokens, log_probs, log_tail, self.identity.temperature)

    def check(self, memory: TopKTeacher, logits_MV: Tensor) -> None:
        """Compare what is remembered with what the teacher says now, at the first of its positions.

        Args:
            memory: Of a batch.
            logits_MV: The teacher's own, at some or all of the batch's first positions.

        Raises:
            BALoraError: A probability differs by more than rounding explains.
        """
        memory = memory.at(slice(len(logits_MV)))
        log_probs_MV = (logits_MV.float() / memory.temperature).log_softmax(dim=-1)
        said_MK = log_probs_MV.gather(1, memory.tokens_MK.long()).exp()
        off = float((said_MK - memory.log_probs_MK.float().exp()).abs().max()) if said_MK.numel() else 0.0
        if not off <= _LARGEST:
            raise BALoraError(
                f"The teacher cache {self.folder} is of another model: a remembered probability differs by {off:.2g} from what "
                "the pre-trained model says now. Build one for this run in another folder."
            )

    def _add(self, path: Path) -> None:
        try:
            shard = safe_open(path, framework="pt")
            keys, offsets = shard.get_tensor("keys").numpy(), shard.get_tensor("offsets").tolist()
        except (OSError, SafetensorError) as error:
            raise BALoraError(
                f"{path} is damaged ({error}). Delete it, and `balora teacher` makes it again."
            ) from error
        assert keys.shape[1] == KEY_BYTES
        for key, start, stop in zip(keys, offsets[:-1], offsets[1:], strict=True):
            self._rows[bytes(key)] = (len(self._shards), start, stop)
        self._shards.append(shard)


def read_index(folder: Path) -> dict[str, Any]:
    """What a cache's folder says about itself.

    Raises:
        BALoraError: There is none, or it is damaged or of another version.
    """
    path = folder / INDEX
    if not path.is_file():
        raise BALoraError(
            f"{folder} holds no teacher cache. Build it with `balora teacher CONFIG`, or leave teacher_cache out."
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise BALoraError(f"{path} is damaged ({error}). Delete {folder} and build it again.") from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise BALoraError(f"{folder} is in a form that this version does not read. Delete it and build it again.")
    return dict(content)
