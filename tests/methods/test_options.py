from __future__ import annotations

import math

import pytest

import balora
from balora.errors import BALoraError
from balora.methods.options import number
from balora.methods.registry import METHODS, option_problems
from bench import adapted
from tiny import tiny_llama


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 1, 1.0])
def test_an_included_bound_is_allowed(value):
    option = number(0.1, "share", most=1.0, including_least=True)
    assert option.valid(value)
    assert option.allowed == "a number of at least 0 and at most 1"


@pytest.mark.parametrize("value", [-1e-9, 1.1, math.nan, True, "0", None])
def test_values_outside_the_bounds_are_refused(value):
    assert not number(0.1, "share", most=1.0, including_least=True).valid(value)


def test_an_excluded_bound_is_refused():
    option = number(16.0, "rate")
    assert not option.valid(0) and option.valid(1e-9)
    assert option.allowed == "a number above 0"
    assert option_problems(METHODS["loraplus"], {"lr_ratio": 0}) == ["method.lr_ratio is a number above 0, not 0."]


@pytest.mark.parametrize("name", ["warmup", "final", "orthogonality"])
def test_adalora_accepts_0(name):
    options = {"final": 0.3, "warmup": 0.1, name: 0}
    model = adapted(tiny_llama, "adalora", **options)
    assert balora.methods.initial_state.initial_state_of(model).options.extra[name] == 0
    with pytest.raises(BALoraError, match=rf"method\.{name} is a number of at least 0.*, not -0\.1"):
        adapted(tiny_llama, "adalora", **{**options, name: -0.1})


def test_adalora_refuses_a_smoothing_of_0():
    with pytest.raises(BALoraError, match=r"method\.beta1 is a number above 0 and at most 0\.999999, not 0"):
        adapted(tiny_llama, "adalora", beta1=0)
