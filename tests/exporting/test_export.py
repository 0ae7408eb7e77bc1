"""An exported model works in plain peft and transformers without balora, and equals the trained model."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertModel

import balora
from balora.exporting import weights as export_weights
from balora.exporting.export import _staged, export
from balora.exporting.verification import compare, make_probe, probe_outputs
from balora.exporting.weights import change_of, factor_difference
from balora.loading.trained import load
from balora.methods import adapt, load_trainable
from balora.methods.initial_state import trainable_parameters
from tiny import tiny_bart, tiny_bert, tiny_gpt2, tiny_llama, tiny_roberta
from trained_runs import LABELS, TrainedRun, batch, logits, trained_run

# Script of a process that cannot import balora: one job for each exported directory.
PLAIN = """
import json, sys
sys.modules["balora"] = None
import torch, transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
transformers.logging.set_verbosity_error()
for job in json.load(open(sys.argv[1])):
    torch.manual_seed(99)
    kind, told = getattr(transformers, job["kind"]), job.get("told", {})
    if job["to"] == "merged":
        model = kind.from_pretrained(job["folder"])
    elif job.get("auto"):
        model = AutoPeftModelForCausalLM.from_pretrained(job["folder"])
    else:
        model = PeftModel.from_pretrained(kind.from_pretrained(job["base"], **told), job["folder"])
    if job["tokenizer"]:
        assert transformers.AutoTokenizer.from_pretrained(job["folder"])("ab")["input_ids"] == job["tokenizer"]
    inputs = load_file(job["inputs"])
    with torch.no_grad():
        out = model.eval()(**inputs).logits.float()
    save_file({"logits": out.contiguous()}, job["result"])
"""
CASES = {
    "llama-balora": (lambda: tiny_llama(tie_word_embeddings=True), "generation", {}),
    "llama-lora": (tiny_llama, "generation", {"method": "lora"}),
    "llama-full": (tiny_llama, "generation", {"method": "full"}),
    "llama-bf16": (tiny_llama, "generation", {"dtype": "bfloat16"}),
    "gpt2-pissa": (tiny_gpt2, "generation", {"method": "pissa"}),
    "bart-balora": (tiny_bart, "seq2seq", {}),
    "bert-headless": (None, "classification", {}),
    "roberta-balora": (tiny_roberta, "classification", {}),
    "bert-regression": (lambda: tiny_bert(num_labels=1), "regression", {}),
}
FORMS = {"llama-full": ("merged",), "llama-lora": ("lora",)}
KINDS = {"generation": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[TrainedRun, balora.ExportReport]]:
    """Train and export every case, and save the logits that plain libraries compute beside each."""
    place = tmp_path_factory.mktemp("export")
    found, jobs = {}, []
    for name, (make, task, settings) in CASES.items():
        base = _headless_bert(place / "headless") if make is None else make()
        run = trained_run(place / name, base, task, **settings)
        inputs = place / f"{name}.inputs"
        save_file(batch(run.model), inputs)
        for to in FORMS.get(name, ("lora", "merged")):
            report = export(run.folder, to, output=place / f"{name}-{to}")
            found[name, to] = run, report
            told = {"num_labels": run.model.config.num_labels} if task not in KINDS else {}
            jobs.append({
                "kind": KINDS.get(task, "AutoModelForSequenceClassification"), "to": to, "told": told,
                "folder": str(report.output), "base": str(run.base), "inputs": str(inputs),
                "auto": name == "llama-balora",
                "tokenizer": [69, 70], "result": str(place / f"{name}-{to}.result"),
            })  # fmt: skip
    (place / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", PLAIN, str(place / "jobs.json")], check=True, env=environment, timeout=280)
    return found


def _headless_bert(folder: Path) -> Path:
    """Save a BERT as masked language modelling leaves it, without classifier and pooler."""
    whole = tiny_bert()
    body = BertModel(whole.config, add_pooling_layer=False)
    body.load_state_dict(whole.bert.state_dict(), strict=False)
    body.save_pretrained(folder)
    return folder


EVERY = [(name, to) for name in CASES for to in FORMS.get(name, ("lora", "merged"))]


@pytest.mark.parametrize(("name", "to"), EVERY)
def test_plain_libraries_compute_the_trained_models_logits(exported, name: str, to: str) -> None:
    run, report = exported[name, to]
    inputs = batch(run.model)
    expected = logits(run.model, inputs)
    found = load_file(report.output.with_name(f"{name}-{to}.result"))["logits"]
    if found.dim() == 3 and "decoder_input_ids" not in inputs:
        found = found[inputs["attention_mask"].bool()]
    bound = (5e-2 if name == "llama-bf16" else 1e-5) * max(1.0, float(expected.abs().max()))
    assert (found - expected).abs().max() < bound
    assert report.largest_difference < bound


@pytest.mark.parametrize("name", [name for name in CASES if name != "llama-full"])
def test_training_moved_the_logits_by_much_more_than_the_bound(exported, name: str) -> None:
    run, _ = exported[name, "lora"]
    inputs, model = batch(run.model), run.model
    trained = logits(model, inputs)
    with run.trainer.teacher.active():
        moved = (logits(model, inputs) - trained).abs().max() / trained.abs().max().clamp_min(1.0)
    assert moved > (0.5 if name == "llama-bf16" else 1e-2)


def test_the_rank_doubles_only_for_residual_weights(exported) -> None:
    for name, rank in (("llama-balora", 8), ("gpt2-pissa", 8), ("llama-lora", 4)):
        report = exported[name, "lora"][1]
        config = json.loads((report.output / "adapter_config.json").read_text())
        assert (report.rank, config["r"], config["lora_alpha"]) == (rank, rank, rank)
        shapes = {tuple(t.shape) for key, t in load_file(report.output / "adapter_model.safetensors").items()}
        assert all(rank in shape for shape in shapes)
    assert exported["llama-balora", "merged"][1].rank is None


def test_a_lora_file_needs_no_balora(exported) -> None:
    run, report = exported["llama-balora", "lora"]
    text = (report.output / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["init_lora_weights"] is True
    assert config["base_model_name_or_path"] == str(run.base)
    assert "balora:" not in text and "pissa" not in text
    names = {path.name for path in report.files}
    assert names == {
        "README.md",
        "SERVING.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_lora_file_is_the_exact_difference(exported) -> None:
    """The runs have alpha = 2 r, and the file has that factor in B."""
    run, report = exported["llama-balora", "lora"]
    state = load_file(report.output / "adapter_model.safetensors")
    now, start = dict(trainable_parameters(run.model)), run.trainer.teacher.initial
    for name in (n for n in now if ".lora_A." in n):
        other = name.replace("lora_A", "lora_B")
        change = now[other].double() @ now[name].double() - start[other].double() @ start[name].double()
        found = state[other.replace(".default", "")].double() @ state[name.replace(".default", "")].double() / 2
        assert (found - change).abs().max() < 1e-6 * change.abs().max()


def test_a_merged_model_is_complete(exported) -> None:
    run, report = exported["roberta-balora", "merged"]
    config = json.loads((report.output / "config.json").read_text())
    assert list(config["id2label"].values()) == LABELS
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    head = load_file(report.output / "model.safetensors")["classifier.out_proj.weight"]
    trained = next(p for name, p in trainable_parameters(run.model) if name.endswith("out_proj.weight"))
    assert torch.equal(head, trained)
    assert {"README.md", "tokenizer.json"} <= {path.name for path in report.files}


def test_tied_weights_stay_tied(exported) -> None:
    report = exported["llama-balora", "merged"][1]
    with safe_open(report.output / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(report.output)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_generation_config_is_exported(tmp_path: Path) -> None:
    model = tiny_llama()
    model.generation_config.max_new_tokens = 7
    run = trained_run(tmp_path / "run", model, "generation", steps=1)
    export(run.folder, "merged", output=tmp_path / "out", check=False)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.max_new_tokens == 7


def test_merging_an_untrained_model_gives_the_pre_trained_weights_bit_for_bit(tmp_path: Path) -> None:
    """In bfloat16, W − s·B₀A₀ + s·B₀A₀ is not W; the export must not contain that rounding."""
    base = tiny_llama().to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), rank=4)
    export(model, "merged", output=tmp_path / "out", initial=balora.PretrainedTeacher(model))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(merged[name], value) for name, value in base.state_dict().items())


# -- factors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns", "rank"), [(17, 23, 3), (5, 31, 4), (6, 6, 6), (9, 2, 1)])
def test_the_factor_difference_is_exact_and_balanced(rows: int, columns: int, rank: int) -> None:
    a, a0 = torch.randn(2, rank, columns, dtype=torch.float64)
    b, b0 = torch.randn(2, rows, rank, dtype=torch.float64).unbind()
    new_a, new_b = factor_difference(a, b, a0, b0)
    assert new_a.shape == (2 * rank, columns) and new_b.shape == (rows, 2 * rank)
    assert torch.allclose(new_b @ new_a, b @ a - b0 @ a0, atol=1e-12)
    assert torch.allclose(new_a.norm(dim=1), new_b.norm(dim=0), atol=1e-10)


def test_balanced_factors_lose_less_by_rounding() -> None:
    """Compare on a small change of large factors, as in fine-tuning from PiSSA's initial values."""
    a0, b0 = torch.randn(8, 64) * 3, torch.randn(48, 8) * 3
    a, b = a0 + 0.02 * torch.randn_like(a0), b0 + 0.02 * torch.randn_like(b0)
    truth = b.double() @ a.double() - b0.double() @ a0.double()

    def lost(new_a: torch.Tensor, new_b: torch.Tensor) -> float:
        rounded = new_b.bfloat16().double() @ new_a.bfloat16().double()
        return float((rounded - truth).norm() / truth.norm())

    assert lost(*factor_difference(a, b, a0, b0)) < 0.01
    assert lost(torch.cat([a, -a0]), torch.cat([b, b0], 1)) > 0.1


def test_an_embedding_with_lora_is_merged_untransposed() -> None:
    model = adapt(tiny_llama(), "lora", rank=4, target_modules=["embed_tokens", "q_proj"])
    for _, parameter in trainable_parameters(model):
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain = tiny_llama()
    export_weights.merge_into(plain, change_of(model))
    inputs = batch(plain)
    assert (logits(plain, inputs) - logits(model, inputs)).abs().max() < 1e-4
    assert (logits(tiny_llama(), inputs) - logits(model, inputs)).abs().max() > 0.1


# -- models in memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def learnt() -> tuple[torch.nn.Module, balora.PretrainedTeacher]:
    """Return a changed model that was not loaded from disk, and its teacher."""
    model = adapt(tiny_llama(), rank=4, alpha=8)
    teacher = balora.PretrainedTeacher(model)
    load_trainable(model, {name: value + 0.1 * torch.randn_like(value) for name, value in teacher.initial.items()})
    return model, teacher


def test_a_model_with_an_adapted_embedding_is_exported(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    model = adapt(AutoModelForCausalLM.from_pretrained(base), "lora", rank=4, target_modules=["q_proj", "embed_tokens"])
    with torch.no_grad():
        for name, parameter in trainable_parameters(model):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    export(model, to="merged", output=tmp_path / "merged")
    tokens = torch.arange(4, 40)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(tokens).logits, model.eval()(tokens).logits, atol=1e-5, rtol=1e-4)


def test_a_model_in_memory_is_exported_with_its_teacher(learnt, tmp_path: Path) -> None:
    model, teacher = learnt
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lora = export(model, "lora", output=tmp_path / "lora", initial=teacher)
    merged = export(model, "merged", output=tmp_path / "merged", initial=dict(teacher.initial))
    assert lora.rank == 8 and lora.largest_difference < 1e-4 and merged.largest_difference < 1e-4
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_initial_values_only_merging_is_possible(learnt, tmp_path: Path) -> None:
    model, _ = learnt
    with pytest.raises(
        balora.BALoraError, match=r"needs the initial values: pass initial=.*or export with to='merged'"
    ):
        export(model, "lora", output=tmp_path / "lora")
    assert export(model, "merged", output=tmp_path / "merged").largest_difference < 1e-4


def test_initial_values_of_another_run_are_refused(learnt, tmp_path: Path) -> None:
    model, teacher = learnt
    wrong = {name: value * 1.01 for name, value in teacher.initial.items()}
    with pytest.raises(balora.BALoraError, match="is not at its initial value"):
        export(model, "lora", output=tmp_path / "lora", initial=wrong)


def test_a_loaded_model_knows_its_initial_values(exported, tmp_path: Path) -> None:
    run, _ = exported["llama-balora", "lora"]
    report = export(load(run.folder), "lora", output=tmp_path / "out")
    assert report.rank == 8 and (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_tokenizer_can_be_given(learnt, exported, tmp_path: Path) -> None:
    model, teacher = learnt
    export(model, "lora", output=tmp_path / "out", initial=teacher, tokenizer=exported["llama-balora", "lora"][0].base)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_merged_or_disabled_adapter_is_refused(learnt, tmp_path: Path) -> None:
    model, teacher = learnt
    with model.disable_adapter(), pytest.raises(balora.BALoraError, match="merged or switched off"):
        export(model, "lora", output=tmp_path / "out", initial=teacher)


def test_a_model_without_balora_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(balora.BALoraError, match=r"not made by balora\.adapt"):
        export(tiny_llama(), "merged", output=tmp_path / "out")


# -- complete or absent ---------------------------------------------------------------------------------------------


def test_another_base_is_refused_and_nothing_is_left(learnt, tmp_path: Path) -> None:
    model, teacher = learnt
    tiny_llama(seed=1).save_pretrained(tmp_path / "other")
    for to in ("lora", "merged"):
        with pytest.raises(
            balora.BALoraError, match=r"does not agree with the trained model .* largest logit difference"
        ):
            export(model, to, output=tmp_path / "out", initial=teacher, base=tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize("wrong", [{"scaling": 1.01}, {"scaling": -1.0}])
def test_a_wrong_scaling_is_refused(learnt, wrong: dict[str, float], tmp_path: Path, monkeypatch) -> None:
    model, _ = learnt
    right = export_weights.Factors.delta
    monkeypatch.setattr(export_weights.Factors, "delta", lambda self: wrong["scaling"] * right(self))
    with pytest.raises(balora.BALoraError, match="does not agree"):
        export(model, "merged", output=tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_output_with_files_is_refused_and_unchanged(learnt, tmp_path: Path) -> None:
    model, teacher = learnt
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(balora.BALoraError, match="is not empty, and nothing is overwritten"):
        export(model, "lora", output=tmp_path / "out", initial=teacher)
    with pytest.raises(balora.BALoraError, match=r"thesis\.txt is a file"):
        export(model, "lora", output=tmp_path / "out" / "thesis.txt", initial=teacher)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing(learnt, error: BaseException, tmp_path: Path, monkeypatch) -> None:
    model, teacher = learnt

    def fails(state: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(export_weights, "save_file", fails)
    expected = balora.BALoraError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        export(model, "lora", output=tmp_path / "out", initial=teacher)
    assert not any(tmp_path.iterdir())


def test_the_staging_directory_of_a_killed_export_is_deleted(learnt, tmp_path: Path) -> None:
    model, teacher = learnt
    left = tmp_path / ".out.exporting"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    report = export(model, "lora", output=tmp_path / "out", initial=teacher)
    assert "model.safetensors" not in {path.name for path in report.files}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_impossible_forms_are_refused(exported, tmp_path: Path) -> None:
    full = exported["llama-full", "merged"][0]
    with pytest.raises(balora.BALoraError, match="trains all weights, so the change is no LoRA"):
        export(full.folder, "lora", output=tmp_path / "out")
    with pytest.raises(balora.BALoraError, match=r"to is lora or merged, not 'merge'\. Did you mean 'merged'\?"):
        export(full.folder, "merge", output=tmp_path / "out")
    tied = adapt(tiny_llama(tie_word_embeddings=True), "lora", rank=4, target_modules=["lm_head"])
    with pytest.raises(balora.BALoraError, match=r"lm_head shares its weight with model\.embed_tokens"):
        export(tied, "merged", output=tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_the_output_appears_only_when_complete(tmp_path: Path) -> None:
    with _staged(tmp_path / "out") as staging:
        (staging / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"


# -- the comparison --------------------------------------------------------------------------------------------------


def test_the_probe_has_padding_and_covers_the_vocabulary() -> None:
    model = tiny_llama()
    (probe,) = make_probe(model, None)
    assert probe["input_ids"].shape[0] > 2 and not probe["attention_mask"].all()
    assert int(probe["input_ids"].max()) > 80
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(make_probe(model, None), [probe], strict=True)
    )
    model.config.pad_token_id = None
    assert all(part["input_ids"].shape[0] == 1 for part in make_probe(model, None))


def test_padding_is_not_compared() -> None:
    model = tiny_llama()
    (probe,) = make_probe(model, None)
    (found,) = probe_outputs(model, [probe])
    assert found.shape == (int(probe["attention_mask"].sum()), 97)


def test_nan_other_shapes_and_large_differences_do_not_hold() -> None:
    fine, broken = torch.ones(2, 3), torch.tensor([[1.0, float("nan"), 1.0]] * 2)
    assert compare([fine], [fine], torch.float32).holds
    assert not compare([fine], [broken], torch.float32).holds
    assert not compare([fine], [torch.ones(2, 4)], torch.float32).holds
    assert not compare([fine], [fine + 1e-3], torch.float32).holds
    assert compare([fine], [fine + 1e-3], torch.bfloat16).holds


# -- a real model ----------------------------------------------------------------------------------------------------


def test_a_real_model_is_exported(stories: Path, tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", stories, "generation", rank=8)
    for to in ("lora", "merged"):
        report = export(run.folder, to, output=tmp_path / to)
        assert report.largest_difference < 1e-4
        assert f"{report.largest_difference:.2g}" in (tmp_path / to / "README.md").read_text()


@pytest.mark.parametrize("leads", ["empty", "nowhere", "full", "file"])
def test_a_link_as_output_is_not_followed(tmp_path: Path, leads: str) -> None:
    model = adapt(tiny_llama(), "lora", rank=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "out").symlink_to(tmp_path / leads)
    with pytest.raises(balora.BALoraError, match="is a symbolic link, and an export does not write through links"):
        export(model, "lora", output=tmp_path / "out")
    assert (tmp_path / "full" / "kept").read_text() == (tmp_path / "file").read_text() == "kept"
    assert not any((tmp_path / "empty").iterdir())


def test_a_link_in_place_of_the_staging_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / ".out.exporting").symlink_to(tmp_path / "elsewhere")
    export(adapt(tiny_llama(), "lora", rank=2), "lora", output=tmp_path / "out")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["kept"]
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_a_model_with_several_end_tokens_is_exported(tmp_path: Path) -> None:
    model = tiny_llama()
    model.config.eos_token_id = [2, 5]  # Llama 3
    assert export(adapt(model, "lora", rank=2), "lora", output=tmp_path / "out").agreement.holds


def test_a_resized_vocabulary_is_exported_and_what_the_base_needs_is_said(tmp_path: Path, caplog) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    size = model.config.vocab_size + 3
    model.resize_token_embeddings(size)
    model = adapt(model, rank=2)
    report = export(model, to="lora", output=tmp_path / "out", initial=balora.PretrainedTeacher(model))
    needed = f"resize_token_embeddings({size})"
    assert needed in str(report) and needed in caplog.text and needed in (tmp_path / "out" / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(size)
    inputs = {"input_ids": torch.tensor([[1, size - 1, 2]])}
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model.eval()(**inputs).logits, atol=1e-5)
