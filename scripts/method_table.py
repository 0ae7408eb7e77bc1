"""Write docs/reference/methods-by-family.md: which method works on which model family, found by trying every pair.

A pair works when a tiny model of the family's real config takes the method, its function unchanged, and one step with every
regularizer gives a finite loss and a gradient to all that learns. tests/methods/test_method_table.py holds the page to it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods_by_family.md"
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from balora import BALoraError  # noqa: E402
from balora.methods import METHODS, find_method  # noqa: E402
from balora.methods.adaptation import check_options  # noqa: E402
from bench import SMALL, adapted, backward, rows_for, step_of  # noqa: E402
from families import FAMILIES, REGRESSION  # noqa: E402
from tiny import pad_rows  # noqa: E402

ATTENTION = r".*(self_attn|attention|attn|SelfAttention|EncDecAttention)\..*"
WORKS, IN_ATTENTION = "✓", "◐"
INTRODUCTION = """\
# Methods by model family

Written by `scripts/method_table.py`, which tries every pair on a tiny model made from the family's real transformers config; a test
compares this page with what the code does. Where a cell is a number, `balora validate` says why before anything is loaded.

- ✓ works on all linear layers (and on every expert): the function is unchanged at the start, and a step with all regularizers moves
  all that learns.
- ◐ works where `target_modules` names the attention layers; on the experts it is refused, for the reason numbered.
"""


def main() -> None:
    """Write the page."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    side = PAGE.with_suffix(".tmp")
    side.write_text(page(), encoding="utf-8")
    side.replace(PAGE)


def page(*, sizes_only: bool = False) -> str:
    """The whole page, from trying; or from the sizes alone, as `balora validate` knows them."""
    refused = refused_by_size if sizes_only else refusal
    reasons: list[str] = []
    rows = ["| family | " + " | ".join(f"`{method}`" for method in METHODS) + " |", "|---|" + ":-:|" * len(METHODS)]
    for family, makes in families().items():
        makes = makes[:1] if sizes_only else makes  # a regressor has a classifier's sizes
        cells = [_numbered(*tried(makes, method, refused), reasons) for method in METHODS]
        rows.append(f"| {family} | " + " | ".join(cells) + " |")
    numbered = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([INTRODUCTION, *rows, "", "Why not:", "", *numbered, ""])


def families() -> dict[str, list[Callable[[], nn.Module]]]:
    """The models that stand for each family: encoders as classifiers and as regressors."""
    return {name: [make, *([REGRESSION[name]] if name in REGRESSION else [])] for name, make in FAMILIES.items()}


def tried(
    makes: list[Callable[[], nn.Module]], method: str, refused: Callable[..., str | None]
) -> tuple[str, str | None]:
    """(✓, ◐ or nothing; the reason where it is refused)."""
    reason = next((said for make in makes if (said := refused(make, method)) is not None), None)
    if reason is None:
        return WORKS, None
    narrow = METHODS[method].low_rank and all(refused(make, method, target_modules=ATTENTION) is None for make in makes)
    return IN_ATTENTION if narrow else "", reason


def refusal(make: Callable[[], nn.Module], method: str, **options: object) -> str | None:
    """Why a model cannot carry a method, None when it can and a step moves all that learns."""
    try:
        model = adapted(make, method, **options)
    except BALoraError as error:
        return general(str(error), type(make()).__name__)
    parts, gradients = backward(step_of(model), pad_rows(rows_for(model)[:4]))
    assert bool(torch.isfinite(parts.loss)), (method, type(model).__name__)
    still = [name for name, p in model.named_parameters() if p.requires_grad and name not in gradients]
    assert not still, (method, type(model).__name__, still)
    return None


def refused_by_size(make: Callable[[], nn.Module], method: str, target_modules: str = "all-linear") -> str | None:
    """The same, but for the step, from a model without weights."""
    spec = find_method(method)
    options = check_options(spec, 4, None, 0.0, target_modules, 0, SMALL.get(method, {}))
    with torch.device("meta"):
        model = make()
    try:
        spec.build(model, dataclasses.replace(options, total_steps=50))
    except BALoraError as error:
        return general(str(error), type(model).__name__)
    return None


def general(sentence: str, kind: str) -> str:
    """A refusal without the names of one tiny model."""
    return re.sub(r"\S+\.experts(\.\w+)*", "The layer of experts", sentence.replace(kind, "The model"))


def _numbered(cell: str, reason: str | None, reasons: list[str]) -> str:
    if reason is None:
        return cell
    if reason not in reasons:
        reasons.append(reason)
    return f"{cell} {reasons.index(reason) + 1}".strip()


if __name__ == "__main__":
    main()
