"""Write docs/reference/methods-by-family.md: which method works on which model family.

Every pair is tried on a tiny model of the family's real config. A pair works if the method adapts the model without changing its
function, and one step with all regularizers gives a finite loss and a gradient for every trainable tensor.
tests/methods/test_method_table.py checks that the page is up to date.
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
PAGE = ROOT / "docs" / "reference" / "methods-by-family.md"
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

`scripts/method_table.py` writes this page. It tries every pair on a tiny model of the family's real transformers config, and a test
checks that the page is up to date. A number refers to a reason below; `balora validate` shows it before a model is loaded.

- ✓ works on all linear layers (and on every expert): adapting does not change the function, and a step with all regularizers
  gives a gradient to every trainable tensor.
- ◐ works if `target_modules` names the attention layers; the numbered reason says why not on the experts.
"""


def main() -> None:
    """Write the page."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(page(), encoding="utf-8")
    temporary.replace(PAGE)


def page(*, sizes_only: bool = False) -> str:
    """Return the page. With ``sizes_only``, check only the layers' sizes, as `balora validate` does."""
    refusal = refusal_by_size if sizes_only else refusal_by_trial
    reasons: list[str] = []
    rows = ["| family | " + " | ".join(f"`{method}`" for method in METHODS) + " |", "|---|" + ":-:|" * len(METHODS)]
    for family, makes in families().items():
        makes = makes[:1] if sizes_only else makes  # a regressor has the sizes of a classifier
        cells = [_numbered(*tried(makes, method, refusal), reasons) for method in METHODS]
        rows.append(f"| {family} | " + " | ".join(cells) + " |")
    numbered = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([INTRODUCTION, *rows, "", "Reasons:", "", *numbered, ""])


def families() -> dict[str, list[Callable[[], nn.Module]]]:
    """Return functions that make the models of each family; for encoders a classifier and a regressor."""
    return {name: [make, *([REGRESSION[name]] if name in REGRESSION else [])] for name, make in FAMILIES.items()}


def tried(
    makes: list[Callable[[], nn.Module]], method: str, refusal: Callable[..., str | None]
) -> tuple[str, str | None]:
    """Return the mark of a pair (✓, ◐ or empty), and the reason if the method refuses the model."""
    reason = next((reason for make in makes if (reason := refusal(make, method)) is not None), None)
    if reason is None:
        return WORKS, None
    in_attention = METHODS[method].low_rank and all(
        refusal(make, method, target_modules=ATTENTION) is None for make in makes
    )
    return IN_ATTENTION if in_attention else "", reason


def refusal_by_trial(make: Callable[[], nn.Module], method: str, **options: object) -> str | None:
    """Return why a method refuses a model; None if it works and a step gives gradients to all trainable tensors."""
    try:
        model = adapted(make, method, **options)
    except BALoraError as error:
        return general(str(error), type(make()).__name__)
    parts, gradients = backward(step_of(model), pad_rows(rows_for(model)[:4]))
    assert bool(torch.isfinite(parts.loss)), (method, type(model).__name__)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and name not in gradients]
    assert not missing, (method, type(model).__name__, missing)
    return None


def refusal_by_size(make: Callable[[], nn.Module], method: str, target_modules: str = "all-linear") -> str | None:
    """Return why a method refuses a model without weights; None if it does not."""
    spec = find_method(method)
    options = check_options(spec, 4, None, 0.0, target_modules, 0, SMALL.get(method, {}))
    with torch.device("meta"):
        model = make()
    try:
        spec.build(model, dataclasses.replace(options, total_steps=50))
    except BALoraError as error:
        return general(str(error), type(model).__name__)
    return None


def general(message: str, class_name: str) -> str:
    """Return an error message without the names of one tiny model."""
    return re.sub(r"\S+\.experts(\.\w+)*", "The layer of experts", message.replace(class_name, "The model"))


def _numbered(mark: str, reason: str | None, reasons: list[str]) -> str:
    if reason is None:
        return mark
    if reason not in reasons:
        reasons.append(reason)
    return f"{mark} {reasons.index(reason) + 1}".strip()


if __name__ == "__main__":
    main()
