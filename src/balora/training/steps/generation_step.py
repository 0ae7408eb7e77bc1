"""One micro-batch through teacher, student and objective, for models that generate text.

Shapes: B sequences, T positions, M valid tokens, d hidden size, V vocabulary.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from balora.data.collate import decoder_shift
from balora.errors import BALoraError
from balora.losses import HiddenStates, LinearHead, Logits, LossParts, LossTerms, SpectralBasis, TopKTeacher
from balora.losses.collectives import agreed
from balora.losses.generation import fused_loss
from balora.losses.reference import reference_loss
from balora.models.adapted_model import base_model_of
from balora.models.fsdp import is_sharded
from balora.models.hidden_states import HiddenStateExtractor, valid_targets, without_virtual_tokens
from balora.models.router_loss import router_loss
from balora.objective import Objective
from balora.teacher.cache import TeacherCache
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.distributed.repeated_rows import without_repeated_labels
from balora.training.steps.subsampling import SequenceMask, select_rows
from balora.training.steps.train_step import TASK_LOSS_ONLY, TrainStep

logger = logging.getLogger("balora")


class GenerationStep(TrainStep):
    """`TrainStep` of causal and sequence-to-sequence models.

    The fused path applies the head only inside the loss, to the hidden states at the valid positions. If the head is not
    linear, the loss is computed from full logits.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        teacher: PretrainedTeacher,
        teacher_cache: TeacherCache | None = None,
    ) -> None:
        super().__init__(model, objective, teacher)
        self.teacher_cache = teacher_cache
        self._cache_checked = False
        self.shift = objective.task == "generation"
        self.headless = HiddenStateExtractor(model)
        self._fused = None if objective.loss_path == "fused" else False
        self._basis: SpectralBasis | None = None

    def count_items(self, labels: Tensor) -> Tensor:
        """Return the number of valid target tokens as a scalar tensor."""
        return (labels[:, 1:] if self.shift else labels).ne(-100).sum()

    def _train(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        mask: SequenceMask,
        num_items: Tensor | None,
        share: float,
    ) -> tuple[LossParts, dict[str, Tensor], Any]:
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        mask_M = teacher = None
        fused = self._use_fused(model, inputs)
        if weights["consistency"] > 0:
            mask_M = mask.over_tokens(mask_BT)
            teacher = self._teacher_outputs(model, inputs, mask_BT, labels_M, mask, fused)
        student, outputs = self._student_outputs(model, inputs, mask_BT, fused)
        parts = self.objective.language_modeling(
            student,
            labels_M,
            teacher,
            weights,
            num_items=num_items,
            share=share,
            keep_prob=1.0 if teacher is None else mask.keep_prob,
            consistency_mask_M=mask_M,
        )
        return self._with_router_loss(parts, outputs, share), {}, outputs

    def teacher_on_anchors(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor | None
    ) -> HiddenStates | Logits:
        """Return hidden states, or logits if the head is not linear; hidden states always have the teacher's head with them."""
        assert labels is not None
        inputs = self._prepared(inputs, labels)
        mask_BT, _ = valid_targets(labels, shift=self.shift)
        fused = self._use_fused(model, inputs)
        outputs = self._online_teacher(model, inputs, mask_BT, SequenceMask(), fused)
        if isinstance(outputs, HiddenStates) and outputs.head is None:
            head = self.headless.head()
            assert head is not None
            outputs = HiddenStates(outputs.hidden_MD, head.detach())
        return outputs

    def hold(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: Tensor | None,
        teacher: Any,
        *,
        temperature: float,
        num_items: float,
    ) -> Tensor:
        """Return the KL divergence over the anchors' positions divided by ``num_items``, without logits if the head is linear."""
        assert labels is not None
        inputs = self._prepared(inputs, labels)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        student, _ = self._student_outputs(model, inputs, mask_BT, self._use_fused(model, inputs))
        terms = LossTerms(consistency=1.0, temperature=temperature, task_loss="none")
        form: Callable[..., LossParts] = fused_loss if isinstance(student, HiddenStates) else reference_loss
        return form(student, labels_M, terms, teacher, num_items).loss

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool, real: int | None = None
    ) -> tuple[Tensor, Any]:
        """Return the mean task loss over the batch's targets, and outputs with logits if ``keep_logits``."""
        inputs = self._prepared(inputs, labels)
        labels = without_repeated_labels(labels, real)
        mask_BT, labels_M = valid_targets(labels, shift=self.shift)
        fused = not keep_logits and self._use_fused(model, inputs)
        student, outputs = self._student_outputs(model, inputs, mask_BT, fused)
        parts = self.objective.language_modeling(student, labels_M, None, TASK_LOSS_ONLY, task_loss="nll")
        if self.row_losses is not None:
            self._report_rows(student, labels_M, mask_BT)
        return parts.loss, CausalLMOutput(loss=parts.loss, logits=outputs.logits if keep_logits else None)

    def _report_rows(self, student: HiddenStates | Logits, labels_M: Tensor, mask_BT: Tensor) -> None:
        """Give ``row_losses`` the loss of each row: the head is applied again, to the targets of one row at a time."""
        assert self.row_losses is not None
        counts_B = mask_BT.sum(1)
        losses, start = [], 0
        for count in counts_B.tolist():
            own = slice(start, start + count)
            outputs = student.at(own) if isinstance(student, HiddenStates) else Logits(student.logits_MV[own])
            loss = self.objective.language_modeling(outputs, labels_M[own], None, TASK_LOSS_ONLY, task_loss="nll").loss
            losses.append(loss.detach().double() * count)
            start += count
        self.row_losses(torch.stack(losses), counts_B)

    def target_logits(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        """Return logits at the first valid targets of the batch, M × V."""
        mask_BT, _ = valid_targets(labels, shift=self.shift)
        return self.headless.logits_at(model, self._prepared(inputs, labels), mask_BT)

    def _prepared(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """Return the model's inputs without a key-value cache, and for an encoder-decoder with ``decoder_input_ids``.

        The model does not get the labels, because it would compute its own loss. The labels of an encoder-decoder are shifted
        right here to make its decoder inputs; without decoder inputs, some families decode the source.
        """
        tokens = inputs.get("input_ids")
        if self.shift and tokens is not None and tokens.shape[:2] != labels.shape[:2]:
            raise BALoraError(
                f"The labels of a batch have the shape {tuple(labels.shape)}, and its input_ids {tuple(tokens.shape)}. A decoder "
                "needs a label for each token of input_ids; -100 marks tokens that are not learnt."
            )
        inputs = {**inputs, "use_cache": False}
        if not self.shift and inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None:
            own = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
            # M2M100 and Blenderbot have no such function. FSMT's changes the labels in place.
            inputs["decoder_input_ids"] = (
                own(labels=labels.clone()) if own else decoder_shift(base_model_of(self.model))(labels)
            )
        return inputs

    def _use_fused(self, model: nn.Module, inputs: dict[str, Any]) -> bool:
        """Return whether the head is the linear map that the fused loss assumes; tested on the first batch."""
        if self._fused is None:
            self._fused = agreed(self.headless.head_matches(model, inputs), next(self.model.parameters()).device)
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
            return Logits(without_virtual_tokens(outputs.logits, mask_BT)[mask_BT]), outputs
        head = self.headless.head()
        assert head is not None
        use_basis = self.objective.config.spectral > 0 and not self.head_learns() and head.softcap is None
        if use_basis and self._basis is None:
            # Factor the frozen head once, before the forward: afterwards the activations need the memory.
            self._basis = SpectralBasis.from_head(head.weight_VD, head.bias_V)
        hidden_BTd, outputs = self.headless.hidden_states(model, inputs)
        hidden_Md = without_virtual_tokens(hidden_BTd, mask_BT)[mask_BT].to(head.weight_VD.dtype)
        return HiddenStates(hidden_Md, head, self._basis if use_basis else None), outputs

    def _teacher_outputs(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        mask_BT: Tensor,
        labels_M: Tensor,
        mask: SequenceMask,
        fused: bool,
    ) -> HiddenStates | Logits | TopKTeacher:
        """Return the teacher from the cache, or its outputs at the valid tokens (0 if not selected)."""
        if self.teacher_cache is not None:
            return self._cached_teacher(self.teacher_cache, model, inputs, mask_BT, labels_M, mask)
        return self._online_teacher(model, inputs, mask_BT, mask, fused)

    def _online_teacher(
        self, model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, mask: SequenceMask, fused: bool
    ) -> HiddenStates | Logits:
        """Run the teacher; return its outputs at the valid tokens (0 if not selected)."""
        selected = select_rows({**inputs, "mask_BT": mask_BT}, mask.rows, len(mask_BT))
        selected_BT = selected.pop("mask_BT")
        head: LinearHead | None = None
        with self.teacher.active():
            if fused:
                hidden_BTd, _ = self.headless.hidden_states(model, selected)
                head = self.headless.head()
                assert head is not None
                hidden_BTd = without_virtual_tokens(hidden_BTd, selected_BT)
                outputs_Md = hidden_BTd[selected_BT].to(head.weight_VD.dtype)
                # Detached from the parameter, which gets the student's values back after this block.
                head = head.detach() if self.head_learns() else None
                if head is not None and is_sharded(self.model):  # the student's head is gathered into the same memory
                    bias_V = None if head.bias_V is None else head.bias_V.clone()
                    head = dataclasses.replace(head, weight_VD=head.weight_VD.clone(), bias_V=bias_V)
            else:
                outputs_Md = without_virtual_tokens(model(**selected).logits, selected_BT)[selected_BT]
        mask_M = mask.over_tokens(mask_BT)
        if mask_M is not None:
            zeros_Md = outputs_Md.new_zeros(len(mask_M), outputs_Md.shape[1])
            outputs_Md = zeros_Md.masked_scatter_(mask_M[:, None], outputs_Md)
        return HiddenStates(outputs_Md, head) if fused else Logits(outputs_Md)

    def _cached_teacher(
        self,
        cache: TeacherCache,
        model: nn.Module,
        inputs: dict[str, Any],
        mask_BT: Tensor,
        labels_M: Tensor,
        mask: SequenceMask,
    ) -> TopKTeacher:
        """Read the batch's teacher from the cache; the first time, compare it with the teacher itself."""
        if mask.row_keys is None:
            raise BALoraError(
                "A teacher cache cannot be used: the batches do not say which rows they are made of. Train on a dataset with a "
                "length, in batches of unchanged rows, or leave teacher_cache out."
            )
        cached = cache.read(mask.row_keys[: mask.real], mask_BT.device)  # repeated rows have no target
        if not self._cache_checked:
            self._cache_checked = True
            with self.teacher.active():
                cache.check(cached, self.headless.logits_at(model, inputs, mask_BT), labels_M)
        return cached

    def head_learns(self) -> bool:
        """Return whether the student's head may differ from the pre-trained one."""
        return any(p.requires_grad for p in self.headless.output_layer.parameters())

    def _with_router_loss(self, parts: LossParts, outputs: Any, share: float) -> LossParts:
        """Add the load-balancing loss of a mixture-of-experts model if its config asks for it (output_router_logits)."""
        router = router_loss(self.model, outputs)
        return parts if router is None else dataclasses.replace(parts, loss=parts.loss + share * router)
