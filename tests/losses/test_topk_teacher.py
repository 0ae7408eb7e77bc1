from __future__ import annotations

import pytest
import torch

from balora.errors import BALoraError
from balora.losses import LinearHead, TopKTeacher, generation_loss
from loss_cases import HEADS, SETTINGS, WEIGHTS, Case, assert_same


def teacher_of(case: Case, top_k: int, temperature: float = 2.0, **options) -> TopKTeacher:
    weight, bias = (case.teacher_head_VD, case.teacher_bias_V) if case.trained else (case.head_VD, case.bias_V)
    head = LinearHead(weight, bias, case.logit_scale, case.softcap)
    return TopKTeacher.of(case.teacher_MD, head, top_k=top_k, temperature=temperature, **options)


def fused(case: Case, teacher: TopKTeacher, **options):
    return generation_loss(
        case.hidden_MD,
        case.labels_M,
        case.head_VD,
        topk_teacher=teacher,
        bias_V=case.bias_V,
        logit_scale=case.logit_scale,
        softcap=case.softcap,
        **{**WEIGHTS, **SETTINGS, **options},
    )


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.3])
def test_equals_the_reference_form(head, temperature):
    case = Case(**head)
    teacher = teacher_of(case, 6, temperature)
    options = {"temperature": temperature}
    plain = case.reference(topk_teacher=teacher, **options)
    assert_same(case, fused(case, teacher, chunk_tokens=5, **options), plain)


@pytest.mark.parametrize("head", ["linear", "softcap, scale, bias"])
def test_gradient(head):
    case = Case(tokens=5, hidden=4, vocabulary=11, **HEADS[head])
    teacher = teacher_of(case, 3)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        case.hidden_MD = hidden
        return fused(case, teacher, chunk_tokens=2, top_k=3, spectral_rank=2).loss

    assert torch.autograd.gradcheck(loss, case.hidden_MD)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_k_of_the_whole_vocabulary_equals_the_teacher(head):
    case = Case(vocabulary=40, **head)
    assert_same(case, fused(case, teacher_of(case, 40)), case.reference())


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("budget", [1, 10**9])
def test_stores_the_likeliest_tokens(head, budget):
    case = Case(**head)
    weight, bias = (case.teacher_head_VD, case.teacher_bias_V) if case.trained else (case.head_VD, case.bias_V)
    logits = LinearHead(weight, bias, case.logit_scale, case.softcap).logits(case.teacher_MD).detach()
    expected = (logits / 3.0).log_softmax(dim=-1).topk(9)
    teacher = teacher_of(case, 9, 3.0, memory_budget=budget)
    torch.testing.assert_close(teacher.log_probs_MK, expected.values)
    torch.testing.assert_close(logits.gather(1, teacher.tokens_MK), logits.topk(9).values)
    tail = 1.0 - teacher.log_probs_MK.exp().sum(dim=1)
    torch.testing.assert_close(teacher.log_tail_M.exp(), tail, rtol=1e-6, atol=1e-12)
    assert not teacher.log_probs_MK.requires_grad


def test_a_larger_k_is_closer_and_never_above():
    case = Case(vocabulary=900)
    full = float(case.fused().consistency)
    values = [float(fused(case, teacher_of(case, k)).consistency) for k in (1, 8, 64, 512, 900)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(full, rel=1e-9) and values[0] < full


def test_half_precision_and_int32_values():
    case = Case(dtype=torch.float32)
    teacher = teacher_of(case, 8)
    small = TopKTeacher(teacher.tokens_MK.to(torch.int32), teacher.log_probs_MK.half(), teacher.log_tail_M.half(), 2.0)
    assert float(fused(case, small).consistency) == pytest.approx(float(fused(case, teacher).consistency), rel=2e-3)


def test_a_very_confident_student_is_finite():
    case = Case(dtype=torch.float32)
    teacher = teacher_of(case, 2)
    case.hidden_MD = (300.0 * case.hidden_MD).detach().requires_grad_()
    parts = fused(case, teacher, spectral=0.0)
    assert torch.isfinite(parts.loss) and torch.isfinite(case.gradients(parts)[0]).all()


def test_no_valid_token_and_no_position():
    case = Case(ignored=slice(None))
    parts = fused(case, teacher_of(case, 4))
    assert float(parts.loss.detach()) == 0.0 and not case.gradients(parts)[0].any()
    none = TopKTeacher.of(torch.zeros(0, 3), LinearHead(torch.zeros(5, 3)), top_k=9, temperature=2.0)
    assert none.tokens_MK.shape == (0, 5)


def test_refuses():
    case = Case()
    teacher = teacher_of(case, 4)
    with pytest.raises(BALoraError, match=r"at temperature 2.0, and the loss is at 1.0"):
        fused(case, teacher, temperature=1.0)
    with pytest.raises(BALoraError, match="top-k teacher has 3 positions, and there are 23 labels"):
        fused(case, teacher.at(slice(3)))
    with pytest.raises(BALoraError, match="given twice"):
        case.fused(topk_teacher=teacher)
    with pytest.raises(BALoraError, match=r"these are \(23, 4\), \(23, 2\) and \(23,\)"):
        TopKTeacher(teacher.tokens_MK, teacher.log_probs_MK[:, :2], teacher.log_tail_M, 2.0)
