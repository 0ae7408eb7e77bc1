"""`balora reproduce`: the paper's experiments by name, and two of ours, as data for one runner and one renderer."""

from balora.experiments.reproduce import figures, generation_tables, glue_tables
from balora.experiments.reproduce.experiment import Experiment, Study
from balora.experiments.reproduce.paths import Paths
from balora.experiments.reproduce.run import Request, dry_run, reproduce

_ALL = (
    *(generation_tables.TABLE1, glue_tables.TABLE2, glue_tables.TABLE3, glue_tables.TABLE4),
    *(generation_tables.TABLE5, generation_tables.TABLE10),
    *(figures.FIGURE2, figures.FIGURE3, figures.FIGURE4, figures.FIGURE5, figures.FIGURE6),
    *(glue_tables.TABLE4_FLAWED, glue_tables.FITTED_HEAD),
)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
"""Experiments by name. A new one is an `Experiment` and an entry here."""

__all__ = ["EXPERIMENTS", "Experiment", "Paths", "Request", "Study", "dry_run", "reproduce"]
