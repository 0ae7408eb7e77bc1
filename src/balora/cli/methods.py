"""`balora methods`: every method by name, or one of them with its options."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from balora.methods import METHODS, Method, find_method

Name = Annotated[str | None, typer.Argument(help="One method, to be shown with its options.", show_default=False)]
WIDTH = 100


def methods(name: Name = None) -> None:
    """List the fine-tuning methods: what each is, its paper, what it trains; or show one with its options."""
    console = Console(highlight=False, markup=False)
    console.width = min(console.width, WIDTH)
    if name is not None:
        return _one(console, find_method(name))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, share in (("name", None), ("what it is", 5), ("trains", 3), ("paper", 3)):
        table.add_column(column, ratio=share, no_wrap=share is None)
    table.expand = True
    for spec in METHODS.values():
        table.add_row(spec.name, spec.summary, spec.trains, spec.paper)
    console.print(table)
    console.print(
        "\nregularization: can be set with every method; it is on by default for balora alone.\n"
        "balora methods NAME shows one with its options."
    )
    return None


def _one(console: Console, spec: Method) -> None:
    """What is known of one method."""
    facts = {
        "what it is": spec.summary,
        "paper": spec.paper,
        "trains": spec.trains,
        "starts from": _start(spec),
        "leaves as": ", ".join(_leaves(spec)),
        "regularizers": "on by default" if spec.regularized else "off by default; any of them can be set",
    }
    about = Table(box=None, show_header=False, pad_edge=False)
    for key, value in {"method": spec.name, **facts}.items():
        about.add_row(key, value)
    console.print(about)
    if not spec.options:
        console.print(f"\n{spec.name} has no options of its own.")
        return
    options = Table("option", "default", "is", "meaning", box=None, header_style="bold", pad_edge=False)
    for key, option in spec.options.items():
        default = "-" if option.default is None else str(option.default)
        options.add_row(f"method.{key}", default, option.allowed, option.meaning)
    console.print()
    console.print(options)


def _start(spec: Method) -> str:
    if spec.needs_data:
        return "the weights and rows of the training data"
    if spec.initialize is not None:
        return "the weights"
    return "random values under zeros" if spec.form == "lora" or spec.options else "the weights as they are"


def _leaves(spec: Method) -> list[str]:
    forms = [("lora", spec.low_rank), ("merged", spec.mergeable)]
    return [f"--to {form}" for form, can in forms if can] or ["tensors of its own, which balora.load reads"]
