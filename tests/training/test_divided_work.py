"""Several processes divide what need not be computed in each of them, and have the values of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import work_in_turns
from processes import run_script


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("turns")
    run_script(Path(work_in_turns.__file__), str(folder))
    return json.loads((folder / "report.json").read_text())


def test_each_matrix_is_decomposed_in_one_process(report):
    counts = [each["made"] for each in report["reports"]]
    assert sum(counts) == report["one"]["made"] and min(counts) > 0
    assert report["values"] == [0.0, 0.0]


def test_adapt_alone_divides_nothing(report):
    assert [each["alone"] for each in report["reports"]] == [report["one"]["made"]] * 2


def test_a_classifiers_teacher_sees_each_row_once_in_all(report):
    # Before the first step, teacher and student are compared on one batch: two forwards in eval mode.
    checked, rows = 2, 12
    assert report["one"]["seen"] == rows + 4 * checked
    assert sum(each["seen"] for each in report["reports"]) == rows + 2 * 2 * checked
    assert [each["cached"] for each in report["reports"]] == [rows, rows]
    assert max(report["weights"]) <= 1e-5


def test_the_anchors_teacher_is_computed_once(report):
    # Six batches, of which both compute the first.
    assert [each["batches"] for each in report["reports"]] == [3, 4]
    assert all(each["outputs"] == report["one"]["outputs"] for each in report["reports"])


def test_one_dissenting_process_decides_for_all(report):
    assert [each["answers"] for each in report["reports"]] == [[True, False]] * 2
