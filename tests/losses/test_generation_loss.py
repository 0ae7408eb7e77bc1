from __future__ import annotations

import dataclasses
import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balora.errors import BALoraError
from balora.losses import (
    HiddenStates,
    LinearHead,
    Logits,
    LossTerms,
    SpectralBasis,
    TopKTeacher,
    generation_loss,
    reference_generation_loss,
)
from balora.losses.generation import fused_loss
from balora.losses.reference import reference_loss
from loss_cases import HEADS, SETTINGS, WEIGHTS, Case, assert_same, errors

settings.register_profile("no_deadline", deadline=None)  # a busy machine must not fail a test
settings.load_profile("no_deadline")


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 1000])
def test_equals_the_reference_form(head, chunk_tokens):
    case = Case(**head)
    assert_same(case, case.fused(chunk_tokens=chunk_tokens), case.reference())


@pytest.mark.parametrize("names", [c for n in range(4) for c in itertools.combinations(WEIGHTS, n)], ids="+".join)
@pytest.mark.parametrize("head", ["linear", "softcap"])
def test_equals_the_reference_form_for_every_set_of_terms(names, head):
    case = Case(**HEADS[head])
    weights = {name: WEIGHTS[name] if name in names else 0.0 for name in WEIGHTS}
    fused, reference = case.fused(**weights, chunk_tokens=7), case.reference(**weights)
    assert_same(case, fused, reference)
    assert {name for name in WEIGHTS if getattr(fused, name) is not None} == set(names)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_equals_the_reference_form_at_every_temperature(temperature, softcap):
    case = Case(softcap=softcap, bias=True)
    assert_same(case, case.fused(temperature=temperature), case.reference(temperature=temperature))


@pytest.mark.parametrize(
    "shape",
    [
        {"tokens": 1, "ignored": slice(0, 0)},
        {"tokens": 2, "ignored": slice(0, 1)},
        {"vocabulary": 2},
        {"vocabulary": 5, "hidden": 31},
        {"tokens": 40, "hidden": 3, "vocabulary": 1009},
        {"vocabulary": 1, "hidden": 2},
    ],
    ids=str,
)
def test_equals_the_reference_form_in_awkward_shapes(shape):
    case = Case(**shape)
    assert_same(case, case.fused(chunk_tokens=3), case.reference(), atol=1e-11)


@settings(max_examples=25)
@given(
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(2, 90),
    st.integers(1, 40),
    st.integers(2, 99),
    st.integers(0, 999),
)
def test_equals_the_reference_form_for_random_sizes(tokens, hidden, vocabulary, chunk, top_k, seed):
    case = Case(tokens=tokens, hidden=hidden, vocabulary=vocabulary, ignored=slice(0, 0), seed=seed)
    # A rank above their number: rounding then does not decide which singular values are among the k largest.
    options = {"top_k": top_k, "spectral_rank": 99}
    fused, reference = case.fused(chunk_tokens=chunk, **options), case.reference(**options)
    assert_same(case, fused, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "head", ["linear", "bias", "softcap, scale, bias", "trained, bias, scale", "trained, softcap, bias"]
)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.3])
def test_gradient(head, temperature):
    case = Case(tokens=5, hidden=4, vocabulary=11, **HEADS[head])
    names = [
        n for n in ("hidden_MD", "head_VD", "bias_V") if getattr(case, n) is not None and getattr(case, n).requires_grad
    ]

    def loss(*tensors: Tensor) -> Tensor:
        for name, tensor in zip(names, tensors, strict=True):
            setattr(case, name, tensor)
        return case.fused(temperature=temperature, chunk_tokens=2, top_k=3, spectral_rank=2).loss

    assert torch.autograd.gradcheck(loss, [getattr(case, n) for n in names])


@pytest.mark.parametrize("head", ["linear", "softcap", "trained, bias, scale"])
def test_upstream_gradient_is_applied(head):
    case = Case(**HEADS[head])
    once, tenth = case.gradients(case.fused()), torch.autograd.grad(0.1 * case.fused().loss, case.trained_tensors)
    for one, other in zip(once, tenth, strict=True):
        torch.testing.assert_close(other, 0.1 * one)


def test_backward_may_run_twice():
    case = Case(trained=True)
    loss = case.fused().loss
    first = torch.autograd.grad(loss, case.trained_tensors, retain_graph=True)
    second = torch.autograd.grad(loss, case.trained_tensors)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_second_derivative_is_refused():
    case = Case()
    with pytest.raises(BALoraError, match="first derivative only"):
        torch.autograd.grad(case.fused().loss, case.hidden_MD, create_graph=True)


@pytest.mark.parametrize("items", [7, 1000.0, torch.tensor(50), torch.tensor([50.0])])
def test_token_terms_are_divided_by_num_items(items):
    case = Case()
    valid = int((case.labels_M != -100).sum())
    own, shared = case.fused(), case.fused(num_items=items)
    for name in ("task", "consistency", "diversity"):
        torch.testing.assert_close(getattr(shared, name), getattr(own, name) * valid / float(items))
    torch.testing.assert_close(shared.spectral, own.spectral)  # a statistic of the batch, not a sum over its items
    assert shared.loss.shape == ()
    assert_same(case, shared, case.reference(num_items=items))


def test_micro_batches_add_up_to_the_batch():
    case = Case(tokens=24)
    options = {"spectral": 0.0, "num_items": int((case.labels_M != -100).sum())}
    whole = case.gradients(case.fused(**options))[0]
    total = torch.zeros_like(whole)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 24)):
        piece = generation_loss(
            case.hidden_MD[rows],
            case.labels_M[rows],
            case.head_VD,
            case.teacher_MD[rows],
            **{**WEIGHTS, **SETTINGS, **options},
        )
        total += torch.autograd.grad(piece.loss, case.hidden_MD)[0]
    torch.testing.assert_close(total, whole)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_no_valid_token_gives_zero_on_the_graph(head):
    case = Case(ignored=slice(None), **head)
    for parts in (case.fused(), case.fused(num_items=0), case.reference()):
        assert [
            float(v) for v in (parts.loss.detach(), parts.task, parts.consistency, parts.diversity, parts.spectral)
        ] == [0] * 5
        assert not any(gradient.any() for gradient in case.gradients(parts))


def test_no_positions_at_all():
    hidden = torch.zeros(0, 4, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.long)
    parts = generation_loss(hidden, labels, torch.ones(6, 4), torch.zeros(0, 4), **WEIGHTS)
    parts.loss.backward()
    assert float(parts.loss.detach()) == 0.0 and hidden.grad.shape == (0, 4)


def test_ignored_positions_have_no_effect_and_get_no_gradient():
    case = Case()
    gradient = case.gradients(case.fused())[0]
    assert not gradient[case.labels_M == -100].any()
    spoiled = case.hidden_MD.detach().clone()
    spoiled[case.labels_M == -100] = torch.nan
    again = generation_loss(spoiled, case.labels_M, case.head_VD, case.teacher_MD, **WEIGHTS, **SETTINGS)
    torch.testing.assert_close(again.loss, case.fused().loss.detach())


def test_a_token_with_bias_minus_infinity_has_no_effect():
    case = Case(bias=True, vocabulary=50)
    ruled_out = [i for i in range(50) if i not in case.labels_M.tolist()][:9]
    kept = [i for i in range(50) if i not in ruled_out]
    case.bias_V[ruled_out] = -torch.inf
    fewer = Case(bias=True, vocabulary=50)
    fewer.head_VD, fewer.bias_V = case.head_VD[kept], case.bias_V[kept]
    fewer.labels_M = torch.tensor([kept.index(y) if y >= 0 else y for y in case.labels_M.tolist()])
    options = {"spectral": 0.0}
    assert_same(case, case.fused(**options), case.reference(**options))
    torch.testing.assert_close(case.fused(**options).loss, fewer.fused(**options).loss)
    torch.testing.assert_close(case.gradients(case.fused(**options)), fewer.gradients(fewer.fused(**options)))
    with pytest.raises(BALoraError, match="finite"):
        case.fused()


def test_extreme_logits_stay_finite():
    case = Case(dtype=torch.float32)
    case.hidden_MD = (1e3 * case.hidden_MD).detach().requires_grad_()
    parts = case.fused()
    assert torch.isfinite(parts.loss) and torch.isfinite(case.gradients(parts)[0]).all()
    assert_same(case, case.fused(), case.reference(), rtol=1e-3, atol=1e-4)


def test_input_that_is_not_finite_gives_nan_without_an_error():
    case = Case()
    case.hidden_MD = case.hidden_MD.detach().clone().index_fill_(1, torch.tensor(0), torch.nan).requires_grad_()
    for head in ("linear", "softcap"):
        case.softcap = Case(**HEADS[head]).softcap
        parts = case.fused()
        assert torch.isnan(parts.loss) and torch.isnan(parts.spectral)
        assert torch.isnan(case.gradients(parts)[0]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_no_less_accurate_than_the_reference_form_in_the_same_dtype(head, dtype):
    fused, reference = errors(Case(tokens=61, hidden=40, vocabulary=907, **head), dtype)
    assert fused <= 1.1 * reference + 10 * torch.finfo(torch.float32).eps
    assert fused < (1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("vocabulary", [32_003])
def test_wide_rows_keep_their_precision(vocabulary):
    # Enough rows and columns for MKL to sum the products in blocks: with 7 × 16, two threads lose a digit.
    fused, reference = errors(Case(tokens=80, hidden=64, vocabulary=vocabulary), torch.float32)
    assert fused <= 1.1 * reference + 10 * torch.finfo(torch.float32).eps


def test_student_equal_to_teacher_has_no_consistency():
    case = Case(dtype=torch.float32, vocabulary=5000)
    case.teacher_MD = case.hidden_MD.detach().clone()
    parts = case.fused(diversity=0.0, spectral=0.0)
    assert abs(float(parts.consistency)) < 1e-6


def test_no_gradient_is_computed_without_grad_mode():
    case = Case(trained=True, bias=True)
    expected = case.fused()
    with torch.no_grad():
        parts = case.fused()
    assert parts.loss.grad_fn is None and not parts.loss.requires_grad
    torch.testing.assert_close(parts.loss, expected.loss.detach())


def test_parts_are_detached_and_the_teacher_is_a_constant():
    case = Case()
    case.teacher_MD = case.teacher_MD.requires_grad_()
    parts = case.fused()
    assert not any(getattr(parts, n).requires_grad for n in ("task", "consistency", "diversity", "spectral"))
    parts.loss.backward()
    assert case.teacher_MD.grad is None and case.head_VD.grad is None


def test_only_trained_tensors_get_a_gradient():
    case = Case(trained=True, bias=True)
    case.hidden_MD, case.bias_V = case.hidden_MD.detach(), case.bias_V.detach()
    assert_same(case, case.fused(), case.reference())


def test_a_head_with_an_adapter_passes_the_gradient_on():
    case = Case()
    up, down = torch.randn(203, 2, dtype=torch.float64, requires_grad=True), torch.randn(2, 12, dtype=torch.float64)
    frozen = case.head_VD
    found = []
    for form in ("fused", "reference"):
        case.head_VD, case.trained, case.teacher_head_VD = frozen + up @ down, True, frozen
        found.append(torch.autograd.grad(getattr(case, form)().loss, up)[0])
    torch.testing.assert_close(*found)


def test_a_precomputed_spectral_basis_changes_nothing():
    case = Case(bias=True, logit_scale=0.5)
    basis = SpectralBasis.from_head(case.head_VD, case.bias_V)
    assert_same(case, case.fused(spectral_basis=basis), case.reference())


def test_autocast_takes_the_head_in_its_dtype():
    case = Case(dtype=torch.float32, hidden=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = case.fused()
        plain = reference_generation_loss(
            torch.nn.functional.linear(case.hidden_MD, case.head_VD),
            case.labels_M,
            torch.nn.functional.linear(case.teacher_MD, case.head_VD),
            **WEIGHTS,
            **SETTINGS,
        )
    assert parts.loss.dtype == torch.float32
    assert float(parts.loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=1e-2)
    gradient = case.gradients(parts)[0]
    assert gradient.dtype == torch.float32
    cosine = torch.cosine_similarity(gradient.flatten(), case.gradients(case.fused())[0].flatten(), dim=0)
    assert float(cosine) > 0.999


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_works_inside_a_compiled_function(backend):
    case = Case()
    layer = torch.nn.Linear(12, 12, dtype=torch.float64)

    def step(hidden: Tensor) -> Tensor:
        hidden = torch.tanh(layer(hidden))
        return 2 * generation_loss(hidden, case.labels_M, case.head_VD, case.teacher_MD, **WEIGHTS, **SETTINGS).loss

    expected = torch.autograd.grad(step(case.hidden_MD), [case.hidden_MD, *layer.parameters()])
    compiled = torch.compile(step, backend=backend)
    found = torch.autograd.grad(compiled(case.hidden_MD), [case.hidden_MD, *layer.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diversity": -1.0}, "weight diversity must be a finite number, 0 or more, and it is -1.0"),
        ({"temperature": 0.0}, "temperature must be a positive number, and it is 0.0"),
        ({"top_k": 1}, "top_k must be at least 2"),
        ({"spectral_rank": 0}, "spectral_rank must be at least 1"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, or None"),
        ({"memory_budget": 0}, "memory_budget must be at least 1, or None"),
        ({"softcap": 0.0}, "softcap must be a positive number, or None"),
        ({"logit_scale": 0.0}, "logit_scale must be a number other than 0"),
        ({"bias_V": torch.zeros(3)}, r"one entry per token, 6 in all; its shape is \(3,\)"),
        ({"head_VD": torch.zeros(6, 5)}, "4 columns and the head 5"),
        ({"head_VD": torch.zeros(4)}, "vocabulary × hidden size"),
        ({"labels_M": torch.zeros(2, dtype=torch.long)}, r"3 hidden states and labels of shape \(2,\)"),
        ({"teacher_hidden_MD": None}, "needs teacher_hidden_MD; pass it, or a weight of 0"),
        ({"teacher_hidden_MD": torch.zeros(2, 4)}, r"one shape, and they are \(3, 4\) and \(2, 4\)"),
        ({"teacher_head_VD": torch.zeros(7, 4)}, r"heads must have one shape, and they are \(6, 4\) and \(7, 4\)"),
        ({"head_VD": torch.zeros(6, 4, requires_grad=True)}, "head is trained.*pass teacher_head_VD, as"),
        ({"hidden_MD": torch.zeros(1, 3, 4)}, "hidden states must be a matrix of tokens × hidden size"),
        ({"softcap": 1.0, "spectral_basis": SpectralBasis(torch.eye(4))}, "soft-capped; leave the basis out"),
        ({"bias_V": torch.zeros(6), "spectral_basis": SpectralBasis(torch.eye(4))}, "only one has a bias"),
        ({"spectral_basis": SpectralBasis(torch.eye(5))}, "hidden size 5, and the hidden states have 4"),
        (
            {
                "head_VD": torch.ones(6, 4, requires_grad=True),
                "consistency": 0,
                "spectral_basis": SpectralBasis(torch.eye(4)),
            },
            "for a frozen head",
        ),
    ],
)
def test_refuses(change, message):
    arguments = {
        "hidden_MD": torch.ones(3, 4),
        "labels_M": torch.tensor([0, 1, 2]),
        "head_VD": torch.ones(6, 4),
        "teacher_hidden_MD": torch.ones(3, 4),
        **WEIGHTS,
        "top_k": 3,
        **change,
    }
    with pytest.raises(BALoraError, match=message):
        generation_loss(**arguments)


def test_one_message_lists_every_problem():
    with pytest.raises(BALoraError) as error:
        generation_loss(torch.ones(3, 4), torch.tensor([0]), torch.ones(6, 4), consistency=-1.0, temperature=0.0)
    for message in ("weight consistency", "temperature", "labels of shape", "needs teacher_hidden_MD"):
        assert message in str(error.value)


def test_the_reference_form_refuses_wrong_shapes():
    logits, labels = torch.zeros(3, 6), torch.tensor([0, 1, 2])
    with pytest.raises(BALoraError, match="needs the teacher's logits"):
        reference_generation_loss(logits, labels, consistency=1.0)
    with pytest.raises(BALoraError, match="3 rows of logits"):
        reference_generation_loss(logits, labels[:2])
    with pytest.raises(BALoraError, match="one shape"):
        reference_generation_loss(logits, labels, logits[:2], consistency=1.0)


def test_both_forms_take_the_same_arguments():
    fused, reference = (inspect.signature(form).parameters for form in (fused_loss, reference_loss))
    assert list(fused)[:-1] == list(reference) and list(fused)[-1] == "options"
    case, terms = Case(trained=True), LossTerms(**WEIGHTS, **SETTINGS)
    student = HiddenStates(case.hidden_MD, LinearHead(case.head_VD))
    mask_M = torch.arange(23) % 3 != 0
    teacher = HiddenStates(case.teacher_MD, LinearHead(case.teacher_head_VD))
    for known in (teacher, TopKTeacher.of(case.teacher_MD, teacher.head, top_k=6, temperature=2.0)):
        parts = [form(student, case.labels_M, terms, known, 40, mask_M) for form in (fused_loss, reference_loss)]
        assert_same(case, *parts)
    logits = Logits(student.head.logits(case.hidden_MD))
    parts = reference_loss(logits, case.labels_M, terms, Logits(teacher.head.logits(case.teacher_MD)))
    assert_same(case, fused_loss(student, case.labels_M, terms, teacher), parts)
    with pytest.raises(TypeError, match="student's hidden states"):
        fused_loss(logits, case.labels_M, terms, teacher)
    with pytest.raises(BALoraError, match="head is trained, so the teacher needs its own"):
        fused_loss(student, case.labels_M, terms, HiddenStates(case.teacher_MD))


def test_the_old_keyword_of_the_topk_teacher_works_and_warns():
    case = Case()
    teacher = TopKTeacher.of(case.teacher_MD, LinearHead(case.head_VD), top_k=6, temperature=2.0)
    with pytest.warns(DeprecationWarning, match="remembered_teacher is now topk_teacher"):
        reference = case.reference(remembered_teacher=teacher)
    case.teacher_MD = None
    with pytest.warns(DeprecationWarning, match="remembered_teacher is now topk_teacher"):
        fused = case.fused(remembered_teacher=teacher)
    assert_same(case, fused, reference)


@pytest.mark.parametrize("part", ["logits", "log_probs_MK", "log_tail_M"])
def test_a_teacher_of_nan_gives_nan_in_both_forms(part):
    generator = torch.Generator().manual_seed(0)
    hidden_MD, weight_VD = torch.randn(4, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels_M = torch.arange(4)
    if part == "logits":
        fused = generation_loss(hidden_MD, labels_M, weight_VD, hidden_MD * torch.nan, consistency=1.0)
        teacher_MV = (hidden_MD * torch.nan) @ weight_VD.T
        plain = reference_generation_loss(hidden_MD @ weight_VD.T, labels_M, teacher_MV, consistency=1.0)
    else:
        teacher = TopKTeacher.of_logits(hidden_MD @ weight_VD.T, top_k=5, temperature=2.0)
        teacher = dataclasses.replace(teacher, **{part: getattr(teacher, part) * torch.nan})
        terms = LossTerms(consistency=1.0)
        fused = fused_loss(HiddenStates(hidden_MD, LinearHead(weight_VD)), labels_M, terms, teacher)
        plain = reference_loss(Logits(hidden_MD @ weight_VD.T), labels_M, terms, teacher)
    for parts in (fused, plain):
        assert parts.consistency.isnan() and parts.loss.isnan() and parts.task.isfinite()
