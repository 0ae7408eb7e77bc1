"""`balora compare`: methods × seeds × any key of a config, each cell a `balora train` of its own, and a table."""

from balora.experiments.compare.compare import compare, lay_out
from balora.experiments.compare.engine import LocalEngine
from balora.experiments.compare.evaluation import EvaluationPlan
from balora.experiments.compare.plan import Cell, Variant, parse_axes, parse_seeds, plan, read_variants
from balora.experiments.compare.ray_engine import RayEngine
from balora.experiments.compare.rows import Row
from balora.experiments.compare.stats import Group, summarise
from balora.experiments.compare.tables import Comparison

__all__ = [
    "Cell",
    "Comparison",
    "EvaluationPlan",
    "Group",
    "LocalEngine",
    "RayEngine",
    "Row",
    "Variant",
    "compare",
    "lay_out",
    "parse_axes",
    "parse_seeds",
    "plan",
    "read_variants",
    "summarise",
]
