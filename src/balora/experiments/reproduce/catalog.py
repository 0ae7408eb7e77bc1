"""All experiments by name."""

from balora.experiments.reproduce import figures, inheritance, tables
from balora.experiments.reproduce.experiment import Experiment

_ALL = (
    *(tables.TABLE1, tables.TABLE2, tables.TABLE3, tables.TABLE4, tables.TABLE5, tables.TABLE10),
    *(figures.FIGURE2, figures.FIGURE3, figures.FIGURE4, figures.FIGURE5, figures.FIGURE6),
    *(tables.TABLE4_FLAWED, tables.FITTED_HEAD, inheritance.INHERITANCE),
)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
"""Experiments by name. A new one is an `Experiment` and an entry here."""
