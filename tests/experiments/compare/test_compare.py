"""`balora compare` with real runs: a tiny model, two steps, one process for each run."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import types
from pathlib import Path

import pytest

import balora as library
from balora.checkpoints.provenance import peak_memory_mib
from balora.config.yaml_loader import read_config
from balora.errors import BALoraError
from balora.experiments.compare import LocalEngine, RayEngine, Variant, compare, lay_out
from balora.experiments.compare.engines import Task, failure_reason
from balora.files import write_text

SHORT = ["training.max_steps=2", "data.eval=0.25", "training.report_to=none"]


def read_rows(directory: Path) -> dict[str, dict]:
    lines = (directory / "rows.jsonl").read_text().splitlines()
    return {row["run"]: row for row in map(json.loads, lines)}


def test_failed_runs_are_reported_and_finished_runs_are_not_repeated(balora, config: Path, tmp_path: Path):
    ballast = bytearray(b"x") * (300 << 20)  # the parent's memory must not count as the run's
    arguments = [config, *SHORT, "--methods", "pissa,lora,balora", "--seeds", "1,2", "--baseline", "pissa", "--jobs", 2]
    broken = [*arguments, "lora:method.rank=17"]
    outcome = balora("compare", *broken)
    directory = tmp_path / "run-compare"
    rows = read_rows(directory)
    assert outcome.status == 1, "some runs failed"
    assert len(rows) == 6
    for seed in (1, 2):
        assert rows[f"lora_seed-{seed}"]["status"] == "failed"
        assert "Rank 17" in rows[f"lora_seed-{seed}"]["reason"]
        assert "Rank 17" in outcome.out
        for name in ("pissa", "balora"):
            row = rows[f"{name}_seed-{seed}"]
            assert row["status"] == "finished", row
            assert row["trainable"] == 2 * 4 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32 + 3 * (32 + 48))
            assert 100 < row["peak_memory_mib"] < peak_memory_mib() - 200
            assert row["provenance"]["data_digest"]
            assert (directory / "runs" / row["run"] / "adapter").is_dir()
    assert rows["balora_seed-1"]["regularized"]
    assert rows["balora_seed-1"]["scores"]["loss"] != rows["balora_seed-2"]["scores"]["loss"]
    assert "| lora | 0/2 | - |" in (directory / "table.md").read_text()
    del ballast

    before = {name: (directory / "runs" / name / "run.json").read_bytes() for name in rows if "lora_" not in name[:5]}
    outcome = balora("compare", *arguments)
    assert outcome.status == 0, outcome.out + outcome.err
    assert "4 are finished already" in outcome.out
    assert {name: (directory / "runs" / name / "run.json").read_bytes() for name in before} == before
    assert "2/2" in (directory / "table.md").read_text()
    assert "lora | 0/2" not in (directory / "table.md").read_text()
    assert all((directory / f"table.{form}").is_file() for form in ("csv", "json", "tex"))

    outcome = balora("compare", *arguments, "training.learning_rate=0.5")
    assert outcome.status == 2
    assert "training.learning_rate" in outcome.err


def test_a_killed_run_is_reported_and_the_others_finish(config: Path, tmp_path: Path):
    values = {**read_config(config), "training": {"max_steps": 2, "use_cpu": True, "report_to": []}}
    killed: list[int] = []

    class Killing(LocalEngine):
        def __call__(self, tasks, started):
            def start_and_kill(task: Task) -> None:
                started(task)
                if not killed and multiprocessing.active_children():
                    victim = multiprocessing.active_children()[0]
                    victim.kill()
                    killed.append(victim.pid)

            yield from super().__call__(tasks, start_and_kill)

    variants = [Variant.parse("lora"), Variant.parse("pissa")]
    result = compare(values, variants, [1], output=tmp_path / "c", engine=Killing(jobs=2))
    lora, pissa = result.rows
    assert killed
    assert lora.status == "failed"
    assert "signal 9" in lora.reason
    assert pissa.status == "finished"
    assert set(pissa.scores) == {"train_loss"}
    assert any("data.eval" in note for note in result.notes)
    again = compare(values, variants, [1], output=tmp_path / "c")
    assert [row.status for row in again.rows] == ["finished", "finished"]


@pytest.mark.slow
def test_the_ray_engine_gives_the_same_rows(balora, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray", reason="Ray is absent: pip install 'balora[ray]'")
    paths = [str(Path(library.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    arguments = [config, *SHORT, "--methods", "pissa,lora", "--seeds", "1", "lora:method.rank=17"]
    outcome = balora("compare", *arguments, "--engine", "ray", "--output", tmp_path / "ray")
    assert outcome.status == 1 and not outcome.err, outcome.out + outcome.err
    rows = read_rows(tmp_path / "ray")
    assert "Rank 17" in rows["lora_seed-1"]["reason"]
    assert balora("compare", *arguments, "--output", tmp_path / "local").status == 1
    local = read_rows(tmp_path / "local")
    assert rows["pissa_seed-1"]["scores"] == pytest.approx(local["pissa_seed-1"]["scores"], rel=1e-5)
    assert "engine ray" in (tmp_path / "ray" / "table.md").read_text()


KILLS_ITS_PARENT_ONCE = """
import os, pathlib, signal, sys
marker = pathlib.Path(__file__).with_name("killed")
if "balora.experiments.compare.worker" in sys.orig_argv and not marker.exists():
    marker.touch()
    os.kill(os.getppid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_run_whose_ray_worker_is_lost_is_started_again(balora, config: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is absent: pip install 'balora[ray]'")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLS_ITS_PARENT_ONCE)
    paths = [str(tmp_path / "site"), str(Path(library.__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
    arguments = ["--methods", "pissa", "--seeds", "1", "--engine", "ray", "--output", tmp_path / "ray"]
    outcome = balora("compare", config, *SHORT, *arguments)
    assert outcome.status == 0, outcome.out + outcome.err
    assert (tmp_path / "site" / "killed").exists(), "the worker was not killed"
    assert read_rows(tmp_path / "ray")["pissa_seed-1"]["status"] == "finished"


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch):
    class Ray(types.ModuleType):
        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**_: object) -> None:
            raise ConnectionError("ray client connection timeout.\ndetails")

    monkeypatch.setitem(sys.modules, "ray", Ray("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "node0:6379")
    with pytest.raises(
        BALoraError, match=r"cluster at node0:6379 .* did not answer: ray client connection timeout\. No run"
    ):
        list(RayEngine()([], lambda task: None))


def test_a_dry_run_writes_nothing(balora, config: Path, tmp_path: Path):
    outcome = balora(
        "compare", config, "--methods", "lora,full", "--seeds", "1,2", "--vary", "method.rank=2,4", "--dry-run"
    )
    assert outcome.status == 0, outcome.err
    assert "6 runs" in outcome.out, "full fine-tuning has no rank"
    assert not (tmp_path / "run-compare").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--methods", "lorra"], ["lorra", "'lora'"]),
        (["--methods", "lora", "--baseline", "pissa"], ["baseline pissa", "lora"]),
        (["--methods", "lora", "--vary", "method.rnak=1"], ["rnak", "'rank'"]),
    ],
)
def test_an_invalid_argument_is_refused_before_any_run(
    balora, config: Path, tmp_path: Path, arguments: list[str], fragments: list[str]
):
    outcome = balora("compare", config, *arguments)
    assert outcome.status == 2
    for fragment in fragments:
        assert fragment in outcome.err
    assert not (tmp_path / "run-compare").exists()


def test_the_failure_reason_is_the_last_error_of_the_log_or_the_exit_status(tmp_path: Path):
    log = tmp_path / "log"
    assert "signal 9" in failure_reason(log, -9)
    assert "status 1" in failure_reason(log, 1)
    write_text(log, "step 1\nbalora: an older one\nbalora: Two problems.\n  - one\n  - two\n")
    assert failure_reason(log, 2) == "Two problems. - one - two"


def test_a_second_comparison_in_the_same_directory_is_refused(config: Path, tmp_path: Path):
    import fcntl

    cells, directory = lay_out(read_config(config), [Variant.parse("lora")], [1], output=tmp_path / "c")
    assert len(cells) == 1
    directory.mkdir()
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BALoraError, match="Another comparison"):
            compare(read_config(config), [Variant.parse("lora")], [1], output=directory)
