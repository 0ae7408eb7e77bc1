"""Description of a fine-tuning method, and the options that every method receives.

This module and `balora.methods.registry` import neither torch nor peft nor transformers: the functions of a method are
imported when they are first called.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from balora.deprecation import deprecated_keywords
from balora.errors import BALoraError
from balora.methods.options import Option

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

Batches: TypeAlias = "list[dict[str, Tensor]]"
"""Calibration batches of one row each: the arguments of the model's forward, ``labels`` included."""

Form = Literal["lora", "tensors", "model"]
"""Content of a trained model: ``lora``, a peft adapter; ``tensors``, some named tensors; ``model``, all weights."""


@dataclasses.dataclass(frozen=True)
class LazyFunction:
    """A function that is imported when it is first called.

    Example:
        >>> LazyFunction("math:sqrt")(4.0)
        2.0
    """

    path: str
    """Module and function, separated by a colon."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the function and call it."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """Arguments of `balora.adapt`, after they have been checked. A method reads those that concern it."""

    rank: int
    """r ≥ 1."""
    alpha: float
    """α > 0; the adapter's scaling is s = α / r."""
    dropout: float
    """Probability in [0, 1) on the adapter's input."""
    target_modules: str | list[str]
    """`all-linear`, one regular expression, or names of layers (or of stacked expert weights)."""
    seed: int
    """Seed of the random initial values (LoRA's A, the sketch of a randomised SVD)."""
    extra: Mapping[str, Any]
    """Value of every option in `Method.options`, by name."""
    total_steps: int | None = None
    """Number of optimizer steps of the run, for a method with a schedule."""
    calibration: Callable[[int], Batches] | None = None
    """Function that returns the given number of training rows, for a method whose initial values depend on data."""
    exclude_modules: str | list[str] | None = None
    """Modules without an adapter, in the form of ``target_modules``; a module excludes all layers that it contains."""
    dead: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Layers whose adapter would get no gradient, with the reason."""
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Layers that text alone does not run, with the reason. They get no adapter if ``target_modules`` is `all-linear`."""
    stored: frozenset[str] | None = None
    """Layers that have an adapter in the stored initial values; None for a new adapter."""
    changes_weights: bool = False
    """True if the method changes the weights under the adapter, so that two adapters cannot have one weight."""
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Ranks that differ from ``rank``, by layer (a stored adapter with uneven ranks)."""


_RENAMED = {"start": "initialize", "shifts_base": "residual_base"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One fine-tuning method: one entry of the registry, one row of `balora methods`."""

    name: str
    summary: str
    """Description in one sentence."""
    paper: str
    trains: str
    """Trained tensors, as a phrase for the user."""
    wrap: Callable[[PreTrainedModel, AdaptOptions], nn.Module]
    """Function that adds the trainable tensors to the pre-trained model; may raise `BALoraError`."""
    check: Callable[[nn.Module, AdaptOptions], None] | None = None
    """Function that refuses a wrapped model whose shapes or layers do not allow the method's initial values."""
    initialize: Callable[[nn.Module, AdaptOptions], nn.Module | None] | None = None
    """Function that computes initial values from the weights or from data. It may return another model."""
    form: Form = "lora"
    low_rank: bool = True
    """True if the change is a sum of low-rank products, so that it can be exported as a LoRA."""
    mergeable: bool = True
    """True if the change can be merged into the pre-trained weights."""
    residual_base: bool = False
    """True if the frozen weights are a residual, W - s·B₀A₀. Without the adapter, such a model is not the pre-trained one."""
    uneven: bool = False
    """True if ``initialize`` chooses a rank for each layer."""
    regularized: bool = False
    """True if the regularizers are on by default."""
    objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of `RegularizationConfig` that make the method's own objective; all other terms are off by default."""
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    """Options of this method alone, by name."""
    needs_data: bool = False
    """True if the initial values are computed from training data."""
    needs_steps: bool = False
    """True if the method must know the number of optimizer steps."""
    optimizer: Callable[..., Optimizer] | None = None
    """Function that makes the optimizer, if the method needs a special one. Its arguments: the model, the Trainer's optimizer
    class and its keyword arguments, and the method's options."""
    after_step: Callable[[nn.Module, int], None] | None = None
    """Function that runs after every optimizer step, while the gradients still exist. Its arguments: the model and the step
    (from 1)."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """Function that returns a term to add to the loss."""
    state: Callable[[nn.Module], dict[str, Tensor]] | None = None
    """Function that returns further tensors to store in a checkpoint, by name."""
    restore: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None
    """Function that loads the tensors of ``state`` into a resumed model."""

    if not TYPE_CHECKING:  # a __getattr__ would hide misspelt attributes from mypy

        def __getattr__(self, name: str) -> Any:
            if name not in _RENAMED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(f"Method.{name} is now Method.{_RENAMED[name]}.", DeprecationWarning, stacklevel=2)
            return getattr(self, _RENAMED[name])

    def build(self, model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
        """Add the trainable tensors to a pre-trained model and set their initial values (not on the meta device).

        If the method does not work with this model, the adapter is removed again and a `BALoraError` is raised.
        """
        adapted: Any = self.wrap(model, options)
        try:
            if self.check is not None:
                self.check(adapted, options)
            if self.initialize is None or any(p.is_meta for p in adapted.parameters()):
                return adapted
            return self.initialize(adapted, options) or adapted
        except BALoraError:
            if hasattr(adapted, "unload"):  # a peft model
                adapted.unload()
            raise


Method.__init__ = deprecated_keywords(**_RENAMED)(Method.__init__)  # type: ignore[method-assign]
