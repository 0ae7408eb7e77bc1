"""The pre-trained model under an adapter, once more and plain: what an export is put on and compared with."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from balora.data.hub import looks_local
from balora.errors import BALoraError
from balora.exporting.weights import Change, unwrapped_copy
from balora.logging_control import quiet
from balora.methods.quantization.quantize import replace_bitsandbytes_layers
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.adapted_model import ADAPTER, base_model_of

_OTHER_SEED = 7919


@dataclasses.dataclass(frozen=True)
class PlainBase:
    """Where the pre-trained model comes from, and how it is loaded: by its own class, as anyone would.

    A model in memory that came from no place is copied instead.
    """

    kind: type[PreTrainedModel]
    config: PretrainedConfig
    dtype: torch.dtype
    device: torch.device
    place: str | None
    """Hub id or folder; None for a model that came from nowhere."""
    revision: str | None = None
    allow_pickle: bool = False
    trained: nn.Module | None = None
    """The adapted model, to be copied where there is no place."""
    rounding: BitsAndBytesConfig | None = None
    """How its weights are rounded as it is loaded."""

    @classmethod
    def under(
        cls, model: nn.Module, place: str | None, *, revision: str | None = None, allow_pickle: bool = False
    ) -> PlainBase:
        """The pre-trained model under an adapted one.

        Args:
            model: The adapted model.
            place: Hub id or folder; None to go by what the model says of itself.
            revision: Of a hub model.
            allow_pickle: Whether weights in pickle form may be loaded.
        """
        inner = _inner(model)
        if place is None:
            place = inner.name_or_path or None
            if place is not None and looks_local(place) and not Path(place).expanduser().is_dir():
                place = None
            if place is not None and not looks_local(place):
                revision = getattr(inner.config, "_commit_hash", None)
        device = next(model.parameters()).device
        return cls(type(inner), copy.deepcopy(inner.config), inner.dtype, device, place, revision, allow_pickle)

    @property
    def address(self) -> str | None:
        """The hub id, or the folder's whole path, as peft will look it up from wherever it is called."""
        if self.place is not None and looks_local(self.place):
            return str(Path(self.place).expanduser().absolute())
        return self.place

    def load(self, initial: Mapping[str, Tensor] | None, *, as_is: bool = False) -> nn.Module:
        """The pre-trained model.

        Args:
            initial: The adapter's initial values, to undo what the start did where the model has to be copied.
            as_is: Take the weights under the adapter as they stand, whatever the start took out of them.
        """
        if as_is or self.address is None:
            assert isinstance(self.trained, PeftModel), "a model of a run has a place"
            return unwrapped_copy(self.trained, None if as_is else initial, widened=as_is).eval()
        # bitsandbytes rounds where it loads.
        rounded = {"quantization_config": self.rounding, "device_map": {"": self.device}} if self.rounding else {}
        model = self._from_pretrained(**rounded)[0]
        replace_bitsandbytes_layers(model)
        return (model if rounded else model.to(self.device)).eval()

    def drawn(self) -> list[str]:
        """Parameters that the pre-trained weights lack, which each load draws anew at random."""
        if self.address is None:
            return []
        came_in_few_bits = (
            getattr(self.config, "quantization_config", None) is not None
        )  # which no load does without weights
        report = self._from_pretrained(device_map={"": self.device} if came_in_few_bits else "meta")[1]
        return sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})

    def _from_pretrained(self, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
        classifies = self.kind.__name__.endswith("ForSequenceClassification")
        config = copy.deepcopy(self.config)
        came_so = getattr(config, "quantization_config", None)
        if came_so is not None and not isinstance(came_so, dict):  # once loaded it is an object, which no load takes
            config.quantization_config = came_so.to_dict()
        with quiet(), torch.random.fork_rng(devices=[]):
            # Not the run's seed: what is drawn at random must not agree by luck.
            torch.manual_seed(_OTHER_SEED)
            try:
                return self.kind.from_pretrained(  # type: ignore[no-any-return]
                    self.address,
                    config=config,
                    dtype=self.dtype,
                    revision=self.revision or "main",
                    use_safetensors=None if self.allow_pickle else True,
                    ignore_mismatched_sizes=classifies,  # a head for other classes gives way
                    output_loading_info=True,
                    **more,
                )
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise BALoraError(
                    f"The pre-trained model {self.address} cannot be loaded to put the export on: {reason}. Name its "
                    "place with base=."
                ) from error


@torch.no_grad()
def add_drawn(change: Change, model: nn.Module, drawn: list[str]) -> Change:
    """Add to a change the layers that a plain load of the pre-trained model would draw at random, as they now are.

    A BERT or DeBERTa from masked language modelling has no pooler: the run's was drawn at its start, so that it must
    travel with the result although it is no head.

    Args:
        change: From `change_of`.
        model: The trained model.
        drawn: From `PlainBase.drawn`.
    """
    names = sorted({name.rpartition(".")[0] for name in drawn if name not in change.modules})
    if not names:
        return change
    factors, modules, config = dict(change.factors), dict(change.modules), copy.deepcopy(change.config)
    for name in names:
        layer = _inner(model).get_submodule(name)
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
    return Change(factors, modules, config)


def _inner(model: nn.Module) -> PreTrainedModel:
    return base_model_of(model)
