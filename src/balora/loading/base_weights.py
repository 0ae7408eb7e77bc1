"""The pre-trained model under an adapted one, loaded once more, and the parameters that no such load gives.

A BERT or DeBERTa from masked language modelling has no pooler, so each load makes a random one. An embedding that was resized
has rows that the pre-trained model lacks.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from balora.errors import BALoraError
from balora.loading.source import Location, ModelSource
from balora.logging_control import quiet
from balora.methods.initial_state import trainable_parameters
from balora.models.adapted_model import base_model_of

_OTHER_SEED = 7919


def source_of(model: PreTrainedModel) -> ModelSource | None:
    """Return the source that a model was loaded from; None if it was made in memory or its directory is gone."""
    location = Location(model.name_or_path) if model.name_or_path else None
    if location is None or location.missing:
        return None
    revision = getattr(model.config, "_commit_hash", None) if location.directory is None else None
    return ModelSource(model=location, revision=revision)


def load_again(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    source: ModelSource,
    *,
    dtype: torch.dtype,
    resize: bool = True,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Load a pre-trained model with the config of the trained one; return it with transformers' loading report.

    Random weights differ from those of the run. With ``resize`` the embeddings get the number of tokens of ``config``, and the
    new rows are random.
    """
    config = copy.deepcopy(config)
    stored_quantization = getattr(config, "quantization_config", None)
    if stored_quantization is not None and not isinstance(stored_quantization, dict):
        # A load turns it into an object, and accepts only a dict.
        config.quantization_config = stored_quantization.to_dict()
    address = source.model.name if source.model.directory is None else str(source.model.directory.absolute())
    with quiet(), torch.random.fork_rng(devices=[]):
        # Another seed than the run's: random weights must not agree by chance.
        torch.manual_seed(_OTHER_SEED)
        try:
            size, stored_size = vocabulary_of(config), stored_vocabulary(source)
            if None not in (size, stored_size) and size != stored_size:
                config.get_text_config().vocab_size = stored_size
            model, report = model_class.from_pretrained(
                address,
                config=config,
                dtype=dtype,
                revision=source.revision or "main",
                use_safetensors=None if source.allow_pickle else True,
                # replaces a stored head that has other classes
                ignore_mismatched_sizes=model_class.__name__.endswith("ForSequenceClassification"),
                output_loading_info=True,
                **options,
            )
            if resize and stored_size is not None and size != stored_size:
                model.resize_token_embeddings(size, mean_resizing=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BALoraError(
                f"The pre-trained model {address} cannot be loaded to put the export on: {reason}. If it has moved, "
                "name its place with base=."
            ) from error
    return model, report


def unstored_parameters(inner: nn.Module, loaded: nn.Module, report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the parameters that a load makes at random, and those whose shape it does not give (resized embeddings).

    ``inner`` is the trained model, of which an adapter may be part, and ``loaded`` comes from `load_again` without ``resize``.
    """
    random = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    shapes = {own_name(name): parameter.shape for name, parameter in inner.named_parameters()}
    old, new = vocabulary_of(loaded.config), vocabulary_of(inner.config)  # type: ignore[arg-type]
    # A quantized weight has another shape too, so the number of rows is compared.
    resized = {
        n for n, p in loaded.named_parameters() if old != new and n in shapes and p.shape[:1] == (old,) != shapes[n][:1]
    }
    return sorted(random), sorted(resized - random)


def unstored_values(model: nn.Module) -> dict[str, Tensor]:
    """Return the frozen parameters of an adapted model that another load of its pre-trained model does not give.

    Nothing if the model was made in memory or its pre-trained model can no longer be loaded. `balora.load` then compares the
    fingerprints and refuses.
    """
    inner: Any = base_model_of(model)
    source = source_of(inner) if isinstance(inner, PreTrainedModel) else None
    if source is None:
        return {}
    try:
        size = vocabulary_of(inner.config)
        classifies = type(inner).__name__.endswith("ForSequenceClassification")
        if not classifies and stored_vocabulary(source) in (size, None):
            return {}
        stored = getattr(inner.config, "quantization_config", None) is not None
        options = {} if stored else {"device_map": "meta"}
        loaded, report = load_again(type(inner), inner.config, source, dtype=inner.dtype, resize=False, **options)
    except BALoraError:
        return {}
    wanted = {name for names in unstored_parameters(inner, loaded, report) for name in names}
    trained = {name for name, _ in trainable_parameters(model)}
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if own_name(name) in wanted and name not in trained and ".original_module." not in name
        if parameter.is_floating_point()
    }


def own_name(name: str) -> str:
    """Return the name that a parameter of an adapted model has in the pre-trained model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def vocabulary_of(config: PretrainedConfig) -> int | None:
    """Return the number of tokens in a model's config."""
    return getattr(config.get_text_config(), "vocab_size", None)


def stored_vocabulary(source: ModelSource) -> int | None:
    """Return the number of tokens in the config of the pre-trained model; None if it cannot be read."""
    try:
        config = AutoConfig.from_pretrained(
            source.model.path, revision=source.revision or "main", trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        return None
    return vocabulary_of(config)
