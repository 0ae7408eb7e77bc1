from __future__ import annotations

import torch

from balora.anchoring.teacher import AnchorTeacher
from balora.losses import HiddenStates, LinearHead, Logits, TopKTeacher

COUNTS = [3, 1, 4, 2] * 10


def outputs_of(hidden_NX, kind):
    starts = [sum(COUNTS[:row]) for row in range(len(COUNTS) + 1)]
    head = LinearHead(torch.eye(8)[:, : hidden_NX.shape[1]])

    def compute(rows):
        values = hidden_NX[starts[rows[0]] : starts[rows[-1] + 1]]
        return HiddenStates(values, head) if kind == "hidden" else Logits(values)

    return compute, starts


def test_exact_outputs_come_back_in_the_order_that_was_asked_for():
    hidden_NX = torch.randn(sum(COUNTS), 8)
    for kind in ("hidden", "logits"):
        compute, starts = outputs_of(hidden_NX, kind)
        teacher = AnchorTeacher(compute, COUNTS, memory=10**9, temperature=1.0)
        found = teacher.at([20, 3], torch.device("cpu"))
        values = found.hidden_MD if kind == "hidden" else found.logits_MV
        assert torch.equal(values, torch.cat([hidden_NX[starts[20] : starts[21]], hidden_NX[starts[3] : starts[4]]]))
        assert teacher.exact and teacher.nbytes() == hidden_NX.nbytes


def test_a_head_that_learns_is_kept_as_it_was():
    hidden_NX = torch.randn(sum(COUNTS), 8)
    compute, _ = outputs_of(hidden_NX, "hidden")
    for learns in (True, False):
        teacher = AnchorTeacher(compute, COUNTS, memory=10**9, temperature=1.0, head_learns=learns)
        assert (teacher.at([0], torch.device("cpu")).head is not None) == learns


def test_too_little_memory_keeps_the_likeliest_tokens():
    hidden_NX = torch.randn(sum(COUNTS), 8)
    for kind in ("hidden", "logits"):
        compute, starts = outputs_of(hidden_NX, kind)
        teacher = AnchorTeacher(compute, COUNTS, memory=10, temperature=1.0)
        found = teacher.at([20, 3], torch.device("cpu"))
        assert isinstance(found, TopKTeacher) and not teacher.exact
        expected = torch.cat([hidden_NX[starts[20] : starts[21]], hidden_NX[starts[3] : starts[4]]])
        probabilities = torch.zeros_like(expected).scatter_(1, found.tokens_MK.long(), found.log_probs_MK.exp())
        torch.testing.assert_close(probabilities, expected.softmax(-1))
