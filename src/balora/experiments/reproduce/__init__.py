"""`balora reproduce`: the paper's experiments by name, and two of ours, each a declaration over `balora compare`."""

from balora.experiments.reproduce.experiment import Experiment, Study
from balora.experiments.reproduce.figure2 import FIGURE2
from balora.experiments.reproduce.figure3 import FIGURE3
from balora.experiments.reproduce.figure4 import FIGURE4
from balora.experiments.reproduce.figure5 import FIGURE5
from balora.experiments.reproduce.figure6 import FIGURE6
from balora.experiments.reproduce.fitted_head import EXPERIMENT as FITTED_HEAD
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.run import Request, dry_run, reproduce
from balora.experiments.reproduce.table1 import TABLE1
from balora.experiments.reproduce.table2 import TABLE2
from balora.experiments.reproduce.table3 import TABLE3
from balora.experiments.reproduce.table4 import TABLE4, TABLE4_FLAWED
from balora.experiments.reproduce.table5 import TABLE5
from balora.experiments.reproduce.table10 import TABLE10

_TABLES = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE10)
_FIGURES = (FIGURE2, FIGURE3, FIGURE4, FIGURE5, FIGURE6)
_OURS = (TABLE4_FLAWED, FITTED_HEAD)
EXPERIMENTS: dict[str, Experiment] = {made.name: made for made in (*_TABLES, *_FIGURES, *_OURS)}
"""What can be reproduced, by name. Adding one is one module and one entry."""

__all__ = ["EXPERIMENTS", "Experiment", "Places", "Request", "Study", "dry_run", "reproduce"]
