"""The model under test: a run of balora, a plain transformers model, a peft adapter, or the data's reference answers."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.provenance import file_digest
from balora.checkpoints.run_directory import CONFIG
from balora.config.run_config import RunConfig
from balora.data.collate import ensure_pad_token
from balora.errors import BALoraError
from balora.evaluation.options import EvaluationOptions
from balora.evaluation.plain_adapter import PlainAdapter, read_adapter_config
from balora.loading.pretrained import fit_tokenizer, load_config, load_model, load_target_tokenizer, load_tokenizer
from balora.loading.source import Location, ModelSource
from balora.loading.trained import SavedModel, find_saved, load
from balora.logging_control import quiet
from balora.methods.scale import check_scale
from balora.models.adapted_model import base_model_of

REFERENCE = "reference"
"""Name of the data's reference answers as a model under test. Their scores show whether the scoring can be trusted."""

_IDENTITY_FILES = (
    "*config.json", "*.safetensors", "*.bin",
    # With another tokenizer or chat template the same weights get another input.
    "tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "additional_chat_templates/*",
)  # fmt: skip
"""Files of a model directory that decide the model's outputs."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in memory with its tokenizers."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: str
    """generation, seq2seq, classification or regression."""
    labels: tuple[str, ...] | None = None
    """Class names of a classifier in the order of their numbers."""
    target_tokenizer: PreTrainedTokenizerBase | None = None
    """Tokenizer of an encoder-decoder's responses, if it is not ``tokenizer``."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device


class ModelUnderTest:
    """A model to evaluate, not yet loaded.

    Args:
        name: A run directory (or its ``adapter/``, ``model/`` or a ``checkpoint-N/``), a model directory, a hub id, the
            directory of a plain peft adapter for a plain model, or ``reference``.
        options: Loading options.
        base: Pre-trained model of a plain peft adapter. Default: the one that its config names.

    Raises:
        BALoraError: There is nothing of that name, or it is incomplete.
    """

    def __init__(self, name: str, options: EvaluationOptions | None = None, *, base: str | None = None) -> None:
        self.name = name
        self.options = options or EvaluationOptions()
        self.dtype = self.options.dtype
        self.is_reference = name == REFERENCE and not Path(name).exists()
        self.saved: SavedModel | None = None
        self.adapter: Path | None = None
        self.base = Location(name)
        path = self.base.directory
        plain = self.is_reference or path is None or _is_plain(path, CONFIG_NAME) or _is_plain(path, "config.json")
        if plain and self.options.scale != 1:
            raise BALoraError(
                f"{name} is no run of balora, and only the change of a run can be scaled. Leave scale out."
            )
        if self.is_reference or path is None:
            return
        if _is_plain(path, CONFIG_NAME):
            config = read_adapter_config(path)
            base = base or config.base_model_name_or_path
            if not base:
                raise BALoraError(
                    f"{path} does not say which model it is for (base_model_name_or_path in {CONFIG_NAME}). Write it there; "
                    "`balora audit` also takes it as --base."
                )
            self.adapter, self.base = path, Location(str(base))
        elif not _is_plain(path, "config.json"):
            self.saved = find_saved(path)
            check_scale(self.options.scale, self.saved.method)

    @property
    def settings(self) -> RunConfig | None:
        """Config of the run; None for anything else."""
        return None if self.saved is None else self.saved.config

    @functools.cached_property
    def is_encoder_decoder(self) -> bool:
        """True for an encoder-decoder. The weights are not read for this."""
        if self.is_reference:
            return False
        return (
            self.saved.task == "seq2seq"
            if self.saved is not None
            else bool(load_config(self._source()).is_encoder_decoder)
        )

    @property
    def folder(self) -> Path:
        """Default directory of the results: inside the run directory, or else under the model's name."""
        if self.saved is not None:
            folder = (self.saved.run or self.saved.folder) / "evaluation"
            if self.saved.folder.name.startswith("checkpoint-"):
                folder /= self.saved.folder.name
            return folder if self.options.scale == 1 else folder / f"scale-{float(self.options.scale)!r}"
        local = Location(self.name).directory is not None
        return Path("evaluation") / (Path(self.name).name if local else self.name.replace("/", "--"))

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Digest of the weights and everything else that decides the outputs; independent of the path."""
        if self.is_reference:
            return {"kind": REFERENCE}
        dtype = {} if self.dtype is None else {"dtype": self.dtype}
        if self.saved is not None:
            manifest = (self.saved.folder / ckpt.MANIFEST).read_bytes()
            scale = {} if self.options.scale == 1 else {"scale": self.options.scale}
            return {"kind": "run", "weights": hashlib.sha256(manifest).hexdigest(), **dtype, **scale}
        adapter = {} if self.adapter is None else {"adapter": _digest(self.adapter)}
        if self.base.directory is not None and not self.base.missing:
            return {"kind": "model", "weights": _digest(self.base.directory), **adapter, **dtype}
        commit = getattr(load_config(self._source()), "_commit_hash", None)
        return {"kind": "model", "hub": self.base.name, "commit": commit, **adapter, **dtype}

    @functools.cached_property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes (one name for a score); None if the model is no classifier. The weights are not read."""
        if self.is_reference:
            return None
        if self.saved is not None:
            return self.saved.labels
        config = load_config(self._source())
        if self._plain_adapter is not None:
            return self._plain_adapter.classes(config)
        if (config.architectures or [""])[0].endswith("ForSequenceClassification"):
            return tuple(str(config.id2label[number]) for number in sorted(config.id2label))
        return None

    @functools.cached_property
    def _plain_adapter(self) -> PlainAdapter | None:
        return None if self.adapter is None else PlainAdapter(self.adapter, allow_pickle=self.options.allow_pickle)

    def load(
        self,
        device: str | None,
        *,
        new_head: tuple[str, ...] | None = None,
        inspect: Callable[[nn.Module], object] = lambda model: None,
    ) -> LoadedModel:
        """Load the model to a device; default a GPU if there is one.

        Args:
            device: Name of the device.
            new_head: Classes of the random head that a plain model gets if it is no classifier.
            inspect: Called with the pre-trained model of a plain adapter, before the adapter is put on it.
        """
        assert not self.is_reference, "reference answers need no model"
        loaded = self._load_run(self.saved) if self.saved is not None else self._load_plain(new_head, inspect)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loaded.model.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise BALoraError(f"The device {device} cannot be used: {str(error).splitlines()[0]}.") from error
        return loaded

    def _load_run(self, saved: SavedModel) -> LoadedModel:
        model = load(saved.folder, scale=self.options.scale)
        if self.dtype not in (None, "auto"):
            model = model.to(getattr(torch, str(self.dtype)))
        tokenizer = saved.tokenizer()
        if tokenizer is None:
            tokenizer = saved.base_tokenizer()
            if tokenizer is None:
                raise BALoraError(
                    f"{saved.folder} has no tokenizer, and that of its pre-trained model cannot be found. Save the tokenizer "
                    "beside the weights: tokenizer.save_pretrained(folder)."
                )
            fit_tokenizer(base_model_of(model), dataclasses.replace(self._source(), task=saved.task), tokenizer)
        ensure_pad_token(tokenizer)
        target = None if saved.config is None else load_target_tokenizer(ModelSource.from_config(saved.config))
        return LoadedModel(model, tokenizer, saved.task, saved.labels, target)

    def _load_plain(self, new_head: tuple[str, ...] | None, inspect: Callable[[nn.Module], object]) -> LoadedModel:
        config = load_config(self._source())
        adapter = self._plain_adapter
        labels = self.classes if self.classes is not None else new_head
        num_labels = id2label = None
        if labels is not None:
            task = "regression" if len(labels) == 1 else "classification"
            num_labels, id2label = len(labels), dict(enumerate(labels))
        else:
            task = "seq2seq" if config.is_encoder_decoder else "generation"
        source = dataclasses.replace(self._source(), task=task)
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        place = dataclasses.replace(source, tokenizer=Location(str(self.adapter), "tokenizer")) if own else source
        tokenizer = load_tokenizer(place, languages_required=False)
        with quiet(bars=True):
            # The adapter may bring more tokens than the model has.
            model = load_model(source, num_labels, id2label, tokenizer=None if adapter else tokenizer)
            if adapter is None:
                return LoadedModel(model, tokenizer, task, labels)
            inspect(model)
            adapted = adapter.load(model, source)
            fit_tokenizer(model, source, tokenizer)
        return LoadedModel(adapted, tokenizer, task, labels)

    def _source(self) -> ModelSource:
        """Return the description of a plain model that the loading functions take."""
        return ModelSource(
            model=self.base,
            dtype=self.dtype or "auto",
            revision=self.options.revision,
            allow_pickle=self.options.allow_pickle,
            trust_remote_code=self.options.trust_remote_code,
        )


def _is_plain(path: Path, file: str) -> bool:
    """Return whether a directory with this file was written by transformers or peft, and not by balora."""
    known = (ckpt.ORIGIN, ckpt.MANIFEST, CONFIG)
    return (path / file).is_file() and not any((path / name).is_file() for name in known)


def _digest(folder: Path) -> str:
    """Return a digest of the files that decide a model's outputs. It takes as long as reading the weights."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _IDENTITY_FILES for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name} {file_digest(path)}".encode())
    return digest.hexdigest()
