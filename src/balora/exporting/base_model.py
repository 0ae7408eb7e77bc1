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
from transformers import BitsAndBytesConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from balora.exporting.weights import Change, unwrapped_copy
from balora.loading.base_weights import load_again, source_of, unstored_parameters
from balora.loading.source import ModelSource
from balora.methods.initial_state import initial_state_of
from balora.methods.quantization.quantize import replace_bitsandbytes_layers
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.adapted_model import ADAPTER, base_model_of


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
    generation: GenerationConfig | None = None
    """Generation settings of the trained model, such as the language of its answers."""

    @classmethod
    def under(cls, model: nn.Module, source: ModelSource | None) -> BaseModel:
        """Describe the pre-trained model under an adapted one. Without ``source`` the name in the model is used."""
        inner: PreTrainedModel = base_model_of(model)
        source = source or source_of(inner)
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
            generation=copy.deepcopy(getattr(inner, "generation_config", None)),
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
        if self.generation is not None:
            model.generation_config = copy.deepcopy(self.generation)  # type: ignore[assignment]
        return (model if self.quantization else model.to(self.device)).eval()

    def unstored_parameters(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Return the parameters that the pre-trained weights lack, and those of another shape (resized embeddings).

        Each load makes new random values for the first. ``model`` is the trained model.
        """
        if self.source is None:
            return [], []
        # A model that is stored in few bits cannot be loaded without its weights.
        stored_quantized = getattr(self.config, "quantization_config", None) is not None
        device_map = {"": self.device} if stored_quantized else "meta"
        loaded, report = self._from_pretrained(device_map=device_map, resize=False)
        return unstored_parameters(base_model_of(model), loaded, report)

    def _from_pretrained(self, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        assert self.source is not None
        return load_again(self.model_class, self.config, self.source, dtype=self.dtype, **options)


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
def add_unstored_layers(change: Change, model: nn.Module, random: list[str], resized: list[str]) -> Change:
    """Add the layers with `BaseModel.unstored_parameters` to a change, with their present weights.

    A BERT or DeBERTa from masked language modelling has no pooler. The run's pooler was random at first, so the export must
    contain it. A resized embedding is written as peft writes it: without a trained copy, which would untie the output layer.
    """
    names = sorted({name.rpartition(".")[0] for name in random if name not in change.modules})
    embeddings = sorted({name.rpartition(".")[0] for name in resized if name not in change.modules})
    if not names and not embeddings:
        return change
    factors, modules, config = dict(change.factors), dict(change.modules), copy.deepcopy(change.config)
    for name in (*names, *embeddings):
        layer = base_model_of(model).get_submodule(name)
        found = factors.pop(name, None)
        if isinstance(layer, LoraLayer):
            delta = layer.get_delta_weight(ADAPTER)  # type: ignore[operator]
            layer = layer.get_base_layer()
            layer = layer.to_linear(delta.dtype) if isinstance(layer, QuantizedLinear) else layer
            old: Any = layer.weight
            # With DoRA the pre-trained weight is frozen, and the change also scales its rows.
            scaled = found is not None and found.magnitude_O is not None
            new = found.add_to(old) if found is not None and scaled else old.float() + delta.float()
            modules[f"{name}.weight"] = new.to(old.dtype).cpu()
        for key, parameter in layer.named_parameters():
            modules.setdefault(f"{name}.{key}", parameter.detach().cpu().clone())
    config.modules_to_save = [*(config.modules_to_save or []), *names] or None
    if isinstance(config.exclude_modules, str):
        config.exclude_modules = "|".join([f"({config.exclude_modules})", *map(re.escape, (*names, *embeddings))])
    else:
        config.exclude_modules = [*(config.exclude_modules or []), *names, *embeddings]
    return dataclasses.replace(change, factors=factors, modules=modules, config=config)
