"""Methods that compute their initial values from data, with less data than they ask for."""

from __future__ import annotations

import logging

import pytest
import torch

import balora
from balora.errors import BALoraError
from balora.methods.initial_state import initial_state_of
from tiny import pad_rows, tiny_llama, token_rows


@pytest.mark.parametrize(
    ("method", "used"),
    [("corda", "all 5 are used"), ("loraga", "all 5 are used"), ("cordapp", "5 samples of 1 row are used")],
)
def test_all_rows_are_used_and_it_is_said(method: str, used: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [pad_rows([row]) for row in token_rows(5)]
    model = tiny_llama()
    batch = pad_rows(token_rows(2, seed=1))
    with torch.no_grad():
        before = model(**batch).logits
    with caplog.at_level(logging.WARNING, "balora"):
        adapted = balora.adapt(model, method=method, rank=2, calibration=lambda count: rows[:count])
    notices = [notice for notice in initial_state_of(adapted).notices if used in notice]
    assert len(notices) == 1 and "(method.samples), and there are 5" in notices[0]
    assert [record.getMessage() for record in caplog.records].count(notices[0]) == 1, "once"
    with torch.no_grad():
        assert torch.allclose(adapted(**batch).logits, before, atol=1e-4), "it still starts as the pre-trained model"


def test_no_rows_are_refused() -> None:
    with pytest.raises(BALoraError, match="calibration= returned none"):
        balora.adapt(tiny_llama(), method="corda", rank=2, calibration=lambda count: [])
