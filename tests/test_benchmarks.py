"""Tests that the benchmarks run, on tiny models, and that their comparisons are fair."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import random
import re
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


def test_a_gpu_session_gathers_rows_stops_late_parts_and_does_not_repeat_finished_ones(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    session = importlib.import_module("gpu_session")
    code = """if True:
        import json, pathlib, sys, time
        name, seconds, folder = sys.argv[1], float(sys.argv[2]), pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps({"status": "ok" if name != "bad" else "failed: no", "name": name}) + "\\n")
        print(name, "ran", flush=True)
        time.sleep(seconds)
        sys.exit(name == "broken")
    """

    def part(name, seconds=0.0, stage=0):
        command = (sys.executable, "-c", code, name, str(seconds))
        return session.Part(name=name, group="real", command=command, limit=1.5, stage=stage)

    todo = [part("good"), part("bad"), part("late", 60, 1), part("broken", 0, 1)]
    session.Session(tmp_path / "out", tmp_path / "work", 60).run(todo, 2)
    rows = {row["part"]: row for row in session.result_rows.read("gpu_session", tmp_path / "out")}
    assert rows["good"]["status"] == "ok" and rows["bad"]["status"].startswith("1 rows not ok: failed: no")
    assert rows["late"]["status"].startswith("stopped after 2 seconds") and rows["late"]["seconds"] < 20
    assert rows["broken"]["status"] == "failed: exit status 1"
    found = session.result_rows.read("rows", tmp_path / "out")
    assert sorted(row["part"] for row in found) == ["bad", "broken", "good", "late"]
    log = tmp_path / "out" / session.LOG
    assert "=== late ===\nlate ran" in log.read_text()
    log.unlink()
    session.Session(tmp_path / "out", tmp_path / "work", 60).run(todo[:2], 2)
    assert "bad ran" in log.read_text() and "good ran" not in log.read_text()
    assert len(session.result_rows.read("rows", tmp_path / "out")) == 4


def test_the_numbers_that_a_gpu_session_measures_are_found_on_any_machine(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("cuda_only")
    folders = ["--work", str(tmp_path), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["cuda_only.py", "--tiny", *folders, "--parts", "autocast", "fused_adamw", "flash"])
    module.main()
    rows = [json.loads(line) for line in (tmp_path / "cuda_only.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["autocast", "fused_adamw", "flash"]
    assert all(row["status"] == "ok" and row["within"] for row in rows)
    assert rows[0]["consistency_at_start"] < 1e-3 < rows[0]["bfloat16"]["consistency"]
    table = importlib.import_module("session_report").cuda_only_table(
        [*rows, {"kind": "fsdp", "status": "failed: a | b"}]
    )
    assert table.count("holds |") == 3 and "| fsdp | failed: a / b |  | **failed** |" in table


def test_the_frontier_compares_settings_over_seeds_and_documents(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = importlib.import_module("session_report")
    noise = random.Random(0)

    def run(curve, anchor, seed, loss, drift):
        shift, each = noise.gauss(0, 0.01), [noise.gauss(0, 0.1) for _ in range(40)]
        scores = {
            "loss": {"mean": loss + shift, "each": [loss + shift + x for x in each]},
            "drift": {"mean": drift, "each": [drift * (1 + x) for x in each]},
        }
        setting = {"curve": curve, "anchor": anchor, "scale": 1.0, "seed": seed}
        return {"kind": "run", "status": "ok", **setting, "step_seconds": 0.1, **scores}

    seeds = range(5)
    rows = [run("lora", None, seed, 1.0, 0.2) for seed in seeds] + [
        run("lora anchored", 5.0, seed, 1.1, 0.02) for seed in seeds
    ]
    assert report.frontier_table(rows) == report.NONE, "the pre-trained model's row is missing"
    counts = {"loss": [10] * 40, "drift": [10] * 40}
    rows.append({"kind": "before", "status": "ok", "loss": {"mean": 1.5}, "counts": counts, "workers": 7})
    assert "| lora anchored, weight 5 | 5 | 1." in report.frontier_table(rows)
    line = next(line for line in report.comparisons_table(rows).splitlines() if line.startswith("| lora anchored"))
    loss, low, high, left, least, most = map(float, re.findall(r"[+-]?\d\.\d+", line))
    assert low < 0.1 < high and low > 0.03 and abs(loss - 0.1) < 0.05
    assert least < left < most and abs(left - 0.1) < 0.02
    assert len(report.frontier_plot(rows).axes[0].lines) == 3


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_scaled_change_lies_between_the_pre_trained_and_the_tuned_model(monkeypatch, tmp_path, method):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pack, inputs = importlib.import_module("pack"), importlib.import_module("session_inputs")
    given = argparse.Namespace(model=None, data=None, work=tmp_path, tiny=True)
    setting = pack.Setting(
        inputs=inputs.prepare(given), steps=2, counts=(4, 4), questions=2, anchors=tmp_path / "a.json", deadline=1e12
    )
    worker = pack.Worker(setting)
    monkeypatch.setattr(pack, "SCALES", (0.0, 0.5, 1.0))
    tuned, start, middle, end = worker.run(pack.Run(method=method, seed=0))
    assert tuned["drift"]["mean"] > 1e-6 and tuned["loss"]["mean"] < worker.before()["loss"]["mean"]
    assert abs(start["drift"]["mean"]) < 0.01 * tuned["drift"]["mean"]
    assert end["drift"]["mean"] == pytest.approx(tuned["drift"]["mean"], rel=0.01)
    assert start["drift"]["mean"] < middle["drift"]["mean"] < end["drift"]["mean"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_gpu_session_runs_on_any_machine(tmp_path):
    """Everything but the parts of gpu.py, which other tests run."""
    folders = ["--output", tmp_path / "out", "--work", tmp_path / "work"]
    command = [
        sys.executable,
        BENCHMARKS / "gpu_session.py",
        "--tiny",
        *folders,
        "--parts",
        "real",
        "cuda_only",
        "pack",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400, env=ENVIRONMENT, check=False)
    rows = [json.loads(line) for line in (tmp_path / "out" / "gpu_session.jsonl").read_text().splitlines()]
    assert done.returncode == 0 and len(rows) == 10
    assert all(row["status"] == "ok" for row in rows), [row["status"] for row in rows]
    assert len(list((tmp_path / "out").iterdir())) <= 8


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
