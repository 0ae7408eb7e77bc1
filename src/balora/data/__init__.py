"""The data of a run: read and check it (`load_examples`), tokenize it (`tokenize_examples`), batch it (`make_collator`).

The names below are imported on first use, so that modules such as `balora.data.readers` can be used without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balora.data.collate import (
        CausalCollator,
        ClassificationCollator,
        Seq2SeqCollator,
        ensure_pad_token,
        make_collator,
    )
    from balora.data.examples import Examples, load_examples
    from balora.data.perturbations import describe_perturbations
    from balora.data.prompts import encode_prompt, render_prompt, separator_of
    from balora.data.tokenize import Tokenized, tokenize_examples

__all__ = [
    "CausalCollator",
    "ClassificationCollator",
    "Examples",
    "Seq2SeqCollator",
    "Tokenized",
    "describe_perturbations",
    "encode_prompt",
    "ensure_pad_token",
    "load_examples",
    "make_collator",
    "render_prompt",
    "separator_of",
    "tokenize_examples",
]
_MODULES = {
    **dict.fromkeys(__all__, "collate"),
    "Examples": "examples",
    "load_examples": "examples",
    "Tokenized": "tokenize",
    "tokenize_examples": "tokenize",
    "encode_prompt": "prompts",
    "render_prompt": "prompts",
    "separator_of": "prompts",
    "describe_perturbations": "perturbations",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
