"""`balora teacher --anchors`: let the pre-trained model write the anchors of a config into a file that several runs read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from balora.anchoring.rows import AnchorRows, vocabulary_digest
from balora.anchoring.sampling import is_degenerate, sample_sequences, start_tokens
from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.loading.pretrained import load_model, load_tokenizer
from balora.loading.source import ModelSource


def write_anchors(config: RunConfig, path: Path, log: Callable[[str], None] = lambda line: None) -> AnchorRows:
    """Sample the anchors of ``anchor: generated`` and write them; a run reads them with ``anchor: {text: PATH}``.

    Raises:
        BALoraError: The config has no generated anchors, the model cannot write, or the path cannot be used.
    """
    anchors = config.anchor
    if anchors is None or anchors.generate is None:
        raise BALoraError("--anchors writes the text of `anchor: generated`, and the config has other anchors or none.")
    if config.task != "generation":
        raise BALoraError(
            f"--anchors is for causal language models, and the task is {config.task}. A seq2seq run lets the model answer its own "
            "training inputs (anchor: generated)."
        )
    if path.suffix != ".safetensors":
        raise BALoraError(f"--anchors {path}: name a file that ends in .safetensors, by which a run recognises it.")
    if path.exists():
        raise BALoraError(f"{path} exists, and nothing is overwritten. Name another file, or delete it first.")
    source = ModelSource.from_config(config)
    tokenizer = load_tokenizer(source)
    start_tokens(tokenizer)
    model = load_model(source, tokenizer=tokenizer)
    cpu = not torch.cuda.is_available() or config.training.get("use_cpu")
    model = model.to("cpu" if cpu else "cuda").eval()

    def said(done: int) -> None:
        log(f"{done:,} of {anchors.generate:,} sequences")

    found = sample_sequences(model, tokenizer, anchors.generate, anchors.tokens, config.seed, progress=said)
    loops = sum(is_degenerate(list(row["input_ids"])) for row in found)
    facts = {
        "source": anchors.describe(),
        "model": config.model,
        "tokenizer": vocabulary_digest(tokenizer),
        "settings": anchors.to_dict(),
        "degenerate": loops,
    }
    rows = AnchorRows(found, anchors.held_out, config.seed, facts)
    try:
        rows.save(path)
    except OSError as error:
        raise BALoraError(f"{path} cannot be written: {error.strerror or error}. Name another file.") from error
    log(
        f"Wrote {len(found):,} sequences to {path}; {loops} of them are loops. A run reads them with anchor.text={path}"
    )
    return rows
