"""Anchors in the training: their forward and backward beside those of each micro-batch, and the drift at the end."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from balora.anchors import Anchors
from balora.errors import BALoraError
from balora.training.anchors.anchor_source import make_anchor_term
from balora.training.anchors.anchor_term import AnchorTerm
from balora.training.anchors.budgets import keep_budgets
from balora.training.loss_meter import LossMeter

# At run time the mixin has no base: it is placed before a Trainer class.
if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class AnchoredTrainingMixin(_Base):
    """Anchors of `RegularizedTrainerMixin`."""

    anchors: Anchors | None
    anchor_term: AnchorTerm | None
    loss_meter: LossMeter
    _mean_over_processes: Callable[[Tensor], Tensor]
    _nonfinite_message: Callable[[str, int], str]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; with anchors, make or load them first, and measure the drift in the end."""
        if self.anchors is not None and self.anchor_term is None:
            self.anchor_term = make_anchor_term(self, self.anchors)
        result = super().train(*args, **kwargs)
        found = keep_budgets(self)
        if found:
            result.metrics.update(found)
            self.log(dict(found))
        return result

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Run the anchors' forward and backward, then the Trainer's step; return the sum of both losses."""
        # DeepSpeed takes one backward in a micro-batch, so there `compute_loss` adds the term.
        held = self._hold_anchors(model) if self._holds and not self.is_deepspeed_enabled else None
        loss: Tensor = super().training_step(model, *args, **kwargs)
        return loss if held is None else loss + held

    def _hold_anchors(self, model: nn.Module) -> Tensor | None:
        """Add the gradient of the anchors' term to the parameters; return the weighted term, detached."""
        model.train()
        # The backward of the micro-batch then sends the sum of both gradients to the other processes.
        quiet = model.no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()  # type: ignore[operator]
        with quiet:
            with self.compute_loss_context_manager():
                weighted = self._anchor_loss(model)
            if weighted is None:
                return None
            self.accelerator.backward(weighted)
        return weighted.detach()

    @property
    def _holds(self) -> bool:
        """True if the run has anchors that it trains on."""
        return self.anchor_term is not None and not self.anchor_term.anchors.measure_only

    def _anchor_loss(self, model: nn.Module) -> Tensor | None:
        """Return the weighted anchors' term of a micro-batch, on the graph; None if it holds no anchor."""
        term_of = self.anchor_term
        assert term_of is not None
        step, micro_batches = self.state.global_step, getattr(self, "current_gradient_accumulation_steps", 1)
        term_of.advance(model, step, self._mean_over_processes, self.state.max_steps)
        term, weight = term_of.loss(model, step, micro_batches)
        self.loss_meter.add_part("anchor", term, weight, 1.0 / micro_batches)
        if term is None:
            return None
        if not torch.isfinite(term):
            raise BALoraError(self._nonfinite_message("anchor term", step + 1))
        term_of.weight.add(step, term)
        return weight * term
