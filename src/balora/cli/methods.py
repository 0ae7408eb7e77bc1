"""`balora methods`: all fine-tuning methods, or one method with its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from balora.methods.registry import METHODS, Method, find_method

if TYPE_CHECKING:
    from rich.console import Console

Name = Annotated[str | None, typer.Argument(help="A method, to show it with its options.", show_default=False)]


def methods(name: Name = None) -> None:
    """List the fine-tuning methods: what each does, its paper, what it trains. With NAME, show one with its options."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = min(console.width, 100)
    if name is not None:
        return _show_one(console, find_method(name))
    table = Table(box=None, header_style="bold", pad_edge=False, expand=True)
    for column, ratio in (("name", None), ("what it is", 5), ("trains", 3), ("paper", 3)):
        table.add_column(column, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    for method in METHODS.values():
        table.add_row(method.name, method.summary, method.trains, method.paper)
    console.print(table)
    console.print(
        "\nregularization: can be set for every method; it is on by default for balora only.\n"
        "balora methods NAME shows one method with its options."
    )
    return None


def _regularizers(method: Method) -> str:
    if method.objective:
        return ", ".join(f"{name} {value}" for name, value in method.objective.items())
    return "on by default" if method.regularized else "off by default; any of them can be set"


def _show_one(console: Console, method: Method) -> None:
    from rich.table import Table

    forms = [f"--to {form}" for form, can in (("lora", method.low_rank), ("merged", method.mergeable)) if can]
    facts = {
        "method": method.name,
        "what it is": method.summary,
        "paper": method.paper,
        "trains": method.trains,
        "starts from": _initial_values(method),
        "export": ", ".join(forms) or "none; balora.load reads its tensors",
        "regularizers": _regularizers(method),
    }
    about = Table(box=None, show_header=False, pad_edge=False)
    for key, value in facts.items():
        about.add_row(key, value)
    console.print(about)
    if not method.options:
        console.print(f"\n{method.name} has no options of its own.")
        return
    options = Table(box=None, header_style="bold", pad_edge=False)
    for column, ratio in (("option", None), ("default", None), ("is", 2), ("meaning", 3)):
        # The names and defaults are never cut: the other columns wrap.
        options.add_column(
            column,
            ratio=ratio,
            overflow="fold",
            no_wrap=ratio is None,
            min_width=None if ratio else _longest(column, method),
        )
    for key, option in method.options.items():
        default = "-" if option.default is None else str(option.default)
        options.add_row(f"method.{key}", default, option.allowed, option.meaning)
    console.print()
    console.print(options)


def _longest(column: str, method: Method) -> int:
    """Return the width of a column that is never cut."""
    texts = [f"method.{key}" if column == "option" else str(option.default) for key, option in method.options.items()]
    return max(map(len, [column, *texts]))


def _initial_values(method: Method) -> str:
    """Name the source of the trained tensors' initial values."""
    if method.needs_data:
        return "the weights and rows of the training data"
    if method.initialize is not None:
        return "the weights"
    return "random values and zeros" if method.form == "lora" or method.options else "the weights themselves"
