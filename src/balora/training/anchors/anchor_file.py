"""`balora teacher --anchors`: let the pre-trained model write the anchors of a config into a file that several runs read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from balora.anchoring.rows import AnchorRows, vocabulary_digest
from balora.anchoring.sampling import is_degenerate, sample_sequences, start_tokens
from balora.anchoring.vllm_sampling import sample_through_vllm
from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.loading.pretrained import load_model, load_tokenizer
from balora.loading.source import ModelSource
from balora.training.distributed.joined import own_device
from balora.turns import division


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
    count, source = anchors.generate, ModelSource.from_config(config)
    tokenizer = load_tokenizer(source)
    start_tokens(tokenizer)
    model = load_model(source, tokenizer=tokenizer)
    cpu = not torch.cuda.is_available() or config.training.get("use_cpu")
    device = None if cpu else own_device(None)
    model = model.to("cpu" if cpu else device or "cuda").eval()

    def said(done: int) -> None:
        log(f"{done:,} of {-(-count // processes):,} sequences{' of this process' if processes > 1 else ''}")

    rank, processes = division()
    found = None
    if processes == 1:
        found = sample_through_vllm(model, tokenizer, count, anchors.tokens, config.seed)
    if found is None:
        found = sample_sequences(model, tokenizer, count, anchors.tokens, config.seed, progress=said)
    else:
        log(f"{len(found):,} sequences through vLLM")
    loops = sum(is_degenerate(list(row["input_ids"])) for row in found)
    facts = {
        "source": anchors.describe(),
        "model": config.model,
        "tokenizer": vocabulary_digest(tokenizer),
        "settings": anchors.to_dict(),
        "degenerate": loops,
    }
    rows = AnchorRows(found, anchors.held_out, config.seed, facts)
    if rank > 0:
        return rows
    try:
        rows.save(path)
    except OSError as error:
        raise BALoraError(f"{path} cannot be written: {error.strerror or error}. Name another file.") from error
    log(
        f"Wrote {len(found):,} sequences to {path}; {loops} of them are loops. A run reads them with anchor.text={path}"
    )
    return rows
