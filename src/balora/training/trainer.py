"""`BALoraTrainer`: transformers' Trainer with the regularized objective."""

from __future__ import annotations

from transformers import Trainer

from balora.training.mixin import RegularizedMixin


class BALoraTrainer(RegularizedMixin, Trainer):
    """Fine-tunes a causal, sequence-to-sequence, classification or regression model with the three regularizers.

    Args:
        regularization: A `RegularizationConfig`; default the paper's values for the model's task.
        loss_path: ``fused`` or ``plain``.
        initial: The trainable tensors' initial values, when the model is no longer at them.
        teacher_cache: ``auto`` keeps a classifier's teacher logits in memory (in one process); ``off`` asks the teacher at
            every step; a `balora.teacher.cache.TeacherCache` stands for it in generation.
        teacher_offload: Whether the initial values wait in the host's memory between the teacher's forwards.

    All other arguments are `transformers.Trainer`'s. Causal models take unshifted ``labels`` (−100 where there is nothing to
    learn); sequence-to-sequence models take ``decoder_input_ids`` and ``labels`` aligned with them.

    Raises:
        BALoraError: The model or an argument does not go with the objective; during training, a part became NaN or infinite.

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 8 and 12.
    """
