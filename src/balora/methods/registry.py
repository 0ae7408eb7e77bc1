"""Every fine-tuning method by name: what it is, where it comes from, what it trains, how it starts.

Adding one is one module and one `register` call in `balora.methods`; `docs/methods.md` shows it by example.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from balora.errors import BALoraError, suggest
from balora.methods.options import Option, check_values

Batches = list[dict[str, Tensor]]
"""Calibration batches of one row each: what the model's forward takes, ``labels`` included."""

Form = Literal["lora", "tensors", "model"]
"""What a trained model consists of: ``lora``, a peft adapter; ``tensors``, some tensors of its own; ``model``, all of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """What every method is told, checked once in `balora.adapt`; a method reads what concerns it."""

    rank: int
    """r ≥ 1."""
    alpha: float
    """α > 0; the adapter's scaling is s = α / r."""
    dropout: float
    """Probability in [0, 1) on the adapter's input."""
    target_modules: str | list[str]
    """`all-linear`, one regular expression, or names of layers (or of stacked expert weights)."""
    seed: int
    """Of the adapter's random start (LoRA's A, the sketch of a randomised SVD)."""
    extra: Mapping[str, Any]
    """Every option of the method's own, `Method.options`, by name."""
    total_steps: int | None = None
    """Optimizer steps to come, for a method with a schedule of its own."""
    calibration: Callable[[int], Batches] | None = None
    """Gives so many rows of the training data, for a method that starts from them."""
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Rank by layer, where it is not ``rank`` (a stored adapter of uneven ranks)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One row of `balora methods`."""

    name: str
    summary: str
    """What it does, in one sentence."""
    paper: str
    trains: str
    """Which tensors learn, in words."""
    wrap: Callable[[PreTrainedModel, AdaptOptions], nn.Module]
    """Gives the pre-trained model its trainable tensors; may raise `BALoraError`."""
    check: Callable[[nn.Module, AdaptOptions], None] | None = None
    """Refuses, by the sizes alone, a wrapped model that cannot start so."""
    start: Callable[[nn.Module, AdaptOptions], nn.Module | None] | None = None
    """Gives them their initial values, where those come from the weights or the data. May return another model."""
    form: Form = "lora"
    low_rank: bool = True
    """Whether the change is a sum of low-rank products, so that it can be exported as a LoRA."""
    mergeable: bool = True
    """Whether the change can be written into the pre-trained weights."""
    shifts_base: bool = False
    """Whether the start moves part of the frozen weights into the adapter, so that switching the adapter off is not
    the pre-trained model."""
    uneven: bool = False
    """Whether the start gives layers ranks of their own."""
    regularized: bool = False
    """Whether the regularizers are on unless the user says otherwise."""
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    """The method's own options by name."""
    needs_data: bool = False
    """Whether the start is computed on batches of the training data."""
    needs_steps: bool = False
    """Whether the method must know how many optimizer steps there will be."""
    optimizer: Callable[..., Optimizer] | None = None
    """Makes the optimizer, where it is not the usual one: called with the model, the Trainer's optimizer class and its
    keyword arguments, and the method's options."""
    after_step: Callable[[nn.Module, int], None] | None = None
    """Called with the model and the step (from 1) after every optimizer step, the gradients still there."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """A term of the method's own that is added to the loss."""
    state: Callable[[nn.Module], dict[str, Tensor]] | None = None
    """What an interrupted run needs beside the tensors and the optimizer, as tensors by name."""
    restore: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None
    """Takes `state` back."""

    def build(self, model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
        """Turn the pre-trained model into the one that is trained.

        Raises:
            BALoraError: The model cannot carry the method.
        """
        adapted = self.wrap(model, options)
        with unwrapped_on_error(adapted):
            if self.check is not None:
                self.check(adapted, options)
            if self.start is None or any(p.is_meta for p in adapted.parameters()):  # built for its sizes alone
                return adapted
            return self.start(adapted, options) or adapted


@contextlib.contextmanager
def unwrapped_on_error(adapted: nn.Module) -> Iterator[None]:
    """Take the adapter off again where its start is refused: the caller's model goes back as it came."""
    try:
        yield
    except BALoraError:
        if isinstance(adapted, PeftModel):
            adapted.unload()
        raise


METHODS: dict[str, Method] = {}


def option_problems(spec: Method, given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values given to a method's own options."""
    return check_values(spec.name, spec.options, given, lambda key: [n for n, m in METHODS.items() if key in m.options])


def register(method: Method) -> Method:
    """Add a method to the registry; its name must be new."""
    assert method.name not in METHODS, f"method {method.name} is registered twice"
    METHODS[method.name] = method
    return method


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        BALoraError: No method is called that; the nearest is named.
    """
    if name not in METHODS:
        raise BALoraError(
            f"There is no method {name!r}.{suggest(name, METHODS)} The methods are {', '.join(sorted(METHODS))}."
        )
    return METHODS[name]
