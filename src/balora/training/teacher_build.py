"""`balora teacher`: ask the pre-trained model once about every row, and keep what it says on disk.

Shapes: B sequences, T positions, M valid tokens, K kept tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from balora.errors import BALoraError, raise_all
from balora.forward import HeadlessForward, valid_targets
from balora.losses import RememberedTeacher
from balora.methods.fingerprint import fingerprint
from balora.training.data import load_examples, make_collator, tokenize_examples
from balora.training.folder import write_text
from balora.training.loading import load_model, load_target_tokenizer, load_tokenizer, max_positions
from balora.training.row_keys import row_key
from balora.training.settings import RunSettings
from balora.training.teacher_cache import FORMAT, INDEX, SHARDS, Identity, TeacherCache, read_index, tokenizer_digest

TOP_K = 64
"""Tokens kept to a position unless asked otherwise."""
_SHARD_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Built:
    """What `build_teacher` left behind."""

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


def build_teacher(settings: RunSettings, top_k: int = TOP_K, say: Callable[[str], None] = lambda line: None) -> Built:
    """Build or complete the cache that ``teacher_cache`` names, for the run's training and evaluation rows.

    The rows held out are asked about too, so that a run whose seed draws others finds its own.

    Raises:
        BALoraError: The settings name no folder or no task that takes one, or the folder holds another teacher's cache.
    """
    raise_all(_unfit(settings, top_k), "The teacher cache cannot be built")
    folder = Path(settings.teacher_cache)
    tokenizer, target = load_tokenizer(settings), load_target_tokenizer(settings)
    examples = load_examples(settings.data, settings.task, settings.seed)
    model = load_model(settings, tokenizer=tokenizer)
    tokenized = tokenize_examples(
        examples,
        tokenizer,
        settings.data,
        settings.task,
        target_tokenizer=target,
        max_positions=max_positions(model.config),
    )
    identity = identity_of(settings, model, tokenizer_digest(tokenizer, target))
    _open(folder, identity, top_k)
    parts = [part for part in (tokenized.train, tokenized.eval) if part is not None]
    writer = _Writer(folder, model, make_collator(settings.task, tokenizer, model), settings, top_k)
    rows = [(row_key(row), row) for part in parts for row in part]
    return writer.add(rows, identity.temperature, say)


def identity_of(settings: RunSettings, model: nn.Module, tokenizers: str) -> Identity:
    """Whose teacher a run has; ``model`` as it was loaded, before a method is applied."""
    return Identity(
        model=fingerprint(model.named_parameters()),
        tokenizer=tokenizers,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        temperature=settings.regularization.temperature,
    )


def open_for_run(
    settings: RunSettings, model: nn.Module, tokenizers: str, rows: Sequence[dict[str, Any]]
) -> TeacherCache | None:
    """The cache a run's settings name, None where they name none or the run needs none.

    Raises:
        BALoraError: It is not there, or not this run's; the reasons are given.
    """
    if settings.teacher_cache in ("auto", "off") or not settings.regularization.consistency:
        return None
    if settings.task in ("classification", "regression"):
        raise BALoraError(
            f"Task {settings.task} keeps its teacher's outputs in memory; set teacher_cache to auto or off."
        )
    cache = TeacherCache(Path(settings.teacher_cache))
    cache.require(identity_of(settings, model, tokenizers), (row_key(row) for row in rows))
    return cache


def _unfit(settings: RunSettings, top_k: int) -> list[str]:
    problems = []
    if settings.teacher_cache in ("auto", "off"):
        problems.append(
            "teacher_cache names no folder; set it in the config or on the command line, as teacher_cache=DIR."
        )
    if settings.task in ("classification", "regression"):
        problems.append(f"Task {settings.task} keeps its teacher's outputs in memory by itself and needs no folder.")
    if top_k < 1:
        problems.append(f"At least one token is to be kept to a position, not {top_k}.")
    return problems


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
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "top_k": top_k, **dataclasses.asdict(identity)}
    write_text(folder / INDEX, json.dumps(content, indent=1))


class _Writer:
    """Runs the model over the rows that are missing and writes a shard for every few hundred."""

    def __init__(self, folder: Path, model: nn.Module, collate: Any, settings: RunSettings, top_k: int) -> None:
        self.folder = folder
        self.device = torch.device(
            "cuda" if torch.cuda.is_available() and not settings.training.get("use_cpu") else "cpu"
        )
        self.model: nn.Module = model.to(self.device).eval()
        self.collate = collate
        self.shift = settings.task == "generation"
        self.batch = int(settings.training.get("per_device_train_batch_size", 8))
        self.headless = HeadlessForward(self.model)
        self._linear: bool | None = None
        self.top_k = top_k
        self.autocast = next((t for key, t in _NARROW.items() if settings.training.get(key)), None)

    def add(
        self, rows: Sequence[tuple[bytes, dict[str, Any]]], temperature: float, say: Callable[[str], None]
    ) -> Built:
        known = TeacherCache(self.folder)
        todo = list({key: row for key, row in rows if key not in known}.items())
        todo.sort(key=lambda item: len(item[1]["input_ids"]))  # alike lengths together: little padding
        tail, positions = 0.0, 0
        first = 1 + max((int(p.stem.split("-")[1]) for p in self.folder.glob(SHARDS)), default=-1)
        for number, start in enumerate(range(0, len(todo), _SHARD_ROWS), first):
            part = todo[start : start + _SHARD_ROWS]
            memories = [
                m for at in range(0, len(part), self.batch) for m in self._ask(part[at : at + self.batch], temperature)
            ]
            self._write(number, [key for key, _ in part], memories)
            tail += sum(float(m.log_tail_M.double().exp().sum()) for m in memories)
            positions += sum(map(len, memories))
            say(f"{start + len(part):,} of {len(todo):,} rows")
        size = sum(path.stat().st_size for path in self.folder.iterdir())
        total = len(known) + len(todo)
        return Built(self.folder, total, len(todo), size, tail / max(positions, 1), temperature)

    @torch.no_grad()
    def _ask(self, rows: Sequence[tuple[bytes, dict[str, Any]]], temperature: float) -> list[RememberedTeacher]:
        """What the model says about each of a batch of rows."""
        batch = {name: value.to(self.device) for name, value in self.collate([row for _, row in rows]).items()}
        mask_BT, _ = valid_targets(batch.pop("labels"), shift=self.shift)
        inputs = {**batch, "use_cache": False}
        narrow = torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with narrow:
            if self._linear is None:
                self._linear = self.headless.agrees(self.model, inputs)
            if self._linear:
                hidden_BTd, _ = self.headless.hidden_states(self.model, inputs)
                head = self.headless.head()
                assert head is not None
                hidden_Md = hidden_BTd[mask_BT].to(head.weight_VD.dtype)
                memory = RememberedTeacher.of(hidden_Md, head, top_k=self.top_k, temperature=temperature)
            else:
                logits_MV = self.model(**inputs).logits[mask_BT]
                memory = RememberedTeacher.of_logits(logits_MV, top_k=self.top_k, temperature=temperature)
        stops = mask_BT.sum(dim=1).cumsum(0).tolist()
        return [memory.at(slice(start, stop)) for start, stop in zip([0, *stops], stops, strict=False)]

    def _write(self, number: int, keys: list[bytes], memories: list[RememberedTeacher]) -> None:
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


_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
