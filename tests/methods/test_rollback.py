"""A failed `balora.adapt` leaves the model as it was, whatever was raised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import balora
from balora import BALoraError
from balora.methods import METHODS, adaptation
from balora.methods.init import residual_init
from balora.methods.layers import peft_lora
from balora.methods.quantization import quantize
from bench import adapt_with_all
from tiny import tiny_bert, tiny_llama

ERRORS = [ValueError("no"), KeyboardInterrupt(), BALoraError("no")]


def state(model: nn.Module) -> tuple:
    """Return everything that a failed attempt may leave behind, except for the values of the weights."""
    modules = [
        (name, type(m), id(m), m.training, sorted(vars(m)), len(m._forward_hooks)) for name, m in model.named_modules()
    ]
    parameters = [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()]
    return modules, parameters, model.config.to_dict()


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def failing(error: BaseException, calls: int = 0, function: Callable | None = None) -> Callable:
    """Return a function that works for some calls and then raises."""
    left = [calls]

    def call(*args, **kwargs):
        if left[0] == 0:
            raise error
        left[0] -= 1
        return function(*args, **kwargs)

    return call


def assert_unchanged_by(attempt: Callable[[], object], model: nn.Module, tolerance: float = 0.0) -> None:
    before, values = state(model), copies(model)
    with pytest.raises(BaseException):
        attempt()
    assert state(model) == before
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, values[name], rtol=0.0, atol=tolerance, equal_nan=True, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_in_the_check_of_the_function(method, monkeypatch):
    model = tiny_bert().train()
    monkeypatch.setattr(adaptation, "check_same_function", failing(KeyboardInterrupt()))
    assert_unchanged_by(lambda: adapt_with_all(model, method, rank=4), model, tolerance=1e-6)
    monkeypatch.undo()
    adapt_with_all(model, method, rank=4)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_peft_halfway_through_the_layers(error, monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr(peft_lora, "lora_linear", failing(error, 3, peft_lora.lora_linear))
    assert_unchanged_by(lambda: balora.adapt(model, rank=4), model)
    monkeypatch.undo()
    adapted = balora.adapt(model, rank=4, target_modules=["v_proj"])
    assert {name.rpartition(".")[2] for name in peft_lora.adapted_names(adapted)} == {"v_proj"}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_in_the_third_decomposition(error, monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr(residual_init, "truncated_svd", failing(error, 2, residual_init.truncated_svd))
    assert_unchanged_by(lambda: balora.adapt(model, rank=4), model)


def test_an_interrupt_while_the_residuals_are_stored(monkeypatch):
    model, store = tiny_llama(), residual_init.WeightMatrix.store_residual
    monkeypatch.setattr(residual_init.WeightMatrix, "store_residual", failing(KeyboardInterrupt(), 5, store))
    assert_unchanged_by(lambda: balora.adapt(model, rank=4), model, tolerance=1e-6)


def test_a_weight_that_cannot_be_quantized():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = 1e6  # beyond float16
    assert_unchanged_by(lambda: balora.adapt(model, method="lora", rank=4, bits=8), model)


def test_a_stored_head_is_not_left_behind(monkeypatch):
    first = balora.adapt(tiny_bert(seed=1), method="lora", rank=4)
    stored = {name: p.detach().clone() + 1.0 for name, p in first.named_parameters() if p.requires_grad}
    model = tiny_bert(seed=1)
    assert_unchanged_by(lambda: balora.adapt(model, method="lora", rank=3, initial=stored), model)


def test_every_quantizable_layer_is_checked_under_an_adapter():
    plain, adapted = tiny_llama(), balora.adapt(tiny_llama(), method="lora", rank=4)
    names = [name.removesuffix(".base_layer") for name in quantize.quantizable_layers(adapted, [])]
    assert names == quantize.quantizable_layers(plain, [])
