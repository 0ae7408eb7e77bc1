"""The registry: it is light, its functions exist, and the old spellings of a method still work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import balora
from balora.methods import METHODS, Method
from balora.methods.method import LazyFunction
from tiny import tiny_llama

HOOKS = ("wrap", "check", "initialize", "optimizer", "after_step", "penalty", "state", "restore")


def test_importing_the_registry_imports_no_heavy_library():
    code = """
import sys
import balora.methods
from balora.methods import METHODS, AdaptOptions, Method, find_method, register
from balora.methods.registry import option_problems
assert find_method("balora") is METHODS["balora"]
assert option_problems(METHODS["lora"], {"bits": 5}) == ["method.bits is one of 4, 8, not 5."]
print([name for name in ("torch", "peft", "transformers", "datasets", "numpy") if name in sys.modules])
"""
    source = str(Path(balora.__file__).resolve().parents[1])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=source)
    assert found.stdout.strip() == "[]"


def test_lazy_names_of_the_package():
    from balora.methods import adapt, load_trainable

    assert adapt is balora.adapt
    assert callable(load_trainable)
    assert {"adapt", "load_trainable", "METHODS"} <= set(dir(balora.methods))
    with pytest.raises(AttributeError, match=r"module 'balora\.methods' has no attribute 'adopt'"):
        _ = balora.methods.adopt


@pytest.mark.parametrize("name", METHODS)
def test_every_function_of_a_method_can_be_imported(name):
    for hook in HOOKS:
        function = getattr(METHODS[name], hook)
        if function is not None:
            function = getattr(function, "func", function)  # of a functools.partial
            assert isinstance(function, LazyFunction)
            module, _, attribute = function.path.partition(":")
            __import__(module)
            assert callable(getattr(sys.modules[module], attribute))


def test_the_old_field_names_and_functions_still_work():
    from balora.methods.init import residual_init
    from balora.methods.layers import peft_lora

    with pytest.warns(DeprecationWarning) as warned:
        method = Method(
            name="old",
            summary="",
            paper="-",
            trains="A, B",
            wrap=peft_lora.wrap,
            check=residual_init.refuse_unsuitable,
            start=lambda model, options: residual_init.start_from_weights(
                model, residual_init.minor_factors, options.seed
            ),
            shifts_base=True,
        )
        assert method.start is method.initialize
        assert method.shifts_base
        options = balora.methods.adaptation.check_options(method, 2, None, 0.0, "all-linear", 0, {})
        adapted = method.build(tiny_llama(), options)
    assert adapted.peft_config["default"].r == 2
    texts = {str(warning.message) for warning in warned}
    assert "Method.start is now Method.initialize." in texts
    assert any(text.endswith("wrap is now balora.methods.layers.peft_lora.wrap_lora.") for text in texts)


def test_an_unknown_field_is_an_error():
    with pytest.raises(TypeError, match="begin"):
        Method(name="x", summary="", paper="-", trains="", wrap=lambda model, options: model, begin=None)
    with pytest.raises(AttributeError, match="'Method' object has no attribute 'begin'"):
        _ = METHODS["lora"].begin
