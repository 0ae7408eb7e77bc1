from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from balora.errors import BALoraError
from balora.regularizers import consistency, consistency_mse, consistency_topk

settings.register_profile("no_deadline", deadline=None)  # a busy machine must not fail a test
settings.load_profile("no_deadline")

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
temperatures = st.floats(0.25, 8.0)
seeds = st.integers(0, 10_000)


def logits(shape: tuple[int, ...], seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(shapes, temperatures, seeds)
def test_equals_squared_temperature_times_the_kl_divergence(shape, temperature, seed):
    student, teacher = logits(shape, seed), logits(shape, seed + 1)
    divergence = kl_divergence(Categorical(logits=teacher / temperature), Categorical(logits=student / temperature))
    assert float(consistency(student, teacher, temperature)) == pytest.approx(
        float(temperature**2 * divergence.mean()), rel=1e-9, abs=1e-12
    )


def test_two_classes_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # At T = 2 the teacher has (3/4, 1/4) and the student (1/2, 1/2).
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(consistency(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)
    # The direction matters: the other way round it is another number.
    assert float(consistency(teacher, student, 2.0)) != pytest.approx(expected, rel=1e-2)


@given(shapes, temperatures, seeds, st.floats(-50.0, 50.0))
def test_ignores_a_common_shift_and_is_never_negative(shape, temperature, seed, shift):
    student, teacher = logits(shape, seed), logits(shape, seed + 1)
    value = consistency(student, teacher, temperature)
    assert float(value) >= -1e-12
    assert float(consistency(student + shift, teacher - shift, temperature)) == pytest.approx(float(value), abs=1e-9)
    assert float(consistency(teacher, teacher, temperature)) == 0.0


@given(seeds)
def test_does_not_depend_on_the_order_of_rows_or_classes(seed):
    student, teacher = logits((6, 5), seed), logits((6, 5), seed + 1)
    rows, classes = torch.randperm(6), torch.randperm(5)
    shuffled = consistency(student[rows][:, classes], teacher[rows][:, classes])
    assert float(shuffled) == pytest.approx(float(consistency(student, teacher)), rel=1e-12)


def test_large_temperature_tends_to_half_the_variance_of_the_difference():
    student, teacher = logits((7, 9), 0), logits((7, 9), 1)
    limit = 0.5 * (student - teacher).var(dim=-1, correction=0).mean()
    assert float(consistency(student, teacher, 1e4)) == pytest.approx(float(limit), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.7])
def test_gradient(temperature):
    teacher = logits((3, 4), 1)
    student = logits((3, 4), 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: consistency(z, teacher, temperature), student)


def test_the_teacher_is_a_constant():
    student, teacher = logits((3, 4), 0).requires_grad_(), logits((3, 4), 1).requires_grad_()
    consistency(student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


def test_a_class_ruled_out_by_both_has_no_effect():
    student, teacher = logits((4, 6), 0), logits((4, 6), 1)
    fewer = student[:, 1:].clone().requires_grad_()
    consistency(fewer, teacher[:, 1:]).backward()
    student, teacher = (
        student.index_fill(1, torch.tensor(0), -torch.inf),
        teacher.index_fill(1, torch.tensor(0), -torch.inf),
    )
    student.requires_grad_()
    value = consistency(student, teacher)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(consistency(fewer.detach(), teacher[:, 1:])), rel=1e-12)
    assert torch.equal(student.grad[:, 0], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(student.grad[:, 1:], fewer.grad)


def test_a_class_ruled_out_by_one_side():
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -torch.inf]])
    assert float(consistency(student, teacher, 1.0)) == pytest.approx(math.log(3 / 2), rel=1e-6)
    assert float(consistency(teacher, student, 1.0)) == math.inf


def test_one_class_is_zero_with_zero_gradient():
    student = logits((5, 1), 0).requires_grad_()
    value = consistency(student, logits((5, 1), 1))
    value.backward()
    assert float(value) == 0.0 and not student.grad.any()


@pytest.mark.parametrize("term", [consistency, consistency_mse])
def test_no_rows_give_zero_on_the_graph(term):
    student = torch.zeros(0, 4, requires_grad=True)
    value = term(student, torch.zeros(0, 4))
    value.backward()
    assert float(value) == 0.0 and student.grad.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_works_in_float32_or_wider(dtype):
    student, teacher = logits((5, 300), 0).to(dtype).requires_grad_(), logits((5, 300), 1).to(dtype)
    value = consistency(student, teacher)
    gold = consistency(student.double(), teacher.double())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(gold), rel=1e-5)
    value.backward()
    assert student.grad.dtype == dtype


def test_far_apart_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = consistency(student, torch.tensor([[-1e4, 1e4, 0.0]]), 1.0)
    value.backward()
    assert float(value) == pytest.approx(2e4, rel=1e-6) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(3)), r"one shape.*\(2, 3\) and \(3,\)"),
        ((torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3)), "student's logits must be floating point"),
        ((torch.zeros(()), torch.zeros(())), "class dimension"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "temperature must be a positive number, and it is 0.0"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), math.nan), "temperature must be a positive number"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(BALoraError, match=message):
        consistency(*arguments)


def test_squared_error_for_regression():
    student = torch.tensor([[1.0], [4.0]], requires_grad=True)
    value = consistency_mse(student, torch.tensor([[2.0], [2.0]]))
    value.backward()
    assert float(value) == 2.5
    assert student.grad.tolist() == [[-1.0], [2.0]]
    assert torch.autograd.gradcheck(lambda z: consistency_mse(z, logits((3, 2), 1)), logits((3, 2), 0).requires_grad_())
    with pytest.raises(BALoraError, match="one shape"):
        consistency_mse(torch.zeros(3, 1), torch.zeros(3))  # broadcasting would make 9 differences of 3


class TestTopK:
    @staticmethod
    def topk_of(teacher: torch.Tensor, top_k: int, temperature: float) -> tuple[torch.Tensor, ...]:
        values, tokens = (teacher / temperature).log_softmax(dim=-1).sort(dim=-1, descending=True)
        return tokens[..., :top_k], values[..., :top_k], values[..., top_k:].logsumexp(dim=-1)

    @given(st.integers(1, 4), st.integers(2, 9), st.floats(1.0, 8.0), seeds, st.data())
    def test_equals_the_kl_divergence_with_the_tail_as_one_class(self, rows, classes, temperature, seed, data):
        top_k = data.draw(st.integers(1, classes - 1))
        student, teacher = logits((rows, classes), seed), logits((rows, classes), seed + 1)
        tokens, *known = self.topk_of(teacher, top_k, temperature)
        groups = torch.full((rows, classes), top_k).scatter_(1, tokens, torch.arange(top_k).expand(rows, -1))

        def merged(scores: torch.Tensor) -> Categorical:
            probabilities = torch.zeros(rows, top_k + 1, dtype=scores.dtype)
            return Categorical(probs=probabilities.scatter_add_(1, groups, (scores / temperature).softmax(dim=-1)))

        expected = temperature**2 * kl_divergence(merged(teacher), merged(student)).mean()
        found = float(consistency_topk(student, tokens, *known, temperature))
        assert found == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
        assert found <= float(consistency(student, teacher, temperature)) + 1e-9

    def test_with_all_tokens_it_equals_the_consistency(self):
        student, teacher = logits((4, 6), 0).requires_grad_(), logits((4, 6), 1)
        found = consistency_topk(student, *self.topk_of(teacher, 6, 2.0), 2.0)
        expected = consistency(student, teacher, 2.0)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, student)[0] for v in (found, expected)))

    def test_the_tail_is_pulled_up_where_the_student_has_too_little(self):
        student = torch.tensor([[5.0, 0.0, 0.0, 0.0]], requires_grad=True)
        consistency_topk(student, *self.topk_of(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 1, 1.0), 1.0).backward()
        assert float(student.grad[0, 0]) > 0 > float(student.grad[0, 3])

    @pytest.mark.parametrize("top_k", [1, 3, 5])
    def test_gradient(self, top_k):
        known = self.topk_of(logits((3, 5), 1), top_k, 2.0)
        student = logits((3, 5), 0).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: consistency_topk(z, *known, 2.0), student)

    def test_a_very_confident_student_is_finite(self):
        student = torch.tensor([[90.0, 0.0, 0.0]], requires_grad=True)
        value = consistency_topk(student, *self.topk_of(torch.tensor([[3.0, 0.0, 0.0]]), 1, 1.0), 1.0)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(student.grad).all()

    def test_no_rows_and_wrong_shapes(self):
        tokens = torch.zeros(2, 2, dtype=torch.long)
        assert float(consistency_topk(torch.zeros(0, 4), tokens[:0], torch.zeros(0, 2), torch.zeros(0))) == 0.0
        with pytest.raises(BALoraError, match="K per row of logits"):
            consistency_topk(torch.zeros(3, 4), tokens, torch.zeros(2, 2), torch.zeros(2))
        with pytest.raises(BALoraError, match="and its tail one"):
            consistency_topk(torch.zeros(2, 4), tokens, torch.zeros(2, 2), torch.zeros(2, 1))
        with pytest.raises(BALoraError, match="temperature"):
            consistency_topk(torch.zeros(2, 4), tokens, torch.zeros(2, 2), torch.zeros(2), -1.0)


def test_a_teacher_of_nan_gives_nan_instead_of_0():
    student, teacher = torch.zeros(2, 4), torch.zeros(2, 4)
    teacher[1, 2] = math.nan
    assert math.isnan(float(consistency(student, teacher)))
    assert math.isnan(float(consistency_mse(student, teacher)))
    tokens, log_probs, log_tail = torch.tensor([[0], [1]]), torch.full((2, 1), -1.0), torch.full((2,), -0.5)
    for broken in (log_probs, log_tail):
        before, broken[1] = broken.clone(), math.nan
        assert math.isnan(float(consistency_topk(student, tokens, log_probs, log_tail)))
        broken.copy_(before)


def test_a_class_that_the_teacher_rules_out_adds_0():
    student, teacher = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, -math.inf]])
    assert float(consistency(student, teacher)) == pytest.approx(0.0, abs=1e-6)
