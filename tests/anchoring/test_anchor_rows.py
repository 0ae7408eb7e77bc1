from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balora.anchoring.rows import AnchorRows, collate, positions, rows_of_part, rows_per_step, split_evenly
from balora.errors import BALoraError

ROWS = [{"input_ids": [1, 2 + number, 3][: 2 + number % 2]} for number in range(10)]


def test_held_out_rows_are_never_drawn():
    rows = AnchorRows(ROWS, 0.2, seed=3)
    assert len(rows.held_out) == 2 and set(rows.held_out).isdisjoint(rows.at(0, 100))
    assert set(rows.at(0, 8)) == set(rows.train)  # a pass over all of them before one comes again


def test_draws_depend_on_the_position_alone():
    rows = AnchorRows(ROWS, 0.2, seed=3)
    assert rows.at(0, 20)[7:12] == rows.at(7, 5)
    assert rows.at(0, 20) != AnchorRows(ROWS, 0.2, seed=4).at(0, 20)


def test_saved_rows_load_as_they_were(tmp_path):
    given = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}]
    AnchorRows(given, 0.5, seed=1, facts={"source": "a"}).save(tmp_path / "a.safetensors")
    loaded = AnchorRows.load(tmp_path / "a.safetensors", 0.5, seed=1)
    assert loaded.rows == given and loaded.facts == {"source": "a"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(BALoraError, match="is not a file of anchors"):
        AnchorRows.load(tmp_path / "a.safetensors", 0.5, seed=1)


def test_one_row_is_too_few():
    with pytest.raises(BALoraError, match="At least 2 anchors"):
        AnchorRows(ROWS[:1], 0.5, seed=1)


def test_a_batch_is_padded_and_compared_where_there_are_tokens():
    batch = collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}], pad_token=0, causal=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, 9, -100]]
    assert torch.equal(collate(ROWS[:1], 0, causal=False)["input_ids"], torch.tensor([[1, 2]]))


def test_positions_are_those_with_a_next_token():
    assert positions({"input_ids": [1, 2, 3]}, causal=True) == 2
    assert positions({"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, causal=True) == 1
    assert positions({"input_ids": [1, 2, 3], "labels": [7, 8]}, causal=False) == 2


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_even_and_complete(parts):
    found = [split_evenly(list(range(5)), parts, part) for part in range(parts)]
    assert [part for parts in found for part in parts] == list(range(5)) and max(map(len, found)) - min(
        map(len, found)
    ) <= 1


def test_the_number_of_rows_does_not_depend_on_the_processes_but_each_has_one():
    assert [rows_per_step(0.25, 1200.0, 100.0, processes=n) for n in (1, 2, 4)] == [3, 3, 4]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 12))
def test_parts_of_a_step_have_each_row_once_and_no_process_waits(processes, micro_batches, more):
    rows = list(range(processes + more))
    parts = [
        [rows_of_part(rows, micro, micro_batches, process, processes) for process in range(processes)]
        for micro in range(micro_batches)
    ]
    assert sorted(row for micro in parts for own in micro for row in own) == rows
    assert all(len({bool(own) for own in micro}) == 1 for micro in parts)
    assert rows_of_part(rows, micro_batches, micro_batches, 0, processes) == []
