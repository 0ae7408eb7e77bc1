"""Fill a teacher cache: the model over the rows that are missing, what it says into shards.

Shapes: B sequences, T positions, M valid tokens, V vocabulary, K kept tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from balora.checkpoints.lock import require_writable
from balora.errors import BALoraError, raise_all
from balora.losses import TopKTeacher
from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from balora.teacher.cache import FORMAT, INDEX, SHARDS, Identity, TeacherCache, read_index
from balora.teacher.row_keys import row_key

SHARD_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Built:
    """What `TeacherWriter.add` left behind."""

    folder: Path
    rows: int
    new_rows: int
    size: int
    """Bytes on disk."""
    tail: float
    """Mean probability, at the run's temperature, that is not on the kept tokens; of the new rows."""
    temperature: float

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.folder}: {self.rows:,} rows, {self.new_rows:,} of them new, {self.size / 2**20:,.1f} MiB"]
        if self.new_rows:
            lines.append(
                f"mean tail {self.tail:.3g}: per token, the gradient of the consistency term is off by at most "
                f"{2 * self.temperature * self.tail:.3g} in the sum over the logits, times its weight"
            )
        return lines


class TeacherWriter:
    """Runs a model over the rows that a cache lacks and writes a shard for every few hundred.

    Args:
        folder: Of the cache; made where it is not there.
        model: The pre-trained model, on its device; put into eval mode.
        identity: Whose teacher it is.
        collate: From rows to a batch with ``labels``.
        shift: Whether labels stand beside their tokens (causal models) and are to be moved by one.
        top_k: K, tokens kept to a position.
        batch_size: Rows to a forward.
        autocast: In which dtype to run, where not the model's own.

    Raises:
        BALoraError: The folder holds something else, or another teacher's cache; the reasons are given.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        identity: Identity,
        collate: Callable[[Sequence[Any]], Mapping[str, Tensor]],
        *,
        shift: bool,
        top_k: int,
        batch_size: int = 8,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.folder = folder
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.identity = identity
        self.collate = collate
        self.shift = shift
        self.top_k = top_k
        self.batch_size = batch_size
        self.autocast = autocast
        self.headless = HiddenStateExtractor(model)
        self._linear: bool | None = None
        _open(folder, identity, top_k)

    def add(self, rows: Iterable[Mapping[str, Any]], say: Callable[[str], None] = lambda line: None) -> Built:
        """Ask about the rows that are not there yet. What is written stays when it is interrupted.

        Args:
            rows: As the collator takes them.
            say: Takes a line for each shard.

        Raises:
            BALoraError: A shard is damaged or cannot be written.
        """
        known = TeacherCache(self.folder)
        todo = list({key: row for row in rows if (key := row_key(row)) not in known}.items())
        todo.sort(key=lambda item: len(item[1]["input_ids"]))  # alike lengths together: little padding
        tail, positions, batch = 0.0, 0, self.batch_size
        first = 1 + max((int(p.stem.split("-")[1]) for p in self.folder.glob(SHARDS)), default=-1)
        for number, start in enumerate(range(0, len(todo), SHARD_ROWS), first):
            part = todo[start : start + SHARD_ROWS]
            memories = [
                m for at in range(0, len(part), batch) for m in self._ask([r for _, r in part[at : at + batch]])
            ]
            self._write(number, [key for key, _ in part], memories)
            tail += sum(float(m.log_tail_M.double().exp().sum()) for m in memories)
            positions += sum(map(len, memories))
            say(f"{start + len(part):,} of {len(todo):,} rows")
        size = sum(path.stat().st_size for path in self.folder.iterdir())
        total = len(known) + len(todo)
        return Built(self.folder, total, len(todo), size, tail / max(positions, 1), self.identity.temperature)

    @torch.no_grad()
    def _ask(self, rows: Sequence[Mapping[str, Any]]) -> list[TopKTeacher]:
        """What the model says about each of a batch of rows."""
        batch = {name: value.to(self.device) for name, value in self.collate(rows).items()}
        mask_BT, _ = valid_targets(batch.pop("labels"), shift=self.shift)
        inputs = {**batch, "use_cache": False}
        temperature = self.identity.temperature
        narrow = torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with narrow:
            if self._linear is None:
                self._linear = self.headless.head_matches(self.model, inputs)
            if self._linear:
                hidden_BTd, _ = self.headless.hidden_states(self.model, inputs)
                head = self.headless.head()
                assert head is not None
                hidden_Md = hidden_BTd[mask_BT].to(head.weight_VD.dtype)
                memory = TopKTeacher.of(hidden_Md, head, top_k=self.top_k, temperature=temperature)
            else:
                logits_MV = self.model(**inputs).logits[mask_BT]
                memory = TopKTeacher.of_logits(logits_MV, top_k=self.top_k, temperature=temperature)
        stops = mask_BT.sum(dim=1).cumsum(0).tolist()
        return [memory.at(slice(start, stop)) for start, stop in zip([0, *stops], stops, strict=False)]

    def _write(self, number: int, keys: list[bytes], memories: list[TopKTeacher]) -> None:
        lengths = torch.tensor([0, *map(len, memories)])
        tokens_MK = torch.cat([m.tokens_MK for m in memories]).cpu()
        small = int(tokens_MK.max()) < 2**15 if tokens_MK.numel() else True
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1),
            "offsets": lengths.cumsum(0),
            "tokens": tokens_MK.to(torch.int16 if small else torch.int32),
            # A probability that float16 rounds is off by at most 2^-11 of p |log p|, which is below 2e-4.
            "log_probs": torch.cat([m.log_probs_MK for m in memories]).cpu().half(),
            "log_tail": torch.cat([m.log_tail_M for m in memories]).cpu().float(),
        }
        path = self.folder / f"shard-{number:05}.safetensors"
        side = self.folder / f".{path.name}.tmp"
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, side)
            os.replace(side, path)
        except OSError as error:
            side.unlink(missing_ok=True)
            raise BALoraError(
                f"{path} cannot be written: {error.strerror or error}. What is there stays; run the same command to go on."
            ) from error


def _open(folder: Path, identity: Identity, top_k: int) -> None:
    """Make the folder and say whose it is, or refuse one that is another teacher's."""
    if (folder / INDEX).is_file():
        known = read_index(folder)
        built = Identity(**{f.name: known[f.name] for f in dataclasses.fields(Identity)})
        raise_all(
            built.departures(identity, top_k, known["top_k"]),
            f"{folder} holds the cache of another teacher; choose another folder or delete it",
        )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BALoraError(f"{folder} is not an empty folder, nor a teacher cache. Choose another.")
    require_writable(folder, "teacher_cache")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "top_k": top_k, **dataclasses.asdict(identity)}
    side = folder / f".{INDEX}.tmp"
    side.write_text(json.dumps(content, indent=1))
    os.replace(side, folder / INDEX)
