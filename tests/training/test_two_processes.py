"""Data parallelism: two processes on the CPU (gloo) equal one process that accumulates twice (method.md, departure 7)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import two_processes
from balora.checkpoints import checkpoint as ckpt
from processes import run_script

GLOBAL = ("global generation", "global classification", "global features")
RUNS = ("generation", "full", "classification", "fitted head", *two_processes.HELD, *GLOBAL)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("two")
    run_script(Path(two_processes.__file__), str(folder))
    return {**json.loads((folder / "report.json").read_text()), "path": folder}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_gradients_of_one_that_accumulates(name, report):
    assert report[name]["gradient"] <= 1e-5
    assert report[name]["weights"] <= 1e-5
    assert report[name]["ranks"] == 0.0


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_log_the_same_as_one(name, report):
    one, first, second = report[name]["logged"]
    assert first == second
    for key, values in one.items():
        assert first[key] == pytest.approx(values, rel=1e-5, abs=1e-7), key
    assert one["loss"] and one["eval_loss"]


@pytest.mark.parametrize("name", GLOBAL)
def test_global_statistics_are_those_of_the_batch_on_all_processes(name, report):
    one, first, _ = report[name]["logged"]
    terms = [
        "consistency",
        "diversity",
        "spectral",
        *([] if name == "global generation" else ["variance", "logit_variance"]),
    ]
    for term in terms:
        assert len(first[term]) == 1 and first[term] == pytest.approx(one[term], rel=1e-5), term


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_write_one_complete_checkpoint(name, report):
    assert report[name]["folder"] == ["checkpoint-3"], (
        "the earlier checkpoint is deleted, and no staging directory is left"
    )
    folder = report["path"] / "two" / name / "checkpoint-3"
    ckpt.check_manifest(folder)
    assert {"rng_state_0.pth", "rng_state_1.pth", ckpt.INITIAL, ckpt.ORIGIN} <= {p.name for p in folder.iterdir()}


def test_a_signal_to_one_process_stops_both_after_the_same_step(report):
    assert report["stops"] == [2, 2]
    assert report["stopped"] == ["checkpoint-2"]
    ckpt.check_manifest(report["path"] / "stopped" / "checkpoint-2")
