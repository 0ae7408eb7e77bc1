"""LoraLinear computes the same function as peft's LoRA layer, with fewer tensors."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import balora
from balora import BALoraError
from balora.methods.layers.lora_linear import LoraLinear, lora_linear
from balora.methods.layers.peft_lora import lora_layers
from tiny import tiny_gpt2, tiny_llama

ROWS, INPUTS, OUTPUTS, RANK = (3, 7), 11, 5, 2


def layer_of(dtype=torch.float32, *, wide=None, bias=True, dropout=0.0, **settings) -> LoraLinear:
    torch.manual_seed(0)
    base = nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=dtype)
    config = LoraConfig(r=RANK, lora_alpha=3 * RANK, lora_dropout=dropout, **settings)
    layer = lora_linear(base, "default", config=config, r=RANK, lora_alpha=3 * RANK)
    layer.requires_grad_(False)
    for factor in (layer.lora_A["default"], layer.lora_B["default"]):
        factor.to(wide or dtype).requires_grad_(True)
        nn.init.normal_(factor.weight)
    return layer


def inputs(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*ROWS, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def outcome(layer, x, forward, weight) -> list[torch.Tensor]:
    """Output, and the gradients of its weighted sum with respect to the input, A and B."""
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    result = forward(layer, x)
    return [result, *torch.autograd.grad((result.double() * weight).sum(), [x, *factors])]


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_correct(bias):
    layer, x = layer_of(torch.float64, bias=bias), inputs(torch.float64)
    a, b = layer.lora_A["default"], layer.lora_B["default"]

    def call(x, weight_a, weight_b):
        return torch.func.functional_call(
            layer, {"lora_A.default.weight": weight_a, "lora_B.default.weight": weight_b}, (x,)
        )

    assert torch.autograd.gradcheck(call, (x, a.weight, b.weight))
    expected = nn.functional.linear(x, layer.base_layer.weight + 3 * b.weight @ a.weight, layer.base_layer.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("dtype", "wide", "cast"),
    [
        (torch.float32, None, None),
        (torch.bfloat16, None, None),
        (torch.bfloat16, torch.float32, None),  # the dtypes that peft chooses for a model loaded in bfloat16
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, None, torch.bfloat16),
    ],
)
def test_errors_are_not_larger_than_pefts(dtype, wide, cast):
    layer, x = layer_of(dtype, wide=wide), inputs(dtype)
    weight = torch.randn(*ROWS, OUTPUTS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = copy.deepcopy(layer).double()
    gold = outcome(exact, x.detach().double().requires_grad_(), Linear.forward, weight)
    with torch.autocast("cpu", cast) if cast else contextlib.nullcontext():
        ours, theirs = (outcome(layer, x, kind.forward, weight) for kind in (LoraLinear, Linear))
    for fast, plain, truth in zip(ours, theirs, gold, strict=True):
        assert fast.dtype == plain.dtype and fast.shape == plain.shape
        fast_off, plain_off = ((t.double() - truth).norm() / truth.norm() for t in (fast, plain))
        assert fast_off <= 1.2 * plain_off + 1e-6


class CountTensors(TorchDispatchMode):
    """Count the tensors of one size that operations create."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.places = entries, set()
        self.kept_alive = []  # so that no memory is used twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.entries:
            self.kept_alive.append(result)
            self.places.add(result.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize(("kind", "count"), [(LoraLinear, 1), (Linear, 4)])
def test_one_tensor_of_the_outputs_size_is_created_instead_of_four(kind, count):
    layer, x = layer_of(), inputs()
    with CountTensors(x[..., 0].numel() * OUTPUTS) as made:
        kind.forward(layer, x)
    assert len(made.places) == count


@pytest.mark.parametrize("learns", [True, False])
def test_the_input_is_saved_for_backward_only_if_needed(learns):
    layer, x = layer_of(torch.bfloat16, wide=torch.float32), inputs(torch.bfloat16)
    layer.lora_A["default"].weight.requires_grad_(learns)  # LoRA-FA freezes A
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    large = [t for t in kept if t.numel() == x.numel()]
    assert [t.data_ptr() == x.data_ptr() for t in large] == [True] * learns


def test_nothing_is_saved_without_gradients_and_an_empty_batch_works():
    layer, kept = layer_of(), []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        assert layer(inputs()).shape == (*ROWS, OUTPUTS)
    assert not kept
    empty = torch.zeros(0, INPUTS, requires_grad=True)
    layer(empty).sum().backward()
    assert empty.grad.shape == (0, INPUTS)
    assert not layer.lora_A["default"].weight.grad.any()


def hooked(layer):
    layer.base_layer.register_forward_pre_hook(lambda module, args: layer.calls.append("base"))


def moved(layer):
    answer = layer.lora_B["default"].forward  # as accelerate does
    layer.lora_B["default"].forward = lambda x: layer.calls.append("B") or answer(x)


@pytest.mark.parametrize("watch", [hooked, moved])
def test_hooks_on_submodules_are_called(watch):
    layer, x = layer_of(), inputs()
    layer.calls = []
    expected = layer(x)
    watch(layer)
    torch.testing.assert_close(layer(x), expected)
    assert len(layer.calls) == 1


@pytest.mark.parametrize("state", ["disabled", "merged", "dropout", "trained", "two", "dora"])
def test_other_features_of_peft_use_pefts_forward(state, monkeypatch):
    layer, x = layer_of(dropout=0.5 if state == "dropout" else 0.0, use_dora=state == "dora"), inputs()
    if state == "disabled":
        layer.enable_adapters(False)
    elif state == "merged":
        layer.merge()
    elif state == "trained":
        layer.base_layer.weight.requires_grad_(True)
    elif state == "two":
        layer.update_layer("other", RANK, lora_alpha=1, config=LoraConfig(r=RANK, init_lora_weights=False))
        layer.set_adapter(["default", "other"])
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    assert torch.equal(found, Linear.forward(layer, x))
    monkeypatch.setattr("balora.methods.layers.lora_linear._LowRankSum.apply", None)
    layer(x)  # fails if our function is called
    if state == "dropout":
        with pytest.raises(TypeError):
            layer.eval()(x)
    elif state == "trained":
        layer(x).sum().backward()
        assert layer.base_layer.weight.grad is not None


def test_a_second_derivative_is_refused():
    layer, x = layer_of(), inputs()
    with pytest.raises(BALoraError, match="first derivative only"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


def test_adapted_models_use_the_layer_and_behave_as_pefts():
    model = balora.adapt(tiny_llama(), "lora", rank=4)
    layers = dict(lora_layers(model))
    assert layers and all(type(layer) is LoraLinear for layer in layers.values())
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(tiny_llama(), config)
    theirs.load_state_dict(model.state_dict())
    tokens = torch.arange(3, 15).view(2, 6)
    torch.testing.assert_close(model(tokens).logits, theirs(tokens).logits)
    assert "_custom_modules" not in model.peft_config["default"].to_dict()
    other = balora.adapt(tiny_gpt2(), "lora", rank=4)  # its layers store transposed weights
    assert not any(isinstance(layer, LoraLinear) for _, layer in lora_layers(other))


def test_the_layer_can_be_compiled():
    layer, x = layer_of(), inputs()
    weight = torch.ones(*ROWS, OUTPUTS, dtype=torch.float64)
    expected = outcome(layer, x, LoraLinear.forward, weight)
    found = outcome(layer, x, torch.compile(lambda layer, x: layer(x), backend="aot_eager"), weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
