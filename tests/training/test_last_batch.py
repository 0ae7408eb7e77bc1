"""The last batch of an epoch: rows that accelerate repeats to fill it do not count, and eval_loss is a mean over targets."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import uneven_processes
from balora.training.distributed.repeated_rows import num_real_rows, num_sampled_rows
from processes import run_script
from small_runs import trainer
from tiny import labelled_rows, tiny_bert, tiny_llama, token_rows
from two_processes import adapted


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("uneven")
    run_script(Path(uneven_processes.__file__), str(folder))
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("name", [n for n in uneven_processes.RUNS if n != "subsampled"])
def test_the_incomplete_last_batch_of_two_processes_has_the_gradient_of_one_process(name, report):
    assert report[name]["last"] <= 1e-5
    assert report[name]["weights"] <= 1e-5


def test_subsampled_rows_stay_equal_in_all_processes(report):
    assert report["subsampled"]["ranks"] == 0.0  # each process draws other rows than a single process would


@pytest.mark.parametrize("name", [n for n in uneven_processes.RUNS if n != "subsampled"])
def test_losses_do_not_depend_on_processes_and_batch_sizes(name, report):
    one, two = report[name]["logged"]
    assert len(one["eval_loss"]) == 3
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)
    assert two["task"] == pytest.approx(one["task"], rel=1e-5)


@pytest.mark.parametrize("name", uneven_processes.RESUMED)
def test_a_resume_before_the_last_batch_is_exact(name, report):
    assert report[name]["resumed"] == 0.0


@pytest.mark.parametrize(("make", "rows"), [(tiny_llama, token_rows), (tiny_bert, labelled_rows)])
def test_eval_loss_is_the_same_for_every_batch_size(make, rows, tmp_path):
    losses = [
        trainer(
            adapted(make), tmp_path, rows=rows(8), eval_dataset=rows(7), per_device_eval_batch_size=size
        ).evaluate()["eval_loss"]
        for size in (1, 3, 7)
    ]
    assert losses[1:] == pytest.approx(losses[:2], rel=1e-6)


def accelerator(rank: int, *, end: bool = True, processes: int = 2, even: bool = True) -> SimpleNamespace:
    loader = SimpleNamespace(_drop_last=False)
    state = SimpleNamespace(end_of_dataloader=end, remainder=-1, active_dataloader=loader)
    return SimpleNamespace(num_processes=processes, process_index=rank, even_batches=even, gradient_state=state)


def test_real_rows_are_the_first_of_the_round():
    assert [num_real_rows(accelerator(rank), 13, 4, 4) for rank in (0, 1)] == [4, 1]
    assert [num_real_rows(accelerator(rank), 9, 4, 4) for rank in (0, 1)] == [1, 0]
    assert num_real_rows(accelerator(1), 16, 4, 4) is None, "no row is repeated"
    assert num_real_rows(accelerator(1, end=False), 9, 4, 4) is None, "not the last batch"
    assert num_real_rows(accelerator(0, processes=1), 9, 4, 4) is None
    assert num_real_rows(accelerator(1, even=False), 9, 4, 4) is None
    assert num_real_rows(accelerator(1), 9, 1, 4) is None, "a collator that concatenates rows"
    assert num_real_rows(accelerator(1), None, 4, 4) is None, "a dataset of unknown length"
    assert num_sampled_rows(object()) is None
