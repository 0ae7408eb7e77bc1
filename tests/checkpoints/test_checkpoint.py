"""Checkpoints are complete or absent, resume bit for bit, and are refused on other weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback

import balora
from balora import BALoraError, RegularizationConfig
from balora.checkpoints import checkpoint as ckpt
from balora.methods import METHODS
from balora.methods.adaptation import load_trainable
from balora.methods.initial_state import RESIDUAL_ADAPTER_MARKER, stored_parameters
from balora.methods.layers.peft_lora import lora_layers
from bench import adapted
from small_runs import ALL_TERMS, CONSTANT, Do, flat, history, pissa, trainer
from tiny import labelled_rows, pair_rows, tiny_bart, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, token_rows

EVERY_TWO = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
FEATURES = RegularizationConfig(
    consistency=0.5, diversity=0.3, spectral=0.2, variance=0.1, spectral_rank=2, diversity_target="features",
    spectral_target="features", **CONSTANT,
)  # fmt: skip


def adapter(make, method: str = "pissa", **options):
    return balora.adapt(make(), method=method, **({} if method == "full" else {"rank": 4, **options}))


# name: (model, rows, regularization, further arguments)
RUNS = {
    "generation, pissa": (lambda: adapter(tiny_llama), token_rows, ALL_TERMS, {}),
    "generation, plain path": (lambda: adapter(tiny_llama), token_rows, ALL_TERMS, {"loss_path": "plain"}),
    "generation, adapter dropout, accumulation": (
        lambda: adapter(tiny_llama, "lora", dropout=0.3),
        token_rows,
        ALL_TERMS,
        {"gradient_accumulation_steps": 2},
    ),
    "generation, full": (lambda: adapter(tiny_llama, "full"), token_rows, ALL_TERMS, {}),
    "generation, full, tied": (
        lambda: adapter(lambda: tiny_llama(tie_word_embeddings=True), "full"),
        token_rows,
        ALL_TERMS,
        {},
    ),
    "gpt2, full": (lambda: adapter(tiny_gpt2, "full"), token_rows, ALL_TERMS, {}),
    "t5, full": (lambda: adapter(tiny_t5, "full"), pair_rows, ALL_TERMS, {}),
    "adapted head": (
        lambda: adapter(lambda: tiny_llama(tie_word_embeddings=False), target_modules=["lm_head", "q_proj"]),
        token_rows,
        ALL_TERMS,
        {},
    ),
    "seq2seq": (lambda: adapter(tiny_bart), pair_rows, ALL_TERMS, {}),
    "classification, dropout": (lambda: adapter(lambda: tiny_bert(dropout=0.3)), labelled_rows, FEATURES, {}),
    "classification, dropout, from an epoch's end": (
        lambda: adapter(lambda: tiny_bert(dropout=0.3)),
        lambda: labelled_rows(8),
        FEATURES,
        {},
    ),
    "classification, full": (lambda: adapter(lambda: tiny_bert(dropout=0.3), "full"), labelled_rows, FEATURES, {}),
    "regression": (
        lambda: adapter(lambda: tiny_bert(num_labels=1)),
        lambda: labelled_rows(labels=1),
        RegularizationConfig(consistency=0.5, diversity=0.0, spectral=0.0),
        {},
    ),
}


# -- resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name, tmp_path):
    make, rows, config, further = RUNS[name]
    start = lambda: trainer(make(), tmp_path, rows=rows(), config=config, **EVERY_TWO, **further)  # noqa: E731
    uninterrupted = start()
    uninterrupted.train()
    middle = tmp_path / "checkpoint-2"
    initial = ckpt.read_initial_weights(middle).values
    for name, value in initial.items():
        assert torch.equal(value, uninterrupted.teacher.initial[name])
    for later in (4, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{later}")
    resumed = start()
    torch.rand(7)  # whatever happened in between
    resumed.train(resume_from_checkpoint=str(middle))
    assert history(resumed, "loss") == history(uninterrupted, "loss")
    assert history(resumed, "consistency") == history(uninterrupted, "consistency")
    assert torch.equal(flat(resumed.model), flat(uninterrupted.model))
    assert not torch.equal(flat(resumed.model), torch.cat([v.flatten() for v in resumed.teacher.initial.values()]))
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit_from_its_stored_initial_values(method, tmp_path):
    def start(**options):
        # GPT-2 has biases for BitFit, and its weights are transposed.
        return trainer(adapted(tiny_gpt2, method, total_steps=6, **options), tmp_path, **EVERY_TWO)

    uninterrupted = start()
    uninterrupted.train()
    middle = tmp_path / "checkpoint-2"
    for later in (4, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{later}")
    # As in a run: with stored initial values another seed changes nothing and no calibration data is read.
    resumed = start(seed=7, calibration=None, initial=ckpt.read_initial_weights(middle).values)
    resumed.train(resume_from_checkpoint=str(middle))
    assert history(resumed, "loss") == history(uninterrupted, "loss")
    own, expected = (dict(stored_parameters(run.model)) for run in (resumed, uninterrupted))
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(own[name], value), name
    assert not torch.equal(flat(resumed.model), torch.cat([v.flatten() for v in resumed.teacher.initial.values()]))


class Ranks(TrainerCallback):
    """Count the singular values that AdaLoRA has not pruned, after every step."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}

    def on_step_end(self, args, state, control, model=None, **_):
        values = [layer.lora_E["default"] for _, layer in lora_layers(model)]
        self.left[state.global_step] = sum(int(value.count_nonzero()) for value in values)


@pytest.mark.parametrize("at", [2, 6])
def test_adalora_resumes_in_the_middle_of_its_pruning_and_after_it(at, tmp_path):
    def start(**options):
        model = adapted(tiny_llama, "adalora", total_steps=8, beta1=0.97, beta2=0.97, **options)
        return trainer(
            model, tmp_path, **{**EVERY_TWO, "max_steps": 8, "learning_rate": 3e-3}, callbacks=[ranks := Ranks()]
        ), ranks

    uninterrupted, ranks = start()
    uninterrupted.train()
    final = 4 * len(list(lora_layers(uninterrupted.model)))  # ranks of 6 are to become 4 on average by step 6
    assert ranks.left[1] > ranks.left[2] > ranks.left[3] > final, "step 2 lies in the middle of the pruning"
    assert ranks.left[6] == ranks.left[7] == ranks.left[8] == final
    middle = tmp_path / f"checkpoint-{at}"
    resumed, again = start(initial=ckpt.read_initial_weights(middle).values)
    resumed.train(resume_from_checkpoint=str(middle))
    assert torch.equal(flat(resumed.model), flat(uninterrupted.model))
    assert again.left == {step: count for step, count in ranks.left.items() if step > at}
    if at == 2:  # without what the allocator remembers it would end elsewhere
        forgetful, _ = start(initial=ckpt.read_initial_weights(middle).values)
        forgetful.method = dataclasses.replace(forgetful.method, restore=None)
        forgetful.train(resume_from_checkpoint=str(middle))
        assert not torch.equal(flat(forgetful.model), flat(uninterrupted.model))


def test_a_resume_from_stored_initial_values_needs_no_decomposition(tmp_path):
    make = lambda **options: adapter(lambda: tiny_llama(hidden=64), svd="randomized", svd_iterations=0, **options)  # noqa: E731
    uninterrupted = trainer(make(seed=3), tmp_path, **EVERY_TWO)
    uninterrupted.train()
    initial = ckpt.read_initial_weights(tmp_path / "checkpoint-2").values
    resumed = trainer(make(seed=4, initial=initial), tmp_path, **EVERY_TWO)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(flat(resumed.model), flat(uninterrupted.model))
    # Another decomposition leaves another residual, on which the trained factors are wrong.
    with pytest.raises(BALoraError, match=r"checkpoint-2 was trained on other weights than these: .* differs"):
        trainer(make(seed=4), tmp_path, **EVERY_TWO).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# Within an epoch transformers alone would train beyond the last step; at the end of an epoch it would not.
@pytest.mark.parametrize(
    "length",
    [{"max_steps": 6, "rows": token_rows(64)}, {"max_steps": -1, "num_train_epochs": 1, "rows": token_rows(24)}],
    ids=["within an epoch", "at its end"],
)
def test_a_run_stopped_after_its_last_step_takes_no_further_step(length, tmp_path):
    settings = {**EVERY_TWO, **length, "lr_scheduler_type": "constant"}
    first = trainer(pissa(tiny_llama), tmp_path, **settings)
    first.train()
    again = trainer(pissa(tiny_llama), tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert first.state.global_step == again.state.global_step == 6
    assert torch.equal(flat(again.model), flat(first.model))
    assert ckpt.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-6"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Train a short run with checkpoints at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    trainer(pissa(tiny_llama), folder, **EVERY_TWO).train()
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """Return a copy of the run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(folder: Path, model=None, step: int = 4) -> None:
    model = pissa(tiny_llama) if model is None else model
    trainer(model, folder, **EVERY_TWO).train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: pissa(lambda: tiny_llama(seed=1)),
        lambda: balora.adapt(tiny_llama(), method="lora", rank=4),
        lambda: pissa(tiny_llama, rank=5),
        lambda: pissa(tiny_llama, alpha=8),
        lambda: pissa(tiny_llama, target_modules=["q_proj"]),
        lambda: pissa(lambda: tiny_llama(layers=3)),
    ],
    ids=["weights", "method", "rank", "alpha", "targets", "layers"],
)
def test_a_checkpoint_for_other_weights_is_refused(make, folder):
    model = make()
    before = flat(model)
    with pytest.raises(
        BALoraError, match=r"checkpoint-4 was trained on other weights than these: .* differs\. Use the same"
    ):
        resume(folder, model)
    assert torch.equal(flat(model), before), "and nothing is loaded"


def test_one_changed_frozen_weight_is_refused(folder):
    model = pissa(tiny_llama)
    with torch.no_grad():
        model.get_parameter("base_model.model.model.layers.1.mlp.up_proj.base_layer.weight")[0, 0] += 0.05
    with pytest.raises(BALoraError, match=r"layers\.1\.mlp\.up_proj\.base_layer\.weight differs"):
        resume(folder, model)


FILES = (
    "adapter_model.safetensors",
    "initial.safetensors",
    "origin.json",
    "optimizer.pt",
    "trainer_state.json",
    "rng_state.pth",
)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused_by_name(name, folder):
    path = folder / "checkpoint-4" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        BALoraError, match=rf"{path} is not as it was written\. Delete .*checkpoint-4 to resume from the"
    ):
        resume(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(name, folder):
    path = folder / "checkpoint-4" / name
    path.unlink()
    with pytest.raises(BALoraError, match=rf"{path} is missing"):
        resume(folder)


def test_a_truncated_file_is_refused_by_name(folder):
    path = folder / "checkpoint-4" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BALoraError, match=rf"{path} is not as it was written"):
        resume(folder)


def test_weights_without_optimizer_can_be_read_but_not_resumed(tmp_path):
    run = trainer(pissa(tiny_llama), tmp_path, **EVERY_TWO, save_only_model=True)
    run.train()
    with pytest.raises(
        BALoraError, match=r"checkpoint-4 lacks the optimizer's and the scheduler's state \(.*another output"
    ):
        resume(tmp_path)
    model = pissa(tiny_llama)
    ckpt.check_manifest(tmp_path / "checkpoint-6")
    load_trainable(model, ckpt.read_trained(tmp_path / "checkpoint-6", model))
    assert torch.equal(flat(model), flat(run.model))


def test_a_broken_or_missing_manifest_is_refused(folder):
    manifest = folder / "checkpoint-4" / ckpt.MANIFEST
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(BALoraError, match=rf"{manifest} is (missing|damaged)"):
        resume(folder)
    manifest.unlink()
    with pytest.raises(BALoraError, match=r"checkpoint-4 is not a checkpoint that balora wrote"):
        resume(folder)


# -- content of a checkpoint --------------------------------------------------------------------------------------------


def test_a_checkpoint_has_the_files_of_a_resume_and_no_pickled_arguments(finished):
    names = {p.name for p in (finished / "checkpoint-4").iterdir()}
    assert {*FILES, "adapter_config.json", "scheduler.pt", ckpt.MANIFEST} <= names
    assert "training_args.bin" not in names
    assert json.loads((finished / "checkpoint-4" / ckpt.MANIFEST).read_text()).keys() == names - {ckpt.MANIFEST}
    assert not (finished / ckpt.STAGING).exists()


def test_a_checkpoint_has_the_initial_weights_of_the_run(finished):
    initial = ckpt.read_initial_weights(finished / "checkpoint-4")
    model = pissa(tiny_llama)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert initial.values.keys() == trained.keys()
    for name, value in trained.items():
        assert torch.equal(initial.values[name], value)
    assert initial.metadata["method"] == "pissa" and initial.metadata["options"]["svd"] == "auto"
    assert initial.frozen.keys() == {name for name, p in model.named_parameters() if not p.requires_grad}


def test_full_fine_tuning_stores_no_second_copy_of_the_model(tmp_path):
    trainer(adapter(lambda: tiny_bert(), "full"), tmp_path, rows=labelled_rows(), config=FEATURES, **EVERY_TWO).train()
    initial = ckpt.read_initial_weights(tmp_path / "checkpoint-2")
    assert initial.values.keys() == {"classifier.weight", "classifier.bias"}, (
        "only what a fresh load does not give back"
    )
    assert "bert.pooler.dense.weight" in initial.frozen


def test_unused_heads_are_not_fingerprinted():
    model = balora.adapt(tiny_bert(), rank=4)
    names = ckpt.initial_weights_of(model, {n: p for n, p in model.named_parameters() if p.requires_grad}).frozen
    assert any("pooler" in name for name in names)
    assert not any("original_module" in name for name in names)


def test_peft_refuses_factors_for_residual_weights_with_advice(finished, tmp_path):
    with pytest.raises(ValueError, match=r"balora export RUN --to lora"):
        PeftModel.from_pretrained(tiny_llama(), finished / "checkpoint-4")
    # The factors of method lora are trained on the pre-trained weights, so they need no guard.
    run = trainer(adapter(tiny_llama, "lora"), tmp_path, **EVERY_TWO)
    run.train()
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "checkpoint-6")
    tokens = torch.arange(4, 12)[None]
    torch.testing.assert_close(loaded(tokens).logits, run.model.eval()(tokens).logits, atol=1e-6, rtol=1e-5)


def test_save_model_writes_the_guard_too(tmp_path):
    run = trainer(pissa(tiny_llama), tmp_path / "run")
    run.save_model(str(tmp_path / "saved"))
    assert (
        json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["init_lora_weights"]
        == RESIDUAL_ADAPTER_MARKER
    )
    assert not (tmp_path / "saved" / "training_args.bin").exists()


# -- rotation and the best checkpoint -------------------------------------------------------------------------------------


def test_saved_files_have_the_permissions_of_the_umask_and_others_keep_theirs(tmp_path):
    own = tmp_path / "notes.txt"
    own.touch(mode=0o600)
    before = os.umask(0o022)
    try:
        trainer(pissa(tiny_llama), tmp_path, max_steps=1).save_model()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.pop(own.name) == 0o600
    assert "adapter_model.safetensors" in modes
    assert set(modes.values()) == {0o644}, modes


def test_save_total_limit_is_kept(tmp_path):
    trainer(pissa(tiny_llama), tmp_path, **EVERY_TWO, save_total_limit=2).train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6"]


def scored(folder: Path, scores: list[float], **changes):
    """Train a run whose evaluations give these scores; return it with the weights at each step."""
    given, weights = iter(scores), {}
    run = trainer(
        pissa(tiny_llama), folder, **EVERY_TWO, load_best_model_at_end=True, eval_strategy="steps", eval_dataset=token_rows(4),
        metric_for_best_model="score", compute_metrics=lambda _: {"score": next(given)}, **changes,
    )  # fmt: skip
    for step in range(1, 7):
        run.add_callback(Do("on_step_end", step, lambda step=step: weights.update({step: flat(run.model)})))
    run.train()
    return run, weights


def test_the_best_checkpoint_is_kept_and_loaded_at_the_end(tmp_path):
    run, weights = scored(tmp_path, [1.0, 5.0, 2.0], eval_steps=2, save_total_limit=1)
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert torch.equal(flat(run.model), weights[4]) and not torch.equal(weights[4], weights[6])
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-4"), "not where it was written at first"
    ckpt.check_manifest(tmp_path / "checkpoint-4")


def test_the_best_checkpoint_is_the_best_that_was_saved(tmp_path):
    # The evaluation at step 3 is the best, and there is no checkpoint of it.
    run, weights = scored(tmp_path, [1.0, 2.0, 9.0, 3.0, 3.0, 3.0], eval_steps=1)
    assert run.state.best_global_step == 3
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert torch.equal(flat(run.model), weights[2])


def test_a_resumed_run_knows_the_best_checkpoint(tmp_path):
    scored(tmp_path, [5.0, 1.0, 2.0], eval_steps=2)
    shutil.rmtree(tmp_path / "checkpoint-6")
    given = iter([3.0])
    run = trainer(
        pissa(tiny_llama), tmp_path, **EVERY_TWO, load_best_model_at_end=True, eval_strategy="steps", eval_dataset=token_rows(4),
        metric_for_best_model="score", compute_metrics=lambda _: {"score": next(given)}, eval_steps=2, save_total_limit=1,
    )  # fmt: skip
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def resumed_with_the_best(folder: Path, scores: list[float]):
    given = iter(scores)
    run = trainer(
        pissa(tiny_llama), folder, **EVERY_TWO, load_best_model_at_end=True, eval_strategy="steps", eval_dataset=token_rows(4),
        metric_for_best_model="score", compute_metrics=lambda _: {"score": next(given)}, eval_steps=2, save_total_limit=2,
    )  # fmt: skip
    run.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    return run


@pytest.mark.parametrize("old_stays", [False, True], ids=["moved", "copied"])
def test_a_moved_run_ends_with_its_best_model(old_stays, tmp_path):
    _, weights = scored(tmp_path / "old", [5.0, 1.0, 2.0], eval_steps=2)
    shutil.rmtree(tmp_path / "old" / "checkpoint-6")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    if not old_stays:
        shutil.rmtree(tmp_path / "old")
    run = resumed_with_the_best(tmp_path / "new", [3.0])
    assert run.state.best_model_checkpoint == str(tmp_path / "new" / "checkpoint-2")
    assert torch.equal(flat(run.model), weights[2]) and not torch.equal(weights[2], weights[6])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["checkpoint-2", "checkpoint-6"]
    state = json.loads((tmp_path / "new" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "new" / "checkpoint-2")


def test_a_relative_output_resumes_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scored(Path("run"), [5.0, 1.0, 2.0], eval_steps=2)
    shutil.rmtree("run/checkpoint-6")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = resumed_with_the_best(Path("../run"), [3.0])
    assert run.state.best_model_checkpoint == "../run/checkpoint-2"
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_a_resume_that_needs_a_missing_best_checkpoint_is_refused(tmp_path):
    scored(tmp_path, [5.0, 1.0, 2.0], eval_steps=2)
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(
        BALoraError, match=r"checkpoint-2 is missing: it is the best model so far.* choose another output"
    ):
        resumed_with_the_best(tmp_path, [3.0])
    resume(tmp_path)  # which does not end with the best


# -- a full disk --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_size_limit(size: int):
    """Make writes beyond ``size`` bytes fail, as on a full disk but with another errno."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# At these sizes the adapter's config, its weights, and the optimizer's archive in three places cannot be written.
@pytest.mark.parametrize("size", [500, 9_000, 20_000, 30_000, 45_000, 53_000])
def test_a_full_disk_is_reported_and_leaves_the_earlier_checkpoint_intact(size, tmp_path):
    run = trainer(pissa(tiny_llama), tmp_path, **EVERY_TWO)
    run.remove_callback(PrinterCallback)  # what pytest captures is a file too
    limits = contextlib.ExitStack()
    run.add_callback(Do("on_save", 2, lambda: limits.enter_context(file_size_limit(size))))
    with limits, pytest.raises(BALoraError) as caught:
        run.train()
    message = str(caught.value)
    assert message.startswith(f"Saving into {tmp_path} failed: ")
    assert f"The last complete checkpoint is {tmp_path / 'checkpoint-2'}. Free some space and run the same" in message
    assert "\n" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2"]
    ckpt.check_manifest(tmp_path / "checkpoint-2")


def test_a_bug_while_saving_is_not_reported_as_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), ckpt.staged(tmp_path) as staging:
        (staging / "half").mkdir()
        raise RuntimeError("a bug")
    assert list(tmp_path.iterdir()) == []


# -- functions ----------------------------------------------------------------------------------------------------------


def test_a_staged_directory_gets_a_manifest_and_replaces_the_old_one(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").write_text("old")
    with ckpt.staged(tmp_path) as staging:
        (staging / "adapter" / "deep").mkdir(parents=True)
        (staging / "adapter" / "deep" / "new").write_text("new")
        assert (tmp_path / "adapter" / "old").exists(), "the old one stays until the new one is complete"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert not (tmp_path / "adapter" / "old").exists()
    ckpt.check_manifest(tmp_path / "adapter")
    (tmp_path / "adapter" / "deep" / "new").write_text("nem")
    with pytest.raises(BALoraError, match="is not as it was written"):
        ckpt.check_manifest(tmp_path / "adapter")


def test_the_staging_directory_of_a_killed_process_is_deleted(tmp_path):
    (tmp_path / ckpt.STAGING / "checkpoint-9").mkdir(parents=True)
    ckpt.discard_staging(tmp_path)
    ckpt.discard_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ckpt.STAGING / "checkpoint-9").mkdir(parents=True)
    with ckpt.staged(tmp_path) as staging:
        (staging / "checkpoint-10").mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-10"]


def test_the_newest_checkpoint_has_the_highest_step(tmp_path):
    assert ckpt.newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "checkpoint-x", "old-checkpoint-999"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-1000").write_text("a file")
    assert ckpt.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert ckpt.newest_checkpoint(tmp_path / "nowhere") is None


def test_damaged_tensors_are_refused_by_name(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (None, b"", b"nonsense" * 20):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BALoraError, match=f"{path} is (missing|damaged)"):
            ckpt.read_tensors(path)
