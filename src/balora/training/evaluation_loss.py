"""Loss of an evaluation: the mean over all targets, whatever the batch size and the number of processes."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from balora.training.distributed.repeated_rows import num_sampled_rows

# At run time the mixin has no base: it is placed before a Trainer class.
if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class EvaluationLossMixin(_Base):
    """Evaluation of `RegularizedTrainerMixin`."""

    _eval_losses: list[tuple[Tensor, Tensor]]
    """Mean loss and number of targets of each batch."""
    _eval_rows: int | None = None
    _loss_only = False
    _num_targets: Tensor | int

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Run the Trainer's loop; its loss becomes the mean over all targets (tokens or examples) of the dataset.

        The Trainer's is a mean over batches, which depends on the batch size and on the number of processes.
        """
        self._eval_rows, self._eval_losses = num_sampled_rows(dataloader), []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        losses, self._eval_losses = self._eval_losses, []
        if losses:
            values, counts = (torch.stack([torch.as_tensor(pair[i]).cpu() for pair in losses]).double() for i in (0, 1))
            sums = torch.stack([(values * counts).sum(), counts.sum()])
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.gather(sums.to(self.args.device)[None]).sum(0).cpu()
            output.metrics[f"{metric_key_prefix}_loss"] = float(sums[0] / sums[1].clamp_min(1))
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Run the Trainer's prediction step; if only the loss is needed, the fused path computes no logits."""
        self._loss_only, trained = prediction_loss_only, self._num_targets
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._loss_only, self._num_targets = False, trained  # the Trainer counts evaluation targets the same way
