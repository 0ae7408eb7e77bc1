"""docs/reference/methods.md agrees with the registry, and its example of a user's own method works."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from balora import PretrainedTeacher
from balora import methods as registry
from bench import adapted, backward, logits, rows_for, step_of
from tiny import pad_rows, tiny_gpt2, tiny_llama

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8")
GUIDE = (DOCS / "how-to" / "add-a-method.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hook():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("methods_hook", DOCS / "hooks" / "methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", registry.METHODS)
def test_every_method_is_on_the_page_with_its_registry_entry(name, hook):
    assert re.search(rf"^### {name}\n\n\[method: {name}\]$", PAGE, re.MULTILINE)
    spec, found = registry.METHODS[name], hook.describe(name, "methods.md")
    for text in (spec.summary, spec.trains, *([spec.paper] if spec.paper != "-" else [])):
        assert text in found
    rows = {row.split("`")[1]: row for row in found.splitlines() if row.startswith("| `")}
    assert rows.keys() == spec.options.keys()
    for key, option in spec.options.items():
        allowed = option.allowed.replace("one of ", "")
        default = "–" if option.default is None else f"`{option.default}`"
        assert f"| {default} |" in rows[key]
        assert option.meaning in rows[key]
        assert allowed in rows[key].replace("one of ", "").replace("`", "")


def test_the_page_has_no_other_methods():
    assert set(re.findall(r"^\[method: (\w+)\]$", PAGE, re.MULTILINE)) == registry.METHODS.keys()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_the_example_of_a_users_own_method_works(make, monkeypatch):
    monkeypatch.setattr(registry.registry, "METHODS", dict(registry.METHODS))
    module, entry = re.findall(r"```python title=[^\n]*\n(.*?)```", GUIDE, re.DOTALL)
    names = {}
    exec(module, names)
    exec(entry, names)
    assert "subspace" not in registry.METHODS, "the registry of the other tests is unchanged"
    model, plain = adapted(make, "subspace", rank=4, alpha=10), make()
    batch = pad_rows(rows_for(plain)[:4])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = logits(plain, inputs)
    assert (logits(model, inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()
    step = step_of(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        parts, _ = backward(step, batch)
        optimizer.step()
        losses.append(float(parts.loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert isinstance(step.teacher, PretrainedTeacher)
    with step.teacher.active():
        assert (logits(model, inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()
