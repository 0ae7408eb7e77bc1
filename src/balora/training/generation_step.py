"""One micro-batch through teacher, student and objective, for models that generate; what a model is trained for.

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
from balora.methods.layers.peft_lora import task_type
from balora.models.adapted_model import base_model_of, evaluating
from balora.models.fsdp import is_sharded
from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from balora.objective import Objective, Task
from balora.regularizers import consistency
from balora.teacher.cache import TeacherCache
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.classification_step import ClassificationStep
from balora.training.initial_checks import NO_TERMS, rounding
from balora.training.subsampling import SequenceMask, select_rows

logger = logging.getLogger("balora")
__all__ = ["ClassificationStep", "GenerationStep", "infer_task"]


def infer_task(model: nn.Module) -> Task:
    """What a model is trained for, from its class and its head.

    Raises:
        BALoraError: Neither a language model nor a single-label classifier.
    """
    base = base_model_of(model)
    kind = getattr(task_type(base), "value", None)
    if kind == "SEQ_CLS":
        if getattr(base.config, "problem_type", None) == "multi_label_classification":
            raise BALoraError(
                "Multi-label classification is not supported: the paper's terms are for one label per row."
            )
        if getattr(base.config, "problem_type", None) == "regression" and base.config.num_labels > 1:
            raise BALoraError(
                f"Regression to {base.config.num_labels} scores per row is not supported; load the model with num_labels=1."
            )
        return "regression" if base.config.num_labels == 1 else "classification"
    if kind == "SEQ_2_SEQ_LM":
        return "seq2seq"
    if kind == "CAUSAL_LM":
        return "generation"
    raise BALoraError(
        f"{type(base).__name__} is neither a causal nor a sequence-to-sequence language model nor a sequence classifier. Load "
        "it through AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForSequenceClassification."
    )


class GenerationStep:
    """Causal and sequence-to-sequence models: hidden states at the valid positions, the head met once in the loss."""

    def __init__(
        self, model: nn.Module, objective: Objective, teacher: PretrainedTeacher, cache: TeacherCache | None = None
    ) -> None:
        self.model = model
        self.objective = objective
        self.teacher = teacher
        self.cache = cache
        self._cache_checked = False
        self.shift = objective.task == "generation"
        self.headless = HiddenStateExtractor(model)
        self._fused: bool | None = None if objective.loss_path == "fused" else False
        self._basis: SpectralBasis | None = None

    def count_items(self, labels: Tensor) -> Tensor:
        """Valid targets of a micro-batch, as a scalar tensor."""
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
        held: SequenceMask | None = None,
    ) -> tuple[LossParts, dict[str, Tensor], Any]:
        """LossParts of one micro-batch, no further statistics, and the model's outputs."""
        held = held or SequenceMask()
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        skipped = weights["consistency"] > 0 and held.nobody
        if skipped:
            weights = {**weights, "consistency": 0.0}
        terms: dict[str, Any] = {"num_items": num_items, "share": share}
        fused = self._takes_fused(model, inputs)
        teacher: HiddenStates | Logits | TopKTeacher | None = None
        if weights["consistency"] > 0:
            terms |= {"keep_prob": held.keep, "consistency_mask_M": _at_tokens(held, mask_BT)}
            teacher = self._teacher(model, inputs, mask_BT, held, fused)
        student: HiddenStates | Logits
        if fused:
            student, outputs = self._student(model, inputs, mask_BT)
        else:
            outputs = model(**inputs)
            student = Logits(outputs.logits[mask_BT])
        parts = self.objective.language_modeling(student, labels_M, teacher, weights, **terms)
        if skipped:  # of nobody the term is 0, and counts as that in the mean
            parts = dataclasses.replace(parts, consistency=torch.zeros_like(parts.task))
        return self._with_router_loss(parts, outputs, share), {}, outputs

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool
    ) -> tuple[Tensor, Any]:
        """Mean task loss over the batch's targets; logits only when somebody wants them."""
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        if not keep_logits and self._takes_fused(model, inputs):
            student, _ = self._student(model, inputs, mask_BT)
            parts = self.objective.language_modeling(student, labels_M, None, NO_TERMS)
            return parts.loss, CausalLMOutput(loss=parts.loss)
        logits = model(**inputs).logits
        parts = self.objective.language_modeling(Logits(logits[mask_BT]), labels_M, None, NO_TERMS)
        return parts.loss, CausalLMOutput(loss=parts.loss, logits=logits if keep_logits else None)

    def start_divergence(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[float, float]:
        """KL(teacher ‖ student) in eval mode over the batch's first targets, in nats, and what rounding allows."""
        inputs = self._prepared(inputs, labels)
        mask_BT, _ = valid_targets(labels, shift=self.shift)
        with self.teacher.active():
            teacher_MV = self.headless.logits_at(model, inputs, mask_BT).float()
        with evaluating(self.model):
            student_MV = self.headless.logits_at(model, inputs, mask_BT).float()
            return float(consistency(student_MV, teacher_MV, 1.0)), rounding(self.model)

    def _prepared(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """What the model is called with: no cache, and for an encoder-decoder its labels one place to the right.

        The labels themselves are kept from the model, which would take its own loss; without them and without decoder
        inputs some families decode the source.
        """
        inputs = {**inputs, "use_cache": False}
        if not self.shift and inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None:
            shift_right = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
            if shift_right is None:
                raise BALoraError(
                    f"{type(self.model).__name__} needs decoder_input_ids beside the labels in each batch."
                )
            inputs["decoder_input_ids"] = shift_right(labels=labels)
        return inputs

    def _takes_fused(self, model: nn.Module, inputs: dict[str, Any]) -> bool:
        """Decided once, on real inputs: the fused path only where the head does what we think it does."""
        if self._fused is None:
            self._fused = self.headless.head_matches(model, inputs)
            if not self._fused:
                logger.warning(
                    "The head of %s is not a plain linear map, so the loss is taken over full logits (loss_path: plain), "
                    "which costs memory.",
                    type(self.model).__name__,
                )
        return self._fused

    def _teacher(
        self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, held: SequenceMask, fused: bool
    ) -> HiddenStates | Logits | TopKTeacher:
        """What the loss takes of the teacher: what is remembered, or its outputs at the valid tokens (0 where not held)."""
        if self.cache is not None:
            return self._remembered(model, inputs, mask_BT, held)
        count = len(mask_BT)
        inputs, here_BT = select_rows(inputs, held.rows, count), select_rows({"": mask_BT}, held.rows, count)[""]
        head: LinearHead | None = None
        with self.teacher.active():
            if fused:
                found_Md, head = self._hidden_at(model, inputs, here_BT)
            else:
                found_Md = model(**inputs).logits[here_BT]
        mask_M = _at_tokens(held, mask_BT)
        if mask_M is not None:
            found_Md = found_Md.new_zeros(len(mask_M), found_Md.shape[1]).masked_scatter_(mask_M[:, None], found_Md)
        if fused:
            return HiddenStates(found_Md, head if self._head_learns() else None)
        return Logits(found_Md)

    def _hidden_at(self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor) -> tuple[Tensor, LinearHead]:
        """Hidden states at the valid tokens, and the head as it is now, as constants."""
        hidden_BTd, _ = self.headless.hidden_states(model, inputs)
        head = self.headless.head()
        assert head is not None
        # A view of the values as they are now: the parameter itself goes back to the student's afterwards.
        kept = head.detach()
        if is_sharded(self.model) and self._head_learns():  # the student's are gathered into the very same memory
            bias_V = None if kept.bias_V is None else kept.bias_V.clone()
            kept = dataclasses.replace(kept, weight_VD=kept.weight_VD.clone(), bias_V=bias_V)
        return hidden_BTd[mask_BT].to(head.weight_VD.dtype), kept

    def _remembered(self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, held: SequenceMask) -> TopKTeacher:
        """What the cache holds of these tokens; compared once with what the teacher says."""
        assert self.cache is not None
        if held.keys is None:
            raise BALoraError(
                "The batches do not say which rows they are made of, so a teacher cache cannot be used; train on a "
                "dataset with a length, and in batches of whole rows, or leave teacher_cache out."
            )
        memory = self.cache.take(held.keys, mask_BT.device)
        if not self._cache_checked:
            self._cache_checked = True
            with self.teacher.active():
                self.cache.check(memory, self.headless.logits_at(model, inputs, mask_BT))
        return memory

    def _head_learns(self) -> bool:
        return any(p.requires_grad for p in self.headless.output_layer.parameters())

    def _student(self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor) -> tuple[HiddenStates, Any]:
        """Return the student's hidden states at the valid tokens, and the model's outputs."""
        head = self.headless.head()
        assert head is not None
        basis = None
        if self.objective.config.spectral > 0 and not self._head_learns() and head.softcap is None:
            basis = self._spectral_basis(head)  # before the forward, so that the activations are not in memory yet
        hidden_BTd, outputs = self.headless.hidden_states(model, inputs)
        return HiddenStates(hidden_BTd[mask_BT].to(head.weight_VD.dtype), head, basis), outputs

    def _spectral_basis(self, head: LinearHead) -> SpectralBasis:
        """Factor the frozen head once and keep it."""
        if self._basis is None:
            self._basis = SpectralBasis.from_head(head.weight_VD, head.bias_V)
        return self._basis

    def _with_router_loss(self, parts: LossParts, outputs: Any, share: float) -> LossParts:
        """Mixture-of-experts models balance their experts with a loss of their own, on request (output_router_logits)."""
        router = getattr(outputs, "aux_loss", None)
        config = self.model.config.get_text_config()  # type: ignore[union-attr, operator]
        if router is None or not getattr(config, "output_router_logits", False):
            return parts
        return dataclasses.replace(parts, loss=parts.loss + config.router_aux_loss_coef * share * router)


def _at_tokens(held: SequenceMask, mask_BT: Tensor) -> Tensor | None:
    """Which of the valid tokens belong to a sequence that is drawn; None for all."""
    drawn_B = held.mask(len(mask_BT), mask_BT.device)
    return None if drawn_B is None else drawn_B[:, None].expand_as(mask_BT)[mask_BT]
