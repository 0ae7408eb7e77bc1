"""The run's data: read and checked (`load_examples`), tokenized (`tokenize_examples`), batched (`make_collator`)."""

from balora.data.collate import (
    CausalCollator,
    ClassificationCollator,
    Seq2SeqCollator,
    ensure_pad_token,
    make_collator,
)
from balora.data.examples import Examples, load_examples
from balora.data.perturbations import describe as describe_conditions
from balora.data.prompts import encode_prompt, render_prompt, separator_of
from balora.data.tokenize import Tokenized, tokenize_examples

__all__ = [
    "CausalCollator",
    "ClassificationCollator",
    "Examples",
    "Seq2SeqCollator",
    "Tokenized",
    "describe_conditions",
    "encode_prompt",
    "ensure_pad_token",
    "load_examples",
    "make_collator",
    "render_prompt",
    "separator_of",
    "tokenize_examples",
]
