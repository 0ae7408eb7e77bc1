"""What is evaluated: a run of balora, a plain transformers model, or the data's own reference answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.provenance import file_digest
from balora.checkpoints.run_directory import CONFIG
from balora.config.run_config import RunConfig
from balora.data.collate import ensure_pad_token
from balora.data.hub import looks_local
from balora.errors import BALoraError
from balora.evaluation.options import EvaluationOptions
from balora.loading.pretrained import load_config, load_model, load_target_tokenizer, load_tokenizer
from balora.loading.trained import SavedModel, find_saved, load
from balora.logging_control import quiet

REFERENCE = "reference"
"""The name that stands for the data's own answers: what they score tells whether the measurement can be trusted."""

_DECISIVE = (
    "*config.json", "*.safetensors", "*.bin",
    # The tokenizer and the form of a chat: with others, the same weights are asked something else.
    "tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "additional_chat_templates/*",
)  # fmt: skip
"""The files in a model's folder that what it says depends on."""


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
        name: A run's folder (or its ``adapter/``, ``model/`` or a ``checkpoint-N/``), a model's folder, a hub id, the folder
            of a plain peft adapter for either, or ``reference``.
        options: What may be loaded, and in what form.

    Raises:
        BALoraError: There is nothing by that name, or it is not whole.
    """

    def __init__(self, name: str, options: EvaluationOptions | None = None) -> None:
        self.name = name
        self.options = options or EvaluationOptions()
        self.dtype = self.options.dtype
        self.is_reference = name == REFERENCE and not Path(name).exists()
        self.saved: SavedModel | None = None
        self.adapter: Path | None = None
        self.base = name
        if self.is_reference or not looks_local(name):
            return
        path = Path(name).expanduser()
        if _is_plain(path, CONFIG_NAME):
            self.adapter, self.base = path, _base_of(path)
        elif not _is_plain(path, "config.json"):
            self.saved = find_saved(path)

    @property
    def settings(self) -> RunConfig | None:
        """The run's, None for anything else."""
        return None if self.saved is None else self.saved.settings

    @property
    def folder(self) -> Path:
        """Where results go if the user does not say: beside the run, else under the model's name."""
        if self.saved is not None:
            folder = (self.saved.run or self.saved.folder) / "evaluation"
            return folder / self.saved.folder.name if self.saved.folder.name.startswith("checkpoint-") else folder
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
        adapter = {} if self.adapter is None else {"adapter": _weights_digest(self.adapter)}
        folder = Path(self.base).expanduser()
        if folder.is_dir():
            return {"kind": "model", "weights": _weights_digest(folder), **adapter, **dtype}
        commit = getattr(load_config(self._plain_settings("generation")), "_commit_hash", None)
        return {"kind": "model", "hub": self.base, "commit": commit, **adapter, **dtype}

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
        if self.adapter is None:
            return Loaded(model, tokenizer, task, labels)
        if labels is not None or PeftConfig.from_pretrained(self.adapter).task_type == "SEQ_CLS":
            raise BALoraError(
                f"{self.name} is the adapter of a classifier, whose head is known to its run. Evaluate the run, or the model "
                "that balora export --to merged writes."
            )
        return Loaded(PeftModel.from_pretrained(model, self.adapter), tokenizer, task)

    def _plain_settings(self, task: str) -> RunConfig:
        """Settings by which the training side's loaders, with their checks, find a plain model."""
        columns: Mapping[str, Any] = {
            "classification": {"text": "text", "label": "label"},
            "regression": {"text": "text", "score": "score"},
        }.get(task, {"prompt": "prompt", "response": "response"})
        values = {"model": self.base, "task": task, "data": {"train": "-", **columns}, "output": "-"}
        allowed = {key: getattr(self.options, key) for key in ("revision", "trust_remote_code", "allow_pickle")}
        return RunConfig.from_dict({**values, **allowed, "dtype": self.dtype or "auto"})


def _is_plain(path: Path, file: str) -> bool:
    """Whether a folder is transformers' or peft's own (it holds this file) and not balora's."""
    known = (ckpt.ORIGIN, ckpt.MANIFEST, CONFIG)
    return (path / file).is_file() and not any((path / name).is_file() for name in known)


def _base_of(adapter: Path) -> str:
    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base:
        raise BALoraError(f"{adapter} does not say which model it is for (base_model_name_or_path in {CONFIG_NAME}).")
    return str(base)


def _weights_digest(folder: Path) -> str:
    """Over all that decides what a model says: as long as reading the weights takes, which loading does anyway."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _DECISIVE for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name} {file_digest(path)}".encode())
    return digest.hexdigest()


__all__ = ["REFERENCE", "Loaded", "Subject"]
