"""The core runs with torch, transformers, peft and their dependencies, without the libraries of the upper packages."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import balora

# accelerate and yaml cannot be blocked: peft imports the first, and transformers' hub client the second.
BLOCKED = (
    "datasets",
    "trl",
    "pydantic",
    "typer",
    "rich",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "jinja2",
    "tensorboard",
    "triton",
)

PROLOGUE = f"""
import importlib.util, sys

BLOCKED = {BLOCKED!r}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Absent())

# transformers and peft call find_spec to look for a package, and expect None for a missing one, not an exception.
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in BLOCKED else find(name, package)
"""


def run_with_blocked_libraries(body: str) -> str:
    source = str(Path(balora.__file__).resolve().parents[1])
    code = PROLOGUE + f"sys.path.insert(0, {source!r})\n" + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_core_trains_a_step_without_the_other_libraries():
    printed = run_with_blocked_libraries(
        """
        import torch, transformers, balora
        from balora.losses import HiddenStates
        from balora.models.hidden_states import HiddenStateExtractor, valid_targets
        from balora.objective import Objective, all_finite

        sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        config = transformers.LlamaConfig(**sizes)
        torch.manual_seed(0)
        model = balora.adapt(transformers.LlamaForCausalLM(config), rank=4)
        teacher = balora.PretrainedTeacher(model)
        tokens = torch.randint(64, (2, 9))
        head = HiddenStateExtractor(model)
        mask, labels = valid_targets(tokens, shift=True)
        with teacher.active():
            before = head.hidden_states(model, {"input_ids": tokens})[0][mask]
        hidden = head.hidden_states(model, {"input_ids": tokens})[0][mask]
        objective = Objective(balora.RegularizationConfig.for_generation(), "generation")
        student = HiddenStates(hidden, head.head())
        parts = objective.language_modeling(student, labels, HiddenStates(before), objective.weights(0.5))
        parts.loss.backward()
        assert all_finite(parts) is None
        assert max(float(p.grad.abs().max()) for p in model.parameters() if p.requires_grad) > 0

        present = sorted({name.split(".")[0] for name in sys.modules} & set(BLOCKED))
        assert not present, present
        loaded = [name for name in sys.modules if name.startswith("balora.training")]
        assert not loaded, loaded
        try:
            balora.BALoraSFTTrainer
        except ImportError as error:
            print(error)
        """
    )
    assert "blocked" in printed


def test_every_public_name_can_be_imported():
    for name in balora.__all__:
        assert getattr(balora, name) is not None


def test_dir_lists_the_public_names():
    assert set(balora.__all__) <= set(dir(balora))
    assert {"losses", "methods", "regularizers", "evaluation"} <= set(dir(balora))


@pytest.mark.parametrize("name", balora._SUBMODULES)
def test_a_submodule_is_imported_on_first_use(name: str):
    assert balora.__getattr__(name).__name__ == f"balora.{name}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'balora' has no attribute 'BALoraTrainor'"):
        _ = balora.BALoraTrainor
