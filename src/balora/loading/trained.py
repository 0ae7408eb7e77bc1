"""`balora.load`: a trained model from its run directory, ready for inference.

The pre-trained model is loaded as in the run, adapted from the stored initial values without a new decomposition, compared
with the fingerprint of the run's pre-trained weights, and given the trained tensors. Trained factors on the plain
pre-trained weights would be another model (method.md, departure 12).
"""

import dataclasses
import logging
from pathlib import Path

import torch
from peft.utils import CONFIG_NAME
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.run_directory import CONFIG, read_record
from balora.config.run_config import RunConfig, load_run_config
from balora.errors import BALoraError, suggest_path
from balora.files import read_json
from balora.loading.base_weights import own_name
from balora.loading.pretrained import fit_tokenizer, load_model, load_tokenizer
from balora.loading.source import Location, ModelSource
from balora.logging_control import quiet
from balora.methods import Method, adapt, find_method, load_trainable
from balora.methods.initial_state import RESIDUAL_ADAPTER_MARKER, trainable_parameters
from balora.methods.scale import check_scale, scale_notice
from balora.methods.scaling import scale_change
from balora.models.adapted_model import ADAPTER

logger = logging.getLogger("balora")
_TRAINED_HEAD = f".modules_to_save.{ADAPTER}."
_ATTRIBUTE, _SCALE = "balora_saved", "balora_scale"


def load(run_dir: str | Path, *, base: str | Path | PreTrainedModel | None = None, scale: float = 1.0) -> nn.Module:
    """Load a trained model.

    Args:
        run_dir: A run directory, or its ``adapter/``, ``model/`` or a ``checkpoint-N/`` alone.
        base: The pre-trained model: a hub id, a directory, or a freshly loaded model, which is then changed in place.
            Default: the model named by the run's config, or else by the adapter's. Needed if that model has moved.
        scale: a in W + a·ΔW: how much of the training's change the model has. Below 1 it forgets less and has learnt less.

    Returns:
        The model in eval mode, on the CPU (or on the device of ``base``): a `peft.PeftModel`, or for method full a
        transformers model. `saved_of` returns its `SavedModel`, which has the tokenizer.

    Raises:
        BALoraError: The directory has no result of balora, an unfinished run or damaged files, ``base`` is not the
            model that was trained, or the method's change cannot be scaled.
    """
    saved = find_saved(run_dir)
    scale = check_scale(scale, saved.method)
    if saved.method.form == "model":
        # The directory has all weights, so the pre-trained model is not needed.
        model: nn.Module = load_model(saved.source(saved.folder), *_head_of(saved), tokenizer=saved.tokenizer())
    else:
        model = _adapted(saved, base)
        load_trainable(model, ckpt.read_trained(saved.folder, model))
    if scale != 1:
        notice = scale_notice(scale)
        if notice:
            logger.warning(notice)
        scale_change(model, scale, initial_values(saved, base), residual_base=saved.method.residual_base)
        setattr(model, _SCALE, scale)
    setattr(model, _ATTRIBUTE, saved)
    return model.eval()


def initial_values(saved: "SavedModel", base: str | Path | PreTrainedModel | None = None) -> dict[str, Tensor]:
    """Return every trained tensor's value before the training; if all weights were trained, the pre-trained model's."""
    if saved.method.form != "model":
        return saved.initial.values
    loaded = {name: parameter.detach() for name, parameter in _load_base(saved, base).named_parameters()}
    return {
        **loaded,
        **saved.initial.unstored,
        **saved.initial.values,
    }  # those that the pre-trained model does not have


def scale_of(model: nn.Module) -> float:
    """Return the ``scale`` with which `load` loaded a model; 1 for any other model."""
    return float(getattr(model, _SCALE, 1.0))


def load_untrained(run_dir: str | Path, *, base: str | Path | PreTrainedModel | None = None) -> nn.Module:
    """Load a run's model as `load` does, but with its initial values: it computes the same as the pre-trained model."""
    saved = find_saved(run_dir)
    model = _load_base(saved, base) if saved.method.form == "model" else _adapted(saved, base)
    setattr(model, _ATTRIBUTE, saved)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A trained model on disk."""

    folder: Path
    """Directory of the weights: a run's ``adapter/`` or ``model/``, or a checkpoint."""
    run: Path | None
    """Run directory; None if the weights are not in one."""
    config: RunConfig | None
    """Config of the run; None if the weights are not in a run directory."""
    initial: ckpt.InitialWeights

    @property
    def method(self) -> Method:
        """Fine-tuning method of the run."""
        return find_method(str(self.initial.metadata.get("method")))

    @property
    def task(self) -> str:
        """Task the model was trained for."""
        return str(self.initial.metadata["task"])

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in the order of their numbers; None if there are no classes."""
        names = self.initial.metadata.get("labels") or (self.config and self.config.data.labels)
        if not names and self.run is not None:  # classes that a seq2seq model answers as text
            names = ((read_record(self.run) or {}).get("data") or {}).get("labels")
        return tuple(map(str, names)) if names else None

    def source(self, base: str | Path | None = None) -> ModelSource:
        """Return the source of the pre-trained model: the run's, or ``base`` loaded with the run's options."""
        if self.config is not None:
            source = ModelSource.from_config(self.config)
            return source if base is None else source.with_model(base)
        location = _base_of_adapter(self.folder) if base is None else Location(str(base))
        if location is None:
            raise BALoraError(
                f"{self.folder} is not in a run directory, so there is no {CONFIG} to name the pre-trained model. Name it: "
                "balora.load(folder, base=...)."
            )
        metadata = self.initial.metadata
        return ModelSource(model=location, task=self.task, dtype=metadata["dtype"], seed=metadata["seed"])

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Load the tokenizer beside the weights, or else the run's; return None if there is neither."""
        if (self.folder / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(self.folder)
        return None if self.config is None else load_tokenizer(ModelSource.from_config(self.config))

    def base_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Load the tokenizer of the pre-trained model that the adapter names; return None if that is not possible.

        A script that calls ``trainer.save_model`` may leave the tokenizer out.
        """
        if self.config is not None or _base_of_adapter(self.folder) is None:
            return None
        try:
            tokenizer = load_tokenizer(self.source(), languages_required=False)
        except BALoraError:
            return None
        logger.warning("%s has no tokenizer, so that of %s is used.", self.folder, tokenizer.name_or_path)
        return tokenizer


def saved_of(model: nn.Module) -> SavedModel | None:
    """Return the files that `load` read a model from, or None for any other model."""
    return getattr(model, _ATTRIBUTE, None)


def find_saved(path: str | Path) -> SavedModel:
    """Find the trained model of a finished run or of a checkpoint, and check its files against their manifest."""
    path = Path(path)
    if not path.is_dir():
        raise BALoraError(f"There is no folder {path}.{suggest_path(path)}")
    if (path / ckpt.ORIGIN).is_file() or (path / ckpt.MANIFEST).is_file():
        folder, run = path, path.parent
    else:
        folder, run = _result_of(path), path
    ckpt.check_manifest(folder)
    config = load_run_config(run / CONFIG) if (run / CONFIG).is_file() else None
    return SavedModel(folder, run if config else None, config, ckpt.read_initial_weights(folder))


def _result_of(run: Path) -> Path:
    """Return the directory with the result of a finished run."""
    for folder in (run / "adapter", run / "model"):
        if (folder / ckpt.MANIFEST).is_file():
            return folder
    if not (run / CONFIG).is_file():
        raise BALoraError(_not_a_run(run))
    status = (read_record(run) or {}).get("status", "unknown")
    newest = ckpt.newest_checkpoint(run)
    problem, resume = f"The run in {run} is not finished (status: {status})", "To resume it, run the same command again"
    if newest is None:
        raise BALoraError(f"{problem} and has no checkpoint yet. {resume}.")
    raise BALoraError(f"{problem}. {resume}, or load its newest checkpoint, {newest}.")


def _not_a_run(folder: Path) -> str:
    """Describe a directory without a config: what it holds instead, and how to load that."""
    if (folder / CONFIG_NAME).is_file():
        if read_json(folder / CONFIG_NAME).get("init_lora_weights") == RESIDUAL_ADAPTER_MARKER:
            return (
                f"{folder} holds trained factors without their initial values ({ckpt.INITIAL}), as save_pretrained writes "
                "them. Save the model with trainer.save_model, or write a LoRA with balora.export(model, initial=...)."
            )
        return f"{folder} holds a plain peft adapter, not a run of balora. Load it with peft.PeftModel.from_pretrained."
    if (folder / "config.json").is_file():
        return f"{folder} holds a plain transformers model, not a run of balora. Load it with from_pretrained."
    return f"{folder} is not a run directory: it has no {CONFIG}. Give the directory that `balora train` wrote."


def _adapted(saved: SavedModel, base: str | Path | PreTrainedModel | None) -> nn.Module:
    """Return the pre-trained model with the run's adapter at its initial values, checked against the stored ones."""
    model, initial, metadata = _load_base(saved, base), saved.initial, saved.initial.metadata
    _restore_unstored(model, initial.unstored)
    _check_heads(model, initial.values)
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    missing = [name for name in metadata["targets"] if name not in known] if saved.method.form == "lora" else []
    if missing:
        raise BALoraError(
            f"{saved.folder} was trained on another model than this {type(model).__name__}, which has no {missing[0]} to "
            "adapt. Give the pre-trained model it was made for as base."
        )
    adapted = adapt(
        model,
        saved.method.name,
        rank=metadata["rank"],
        alpha=metadata["alpha"],
        target_modules=metadata["targets"] or "all-linear",
        seed=metadata["seed"],
        initial=initial.values,
        total_steps=metadata["total_steps"],
        **metadata["options"],
    )
    _restore_unstored(adapted, initial.unstored, exact=True)
    values = {name: parameter.detach() for name, parameter in trainable_parameters(adapted)}
    ckpt.check_initial_weights(adapted, values, initial, saved.folder)
    return adapted


def _load_base(saved: SavedModel, base: str | Path | PreTrainedModel | None) -> PreTrainedModel:
    vocabulary = saved.initial.metadata.get("vocabulary")
    if isinstance(base, PreTrainedModel):
        return _resized(base, vocabulary)
    source, tokenizer = saved.source(base), saved.tokenizer()
    # Weights that the checkpoint lacks are random. The run set the same seed before it loaded the model.
    with quiet(bars=True), torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model = load_model(source, *_head_of(saved), tokenizer=None if vocabulary else tokenizer)
        if vocabulary:
            _resized(model, vocabulary)
            fit_tokenizer(model, source, tokenizer)
        return model


def _resized(model: PreTrainedModel, vocabulary: int | None) -> PreTrainedModel:
    """Give a model the number of tokens with which the run was trained; `_restore_unstored` fills the new rows."""
    if vocabulary and len(model.get_input_embeddings().weight) != vocabulary:  # type: ignore[arg-type]
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


@torch.no_grad()
def _restore_unstored(model: nn.Module, values: dict[str, Tensor], *, exact: bool = False) -> None:
    """Restore the frozen tensors that a load of the pre-trained model does not give.

    They are stored as they are under the adapter. The method splits them in two again, so they are restored before it is
    applied, under their names in the pre-trained model, and afterwards once more (``exact``).
    """
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        parameter = parameters.get(name if exact else own_name(name))
        if parameter is None or parameter.shape != value.shape:
            if exact and parameter is None:
                continue  # quantized; the fingerprint is compared
            own = "missing" if parameter is None else tuple(parameter.shape)
            raise BALoraError(
                f"The stored {own_name(name)} is {tuple(value.shape)} and the model's is {own}. Give the pre-trained model that "
                "was trained as base."
            )
        parameter.copy_(value)


def _head_of(saved: SavedModel) -> tuple[int | None, dict[int, str] | None]:
    """Return the number of labels and their names, as `load_model` takes them."""
    if saved.task == "classification":
        labels = saved.labels or ()
        return len(labels), dict(enumerate(labels))
    return (1, None) if saved.task == "regression" else (None, None)


def _base_of_adapter(folder: Path) -> Location | None:
    """Return the pre-trained model that an adapter's config names; None if it names none or a missing directory."""
    path = folder / CONFIG_NAME
    name = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    location = Location(str(name)) if name else None
    return None if location is None or location.missing else location


def _check_heads(model: nn.Module, initial: dict[str, Tensor]) -> None:
    """Refuse a model with a head that does not fit the stored head, which replaces it."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, value in initial.items():
        own = name.removeprefix("base_model.model.").replace(_TRAINED_HEAD, ".")
        found = shapes.get(own, "missing")
        if _TRAINED_HEAD in name and found != tuple(value.shape):
            raise BALoraError(
                f"The stored head's {own} is {tuple(value.shape)} and the model's is {found}. Load the base model with "
                "the classes of the run (num_labels)."
            )
