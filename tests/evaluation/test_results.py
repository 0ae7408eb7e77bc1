"""The journal: it resumes, refuses samples of other settings, and survives a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora import BALoraError
from balora.checkpoints.lock import locked
from balora.evaluation.results import Journal


def test_a_reopened_journal_has_all_records(tmp_path: Path) -> None:
    first = Journal(tmp_path, "gsm8k", {"model": "a"})
    first.add("0", output="18")
    first.add("1", output="3")
    first.add("0", correct=True)
    second = Journal(tmp_path, "gsm8k", {"model": "a"})
    assert second.records == {"0": {"output": "18", "correct": True}, "1": {"output": "3"}}
    assert second.missing(["0", "1", "2"], "correct") == ["1", "2"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0c", "\r"])
def test_an_answer_may_contain_line_separators(tmp_path: Path, character: str) -> None:
    Journal(tmp_path, "gsm8k", {"model": "a"}).add("0", output=f"a{character}b")
    assert Journal(tmp_path, "gsm8k", {"model": "a"}).records == {"0": {"output": f"a{character}b"}}


def test_a_journal_of_another_model_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, "gsm8k", {"model": "a", "data": "d"}).add("0", output="18")
    with pytest.raises(BALoraError, match=r"another model\. Choose another output"):
        Journal(tmp_path, "gsm8k", {"model": "b", "data": "d"})


def test_an_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "gsm8k", {"model": "a"})
    journal.add("0", output="18")
    with journal.path.open("a") as file:
        file.write('{"id": "1", "outp')
    again = Journal(tmp_path, "gsm8k", {"model": "a"})
    assert list(again.records) == ["0"]
    again.add("1", output="3")
    assert list(Journal(tmp_path, "gsm8k", {"model": "a"}).records) == ["0", "1"]


def test_an_incomplete_first_line_starts_a_new_journal(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.samples.jsonl").write_text('{"identi')
    journal = Journal(tmp_path, "gsm8k", {"model": "a"})
    journal.add("0", output="18")
    assert list(Journal(tmp_path, "gsm8k", {"model": "a"}).records) == ["0"]


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "gsm8k", {"model": "a"})
    with journal.path.open("a") as file:
        file.write("not json\n")
    with pytest.raises(BALoraError, match=r"gsm8k\.samples\.jsonl is damaged"):
        Journal(tmp_path, "gsm8k", {"model": "a"})


def test_the_result_has_scored_samples_and_provenance(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "gsm8k", {"model": "a"})
    for number in range(3):
        journal.add(str(number), output=str(number))
    journal.finish(["0", "1"], {"accuracy": float("nan")}, {"data": "test.jsonl"})
    result = json.loads((tmp_path / "gsm8k.json").read_text())
    assert [sample["id"] for sample in result["samples"]] == ["0", "1"]
    assert result["scores"] == {"accuracy": None}
    assert result["data"] == "test.jsonl" and result["provenance"]["versions"]["torch"]


def test_two_processes_cannot_write_one_directory(tmp_path: Path) -> None:
    with locked(tmp_path, "Another process writes results"), pytest.raises(BALoraError, match="Another process"):
        locked(tmp_path, "Another process writes results").__enter__()
    with locked(tmp_path, "Another process writes results"):
        pass
