"""The processes that were asked for, and the command in two of them: train, evaluate, save, resume, load, export."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

import device_cases
import launched
from balora.checkpoints.run_directory import RECORD, RunDirectory
from balora.config.run_config import load_run_config
from balora.errors import BALoraError
from balora.training.distributed import processes
from balora.training.distributed.processes import (
    check_processes,
    check_shared_directory,
    describe_processes,
    explain,
    ignored_sharding,
    refuse_reentrant_checkpointing,
    refuse_separate_processes,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    launched.write_inputs(folder)
    return folder


@pytest.fixture
def two(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(processes.torch.accelerator, "is_available", lambda: False)


def accelerator(count: int = 2, kind=DistributedType.MULTI_CPU, **plugins) -> SimpleNamespace:
    return SimpleNamespace(num_processes=count, distributed_type=kind, state=SimpleNamespace(**plugins))


# -- their number ---------------------------------------------------------------------------------------------------------


def test_two_processes_without_an_accelerator_are_refused(two, monkeypatch):
    with pytest.raises(BALoraError, match=r"2 processes were started, and each would train alone.*use_cpu: true"):
        refuse_separate_processes({})
    refuse_separate_processes({"use_cpu": True})
    refuse_separate_processes({"deepspeed": "ds.json"})
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    refuse_separate_processes({})


def test_one_process_is_not_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    refuse_separate_processes({})
    check_processes(accelerator(1))


def test_another_number_than_accelerates_is_refused(two):
    check_processes(accelerator(2))
    with pytest.raises(BALoraError, match=r"2 processes were started \(WORLD_SIZE\), and accelerate trains with 1"):
        check_processes(accelerator(1))


def test_a_resume_with_another_number_is_refused(folder):
    directory = RunDirectory(load_run_config(launched.write_config(folder, "resumed")))
    directory.path.mkdir()
    (directory.path / RECORD).write_text(json.dumps({"processes": {"world_size": 2}}))
    directory.check_world_size(2)
    with pytest.raises(BALoraError, match=r"of 2 processes, and now there is 1: .*Start 2 to resume it"):
        directory.check_world_size(1)
    (directory.path / RECORD).write_text("{}")  # of an earlier version
    directory.check_world_size(1)


# -- how they share the model ---------------------------------------------------------------------------------------------


def test_the_record_names_the_sharding():
    fsdp = accelerator(kind=DistributedType.FSDP, fsdp_plugin=SimpleNamespace(fsdp_version=2))
    zero = accelerator(kind=DistributedType.DEEPSPEED, deepspeed_plugin=SimpleNamespace(zero_stage=2))
    assert describe_processes(fsdp)["sharding"] == "fsdp2"
    assert describe_processes(zero)["sharding"] == "zero2"
    assert describe_processes(accelerator(1)) == {"world_size": 1, "backend": None, "sharding": "none"}


def test_sharding_that_has_no_effect_is_said():
    asked = SimpleNamespace(use_cpu=True, deepspeed="ds.json", fsdp=True)
    first, second = ignored_sharding(asked, accelerator())
    assert first.startswith("training.deepspeed has no effect: accelerate does not shard on the CPU")
    assert second.startswith("training.fsdp has no effect")
    assert len(ignored_sharding(asked, accelerator(kind=DistributedType.DEEPSPEED))) == 1
    assert not ignored_sharding(SimpleNamespace(use_cpu=True, deepspeed=None, fsdp=None), accelerator())


def test_reentrant_checkpointing_is_refused_under_ddp_alone():
    asked = SimpleNamespace(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(BALoraError, match="use_reentrant: false"):
        refuse_reentrant_checkpointing(asked, accelerator())
    refuse_reentrant_checkpointing(asked, accelerator(1))
    refuse_reentrant_checkpointing(asked, accelerator(kind=DistributedType.FSDP))
    asked.gradient_checkpointing_kwargs = None
    refuse_reentrant_checkpointing(asked, accelerator())


def test_errors_of_ddp_are_explained():
    unused = RuntimeError("Expected to have finished reduction in the prior iteration before starting a new one.")
    assert "ddp_find_unused_parameters: true" in explain(unused)
    assert explain(RuntimeError("CUDA out of memory")) is None


# -- the disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([("a", "checkpoint-4", True), ("b", None, True)], r"process 1 \(on b\) sees no checkpoint where .* checkpoint-4"),
        ([("a", None, True), ("b", None, False)], r"process 1 \(on b\) does not see it\. Set output to a folder on a disk"),
        ([("a", None, True), ("b", None, True)], None),
    ],
)  # fmt: skip
def test_a_directory_that_is_not_shared_is_refused_by_name(views, message, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "gather_object", lambda own: views)
    monkeypatch.setattr(processes, "_WAIT", 0.0)
    monkeypatch.setattr(processes.torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(socket, "gethostname", lambda: "a")
    if message is None:
        check_shared_directory(tmp_path, None, "config.yaml")
        return
    with pytest.raises(BALoraError, match=message):
        check_shared_directory(tmp_path, None, "config.yaml")


# -- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_refuses_to_train_twice(folder):
    config = launched.write_config(folder, "twice", training={"use_cpu": False})
    done = launched.launch("train", config)
    lines = [line for line in done.stderr.splitlines() if line.startswith("balora:")]
    assert done.returncode != 0 and lines and all("each would train alone" in line for line in lines)
    assert not (folder / "twice").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["DDP", "FSDP2", "ZeRO-2"])
def test_the_command_gives_the_result_of_one_process(kind, folder):
    if kind.startswith("ZeRO") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    tasks, forms = ("generation",), ("anchored",)
    for each, count in (("one", 1), (kind, 2)):
        if (folder / f"{each}-{tasks[0]}-{forms[0]}").exists():  # of an earlier parameter
            continue
        names = device_cases.write_configs(folder, each, tasks, forms)
        environment = {"DS_ACCELERATOR": "cpu"} if each.startswith("ZeRO") else {}
        done = launched.launch(folder, *names, script=Path(device_cases.__file__), processes=count, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads((folder / f"{names[0]}.problems.json").read_text()) == {}
    found = device_cases.compare(folder, kind, tasks[0], forms[0])
    # The anchors' divergence is small after three steps, and its rounding large beside it.
    assert found["weights"] <= 1e-6 and found["losses"] <= 1e-4
    assert found["resumed"] == 0.0 and found["was_resumed"]
    assert found["loaded"] and found["exported"] and found["world_size"] == 2
    assert found["sharding"] == {"DDP": "none", "FSDP2": "fsdp2", "ZeRO-2": "zero2"}[kind]
