"""Other losses of a target (dft, none) and the consistency without the target, in all forms of the generation loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.losses import LinearHead, LossTerms, TopKTeacher, generation_loss
from balora.losses.generation import fused_loss
from balora.losses.loss_parts import HiddenStates
from balora.losses.reference import reference_loss
from loss_cases import HEADS, SETTINGS, WEIGHTS, Case, assert_same

CHANGES = [
    {"task_loss": "dft"},
    {"task_loss": "none"},
    {"consistency_tokens": "non_target"},
    {"task_loss": "dft", "consistency_tokens": "non_target"},
    {"task_loss": "none", "diversity": 0.0, "spectral": 0.0, "temperature": 1.0},
]
changes = pytest.mark.parametrize("options", CHANGES, ids=lambda options: ", ".join(map(str, options.values())))


@changes
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_equals_the_reference_form(head, options):
    case = Case(**head)
    assert_same(case, case.fused(**options, chunk_tokens=5), case.reference(**options))


@changes
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.3])
def test_equals_the_reference_form_at_every_temperature(temperature, options):
    case = Case(softcap=2.0, bias=True)
    options = {**options, "temperature": temperature}
    assert_same(case, case.fused(**options), case.reference(**options))


@pytest.mark.parametrize("options", CHANGES[:2], ids=["dft", "none"])
def test_equals_the_reference_form_without_a_teacher(options):
    case, alone = Case(), {"consistency": 0.0}
    assert_same(case, case.fused(**options, **alone), case.reference(**options, **alone))


@changes
@pytest.mark.parametrize("head", ["linear", "softcap, scale, bias"])
def test_gradient_of_the_consistency_term(head, options):
    """Of all but dft, whose weight is a constant by definition: its derivative is not that of its value."""
    case = Case(tokens=5, hidden=4, vocabulary=11, **HEADS[head])
    own = {**options, "task_loss": "none" if options.get("task_loss") == "dft" else options.get("task_loss", "nll")}

    def loss(hidden: Tensor) -> Tensor:
        case.hidden_MD = hidden
        return case.fused(**{**own, "chunk_tokens": 2, "top_k": 3, "spectral_rank": 2}).loss

    assert torch.autograd.gradcheck(loss, case.hidden_MD)


@changes
@pytest.mark.parametrize("head", ["linear", "softcap, scale, bias", "trained, bias, scale"])
def test_equals_the_reference_form_with_a_topk_teacher(head, options):
    case = Case(**HEADS[head])
    weight, bias = (case.teacher_head_VD, case.teacher_bias_V) if case.trained else (case.head_VD, case.bias_V)
    linear = LinearHead(weight, bias, case.logit_scale, case.softcap)
    targets_M = case.labels_M.clamp(min=0) if options.get("consistency_tokens") == "non_target" else None
    temperature = options.get("temperature", 2.0)
    for top_k in (6, case.vocabulary):
        teacher = TopKTeacher.of(
            case.teacher_MD, linear, top_k=top_k, temperature=temperature, targets_M=targets_M, memory_budget=1
        )
        parts = generation_loss(
            case.hidden_MD, case.labels_M, case.head_VD, topk_teacher=teacher, bias_V=case.bias_V,
            logit_scale=case.logit_scale, softcap=case.softcap, chunk_tokens=5,
            **{**WEIGHTS, **SETTINGS, **options},
        )  # fmt: skip
        known = {"topk_teacher": teacher} if top_k < case.vocabulary else {}  # all tokens known: the teacher itself
        assert_same(case, parts, case.reference(**known, **options))


def test_the_consistency_without_the_target_does_not_move_the_target():
    case = Case(ignored=slice(0, 0))
    head = LinearHead(torch.eye(12, dtype=torch.float64))
    logits = case.hidden_MD.detach().requires_grad_()
    labels_M = torch.arange(23) % 12
    terms = LossTerms(consistency=1.0, temperature=1.0, task_loss="none", consistency_tokens="non_target")
    fused_loss(HiddenStates(logits, head), labels_M, terms, HiddenStates(case.teacher_MD)).loss.backward()
    assert not logits.grad.gather(1, labels_M[:, None]).any()
    assert logits.grad.any()


def test_a_target_that_has_all_the_probability_stays_finite():
    hidden = torch.tensor([[900.0, 0.0, 1.0]], requires_grad=True)
    teacher, head = HiddenStates(torch.tensor([[900.0, 1.0, 0.0]])), LinearHead(torch.eye(3))
    terms = LossTerms(consistency=1.0, temperature=1.0, consistency_tokens="non_target")
    parts = fused_loss(HiddenStates(hidden, head), torch.tensor([0]), terms, teacher)
    parts.loss.backward()
    assert torch.isfinite(parts.loss) and torch.isfinite(hidden.grad).all()


def test_dft_is_the_nll_times_the_probability_of_the_target():
    case = Case(ignored=slice(0, 0))
    logits = case.hidden_MD @ case.head_VD.T
    log_p_M = logits.log_softmax(-1).gather(1, case.labels_M[:, None]).squeeze(1)
    parts = case.fused(task_loss="dft", consistency=0.0, diversity=0.0, spectral=0.0)
    torch.testing.assert_close(parts.task, -(log_p_M.exp() * log_p_M).mean().detach())
    expected = torch.autograd.grad(-(log_p_M.exp().detach() * log_p_M).mean(), case.hidden_MD)[0]
    torch.testing.assert_close(case.gradients(parts)[0], expected)


@pytest.mark.parametrize("name", ["task_loss", "consistency_tokens"])
def test_an_unknown_choice_is_refused(name):
    with pytest.raises(BALoraError, match=f"{name} must be one of"):
        Case().fused(**{name: "other"})


def test_a_topk_teacher_of_the_other_kind_is_refused():
    case = Case()
    teacher = TopKTeacher.of(case.teacher_MD, LinearHead(case.head_VD), top_k=5, temperature=2.0)
    terms = LossTerms(consistency=1.0, consistency_tokens="non_target")
    student = HiddenStates(case.hidden_MD, LinearHead(case.head_VD))
    with pytest.raises(BALoraError, match="was not made without the targets"):
        fused_loss(student, case.labels_M, terms, teacher)
    assert reference_loss(student, case.labels_M, LossTerms(consistency=1.0), teacher).consistency is not None
