"""A trained model loads exactly, from a run or from its files alone, and is refused on other weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertModel

import balora
from balora.checkpoints import checkpoint as ckpt
from balora.loading.trained import find_saved, load, load_untrained, saved_of
from tiny import tiny_bert, tiny_gpt2, tiny_llama
from trained_runs import LABELS, TrainedRun, batch, logits, trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Return a finished run; tests that change files use a copy."""
    return trained_run(tmp_path_factory.mktemp("load") / "run", tiny_llama(), "generation", checkpoints=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Return a run on a base without head and pooler, which are random after loading."""
    folder = tmp_path_factory.mktemp("load")
    whole = tiny_bert()
    body = BertModel(whole.config, add_pooling_layer=False)
    body.load_state_dict(whole.bert.state_dict(), strict=False)
    body.save_pretrained(folder / "body")
    return trained_run(folder / "run", folder / "body", "classification", regularization={"teacher_head": "probe"})


def copy_of(run: TrainedRun, target: Path) -> Path:
    return Path(shutil.copytree(run.folder, target))


# -- loading --------------------------------------------------------------------------------------------------------


def test_a_run_loads_as_the_trained_model_bit_for_bit(run: TrainedRun) -> None:
    model = balora.load(run.folder)
    inputs = batch(model)
    assert torch.equal(logits(model, inputs), logits(run.model, inputs))
    assert not model.training


@pytest.mark.parametrize(("method", "make"), [("lora", tiny_llama), ("full", tiny_llama), ("pissa", tiny_gpt2)])
def test_results_of_other_methods_load(method: str, make, tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", make(), "generation", method=method)
    model = load(run.folder)
    inputs = batch(model)
    assert torch.equal(logits(model, inputs), logits(run.model, inputs))
    assert saved_of(model).method.name == method


def test_half_precision_loads(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", tiny_llama(), "generation", dtype="bfloat16")
    model = load(run.folder)
    inputs = batch(model)
    assert model.get_base_model().dtype == torch.bfloat16
    assert torch.equal(logits(model, inputs), logits(run.model, inputs))


def test_a_classifier_loads_with_its_fitted_head_and_class_names(classifier: TrainedRun) -> None:
    torch.manual_seed(123)  # what the base lacks must not depend on the caller's generator
    model = load(classifier.folder)
    inputs = batch(model)
    assert torch.equal(logits(model, inputs), logits(classifier.model, inputs))
    assert model.config.id2label == dict(enumerate(LABELS))


def test_a_regression_model_loads(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", tiny_bert(num_labels=1), "regression")
    model = load(run.folder)
    inputs = batch(model)
    assert model.config.num_labels == 1
    assert torch.equal(logits(model, inputs), logits(run.model, inputs))


def test_a_checkpoint_loads_as_the_model_of_its_step(run: TrainedRun) -> None:
    half, end = load(run.folder / "checkpoint-1"), load(run.folder / "checkpoint-3")
    inputs = batch(half)
    assert torch.equal(logits(end, inputs), logits(run.model, inputs))
    assert (logits(half, inputs) - logits(end, inputs)).abs().max() > 0.1
    # A checkpoint has no tokenizer, so it is the one in the run's config.
    assert saved_of(half).tokenizer()("ab")["input_ids"] == saved_of(load(run.folder)).tokenizer()("ab")["input_ids"]


def test_an_adapter_without_its_run_loads_on_a_given_base(run: TrainedRun, tmp_path: Path) -> None:
    loose = Path(shutil.copytree(run.folder / "adapter", tmp_path / "loose"))
    expected = None
    for base in (run.base, str(run.base), AutoModelForCausalLM.from_pretrained(run.base)):
        model = load(loose, base=base)
        expected = logits(run.model, batch(model))
        assert torch.equal(logits(model, batch(model)), expected)
    assert saved_of(model).run is None


def test_dtype_and_class_names_are_read_from_the_metadata(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", tiny_bert(), "classification", dtype="bfloat16")
    loose = Path(shutil.copytree(run.folder / "adapter", tmp_path / "loose"))
    assert load(loose, base=AutoModelForSequenceClassification.from_pretrained(run.base, dtype=torch.bfloat16))
    initial = ckpt.read_initial_weights(loose)
    metadata = {**initial.metadata, "dtype": "bfloat16", "labels": LABELS}
    ckpt.write_initial_weights(loose, dataclasses.replace(initial, metadata=metadata))
    ckpt.write_manifest(loose)
    model = load(loose, base=run.base)
    assert list(model.config.id2label.values()) == LABELS
    assert torch.equal(logits(model, batch(model)), logits(run.model, batch(model)))


def test_a_moved_base_can_be_given(run: TrainedRun, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run.base, tmp_path / "moved"))
    folder = copy_of(run, tmp_path / "run")
    config = (folder / "config.yaml").read_text().replace(str(run.base), str(tmp_path / "gone"))
    (folder / "config.yaml").write_text(config)
    with pytest.raises(balora.BALoraError, match="gone does not exist"):
        load(folder)
    model = load(folder, base=moved)
    assert torch.equal(logits(model, batch(model)), logits(run.model, batch(model)))


def test_the_untrained_model_equals_the_pre_trained_one(run: TrainedRun) -> None:
    model, plain = load_untrained(run.folder), AutoModelForCausalLM.from_pretrained(run.base)
    inputs = batch(plain)
    expected = logits(plain, inputs)
    assert (logits(model, inputs) - expected).abs().max() < 1e-4
    assert (logits(run.model, inputs) - expected).abs().max() > 0.5


def test_the_global_generator_is_unchanged(classifier: TrainedRun) -> None:
    before = torch.get_rng_state()
    load(classifier.folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_computes_no_decomposition(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a decomposition was computed")

    monkeypatch.setattr(torch.linalg, "svd", never)
    load(run.folder)


def test_a_loaded_model_can_be_the_teacher(run: TrainedRun) -> None:
    model, plain = load(run.folder), AutoModelForCausalLM.from_pretrained(run.base)
    inputs = batch(plain)
    with balora.PretrainedTeacher(model, saved_of(model).initial.values).active():
        found = logits(model, inputs)
    assert (found - logits(plain, inputs)).abs().max() < 1e-4


# -- refusals --------------------------------------------------------------------------------------------------------


def test_another_base_is_refused(run: TrainedRun, tmp_path: Path) -> None:
    tiny_llama(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(balora.BALoraError, match=r"trained on other weights than these: .* differs"):
        load(run.folder, base=tmp_path / "other")


def test_a_base_of_another_architecture_is_refused(run: TrainedRun) -> None:
    with pytest.raises(
        balora.BALoraError, match=r"another model than this GPT2LMHeadModel, which has no model\.layers"
    ):
        load(run.folder, base=tiny_gpt2())


def test_a_base_of_other_sizes_is_refused(run: TrainedRun) -> None:
    with pytest.raises(balora.BALoraError, match="stored as"):
        load(run.folder, base=tiny_llama(hidden=64))


def test_a_head_for_other_classes_is_refused(classifier: TrainedRun) -> None:
    with pytest.raises(balora.BALoraError, match=r"stored head's classifier.bias is \(3,\) and the model's is \(2,\)"):
        load(classifier.folder, base=tiny_bert(num_labels=2))


def test_an_unfinished_run_is_refused_with_its_newest_checkpoint(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", tiny_llama(), "generation", steps=2, checkpoints=True, finish=False)
    with pytest.raises(balora.BALoraError, match=r"not finished \(status: running\).*checkpoint-2"):
        load(run.folder)
    shutil.rmtree(run.folder / "checkpoint-1")
    shutil.rmtree(run.folder / "checkpoint-2")
    with pytest.raises(balora.BALoraError, match=r"has no checkpoint yet"):
        load(run.folder)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "initial.safetensors", "origin.json", "adapter_config.json"]
)
def test_a_damaged_file_is_refused_by_name(run: TrainedRun, name: str, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path / "run")
    path = folder / "adapter" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(balora.BALoraError, match=f"{name} is not as it was written"):
        load(folder)
    path.unlink()
    with pytest.raises(balora.BALoraError, match=f"{name} is missing"):
        load(folder)


def test_other_directories_are_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(balora.BALoraError, match=r"There is no folder .*rnu\. Did you mean 'run'\?"):
        (tmp_path / "run").mkdir()
        load(tmp_path / "rnu")
    with pytest.raises(balora.BALoraError, match=r"run is not a run directory: it has no config\.yaml"):
        load(tmp_path / "run")
    model = tiny_llama()
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(balora.BALoraError, match="a plain transformers model"):
        load(tmp_path / "plain")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "peft")
    with pytest.raises(balora.BALoraError, match="a plain peft adapter"):
        load(tmp_path / "peft")
    balora.adapt(tiny_llama(), rank=4).save_pretrained(tmp_path / "raw")
    with pytest.raises(balora.BALoraError, match=r"without their initial values .*trainer\.save_model"):
        load(tmp_path / "raw")


def test_an_adapter_without_its_run_uses_the_base_in_its_config_or_asks_for_one(
    run: TrainedRun, tmp_path: Path
) -> None:
    loose = Path(shutil.copytree(run.folder / "adapter", tmp_path / "loose"))
    model = load(loose)
    assert torch.equal(logits(model, batch(model)), logits(run.model, batch(model)))
    config = loose / "adapter_config.json"
    for name in (None, str(tmp_path / "gone")):
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": name}))
        ckpt.write_manifest(loose)
        with pytest.raises(balora.BALoraError, match=r"no config\.yaml to name the pre-trained model\. Name it"):
            load(loose)


def test_find_saved_describes_the_saved_model(run: TrainedRun) -> None:
    saved = find_saved(run.folder)
    assert (saved.folder, saved.run, saved.task) == (run.folder / "adapter", run.folder, "generation")
    assert saved.labels is None
    assert saved.config.dump_yaml() == run.settings.dump_yaml()
    assert json.loads((saved.folder / "origin.json").read_text())["method"] == "balora"
