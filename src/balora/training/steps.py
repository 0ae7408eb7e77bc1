"""One micro-batch through teacher, student and objective: the two shapes this takes.

Shapes: B sequences, T positions, M valid tokens, N examples, D classes, d hidden or pooled size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput

from balora.errors import BALoraError
from balora.forward import HeadlessForward, valid_targets
from balora.losses import LinearHead, Parts, SpectralBasis
from balora.methods.low_rank import task_type
from balora.methods.start import evaluating
from balora.objective import Objective, Task
from balora.pooled import pooled_features
from balora.regularizers import consistency
from balora.teacher import PretrainedTeacher

logger = logging.getLogger("balora")
_NO_TERMS = {"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}


def infer_task(model: nn.Module) -> Task:
    """What a model is trained for, from its class and its head.

    Raises:
        BALoraError: Neither a language model nor a single-label classifier.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
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

    def __init__(self, model: nn.Module, objective: Objective, teacher: PretrainedTeacher) -> None:
        self.model = model
        self.objective = objective
        self.teacher = teacher
        self.shift = objective.task == "generation"
        self.headless = HeadlessForward(model)
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
    ) -> tuple[Parts, dict[str, Tensor], Any]:
        """Parts of one micro-batch, no further statistics, and the model's outputs."""
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        terms: dict[str, Any] = {"num_items": num_items, "share": share}
        if self._takes_fused(model, inputs):
            teacher_Md, teacher_head = self._teacher_hidden(model, inputs, mask_BT, weights)
            hidden_BTd, outputs = self.headless.hidden_states(model, inputs)
            head = self.headless.head()
            assert head is not None
            parts = self.objective.generation(
                hidden_BTd[mask_BT].to(head.weight_VD.dtype),
                labels_M,
                teacher_Md,
                weights,
                **terms,
                **self._head_arguments(head, teacher_head),
            )
        else:
            teacher_MV = None
            if weights["consistency"] > 0:
                with self.teacher.active():
                    teacher_MV = model(**inputs).logits[mask_BT]
            outputs = model(**inputs)
            parts = self.objective.generation_from_logits(
                outputs.logits[mask_BT], labels_M, teacher_MV, weights, **terms
            )
        return self._with_router_loss(parts, outputs, share), {}, outputs

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool
    ) -> tuple[Tensor, Any]:
        """Mean task loss over the batch's targets; logits only when somebody wants them."""
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        if not keep_logits and self._takes_fused(model, inputs):
            hidden_BTd, _ = self.headless.hidden_states(model, inputs)
            head = self.headless.head()
            assert head is not None
            hidden_Md = hidden_BTd[mask_BT].to(head.weight_VD.dtype)
            parts = self.objective.generation(hidden_Md, labels_M, None, _NO_TERMS, **self._head_arguments(head, None))
            return parts.loss, CausalLMOutput(loss=parts.loss)
        logits = model(**inputs).logits
        parts = self.objective.generation_from_logits(logits[mask_BT], labels_M, None, _NO_TERMS)
        return parts.loss, CausalLMOutput(loss=parts.loss, logits=logits if keep_logits else None)

    def start_divergence(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[float, float]:
        """KL(teacher ‖ student) in eval mode over the batch's first targets, in nats, and what rounding allows."""
        inputs = self._prepared(inputs, labels)
        mask_BT, _ = valid_targets(labels, shift=self.shift)
        with self.teacher.active():
            teacher_MV = self.headless.logits_at(model, inputs, mask_BT).float()
        with evaluating(self.model):
            student_MV = self.headless.logits_at(model, inputs, mask_BT).float()
            return float(consistency(student_MV, teacher_MV, 1.0)), _rounding(self.model)

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
            self._fused = self.headless.agrees(model, inputs)
            if not self._fused:
                logger.warning(
                    "The head of %s is not a plain linear map, so the loss is taken over full logits (loss_path: plain), "
                    "which costs memory.",
                    type(self.model).__name__,
                )
        return self._fused

    def _teacher_hidden(
        self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, weights: dict[str, float]
    ) -> tuple[Tensor | None, LinearHead | None]:
        if not weights["consistency"] > 0:
            return None, None
        with self.teacher.active():
            hidden_BTd, _ = self.headless.hidden_states(model, inputs)
            head = self.headless.head()
            assert head is not None
            # A view of the values as they are now: the parameter itself goes back to the student's afterwards.
            hidden_Md = hidden_BTd[mask_BT].to(head.weight_VD.dtype)
            return hidden_Md, (_detached(head) if self._head_learns() else None)

    def _head_learns(self) -> bool:
        return any(p.requires_grad for p in self.headless.module.parameters())

    def _head_arguments(self, head: LinearHead, teacher_head: LinearHead | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "head_VD": head.weight_VD,
            "bias_V": head.bias_V,
            "logit_scale": head.logit_scale,
            "softcap": head.softcap,
        }
        if teacher_head is not None:
            arguments |= {"teacher_head_VD": teacher_head.weight_VD, "teacher_bias_V": teacher_head.bias_V}
        if self.objective.config.spectral > 0 and not self._head_learns() and head.softcap is None:
            arguments["spectral_basis"] = self._spectral_basis(head)
        return arguments

    def _spectral_basis(self, head: LinearHead) -> SpectralBasis:
        """Factor the frozen head once and keep it."""
        if self._basis is None:
            self._basis = SpectralBasis.from_head(head.weight_VD, head.bias_V)
        return self._basis

    def _with_router_loss(self, parts: Parts, outputs: Any, share: float) -> Parts:
        """Mixture-of-experts models balance their experts with a loss of their own, on request (output_router_logits)."""
        router = getattr(outputs, "aux_loss", None)
        config = self.model.config.get_text_config()  # type: ignore[union-attr, operator]
        if router is None or not getattr(config, "output_router_logits", False):
            return parts
        return dataclasses.replace(parts, loss=parts.loss + config.router_aux_loss_coef * share * router)


class ClassificationStep:
    """Sequence classifiers and regressors: logits, and pooled features where a target asks for them."""

    def __init__(self, model: nn.Module, objective: Objective, teacher: PretrainedTeacher) -> None:
        self.model = model
        self.objective = objective
        self.teacher = teacher
        self._rows_checked = False

    def count_items(self, labels: Tensor) -> Tensor:
        """Examples of a micro-batch, as a scalar tensor."""
        return torch.tensor(labels.shape[0])

    def train(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        *,
        num_items: Tensor | None,
        share: float,
    ) -> tuple[Parts, dict[str, Tensor], Any]:
        """Parts of one micro-batch, the logits' variance (METHOD 6.15), and the model's outputs."""
        teacher_ND = None
        if weights["consistency"] > 0:
            with self.teacher.active():
                teacher_ND = model(**inputs).logits
        features_Nd = None
        if self.objective.needs_features:
            with pooled_features(self.model, inputs) as caught:
                outputs = model(**inputs)
            features_Nd = caught[-1]
        else:
            outputs = model(**inputs)
        logits_ND = outputs.logits
        self._check_rows(logits_ND.shape[0])
        parts = self.objective.classification(
            logits_ND, labels, teacher_ND, features_Nd, weights, num_items=num_items, share=share
        )
        spread = logits_ND.detach().float().var(0, correction=0).mean()
        return parts, {"logit_variance": spread}, outputs

    def _check_rows(self, rows: int) -> None:
        """Say once when the batches are too small for the spectral term to move (METHOD 6.3)."""
        config = self.objective.config
        if not self._rows_checked and config.spectral > 0 and config.spectral_rank >= rows:
            logger.warning(
                "The spectral term is constant: with %d rows in a batch and spectral_rank %d the ratio of eq. 7 is 1 whatever "
                "the model does, so its gradient is 0. Choose spectral_rank below %d, or a larger per_device_train_batch_size.",
                rows,
                config.spectral_rank,
                rows,
            )
        self._rows_checked = True

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool
    ) -> tuple[Tensor, Any]:
        """Mean task loss over the batch and the logits."""
        logits = model(**inputs).logits
        parts = self.objective.classification(logits, labels, None, None, _NO_TERMS)
        return parts.loss, SequenceClassifierOutput(loss=parts.loss, logits=logits)

    def start_divergence(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[float, float]:
        """KL(teacher ‖ student) in eval mode, for regression the squared difference, and what rounding allows."""
        with self.teacher.active():
            teacher_ND = model(**inputs).logits.float()
        with evaluating(self.model):
            student_ND = model(**inputs).logits.float()
            if self.objective.task == "regression":
                return float((student_ND - teacher_ND).square().mean()), _rounding(self.model)
            return float(consistency(student_ND, teacher_ND, 1.0)), _rounding(self.model)


def _detached(head: LinearHead) -> LinearHead:
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return dataclasses.replace(head, weight_VD=head.weight_VD.detach(), bias_V=bias_V)


def _rounding(model: nn.Module) -> float:
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return 1e-4 if half else 1e-6
