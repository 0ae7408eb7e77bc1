"""A comparison of many runs: the work per finished run is constant, and an interrupted one has its rows and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import simulated_sweep
from balora.experiments.compare.compare import _Tables
from balora.experiments.compare.rows import read_rows


@pytest.fixture
def clock(monkeypatch):
    """The time of `_Tables`, which the test advances."""
    now = [0.0]
    monkeypatch.setattr(sys.modules[_Tables.__module__].time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("seconds_per_run", "share"), [(1.0, 0.06), (60.0, 0.02)])
def test_tables_take_a_small_share_of_the_time_however_many_runs_there_are(clock, seconds_per_run, share):
    runs, spent = [0], [0.0]

    def write() -> None:
        cost = 0.001 * runs[0]  # grows with the number of runs
        spent[0] += cost
        clock[0] += cost

    tables = _Tables(write)
    for _ in range(1000):
        runs[0] += 1
        clock[0] += seconds_per_run
        tables.update()
    assert 0 < spent[0] < share * clock[0]


def test_short_comparisons_have_new_tables_after_every_run(clock):
    written = []
    tables = _Tables(lambda: written.append(clock[0]))
    for _ in range(5):
        clock[0] += 10.0
        tables.update()
    tables.finish()
    assert written == [10.0, 20.0, 30.0, 40.0, 50.0], "finish() writes nothing that is written already"


class Interrupted(simulated_sweep.SimulatedEngine):
    """Engine that is interrupted after the given number of runs."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.runs = runs

    def __call__(self, tasks, started):
        yield from super().__call__(tasks[: self.runs], started)
        raise KeyboardInterrupt


def test_an_interrupted_comparison_has_its_rows_and_tables(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        simulated_sweep.sweep(tmp_path / "c", 20, Interrupted(7))
    rows = read_rows(tmp_path / "c" / "rows.jsonl")
    assert [row.status for row in rows].count("finished") == 7 and len(rows) == 20
    table = json.loads((tmp_path / "c" / "table.json").read_text())
    assert sum(group["finished"] for group in table["groups"]) == 7
    with (tmp_path / "c" / "rows.jsonl").open("a") as file:
        file.write('{"run": "lora')  # the process was killed here
    assert len(read_rows(tmp_path / "c" / "rows.jsonl")) == 20
    simulated_sweep.sweep(tmp_path / "c", 20)
    assert {row.status for row in read_rows(tmp_path / "c" / "rows.jsonl")} == {"finished"}


@pytest.mark.slow
def test_the_time_of_a_comparison_grows_in_proportion_to_its_runs(tmp_path: Path):
    simulated_sweep.sweep(tmp_path / "imports", 20)
    few, many = (simulated_sweep.sweep(tmp_path / str(runs), runs) for runs in (150, 600))
    assert many / few < 4 * 1.5
