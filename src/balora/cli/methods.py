"""`balora methods`: every method by name."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from balora.methods import METHODS


def methods() -> None:
    """List the fine-tuning methods: what each is, its paper, what it trains."""
    table = Table("name", "what it is", "trains", "paper", "own options", box=None, header_style="bold", pad_edge=False)
    for spec in METHODS.values():
        table.add_row(spec.name, spec.summary, spec.trains, spec.paper, ", ".join(spec.options) or "-")
    Console().print(table)
    Console().print("\nregularization: can be set with every method; it is on by default for balora alone.")
