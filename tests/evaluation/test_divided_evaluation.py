"""Several processes answer the rows of an evaluation: the result is that of one process, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import divided_cases
import launched
from balora import turns
from balora.evaluation import results
from balora.evaluation.engines.transformers import own_batches
from balora.evaluation.results import Journal
from balora.training.distributed.joined import own_device


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_answer_the_batches_of_one_process(processes, monkeypatch):
    limits = [9, 9, 9, 9, 9, 4, 4, 4]

    def next_batch(left: list[int]) -> list[int]:
        return [index for index in left[:2] if limits[index] == limits[left[0]]]

    def batches_of(order: list[int]) -> list[list[int]]:
        found = []
        while order:
            found.append(next_batch(order))
            order = order[len(found[-1]) :]
        return found

    alone = batches_of(list(range(8)))
    divided = []
    for rank in range(processes):
        monkeypatch.setattr("balora.evaluation.engines.transformers.division", lambda rank=rank: (rank, processes))
        divided += batches_of(own_batches(list(range(8)), next_batch))
    assert sorted(divided) == sorted(alone)


def test_the_parts_of_an_interrupted_evaluation_are_added_to_the_journal(tmp_path: Path):
    for part, sample in ((0, "0"), (1, "1"), (2, "2")):
        Journal(tmp_path, "gsm8k", {"model": "m"}, part).add(sample, output=f"answer {sample}")
    journal = Journal.divided(tmp_path, "gsm8k", lambda: {"model": "m"})
    assert journal.missing(["0", "1", "2", "3"], "output") == ["3"]
    assert [path.name for path in tmp_path.iterdir()] == ["gsm8k.samples.jsonl"]
    assert Journal(tmp_path, "gsm8k", {"model": "m"}).records["2"] == {"output": "answer 2"}


def test_a_part_of_another_model_is_refused_and_kept(tmp_path: Path):
    Journal(tmp_path, "gsm8k", {"model": "other"}, 1).add("1", output="x")
    with pytest.raises(results.BALoraError, match="another model"):
        Journal.divided(tmp_path, "gsm8k", lambda: {"model": "m"})
    assert (tmp_path / "gsm8k.samples.part-1.jsonl").is_file()


def test_all_processes_get_all_samples_and_the_first_writes_them(tmp_path: Path, monkeypatch):
    journals = [Journal(tmp_path, "t", {}, part) for part in (0, 1)]
    for number, journal in enumerate(journals):
        journal.add(str(number), output=number)
    parts = [list(journal._own) for journal in journals]
    monkeypatch.setattr(results, "together", lambda value: parts)
    monkeypatch.setattr(results, "from_first", lambda make: make())
    for rank, journal in enumerate(journals):
        monkeypatch.setattr(results, "division", lambda rank=rank: (rank, 2))
        journal.exchange()
        assert journal.records == {"0": {"output": 0}, "1": {"output": 1}}
    assert len((tmp_path / "t.samples.jsonl").read_text().splitlines()) == 3, "the identity and two samples"
    assert not journals[1].path.exists()


def test_each_process_uses_its_own_gpu(monkeypatch):
    assert own_device("cuda:1") == "cuda:1", "one process takes the device that it is given"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cpu") == "cpu"
    with pytest.raises(results.BALoraError, match="GPU of its own"):
        own_device("cuda:1")


def test_work_is_not_divided_outside_of_a_block():
    assert turns.division() == (0, 1)
    with turns.divided_among_processes():
        assert turns.by_turns(str, 3) == ["0", "1", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("divided")
    divided_cases.write_inputs(folder)
    return folder


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_and_others_continue_it(folder: Path):
    arguments = divided_cases.arguments
    assert launched.launch(*arguments(folder, "one"), processes=1).returncode == 0
    killed = launched.launch("1", "3", *arguments(folder, "two"), script=Path(divided_cases.__file__))
    assert killed.returncode != 0
    lines = [line for line in killed.stderr.splitlines() if line.startswith("balora:")]
    assert len(lines) == 1 and "Process 1 of 2" in lines[0], killed.stderr[-3000:]
    part = (folder / "two" / "gsm8k.samples.part-1.jsonl").read_text().splitlines()
    assert len(part) == 4, "the identity and three answers"
    again = launched.launch(*arguments(folder, "two"), processes=3)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "of 26 answers are there already" in again.stdout
    assert divided_cases.samples(folder, "two") == divided_cases.samples(folder, "one")


@pytest.mark.slow
def test_two_processes_predict_classes_build_a_cache_and_write_anchors(folder: Path):
    tasks = ["--tasks", "sst2", "--data", f"sst2={folder / 'sst2.jsonl'}", "--device", "cpu", "--batch-size", 4]
    sections = {"anchor": {"generate": 70, "tokens": 8}}
    for processes, name in ((1, "sst2-one"), (2, "sst2-two")):
        given = ["evaluate", folder / "classifier", *tasks, "--output", folder / name]
        done = launched.launch(*given, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        config = launched.write_config(
            folder, f"t{processes}", teacher_cache=str(folder / f"cache-{processes}"), **sections
        )
        path = folder / f"anchors-{processes}.safetensors"
        done = launched.launch("teacher", config, "--anchors", path, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    assert divided_cases.samples(folder, "sst2-two", "sst2") == divided_cases.samples(folder, "sst2-one", "sst2")
    caches = [sorted((folder / f"cache-{processes}").glob("shard-*")) for processes in (1, 2)]
    assert [path.read_bytes() for path in caches[0]] == [path.read_bytes() for path in caches[1]]
    first, second = ((folder / f"anchors-{processes}.safetensors").read_bytes() for processes in (1, 2))
    assert first == second
    assert json.loads((folder / "cache-2" / "index.json").read_text())["top_k"] == 64
