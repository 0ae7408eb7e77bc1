"""`balora.load`: a trained model from a run's folder, ready for inference.

The pre-trained model is loaded as the run did, adapted from the stored initial values (no decomposition is done anew),
compared with what the run started from, and given the trained tensors. A plain copy of the factors onto the pre-trained
weights would be another model (METHOD 6.12).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.run_directory import CONFIG, read_record
from balora.config.run_config import RunConfig, load_run_config
from balora.data.hub import looks_local
from balora.errors import BALoraError, suggest
from balora.files import read_json
from balora.loading.pretrained import load_model, load_tokenizer
from balora.logging_control import quiet
from balora.methods import Method, adapt, find_method, load_trainable
from balora.methods.fingerprint import fingerprint
from balora.methods.initial_state import RESIDUAL_ADAPTER_MARKER, trainable_parameters
from balora.models.adapted_model import ADAPTER
from balora.models.classifier_head import HEAD_NAMES

ADAPTER_FOLDER, MODEL_FOLDER = "adapter", "model"
_TASKS = {"CAUSAL_LM": "generation", "SEQ_2_SEQ_LM": "seq2seq", "SEQ_CLS": "classification"}
_WRAPPED = f".modules_to_save.{ADAPTER}."
_ATTRIBUTE = "balora_saved"


def load(run_dir: str | Path, *, base: str | Path | PreTrainedModel | None = None) -> nn.Module:
    """Load a trained model.

    Args:
        run_dir: A run's folder; or its ``adapter/``, ``model/`` or a ``checkpoint-N/`` alone.
        base: The pre-trained model: a hub id, a folder, or freshly loaded (it is then changed in place). Default: what
            the run's config names, or else the adapter's. Needed where it is no longer there.

    Returns:
        The model in eval mode, on the CPU (or where ``base`` is): a `peft.PeftModel`, for method full a transformers
        model. `saved_of` tells where it came from, and has its tokenizer.

    Raises:
        BALoraError: The folder holds no result of balora, an unfinished run or damaged files, or ``base`` is another
            model than the one that was trained.
    """
    saved = find_saved(run_dir)
    model = _load_trained(saved, base)
    setattr(model, _ATTRIBUTE, saved)
    return model.eval()


def load_untrained(run_dir: str | Path, *, base: str | Path | PreTrainedModel | None = None) -> nn.Module:
    """Load a run's model as it stood before the first step: the adapted model at its initial values, which is the
    pre-trained model.

    Arguments, result and errors are those of `load`.
    """
    saved = find_saved(run_dir)
    model = _load_base(saved, base) if saved.method.form == "model" else _adapted(saved, base)
    setattr(model, _ATTRIBUTE, saved)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A trained model on disk."""

    folder: Path
    """Holds the weights and the tokenizer: a run's ``adapter/`` or ``model/``, or a checkpoint."""
    run: Path | None
    """The run's folder, None where the weights lie alone."""
    settings: RunConfig | None
    """The run's, None where the weights lie alone."""
    origin: ckpt.Origin

    @property
    def method(self) -> Method:
        """How it was trained."""
        return find_method(str(self.origin.facts.get("method")))

    @property
    def task(self) -> str:
        """What it was trained for."""
        if self.settings is not None:
            return self.settings.task
        if "task" in self.origin.facts:
            return str(self.origin.facts["task"])
        if self.method.form == "lora":
            kind = read_json(self.folder / CONFIG_NAME).get("task_type")
        else:
            name = (read_json(self.folder / "config.json").get("architectures") or [""])[0]
            kind = "SEQ_CLS" if name.endswith("ForSequenceClassification") else "CAUSAL_LM"
            kind = "SEQ_2_SEQ_LM" if name.endswith("ForConditionalGeneration") else kind
        task = _TASKS.get(str(kind), "generation")
        return "regression" if task == "classification" and self.num_labels == 1 else task

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their numbers, where they were written down."""
        names = self.origin.facts.get("labels") or (self.settings and self.settings.data.labels)
        if not names and self.run is not None:
            names = ((read_record(self.run) or {}).get("data") or {}).get("labels")
        if not names and (self.folder / "config.json").is_file():
            id2label = read_json(self.folder / "config.json").get("id2label") or {}
            names = [id2label[key] for key in sorted(id2label, key=int)]
        return tuple(map(str, names)) if names else None

    @property
    def num_labels(self) -> int | None:
        """Outputs of the classification head; None without one."""
        heads = [v for name, v in self.origin.initial.items() if v.dim() == 2 and _of_head(name)]
        if heads:
            # The layer that makes the logits is the head's narrowest.
            return min(value.shape[0] for value in heads)
        return len(self.labels) if self.labels else None

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The one that lies beside the weights, else the run's; None where neither is there."""
        if (self.folder / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(self.folder)
        return None if self.settings is None else load_tokenizer(self.settings)


def saved_of(model: nn.Module) -> SavedModel | None:
    """Where a model that `load` returned came from."""
    return getattr(model, _ATTRIBUTE, None)


def find_saved(path: str | Path) -> SavedModel:
    """Find a trained model and check its files against their manifest.

    Raises:
        BALoraError: There is none, the run is not finished, or a file is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BALoraError(f"There is no folder {path}.{suggest(path.name, siblings)}")
    if (path / ckpt.ORIGIN).is_file() or (path / ckpt.MANIFEST).is_file():
        folder, run = path, path.parent
    else:
        folder, run = _result_of(path), path
    ckpt.verify(folder)
    settings = load_run_config(run / CONFIG) if (run / CONFIG).is_file() else None
    return SavedModel(folder, run if settings else None, settings, ckpt.read_origin(folder))


def _result_of(run: Path) -> Path:
    """The folder with the result of a run."""
    for name in (ADAPTER_FOLDER, MODEL_FOLDER):
        if (run / name / ckpt.MANIFEST).is_file():
            return run / name
    if not (run / CONFIG).is_file():
        raise BALoraError(f"{run} {_what_is(run)}")
    status = (read_record(run) or {}).get("status", "unknown")
    newest = ckpt.newest(run)
    way_out = f"load its newest checkpoint, {newest}" if newest else "it has no checkpoint yet"
    raise BALoraError(
        f"The run in {run} is not finished (status: {status}). Train on with the same command, or {way_out}."
        if newest
        else f"The run in {run} is not finished (status: {status}), and {way_out}. Train on with the same command."
    )


def _what_is(folder: Path) -> str:
    if (folder / CONFIG_NAME).is_file():
        if read_json(folder / CONFIG_NAME).get("init_lora_weights") == RESIDUAL_ADAPTER_MARKER:
            return (
                f"holds trained factors without their initial values ({ckpt.INITIAL}), as save_pretrained writes them. Save "
                "the model with trainer.save_model, or write a LoRA with balora.export(model, initial=...)."
            )
        return "holds a plain peft adapter, not a run of balora. Load it with peft.PeftModel.from_pretrained."
    if (folder / "config.json").is_file():
        return "holds a plain transformers model, not a run of balora. Load it with from_pretrained."
    return f"is not the folder of a run: it has no {CONFIG}. Give the folder that `balora train` wrote."


def _load_trained(saved: SavedModel, base: str | Path | PreTrainedModel | None) -> nn.Module:
    if saved.method.form == "model":
        # All weights were trained, so the folder is a whole model and the base has nothing to add.
        return load_model(_settings_for(saved, saved.folder), *_head_of(saved), tokenizer=saved.tokenizer())
    model = _adapted(saved, base)
    load_trainable(model, ckpt.read_trained(saved.folder, model))
    return model


def _adapted(saved: SavedModel, base: str | Path | PreTrainedModel | None) -> nn.Module:
    """The pre-trained model with the run's adapter at its initial values, checked."""
    model = base if isinstance(base, PreTrainedModel) else _load_base(saved, base)
    initial = saved.origin.initial
    facts = saved.origin.facts
    _check_heads(model, initial)
    if saved.method.form == "lora":
        _check_targets(model, facts["targets"], saved.folder)
    adapted = adapt(
        model,
        saved.method.name,
        rank=facts["rank"],
        alpha=facts["alpha"],
        target_modules=facts["targets"] or "all-linear",
        seed=facts["seed"],
        initial=initial,
        total_steps=facts["total_steps"],
        **facts["options"],
    )
    values = {name: parameter.detach() for name, parameter in trainable_parameters(adapted)}
    ckpt.check_origin(adapted, values, _with_own_heads(saved.origin, adapted), saved.folder)
    return adapted


def _load_base(saved: SavedModel, base: str | Path | PreTrainedModel | None) -> PreTrainedModel:
    if isinstance(base, PreTrainedModel):
        return base
    settings = _settings_for(saved, base)
    # Whatever a checkpoint lacks is drawn at random; the run seeded just so before it loaded the model.
    with quiet(bars=True), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return load_model(settings, *_head_of(saved), tokenizer=saved.tokenizer())


def _head_of(saved: SavedModel) -> tuple[int | None, dict[int, str] | None]:
    if saved.task not in ("classification", "regression"):
        return None, None
    names = saved.labels
    id2label = dict(enumerate(names)) if names and len(names) == saved.num_labels else None
    return saved.num_labels, id2label if saved.task == "classification" else None


def _settings_for(saved: SavedModel, model: str | Path | None) -> RunConfig:
    """Settings by which `load_model` finds the model: the run's, with another place where one is given."""
    if saved.settings is not None:
        changes = {} if model is None else {"model": str(model), "revision": None}
        return saved.settings.model_copy(update=changes)
    model = model if model is not None else _named_base(saved.folder)
    if model is None:
        raise BALoraError(
            f"{saved.folder} lies alone, without its run's {CONFIG}. Say which pre-trained model it was made for: "
            "balora.load(folder, base=...)."
        )
    facts = saved.origin.facts
    # Nothing is read but what concerns the model; the columns only make the settings whole.
    columns = {
        "generation": ["prompt", "response"],
        "seq2seq": ["prompt", "response"],
        "classification": ["text", "label"],
    }
    data = {name: name for name in ["train", *columns.get(saved.task, ["text", "score"])]}
    values: dict[str, Any] = {"model": str(model), "task": saved.task, "data": data, "output": "-"}
    return RunConfig.from_dict({**values, **{key: facts[key] for key in ("dtype", "seed") if key in facts}})


def _named_base(folder: Path) -> str | None:
    """The pre-trained model that an adapter's config names, where it can still be; whether it is the one is checked later."""
    path = folder / CONFIG_NAME
    name = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    gone = name and looks_local(name) and not Path(name).expanduser().is_dir()
    return None if not name or gone else str(name)


def _check_targets(model: nn.Module, targets: list[str], where: Path) -> None:
    """Refuse a model that lacks something the run adapted."""
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    missing = next((name for name in targets if name not in known), None)
    if missing is not None:
        raise BALoraError(
            f"{where} was trained on another model than this {type(model).__name__}: it adapts {missing}, which is not "
            "there. Give the pre-trained model it was made for as base."
        )


def _of_head(name: str) -> bool:
    """Whether a stored tensor belongs to a classification head: peft's copy of it, or the model's own."""
    return _WRAPPED in name or name.split(".")[0] in HEAD_NAMES


def _check_heads(model: nn.Module, initial: dict[str, Tensor]) -> None:
    """Refuse a model whose head, which the stored one replaces, is for other classes."""
    parameters = dict(model.named_parameters())
    for name, value in initial.items():
        if _WRAPPED not in name:
            continue
        own = name.removeprefix("base_model.model.").replace(_WRAPPED, ".")
        if own not in parameters or parameters[own].shape != value.shape:
            found = tuple(parameters[own].shape) if own in parameters else "missing"
            raise BALoraError(
                f"The stored head's {own} is {tuple(value.shape)} and the model's is {found}. Load the base model with "
                "the classes of the run (num_labels)."
            )


def _with_own_heads(origin: ckpt.Origin, model: nn.Module) -> ckpt.Origin:
    """The origin, asking nothing of the heads that peft keeps under the trained ones: they are random and never run."""
    unused = {name: p for name, p in model.named_parameters() if ".original_module." in name and name in origin.frozen}
    return dataclasses.replace(origin, frozen={**origin.frozen, **fingerprint(unused.items())})


__all__ = ["SavedModel", "find_saved", "load", "load_untrained", "saved_of"]
