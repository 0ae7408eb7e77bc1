"""Bad input: the command exits with status 2 and one message that names the mistake, and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from balora.config.run_config import load_run_config
from balora.training import run as run_module
from balora.training.run import training_arguments
from tiny import tiny_llama

UNTOUCHED = "nothing was written"


def refused(outcome, *words: str) -> None:
    """Check that the command stopped with a message and without a traceback."""
    assert outcome.status == 2, outcome.err
    assert outcome.err.startswith("balora: ")
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("methd.rank=4", ["methd", "Did you mean 'method'"]),
        ("regularization.consistancy=0.1", ["regularization.consistancy", "'consistency'"]),
        ("training.learning_rat=0.1", ["training.learning_rat", "'learning_rate'"]),
        ("method.rank=0", ["method.rank"]),
        ("method.rank=17", ["Rank 17", "16 × 32", "at most 16"]),
        ("method.name=lorra", ["lorra", "'lora'"]),
        ("method.target_modules=[qproj]", ["qproj", "q_proj"]),
        ("regularization.spectral=-1", ["regularization.spectral", "at least 0"]),
        ("regularization.temperature=0", ["regularization.temperature", "above 0"]),
        ("regularization.top_k=1", ["regularization.top_k", "at least 2"]),
        ("data.prompt=questoin", ["questoin", "question", "answer"]),
        ("data.max_length=4", ["max_length", "24"]),
        ("model=no/such/folder", ["no/such/folder"]),
        ("data.train=absent.jsonl", ["absent.jsonl"]),
        ("training.batch_eval_metrics=true", ["training.batch_eval_metrics cannot be true", "leave it out"]),
        ("training.eval_do_concat_batches=false", ["training.eval_do_concat_batches cannot be false", "leave it out"]),
    ],
)
def test_a_wrong_value_is_named(balora, config: Path, tmp_path: Path, override: str, words: list[str]) -> None:
    refused(balora("train", config, override), *words)
    assert not (tmp_path / "run").exists(), UNTOUCHED


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr_scheduler_kwargs={nonsense: 1}", ["lr_scheduler_kwargs", "nonsense"]),
        ("lr_scheduler_kwargs=nonsense", ["lr_scheduler_kwargs must be a section"]),
        ("lr_scheduler_type=cosine_with_min_lr", ["lr_scheduler_kwargs", "min_lr"]),
        ("optim_args=nonsense", ["optim_args", "key=value"]),
        ("accelerator_config={a: 1}", ["training section", "'a'"]),
        ("accelerator_config=absent.json", ["training section", "absent.json"]),
        ("torch_compile_backend=nope", ["torch_compile_backend", "NOPE"]),
        ("report_to=nonsense", ["report_to", "nonsense", "tensorboard"]),
        ("log_level=loud", ["log_level must be one of", "loud"]),
        ("include_num_input_tokens_seen=nonsense", ["include_num_input_tokens_seen must be one of"]),
        ("dataloader_multiprocessing_context=zzz", ["dataloader_multiprocessing_context must be one of"]),
        ("dataloader_multiprocessing_context=spawn", ["dataloader_multiprocessing_context needs", "num_workers"]),
        ("dataloader_prefetch_factor=9000000000000000000", ["dataloader_prefetch_factor must be at most"]),
    ],
)
def test_a_value_that_transformers_refuses_late_is_named_at_once(
    balora, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, words: list[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # transformers sets it, and it would stay
    refused(balora("train", config, f"training.{override}"), *words)
    assert not (tmp_path / "run").exists(), UNTOUCHED
    assert balora("validate", config, f"training.{override}").status == 2


def test_an_output_that_cannot_be_written_is_named_by_train_validate_and_teacher(
    balora, config: Path, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = f"output={train_file / 'run'}"
    refused(balora("train", config, inside), f"{train_file} is a file", "Choose another output")
    assert f"{train_file} is a file" in balora("validate", config, inside).out
    monkeypatch.setattr(
        "balora.checkpoints.lock.os.access", lambda path, mode: path != tmp_path
    )  # root can write everywhere
    refused(balora("train", config), f"{tmp_path} is read-only", "Choose another output")
    cache = tmp_path / "cache"
    refused(balora("teacher", config, f"teacher_cache={cache}"), f"{tmp_path} is read-only", "another teacher_cache")
    assert not cache.exists() and not (tmp_path / "run").exists(), UNTOUCHED


@pytest.mark.parametrize(
    "name", ["max_steps", "num_train_epochs", "per_device_train_batch_size", "learning_rate", "logging_steps"]
)
def test_a_training_key_left_empty_means_its_default(config: Path, name: str) -> None:
    given = load_run_config(config, [f"training.{name}="]).training
    assert name not in given
    training_arguments(load_run_config(config, [f"training.{name}=", "training.use_cpu=true"]))


def test_a_missing_config_is_named(balora, tmp_path: Path) -> None:
    refused(balora("train", tmp_path / "absent.yaml"), "absent.yaml")


def test_a_hub_id_without_network_is_named(balora, config: Path) -> None:
    refused(balora("train", config, "model=somebody/some-model"), "somebody/some-model")
    refused(balora("train", config, "data.train=somebody/some-data"), "somebody/some-data")


def test_an_empty_file_is_named(balora, config: Path, train_file: Path) -> None:
    train_file.write_text("")
    refused(balora("train", config), train_file.name, "empty")


def test_a_broken_line_is_named(balora, config: Path, train_file: Path) -> None:
    lines = train_file.read_text().splitlines()
    train_file.write_text("\n".join([*lines[:2], '{"question": "x', *lines[2:]]))
    refused(balora("train", config), train_file.name, "3")


def test_a_label_outside_the_known_set_is_named(balora, config: Path, tmp_path: Path) -> None:
    rows = tmp_path / "labels.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"row {i}", "label": "odd" if i % 2 else "even"}) + "\n" for i in range(8))
    )
    data = f"data={{train: '{rows}', text: text, label: label, labels: [even, uneven]}}"
    refused(balora("train", config, "task=classification", data), "odd", "uneven")


@pytest.mark.parametrize("length", ["max_steps=3", "num_train_epochs=2"])
def test_a_run_without_a_step_is_refused_before_it_starts(balora, config: Path, tmp_path: Path, length: str) -> None:
    settings = (f"training.{length}", "training.per_device_train_batch_size=32", "training.dataloader_drop_last=true")
    if length != "max_steps=3":
        settings += ("training.max_steps=-1",)
    words = ("no step", "24 training rows", "takes 32", "dataloader_drop_last")
    refused(balora("train", config, *settings), *words)
    outcome = balora("validate", config, *settings)
    assert outcome.status == 2
    for word in words:
        assert word in outcome.out
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten(balora, config: Path, tmp_path: Path) -> None:
    assert balora("train", config).status == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    refused(balora("train", config), "finished run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.fixture
def interrupted(balora, config: Path, tmp_path: Path) -> Path:
    """Run directory of a run that was killed after a checkpoint."""
    run = tmp_path / "run"
    assert balora("train", config).status == 0
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoint-6")
    (run / "run.json").write_text('{"status": "running"}')
    return run


def test_resuming_with_another_config_is_refused(balora, config: Path, interrupted: Path) -> None:
    refused(balora("train", config, "training.learning_rate=0.5"), "training.learning_rate")


def test_a_damaged_checkpoint_is_refused(balora, config: Path, interrupted: Path) -> None:
    weights = interrupted / "checkpoint-4" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(balora("train", config), "adapter_model.safetensors", "checkpoint-4")


def test_a_missing_checkpoint_file_is_refused(balora, config: Path, interrupted: Path) -> None:
    (interrupted / "checkpoint-4" / "optimizer.pt").unlink()
    refused(balora("train", config), "optimizer.pt", "checkpoint-4")


def test_a_checkpoint_without_optimizer_state_is_refused(balora, config: Path, tmp_path: Path) -> None:
    assert balora("train", config, "training.save_only_model=true").status == 0
    (tmp_path / "run" / "run.json").write_text('{"status": "running"}')
    refused(balora("train", config, "training.save_only_model=true"), "optimizer", "save_only_model", "another output")
    assert (tmp_path / "run" / "run.json").read_text() == '{"status": "running"}', "nothing is changed"


def test_resuming_on_other_base_weights_is_refused(balora, config: Path, interrupted: Path, model_dir: Path) -> None:
    tiny_llama(seed=1).save_pretrained(model_dir)
    refused(balora("train", config), "other weights")


def test_resuming_on_other_rows_is_refused(balora, config: Path, tmp_path: Path, train_file: Path, monkeypatch) -> None:
    started = {}
    with monkeypatch.context() as patched:
        keep = lambda *args, **_: started.update(json.loads((tmp_path / "run" / "run.json").read_text()))  # noqa: E731
        patched.setattr(run_module, "save_result", keep)
        assert balora("train", config).status == 0
    assert started["status"] == "running" and started["data"]["digest"], (
        "recorded at the start, so that it survives a kill"
    )
    (tmp_path / "run" / "run.json").write_text(json.dumps(started))
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    rows = train_file.read_text()
    train_file.write_text(rows.replace("plus", "and"))
    refused(balora("train", config), "other data", "another output")
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == started
    train_file.write_text(rows)
    assert "Resuming" in balora("train", config).out


def test_an_interrupted_run_is_resumed(balora, config: Path, interrupted: Path) -> None:
    outcome = balora("train", config)
    assert outcome.status == 0, outcome.err
    assert "Resuming" in outcome.out
    assert (interrupted / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "setting", ["training.eval_strategy=no", "training.eval_strategy=epoch", "training.eval_on_start=true"]
)
def test_a_resume_after_the_last_step_logs_nothing_twice(balora, config: Path, tmp_path: Path, setting: str) -> None:
    run, settings = tmp_path / "run", ("data.eval=0.25", setting)

    def lines() -> list[tuple[int, tuple[str, ...]]]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(row["step"], tuple(sorted(row))) for row in rows]

    assert balora("train", config, *settings).status == 0
    before = lines()
    for _ in range(2):
        (run / "run.json").write_text('{"status": "running"}')
        outcome = balora("train", config, *settings)
        assert outcome.status == 0 and "Resuming" in outcome.out, outcome.err
        after = lines()
        # The end of an epoch that was cut short is evaluated once, not again for the epoch and the run.
        assert set(after) == set(before) and len(after) == len(before) - ("epoch" in setting)
    shutil.rmtree(run)
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        '{"step": 0, "eval_loss": 9.0}\n'
    )  # left by a run killed before its first checkpoint
    (run / "run.json").write_text('{"status": "running"}')
    assert balora("train", config, *settings).status == 0
    assert lines() == before


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_of_the_umask(balora, config: Path, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert balora("teacher", config, f"teacher_cache={tmp_path / 'cache'}").status == 0
        assert balora("train", config).status == 0
        run = tmp_path / "run"
        for to in ("lora", "merged"):
            outcome = balora("export", run, "--to", to, "--output", tmp_path / to)
            assert outcome.status == 0, outcome.err
    finally:
        os.umask(before)
    files = [
        path for name in ("cache", "run", "lora", "merged") for path in (tmp_path / name).rglob("*") if path.is_file()
    ]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777) for path in files} == {
        str(path.relative_to(tmp_path)): oct(0o666 & ~mask) for path in files
    }


def test_weights_in_pickle_form_are_refused(balora, config: Path, model_dir: Path) -> None:
    weights = model_dir / "model.safetensors"
    torch.save(tiny_llama().state_dict(), model_dir / "pytorch_model.bin")
    weights.unlink()
    refused(balora("train", config), "allow_pickle")


def test_remote_code_is_refused(balora, config: Path, model_dir: Path) -> None:
    path = model_dir / "config.json"
    values = json.loads(path.read_text())
    values["model_type"] = "strange"
    values["auto_map"] = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    path.write_text(json.dumps(values))
    refused(balora("train", config), "trust_remote_code")


def test_a_damaged_model_is_named(balora, config: Path, model_dir: Path) -> None:
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(balora("train", config), str(model_dir))


def test_a_missing_pad_token_is_replaced_and_reported(balora, config: Path, model_dir: Path, caplog) -> None:
    path = model_dir / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["pad_token"]
    path.write_text(json.dumps(values))
    outcome = balora("train", config)
    assert outcome.status == 0, outcome.err
    assert "pad" in outcome.err + outcome.out + caplog.text


def test_validate_lists_all_problems_at_once(balora, config: Path) -> None:
    outcome = balora("validate", config, "method.rank=17", "data.prompt=questoin")
    assert outcome.status == 2
    assert "Rank 17" in outcome.out
    assert "questoin" in outcome.out


def test_validate_estimates(balora, config: Path, tmp_path: Path) -> None:
    outcome = balora("validate", config)
    assert outcome.status == 0, outcome.out + outcome.err
    assert "trainable parameters" in outcome.out
    assert "optimizer steps       6" in outcome.out
    assert not (tmp_path / "run").exists(), UNTOUCHED
