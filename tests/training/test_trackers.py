"""Trackers get every part of the loss and its weight: W&B (offline), trackio and MLflow (both local)."""

from __future__ import annotations

from pathlib import Path

import pytest

import balora
from small_runs import trainer
from tiny import tiny_llama

pytestmark = pytest.mark.slow
LOGGED = ("task", "consistency", "consistency_weight", "spectral")


def train(folder: Path, tracker: str) -> None:
    run = trainer(balora.adapt(tiny_llama(), rank=2), folder, max_steps=2, report_to=[tracker], run_name="mine")
    run.train()


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (pip install wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tmp_path / "run", "wandb")
    logged = set(wandb.run.summary.keys())
    wandb.finish()
    assert {f"train/{name}" for name in LOGGED} <= logged
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_mlflow_in_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install mlflow)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    train(tmp_path / "run", "mlflow")
    mlflow.end_run()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert set(LOGGED) <= set(found.data.metrics)


def test_trackio_locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    pytest.importorskip("trackio", reason="trackio is not installed (pip install trackio)")
    train(tmp_path / "run", "trackio")
    files = [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert all(name.encode() in content for name in LOGGED), [path.name for path in files]
