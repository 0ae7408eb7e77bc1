"""`balora compare`: methods × seeds × any config key, one run for each combination, and a table over all runs."""

from balora.experiments.compare.compare import compare, lay_out
from balora.experiments.compare.engines import LocalEngine, RayEngine
from balora.experiments.compare.evaluation import EvaluationPlan
from balora.experiments.compare.plan import Cell, Variant, check_baseline, parse_axes, parse_seeds, plan, read_variants
from balora.experiments.compare.rows import Row
from balora.experiments.compare.statistics import Group, summarise
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
    "check_baseline",
    "compare",
    "lay_out",
    "parse_axes",
    "parse_seeds",
    "plan",
    "read_variants",
    "summarise",
]
