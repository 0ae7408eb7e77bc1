"""What is evaluated: a run of balora, a plain transformers model, or the data's own reference answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.training import checkpoint as ckpt
from balora.training.data.collate import ensure_pad_token
from balora.training.data.hub import looks_local
from balora.training.folder import CONFIG
from balora.training.load import SavedModel, find_saved, load
from balora.training.loading import load_config, load_model, load_target_tokenizer, load_tokenizer
from balora.training.provenance import file_digest
from balora.training.quiet import quiet
from balora.training.settings import RunSettings

REFERENCE = "reference"
"""The name that stands for the data's own answers: what they score tells whether the measurement can be trusted."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model in memory, ready to answer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: str
    """generation, seq2seq, classification or regression."""
    labels: tuple[str, ...] | None = None
    """A classifier's classes, in the order of their numbers."""
    target_tokenizer: PreTrainedTokenizerBase | None = None
    """Of an encoder-decoder's responses, where it is another one."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


class Subject:
    """The thing that is evaluated, found and named but not yet loaded.

    Args:
        name: A run's folder (or its ``adapter/``, ``model/`` or a ``checkpoint-N/``), a model's folder, a hub id, or
            ``reference``.
        dtype: In what its weights are held; default the run's, else as they are stored.

    Raises:
        BALoraError: There is nothing by that name, or it is not whole.
    """

    def __init__(self, name: str, dtype: str | None = None) -> None:
        self.name = name
        self.dtype = dtype
        self.is_reference = name == REFERENCE and not Path(name).exists()
        self.saved: SavedModel | None = None
        if not self.is_reference and looks_local(name) and not _is_plain_model(Path(name).expanduser()):
            self.saved = find_saved(Path(name).expanduser())

    @property
    def settings(self) -> RunSettings | None:
        """The run's, None for anything else."""
        return None if self.saved is None else self.saved.settings

    @property
    def folder(self) -> Path:
        """Where results go if the user does not say: beside the run, else under the model's name."""
        if self.saved is not None:
            return (self.saved.run or self.saved.folder) / "evaluation"
        return Path("evaluation") / (Path(self.name).name if looks_local(self.name) else self.name.replace("/", "--"))

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this model from another one: its weights, not where they lie."""
        if self.is_reference:
            return {"kind": REFERENCE}
        dtype = {} if self.dtype is None else {"dtype": self.dtype}
        if self.saved is not None:
            manifest = (self.saved.folder / ckpt.MANIFEST).read_bytes()
            return {"kind": "run", "weights": hashlib.sha256(manifest).hexdigest(), **dtype}
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return {"kind": "model", "weights": _weights_digest(folder), **dtype}
        commit = getattr(load_config(self._plain_settings("generation")), "_commit_hash", None)
        return {"kind": "model", "hub": self.name, "commit": commit, **dtype}

    def load(self, device: str | None) -> Loaded:
        """Load it.

        Args:
            device: Where to; default a GPU where there is one.

        Raises:
            BALoraError: It cannot be loaded, or is no model that can be evaluated.
        """
        assert not self.is_reference, "reference answers need no model"
        loaded = self._load_run(self.saved) if self.saved is not None else self._load_plain()
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loaded.model.to(place).eval()
        except (RuntimeError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise BALoraError(f"The device {place} cannot be used: {str(error).splitlines()[0]}.") from error
        return loaded

    def _load_run(self, saved: SavedModel) -> Loaded:
        model = load(saved.folder)
        if self.dtype not in (None, "auto"):
            model = model.to(getattr(torch, str(self.dtype)))
        tokenizer = saved.tokenizer()
        if tokenizer is None:
            raise BALoraError(f"{saved.folder} has no tokenizer beside it. Evaluate the run's folder instead.")
        ensure_pad_token(tokenizer)
        target = None if saved.settings is None else load_target_tokenizer(saved.settings)
        return Loaded(model, tokenizer, saved.task, saved.labels, target)

    def _load_plain(self) -> Loaded:
        config = load_config(self._plain_settings("generation"))
        architecture = (config.architectures or [""])[0]
        labels = None
        if architecture.endswith("ForSequenceClassification"):
            task = "regression" if config.num_labels == 1 else "classification"
            labels = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
        else:
            task = "seq2seq" if config.is_encoder_decoder else "generation"
        settings = self._plain_settings(task)
        tokenizer = load_tokenizer(settings)
        with quiet(bars=True):
            model = load_model(
                settings,
                len(labels) if labels else None,
                dict(enumerate(labels)) if labels else None,
                tokenizer=tokenizer,
            )
        return Loaded(model, tokenizer, task, labels)

    def _plain_settings(self, task: str) -> RunSettings:
        """Settings by which the training side's loaders, with their checks, find a plain model."""
        columns: Mapping[str, Any] = {
            "classification": {"text": "text", "label": "label"},
            "regression": {"text": "text", "score": "score"},
        }.get(task, {"prompt": "prompt", "response": "response"})
        values = {"model": self.name, "task": task, "data": {"train": "-", **columns}, "output": "-"}
        return RunSettings.from_dict({**values, "dtype": self.dtype or "auto"})


def _is_plain_model(path: Path) -> bool:
    known = (ckpt.ORIGIN, ckpt.MANIFEST, CONFIG)
    return (path / "config.json").is_file() and not any((path / name).is_file() for name in known)


def _weights_digest(folder: Path) -> str:
    """Over the config and all weights: as long as reading them takes, which loading does anyway."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{path.name} {file_digest(path)}".encode())
    return digest.hexdigest()


__all__ = ["REFERENCE", "Loaded", "Subject"]
