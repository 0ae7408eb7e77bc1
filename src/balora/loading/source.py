"""Origin and loading options of a pre-trained model, decided once before anything is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.config.run_config import RunConfig
from balora.data.files.hub import looks_local
from balora.errors import suggest_path

_DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclasses.dataclass(frozen=True)
class Location:
    """A hub id or a local directory."""

    name: str
    """Hub id or path, as the user wrote it."""
    key: str = "model"
    """Config key that names it, for error messages."""
    directory: Path | None = dataclasses.field(init=False)
    """Local directory with ``~`` expanded, which may be missing; None for a hub id."""

    def __post_init__(self) -> None:
        directory = Path(self.name).expanduser() if looks_local(self.name) else None
        object.__setattr__(self, "directory", directory)

    @property
    def path(self) -> str:
        """Argument for ``from_pretrained``: the hub id, or the path of the directory."""
        return self.name if self.directory is None else str(self.directory)

    @property
    def missing(self) -> bool:
        """True for a local directory that does not exist."""
        return self.directory is not None and not self.directory.is_dir()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A pre-trained model with its tokenizers, and how they are loaded."""

    model: Location
    task: str = "generation"
    """Task that decides the model class: generation, seq2seq, classification or regression."""
    tokenizer: Location | None = None
    """Tokenizer; None for the model's own."""
    target_tokenizer: Location | None = None
    """Tokenizer of the responses (seq2seq); None if one tokenizer serves both sides."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: str = "float32"
    """Name of the weights' dtype, or ``auto`` for the stored one."""
    seed: int = 42
    """Seed of the weights that the checkpoint lacks, such as a new classification head."""
    source_language: str | None = None
    """Language of the encoder's text, for a multilingual tokenizer (seq2seq)."""
    target_language: str | None = None
    """Language of the decoder's text, for a multilingual tokenizer (seq2seq)."""
    chat_template: str | None = None
    """Name or file of a chat template in place of the tokenizer's own."""
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @classmethod
    def from_config(cls, config: RunConfig) -> ModelSource:
        """Return the source that a run's config describes."""
        target = config.data.target_tokenizer
        same = ("task", "revision", "dtype", "seed", "allow_pickle", "trust_remote_code")
        return cls(
            model=Location(config.model),
            tokenizer=None if config.tokenizer is None else Location(config.tokenizer, "tokenizer"),
            target_tokenizer=None if target is None else Location(target, "data.target_tokenizer"),
            source_language=config.data.source_language,
            target_language=config.data.target_language,
            chat_template=config.data.chat_template,
            **{name: getattr(config, name) for name in same},
        )

    def with_model(self, model: str | Path) -> ModelSource:
        """Return the same source with its model in another place."""
        return dataclasses.replace(self, model=Location(str(model)), revision=None)


def missing_directory(location: Location) -> str:
    """Return the error message for a local name that is no directory."""
    assert location.directory is not None
    name, key = location.name, location.key
    what = f"The model folder {name}" if key == "model" else f"The folder {name} ({key})"
    if location.directory.is_file():
        from balora.loading.model_files import describe_file  # imports torch, which other messages do not need

        return f"{what} {describe_file(location.directory)}"
    return f"{what} does not exist.{suggest_path(location.directory)}"


def missing_files(values: Mapping[str, Any]) -> list[str]:
    """List the files and folders that a config names and that do not exist, one sentence each.

    ``values`` is the content of a config that may have other mistakes, so that both kinds are reported together. Nothing is
    imported or read. A name that may be a hub id or a pattern is left to the run.
    """
    raw = values.get("data")
    data: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    models = [("model", values), ("tokenizer", values), ("data.target_tokenizer", data)]
    named = [(key, section.get(key.rpartition(".")[2])) for key, section in models]
    locations = [Location(name, key) for key, name in named if isinstance(name, str) and name and "://" not in name]
    problems = [missing_directory(location) for location in locations if location.missing]
    further = data.get("also")
    sections = [
        data,
        *(entry for entry in (further if isinstance(further, list) else ()) if isinstance(entry, Mapping)),
    ]
    files = [(section.get("train"), "data.train") for section in sections] + [(data.get("eval"), "data.eval")]
    for name, key in files:
        if not isinstance(name, str) or re.search(r"[*?\[\]{}]|://", name) or not looks_local(name, _DATA_FILES):
            continue
        path = Path(name).expanduser()
        if not path.exists():
            problems.append(f"There is no file or folder {name} ({key}).{suggest_path(path)}")
    return problems
