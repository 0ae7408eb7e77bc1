"""One micro-batch through teacher, student and objective, for models that generate text.

Shapes: B sequences, T positions, M valid tokens, d hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from balora.errors import BALoraError
from balora.losses import HiddenStates, LinearHead, Logits, LossParts, SpectralBasis, TopKTeacher
from balora.models.fsdp import is_sharded
from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from balora.objective import Objective
from balora.teacher.cache import TeacherCache
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.subsampling import SequenceMask, select_rows
from balora.training.train_step import TASK_LOSS_ONLY

logger = logging.getLogger("balora")


class GenerationStep:
    """`TrainStep` of causal and sequence-to-sequence models.

    The fused path takes hidden states at the valid positions and applies the head only inside the loss. If the head is not
    linear, the loss is computed from full logits.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        teacher: PretrainedTeacher,
        teacher_cache: TeacherCache | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.teacher = teacher
        self.teacher_cache = teacher_cache
        self._cache_checked = False
        self.shift = objective.task == "generation"
        self.headless = HiddenStateExtractor(model)
        self._fused: bool | None = None if objective.loss_path == "fused" else False
        self._basis: SpectralBasis | None = None

    def count_items(self, labels: Tensor) -> Tensor:
        """Return the number of valid target tokens as a scalar tensor."""
        return (labels[:, 1:] if self.shift else labels).ne(-100).sum()

    def train(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        *,
        num_items: Tensor | None,
        share: float,
        sequence_mask: SequenceMask | None = None,
    ) -> tuple[LossParts, dict[str, Tensor], Any]:
        """Compute the loss of one micro-batch (see `TrainStep`); there are no further statistics."""
        sequence_mask = sequence_mask or SequenceMask()
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        skipped = weights["consistency"] > 0 and sequence_mask.is_empty
        if skipped:
            weights = {**weights, "consistency": 0.0}
        mask_M = teacher = None
        fused = self._use_fused(model, inputs)
        if weights["consistency"] > 0:
            mask_M = _token_mask(sequence_mask, mask_BT)
            teacher = self._teacher_outputs(model, inputs, mask_BT, sequence_mask, fused)
        student, outputs = self._student_outputs(model, inputs, mask_BT, fused)
        parts = self.objective.language_modeling(
            student,
            labels_M,
            teacher,
            weights,
            num_items=num_items,
            share=share,
            keep_prob=1.0 if teacher is None else sequence_mask.keep_prob,
            consistency_mask_M=mask_M,
        )
        if skipped:  # a micro-batch without a selected sequence still counts in the mean of the term
            parts = dataclasses.replace(parts, consistency=torch.zeros_like(parts.task))
        return self._with_router_loss(parts, outputs, share), {}, outputs

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool
    ) -> tuple[Tensor, Any]:
        """Return the mean task loss over the batch's targets, and outputs with logits if ``keep_logits``."""
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        fused = not keep_logits and self._use_fused(model, inputs)
        student, outputs = self._student_outputs(model, inputs, mask_BT, fused)
        parts = self.objective.language_modeling(student, labels_M, None, TASK_LOSS_ONLY)
        return parts.loss, CausalLMOutput(loss=parts.loss, logits=outputs.logits if keep_logits else None)

    def target_logits(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        """Return logits at the first valid targets of the batch, M × V."""
        mask_BT, _ = valid_targets(labels, shift=self.shift)
        return self.headless.logits_at(model, self._prepared(inputs, labels), mask_BT)

    def _prepared(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """Return the model's inputs without a key-value cache, and for an encoder-decoder with ``decoder_input_ids``.

        The model does not get the labels, because it would compute its own loss. An encoder-decoder would derive its decoder
        inputs from them, so the labels are shifted right here; without decoder inputs some families decode the source.
        """
        inputs = {**inputs, "use_cache": False}
        if not self.shift and inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None:
            shift_right = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
            if shift_right is None:
                raise BALoraError(
                    f"{type(self.model).__name__} needs decoder_input_ids in each batch in addition to the labels."
                )
            inputs["decoder_input_ids"] = shift_right(labels=labels)
        return inputs

    def _use_fused(self, model: nn.Module, inputs: dict[str, Any]) -> bool:
        """Decide once, on real inputs: take the fused path only if the head is the linear map that the loss assumes."""
        if self._fused is None:
            self._fused = self.headless.head_matches(model, inputs)
            if not self._fused:
                logger.warning(
                    "The head of %s is not a plain linear map, so the loss is taken over full logits (loss_path: plain), "
                    "which costs memory.",
                    type(self.model).__name__,
                )
        return self._fused

    def _student_outputs(
        self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, fused: bool
    ) -> tuple[HiddenStates | Logits, Any]:
        """Return the student's outputs at the valid tokens for the loss, and the model's outputs."""
        if not fused:
            outputs = model(**inputs)
            return Logits(outputs.logits[mask_BT]), outputs
        head = self.headless.head()
        assert head is not None
        basis = None
        if self.objective.config.spectral > 0 and not self._head_learns() and head.softcap is None:
            # Before the forward: the spectral basis needs memory while it is computed, and so do the activations.
            basis = self._spectral_basis(head)
        hidden_BTd, outputs = self.headless.hidden_states(model, inputs)
        return HiddenStates(hidden_BTd[mask_BT].to(head.weight_VD.dtype), head, basis), outputs

    def _teacher_outputs(
        self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, sequence_mask: SequenceMask, fused: bool
    ) -> HiddenStates | Logits | TopKTeacher:
        """Return the teacher from the cache, or its outputs at the valid tokens (0 if not selected)."""
        if self.teacher_cache is not None:
            return self._cached_teacher(model, inputs, mask_BT, sequence_mask)
        count = len(mask_BT)
        inputs, selected_BT = (
            select_rows(inputs, sequence_mask.rows, count),
            select_rows({"": mask_BT}, sequence_mask.rows, count)[""],
        )
        head: LinearHead | None = None
        with self.teacher.active():
            if fused:
                outputs_Md, head = self._hidden_and_head(model, inputs, selected_BT)
            else:
                outputs_Md = model(**inputs).logits[selected_BT]
        mask_M = _token_mask(sequence_mask, mask_BT)
        if mask_M is not None:
            zeros_Md = outputs_Md.new_zeros(len(mask_M), outputs_Md.shape[1])
            outputs_Md = zeros_Md.masked_scatter_(mask_M[:, None], outputs_Md)
        return HiddenStates(outputs_Md, head if self._head_learns() else None) if fused else Logits(outputs_Md)

    def _hidden_and_head(self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor) -> tuple[Tensor, LinearHead]:
        """Return hidden states at the valid tokens, and the head with its present values as constants."""
        hidden_BTd, _ = self.headless.hidden_states(model, inputs)
        head = self.headless.head()
        assert head is not None
        # A view of the present values: the parameter itself gets the student's values back afterwards.
        constant = head.detach()
        if is_sharded(self.model) and self._head_learns():  # the student's head is gathered into the same memory
            bias_V = None if constant.bias_V is None else constant.bias_V.clone()
            constant = dataclasses.replace(constant, weight_VD=constant.weight_VD.clone(), bias_V=bias_V)
        return hidden_BTd[mask_BT].to(head.weight_VD.dtype), constant

    def _cached_teacher(
        self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, sequence_mask: SequenceMask
    ) -> TopKTeacher:
        """Read the batch's teacher from the cache; the first time, compare it with the teacher itself."""
        assert self.teacher_cache is not None
        if sequence_mask.row_keys is None:
            raise BALoraError(
                "A teacher cache cannot be used: the batches do not say which rows they are made of. Train on a dataset with a "
                "length, in batches of unchanged rows, or leave teacher_cache out."
            )
        cached = self.teacher_cache.read(sequence_mask.row_keys, mask_BT.device)
        if not self._cache_checked:
            self._cache_checked = True
            with self.teacher.active():
                self.teacher_cache.check(cached, self.headless.logits_at(model, inputs, mask_BT))
        return cached

    def _head_learns(self) -> bool:
        return any(p.requires_grad for p in self.headless.output_layer.parameters())

    def _spectral_basis(self, head: LinearHead) -> SpectralBasis:
        """Factor the frozen head at the first call and reuse the result."""
        if self._basis is None:
            self._basis = SpectralBasis.from_head(head.weight_VD, head.bias_V)
        return self._basis

    def _with_router_loss(self, parts: LossParts, outputs: Any, share: float) -> LossParts:
        """Add the load-balancing loss of a mixture-of-experts model if its config asks for it (output_router_logits)."""
        router = getattr(outputs, "aux_loss", None)
        config = self.model.config.get_text_config()  # type: ignore[union-attr, operator]
        if router is None or not getattr(config, "output_router_logits", False):
            return parts
        return dataclasses.replace(parts, loss=parts.loss + config.router_aux_loss_coef * share * router)


def _token_mask(sequence_mask: SequenceMask, mask_BT: Tensor) -> Tensor | None:
    """Return which of the valid tokens belong to a selected sequence; None for all."""
    mask_B = sequence_mask.as_bool(len(mask_BT), mask_BT.device)
    return None if mask_B is None else mask_B[:, None].expand_as(mask_BT)[mask_BT]
