"""Tests that the benchmarks run, on tiny models, and that their comparisons are fair."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import balora

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not in this directory")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(balora.__file__).parents[1])}


def test_balora_and_the_plain_reading_have_the_same_loss(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shapes, variants = importlib.import_module("shapes"), importlib.import_module("variants")
    off = variants.same_as_reference(shapes.TINY)
    assert off["loss"] <= 1e-4 and off["gradient"] <= 1e-4
    monkeypatch.setattr("reference.CONSISTENCY", 0.05)
    assert variants.same_as_reference(shapes.TINY)["gradient"] > 1e-4


def test_the_gpu_script_runs_on_any_machine(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(
        "sys.argv", ["gpu.py", "--tiny", "--rounds", "1", "--parts", "loss", "7b", "start", "--output", str(tmp_path)]
    )
    importlib.import_module("gpu").main()
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert all(row["status"] == "ok" and row["versions"]["torch"] and row["hardware"]["threads"] for row in rows)
    assert {"load", "loss", "peak", "variant", "ratio", "matrix", "model", "total"} == {row["kind"] for row in rows}
    losses = [row for row in rows if row["kind"] == "loss"]
    assert all(set(row["seconds"]) == {"all", "tokens", "products", "copy"} and not row["triton"] for row in losses)
    measured = {(r["shape"]["checkpointing"], r["above"]) for r in rows if r["kind"] == "ratio"}
    assert {(False, "online"), (True, "online"), (False, "cached"), (True, "cached")} <= measured


@pytest.mark.parametrize("name", ["stock", "online", "reference"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_counted_on_the_meta_device_equals_that_of_a_real_step(monkeypatch, name, checkpointing):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    meta_counts, shapes = importlib.import_module("meta_counts"), importlib.import_module("shapes")
    sizes = {"hidden": 64, "vocabulary": 401, "length": 48}
    shape = dataclasses.replace(shapes.TINY, checkpointing=checkpointing, **sizes)
    real, found = meta_counts.peak(name, shape, "cpu"), meta_counts.peak(name, shape)
    assert found["loaded_mib"] == real["loaded_mib"]
    # On the CPU AdamW keeps a step number for each parameter, in a block of 512 bytes.
    for phase, size in found["phases"].items():
        assert size <= real["phases"][phase] <= size + 0.03, phase


def test_the_script_that_counts_memory_runs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("sys.argv", ["meta_counts.py", "--tiny", "--output", str(tmp_path)])
    importlib.import_module("meta_counts").main()
    rows = [json.loads(line) for line in (tmp_path / "counted.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    online = {row["shape"]["checkpointing"]: row["peak_mib"] for row in rows if row["variant"] == "online"}
    offloaded = {row["shape"]["checkpointing"]: row["peak_mib"] for row in rows if row["variant"] == "offloaded"}
    assert all(offloaded[case] < online[case] for case in (False, True))
    table = importlib.import_module("phase_report").counted_table(
        rows, {row["variant"]: row["variant"] for row in rows}
    )
    assert table.count("\n") == 9 and "backward" in table


def test_a_phase_does_not_count_the_phases_inside_it(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("phases")
    ticks = iter([0.0, 1.0, 3.0, 7.0])  # enter the outer phase, enter and leave the inner one, leave the outer one
    phases = module.Phases(lambda: next(ticks))

    class Model:
        def forward(self, x):
            return x + 1

    before = Model.forward
    with phases.watching(Model, "forward", module.STUDENT), phases.inside(module.REST):
        assert Model().forward(1) == 2
    assert phases.seconds == {**dict.fromkeys(module.PHASES, 0.0), module.STUDENT: 2.0, module.REST: 5.0}
    assert Model.forward is before


def test_variants_without_balora_run_peft_s_layers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shapes, variants = importlib.import_module("shapes"), importlib.import_module("variants")
    batches, called = shapes.TINY.batches(1), []
    own = variants.LoraLinear.forward
    monkeypatch.setattr(variants.LoraLinear, "forward", lambda self, x: called.append(1) or own(self, x))
    model = variants.load("online", shapes.TINY)
    ready = {name: variants.prepare(name, shapes.TINY, model, batches)[0] for name in ("stock", "forward", "off")}
    called.clear()
    for name, variant in ready.items():
        variant.step(batches[0])
        assert bool(called) == (name == "off"), name


@pytest.mark.slow
def test_the_loss_alone_compares_torch_and_triton(tmp_path):
    """Run in Triton's interpreter."""
    pytest.importorskip("triton")
    code = """if True:
        import sys; sys.path.insert(0, sys.argv[1])
        import loss_only, phase_report, result_rows, shapes
        loss_only.REPEATS, loss_only.LAUNCHES = 1, ((64, 4), (128, 4))
        found = result_rows.Rows("gpu", __import__("pathlib").Path(sys.argv[2]))
        loss_only.measure(found, shapes.TINY, 1, "cpu")
        print(phase_report.loss_table(found.rows))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, BENCHMARKS, tmp_path],
        capture_output=True, text=True, env={**ENVIRONMENT, "TRITON_INTERPRET": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| tiny | " in done.stdout and "**missed**" in done.stdout  # an interpreter is slow
    row = json.loads((tmp_path / "gpu.jsonl").read_text())
    assert {"all, triton", "tokens, triton"} < set(row["seconds"])
    assert row["triton"]["differences"]["loss"] < 1e-6 and row["triton"]["differences"]["gradient"] < 1e-5
    assert set(row["triton"]["launches"]) == {"64 / 4", "128 / 4"}


@pytest.mark.slow
def test_the_gpu_script_imports_the_core_only():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import gpu; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, BENCHMARKS], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"datasets", "trl", "pydantic", "typer", "sklearn", "matplotlib", "pyarrow"}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["step_time", "phases", "memory", "sweep", "classification", "pissa_start"])
def test_the_scripts_run(script, tmp_path):
    command = [sys.executable, BENCHMARKS / f"{script}.py", "--tiny", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(json.loads(line)["status"] == "ok" for line in (tmp_path / f"{script}.jsonl").read_text().splitlines())
