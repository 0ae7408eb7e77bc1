"""`BALoraSFTTrainer`: trl's SFTTrainer (chat templates, packing, padding-free, completion-only) with our objective.

A separate module, because importing trl takes seconds and `BALoraTrainer` does not need it.
"""

from typing import Any

from torch import nn
from trl import SFTTrainer

from balora.errors import BALoraError
from balora.training.trainer import RegularizedTrainerMixin


class _SFTTrainer(SFTTrainer):
    """trl's SFTTrainer without its rounding of a quantized model's adapter to bfloat16.

    A rounded adapter no longer has its initial values, and bfloat16 parameters lose small optimizer steps. Settings of
    `SFTConfig` that an adapted model cannot honour are refused.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        adapted = isinstance(model, nn.Module)
        trainable = [p for p in model.parameters() if p.requires_grad] if adapted else []
        unrounded, tokens = [p.data for p in trainable], _num_tokens(model) if adapted else 0
        super().__init__(model, *args, **kwargs)
        for parameter, values in zip(trainable, unrounded, strict=True):
            parameter.data = values.to(parameter.device)
        if adapted and _num_tokens(model) != tokens:
            raise BALoraError(
                f"chat_template_path={self.args.chat_template_path!r} adds tokens to the model: its embedding had {tokens:,} rows "
                f"and has {_num_tokens(model):,}. The new rows are random and would stay so, because they are not trained. Give "
                "the template alone (a .jinja file), or add and train the tokens before balora.adapt."
            )
        text_config = self.model.config.get_text_config()
        if self.args.router_aux_loss_coef and not hasattr(text_config, "router_aux_loss_coef"):
            raise BALoraError(
                f"router_aux_loss_coef={self.args.router_aux_loss_coef} cannot be honoured: the config of "
                f"{type(self.model).__name__} has no such weight. Leave it out, and set the model's own weight in its config."
            )


def _num_tokens(model: nn.Module) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]


class BALoraSFTTrainer(RegularizedTrainerMixin, _SFTTrainer):
    """`BALoraTrainer` with trl's SFTTrainer and its data preparation in place of transformers' Trainer.

    trl's token-accuracy and entropy metrics are replaced by the parts. Its other losses (``loss_type``) are refused.
    """
