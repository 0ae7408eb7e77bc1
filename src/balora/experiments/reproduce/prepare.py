"""What an experiment makes before its runs: data cut anew, a model spoilt on purpose. Once, into a folder of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.lock import locked
from balora.errors import BALoraError
from balora.experiments.reproduce.paths import Places
from balora.files import write_text

ABOUT = "about.json"
"""What was made, in numbers. It is written last, so that its presence says that the rest is whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """A step before the runs of an experiment at small scale."""

    title: str
    """What it makes, in a few words."""
    needs: Callable[[Places], Sequence[str]]
    """Files and folders it reads."""
    make: Callable[[Places], dict[str, Any]]
    """Writes below ``places.prepared`` and returns what it made, in numbers. It is seeded: made again, it is the same."""
    seconds: float
    """Of one core, as measured."""

    def missing(self, places: Places) -> list[str]:
        """What it still has to read and is not on this machine, in words."""
        if self.is_made(places):
            return []
        return [f"{name}: no such file or folder" for name in self.needs(places) if not Path(name).exists()]

    def is_made(self, places: Places) -> bool:
        """Whether it need not be done again."""
        return (places.prepared / ABOUT).is_file()

    def ensure(self, places: Places) -> None:
        """Do it unless it was done.

        Raises:
            BALoraError: What it reads is missing or unusable, or another process is at it.
        """
        if self.is_made(places):
            return
        absent = self.missing(places)
        if absent:
            raise BALoraError(f"{self.title} needs what is not here: {'; '.join(absent)}.")
        with locked(places.prepared, "Another process is preparing", "--output"):
            facts = self.make(places)
            write_text(places.prepared / ABOUT, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def read_about(prepared: Path) -> dict[str, Any]:
    """What a preparation made, in numbers; empty where there was none."""
    path = prepared / ABOUT
    if not path.is_file():
        return {}
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts
