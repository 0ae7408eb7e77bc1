"""W + a·ΔW: exported, loaded and evaluated models have exactly a part of the change that training made."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import balora
from balora.errors import BALoraError
from balora.evaluation.model_under_test import ModelUnderTest
from balora.evaluation.options import EvaluationOptions
from balora.loading.trained import load, load_untrained
from balora.methods.initial_state import stored_parameters
from balora.methods.scale import scale_notice
from balora.methods.scaling import scaled_change
from export_cases import MAKERS, trained
from tiny import tiny_bert, tiny_llama
from trained_runs import TrainedRun, batch, logits, trained_run

LOW_RANK = ["lora", "pissa", "adalora", "loraplus", "rslora", "milora", "cordapp", "bitfit"]


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}


def check_scaled(make, model, teacher, folder, scale) -> None:
    """Compare merged files at a scale with W + a (W' - W) of the files of base and unscaled model."""
    make().save_pretrained(folder / "base")
    balora.export(model, to="merged", output=folder / "whole", initial=teacher)
    balora.export(model, to="merged", output=folder / "part", initial=teacher, scale=scale)
    base, whole, part = (weights(folder / name) for name in ("base", "whole", "part"))
    moved = 0
    for name in base:
        expected = base[name] + scale * (whole[name] - base[name])
        size = (whole[name] - base[name]).abs().max()
        assert (part[name] - expected).abs().max() <= 1e-4 * size + 2e-6, name
        moved += int(size > 1e-3)
    assert moved > 2


@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", m) for m in LOW_RANK if m != "bitfit"]
    + [("gpt2", "pissa"), ("gpt2", "bitfit"), ("mixtral", "pissa"), ("llama", "full")],
)
def test_merged_files_have_the_part_of_the_change(family, method, scale, tmp_path):
    model, teacher, _ = trained(MAKERS[family], method)
    check_scaled(MAKERS[family], model, teacher, tmp_path, scale)


@pytest.mark.parametrize("method", ["lora", "balora"])
def test_a_lora_at_a_scale_is_the_lora_with_b_multiplied(method, tmp_path):
    model, teacher, _ = trained(tiny_llama, method)
    tiny_llama().save_pretrained(tmp_path / "base")
    whole = balora.export(model, to="lora", output=tmp_path / "whole", initial=teacher)
    part = balora.export(model, to="lora", output=tmp_path / "part", initial=teacher, scale=0.25)
    assert part.rank == whole.rank and part.scale == 0.25 and "0.25 of the change" in part.describe()
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "part"))
    for name, value in one.items():
        expected = 0.25 * value if "lora_B" in name else value
        assert torch.allclose(other[name], expected, rtol=1e-6, atol=1e-8), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, TrainedRun]:
    place = tmp_path_factory.mktemp("scaled")
    return {
        "balora": trained_run(place / "balora", tiny_llama(), "generation"),
        "full": trained_run(place / "full", tiny_llama(), "generation", method="full"),
        "classifier": trained_run(place / "classifier", tiny_bert(), "classification"),
    }


@pytest.mark.parametrize("name", ["balora", "full"])
def test_load_at_a_scale_equals_the_export_and_the_ends_are_base_and_run(runs, name, tmp_path):
    run = runs[name]
    inputs = batch(run.model)
    report = balora.export(run.folder, to="merged", output=tmp_path / "m", scale=0.5)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.allclose(logits(load(run.folder, scale=0.5), inputs), logits(exported, inputs), atol=1e-5)
    assert torch.allclose(
        logits(load(run.folder, scale=0), inputs), logits(load_untrained(run.folder), inputs), atol=1e-5
    )
    assert torch.equal(logits(load(run.folder, scale=1.0), inputs), logits(load(run.folder), inputs))
    halfway = logits(load(run.folder, scale=0.5), inputs) - logits(load(run.folder), inputs)
    assert halfway.abs().max() > 1e-2
    assert report.scale == 0.5 and report.agreement is not None and report.agreement.holds
    assert "0.5: W + 0.5 · ΔW" in (tmp_path / "m" / "README.md").read_text()


def test_a_classifiers_head_is_scaled_too(runs, tmp_path):
    run = runs["classifier"]
    model, before, after = (f(run.folder) for f in (lambda p: load(p, scale=0.5), load_untrained, load))
    heads = [dict(stored_parameters(m)) for m in (model, before, after)]
    name = next(name for name in heads[0] if "classifier" in name and name.endswith("weight"))
    assert torch.allclose(heads[0][name], (heads[1][name] + heads[2][name]) / 2, atol=1e-7)
    assert balora.export(run.folder, to="lora", output=tmp_path / "l", scale=0.5).agreement.holds


def test_a_loaded_part_can_be_exported_and_the_card_says_the_product(runs, tmp_path):
    model = load(runs["balora"].folder, scale=0.5)
    report = balora.export(model, to="lora", output=tmp_path / "l", scale=0.5)
    assert report.scale == 0.25
    direct = balora.export(runs["balora"].folder, to="lora", output=tmp_path / "d", scale=0.25)
    one, other = (load_file(r.output / "adapter_model.safetensors") for r in (report, direct))
    for name in (n for n in one if "lora_B" in n):
        a = name.replace("lora_B", "lora_A")
        assert torch.allclose(one[name] @ one[a], other[name] @ other[a], atol=1e-5)


@pytest.mark.parametrize("to", ["lora", "merged"])
@pytest.mark.parametrize("method", ["qlora", "qpissa"])
def test_quantized_weights(method, to, tmp_path):
    pytest.importorskip("bitsandbytes")
    model, teacher, _ = trained(tiny_llama, method)
    report = balora.export(model, to=to, output=tmp_path / "x", initial=teacher, scale=0.5)
    assert report.agreement is not None and report.agreement.holds, report
    if to == "lora":
        model, teacher, _ = trained(tiny_llama, method)
        balora.export(model, to=to, output=tmp_path / "whole", initial=teacher)
        part, whole = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("x", "whole"))
        for name in (name for name in whole if "lora_B" in name):
            assert torch.allclose(part[name], 0.5 * whole[name], atol=1e-7)


@pytest.mark.parametrize("method", ["pissa", "lora", "full", "qpissa"])
def test_the_block_restores_every_value_exactly(method):
    if method == "qpissa":
        pytest.importorskip("bitsandbytes")
    model, teacher, inputs = trained(tiny_llama, method)
    before, state = logits(model, inputs), {n: p.detach().clone() for n, p in model.named_parameters()}
    with scaled_change(model, 0.5, teacher.initial, residual_base=method in ("pissa", "qpissa")):
        assert not torch.allclose(logits(model, inputs), before, atol=1e-3)
        with teacher.active():
            start = logits(model, inputs)
    with teacher.active():
        assert torch.allclose(start, logits(model, inputs), atol=1e-4 if method != "qpissa" else 1e-3)
    assert torch.equal(logits(model, inputs), before)
    assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("method", "part"), [("dora", "norms of the weights' rows"), ("houlsby", "activation between them")]
)
def test_changes_without_multiples_are_refused(method, part, tmp_path):
    run = trained_run(tmp_path / "run", tiny_llama(), "generation", method=method, steps=1)
    with pytest.raises(BALoraError, match=part):
        load(run.folder, scale=0.5)
    with pytest.raises(BALoraError, match=part):
        ModelUnderTest(str(run.folder), EvaluationOptions(scale=0.5))
    if method == "dora":
        with pytest.raises(BALoraError, match=part):
            balora.export(run.folder, to="merged", output=tmp_path / "x", scale=0.5)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), True, "half"])
def test_a_scale_that_is_no_number_is_refused(scale, tmp_path):
    with pytest.raises(BALoraError, match="finite number"):
        balora.export("anything", to="lora", output=tmp_path / "x", scale=scale)


def test_a_scale_outside_0_to_1_is_said(runs, tmp_path, caplog):
    assert scale_notice(0.5) is None and scale_notice(1.0) is None
    report = balora.export(runs["balora"].folder, to="lora", output=tmp_path / "x", scale=1.5)
    assert "beyond the trained model" in report.describe()
    with caplog.at_level("WARNING", logger="balora"):
        load(runs["balora"].folder, scale=-0.5)
    assert "opposite" in caplog.text


def test_an_evaluation_at_a_scale_has_its_own_folder_and_identity(runs):
    run = runs["balora"]
    whole, part = (ModelUnderTest(str(run.folder), EvaluationOptions(scale=s)) for s in (1.0, 0.5))
    assert part.folder == whole.folder / "scale-0.5" and part.identity != whole.identity
    inputs = batch(run.model)
    assert torch.allclose(logits(part.load("cpu").model, inputs), logits(load(run.folder, scale=0.5), inputs))
    with pytest.raises(BALoraError, match="only the change of a run"):
        ModelUnderTest(str(run.base), EvaluationOptions(scale=0.5))


def test_the_command_exports_a_part(runs, tmp_path, balora):
    outcome = balora("export", runs["balora"].folder, "--to", "lora", "--output", tmp_path / "x", "--scale", "0.5")
    assert outcome.status == 0, outcome.err
    assert "0.5 of the change" in outcome.out
    assert json.loads((tmp_path / "x" / "adapter_config.json").read_text())["r"] == 8
    assert (
        balora("export", runs["balora"].folder, "--to", "lora", "--output", tmp_path / "y", "--scale", "nan").status
        == 2
    )
