"""`balora reproduce`: the paper's experiments by name, and two of ours, as data for one runner and one renderer.

The experiments themselves are imported on first use, because they need torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from balora.experiments.reproduce.experiment import Experiment, Paths, Study

if TYPE_CHECKING:
    from balora.experiments.reproduce.catalog import EXPERIMENTS
    from balora.experiments.reproduce.run import Request, dry_run, reproduce

__all__ = ["EXPERIMENTS", "Experiment", "Paths", "Request", "Study", "dry_run", "reproduce"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "catalog" if name == "EXPERIMENTS" else "run"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
