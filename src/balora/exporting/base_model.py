"""The pre-trained model under an adapter, loaded again without it: an export is put on it and compared with it."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from balora.errors import BALoraError
from balora.exporting.weights import Change, unwrapped_copy
from balora.loading.source import Location, ModelSource
from balora.logging_control import quiet
from balora.methods.initial_state import initial_state_of
from balora.methods.quantization.quantize import replace_bitsandbytes_layers
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.adapted_model import ADAPTER, base_model_of

_OTHER_SEED = 7919


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A pre-trained model that its own class loads, without balora. If it was made in memory, it is copied."""

    model_class: type[PreTrainedModel]
    config: PretrainedConfig
    dtype: torch.dtype
    device: torch.device
    source: ModelSource | None
    """Source of the model; None if it was made in memory."""
    adapted: nn.Module | None = None
    """The adapted model, which is copied if there is no source or if its frozen weights are to be kept."""
    bits: int | None = None
    """Bits of the adapted model's quantized weights."""
    quantization: BitsAndBytesConfig | None = None
    """Quantization of the weights while they are loaded."""

    @classmethod
    def under(cls, model: nn.Module, source: ModelSource | None) -> BaseModel:
        """Describe the pre-trained model under an adapted one. Without ``source`` the name in the model is used."""
        inner: PreTrainedModel = base_model_of(model)
        if source is None and inner.name_or_path:
            location = Location(inner.name_or_path)
            if not location.missing:
                revision = getattr(inner.config, "_commit_hash", None) if location.directory is None else None
                source = ModelSource(model=location, revision=revision)
        bits = next((module.bits for module in model.modules() if isinstance(module, QuantizedLinear)), None)
        return cls(
            model_class=type(inner),
            config=copy.deepcopy(inner.config),
            dtype=inner.dtype,
            device=next(model.parameters()).device,
            source=source,
            adapted=None if bits is None else model,
            bits=bits,
            quantization=_quantization_config(model, bits),
        )

    @property
    def address(self) -> str | None:
        """Hub id, or absolute path: peft finds the model from any working directory."""
        if self.source is None:
            return None
        directory = self.source.model.directory
        return self.source.model.name if directory is None else str(directory.absolute())

    def load(self, initial: Mapping[str, Tensor] | None, *, keep_frozen: bool = False) -> nn.Module:
        """Load the pre-trained model, or copy it: with ``keep_frozen`` the frozen weights under the adapter.

        In a copy the ``initial`` values of the adapter restore the weights that the method moved into the adapter.
        """
        if keep_frozen or self.source is None:
            assert isinstance(self.adapted, PeftModel), "a run's model has a source"
            return unwrapped_copy(self.adapted, None if keep_frozen else initial, dequantized=keep_frozen).eval()
        # bitsandbytes quantizes on the device it loads to.
        quantize = {"quantization_config": self.quantization, "device_map": {"": self.device}}
        model = self._from_pretrained(**(quantize if self.quantization else {}))[0]
        replace_bitsandbytes_layers(model)
        return (model if self.quantization else model.to(self.device)).eval()

    def random_parameters(self) -> list[str]:
        """Return the parameters that the pre-trained weights lack. Each load makes new random values for them."""
        if self.source is None:
            return []
        # A model that is stored in few bits cannot be loaded without its weights.
        stored_quantized = getattr(self.config, "quantization_config", None) is not None
        report = self._from_pretrained(device_map={"": self.device} if stored_quantized else "meta")[1]
        return sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})

    def _from_pretrained(self, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        assert self.source is not None
        config = copy.deepcopy(self.config)
        stored = getattr(config, "quantization_config", None)
        if stored is not None and not isinstance(stored, dict):
            # A load turns it into an object, and accepts only a dict.
            config.quantization_config = stored.to_dict()
        with quiet(), torch.random.fork_rng(devices=[]):
            # Another seed than the run's: random weights must not agree by chance.
            torch.manual_seed(_OTHER_SEED)
            try:
                return self.model_class.from_pretrained(  # type: ignore[no-any-return]
                    self.address,
                    config=config,
                    dtype=self.dtype,
                    revision=self.source.revision or "main",
                    use_safetensors=None if self.source.allow_pickle else True,
                    # replaces a stored head that has other classes
                    ignore_mismatched_sizes=self.model_class.__name__.endswith("ForSequenceClassification"),
                    output_loading_info=True,
                    **options,
                )
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise BALoraError(
                    f"The pre-trained model {self.address} cannot be loaded to put the export on: {reason}. If it has moved, "
                    "name its place with base=."
                ) from error


def _quantization_config(model: nn.Module, bits: int | None) -> BitsAndBytesConfig | None:
    """Return the quantization with which transformers loads the frozen weights of an adapted model.

    None if no load gives them: they are not quantized, were stored quantized, or are a residual.
    """
    state, inner = initial_state_of(model), base_model_of(model)
    if bits is None or state is None or state.residual_base or hasattr(inner.config, "quantization_config"):
        return None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=state.options.extra["double_quantization"],
        bnb_4bit_compute_dtype=inner.dtype,
    )


@torch.no_grad()
def add_random_layers(change: Change, model: nn.Module, parameters: list[str]) -> Change:
    """Add the layers with `BaseModel.random_parameters` to a change, with their present weights.

    A BERT or DeBERTa from masked language modelling has no pooler. The run's pooler was random at first, so the export must
    contain it.
    """
    names = sorted({name.rpartition(".")[0] for name in parameters if name not in change.modules})
    if not names:
        return change
    factors, modules, config = dict(change.factors), dict(change.modules), copy.deepcopy(change.config)
    for name in names:
        layer = base_model_of(model).get_submodule(name)
        factors.pop(name, None)
        if isinstance(layer, LoraLayer):
            delta = layer.get_delta_weight(ADAPTER)  # type: ignore[operator]
            layer = layer.get_base_layer()
            layer = layer.to_linear(delta.dtype) if isinstance(layer, QuantizedLinear) else layer
            modules[f"{name}.weight"] = (layer.weight.float() + delta.float()).to(layer.weight.dtype).cpu()
        for key, parameter in layer.named_parameters():
            modules.setdefault(f"{name}.{key}", parameter.detach().cpu().clone())
    config.modules_to_save = [*(config.modules_to_save or []), *names]
    if isinstance(config.exclude_modules, str):
        config.exclude_modules = "|".join([f"({config.exclude_modules})", *map(re.escape, names)])
    else:
        config.exclude_modules = [*(config.exclude_modules or []), *names]
    return dataclasses.replace(change, factors=factors, modules=modules, config=config)
