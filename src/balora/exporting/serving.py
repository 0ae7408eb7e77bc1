"""Commands that serve an exported model."""

from __future__ import annotations

import shlex
from pathlib import Path

from peft.utils import CONFIG_NAME

from balora.files import read_json

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank, beside 1."""
_ONLY_PEFT = ("modules_to_save", "trainable_token_indices", "use_dora")
"""Keys of a LoRA's config that vLLM refuses."""


def serving_lines(folder: Path, task: str | None = None) -> list[str]:
    """Return commands that serve what `balora.export` wrote to a folder; none for a classifier.

    ``task`` is the task of the run, if it is known.
    """
    if task not in (None, "generation"):
        return []
    name = shlex.quote(str(folder))
    config = folder / CONFIG_NAME
    if not config.is_file():
        return [
            f"vllm serve {name}",
            f"python convert_hf_to_gguf.py {name} --outfile {name}/model.gguf   # from llama.cpp",
        ]
    adapter = read_json(config)
    base = adapter.get("base_model_name_or_path")
    if not base:
        return []
    if any(adapter.get(key) for key in _ONLY_PEFT):
        return [
            f"balora chat {name}",
            "# vLLM loads LoRAs of linear layers alone, and this one has more; use --to merged",
        ]
    rank = next((known for known in _VLLM_RANKS if adapter["r"] <= known), None)
    base = shlex.quote(str(base))
    serve = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules tuned={name}"
    return [f"balora chat {name}", serve if rank else f"# vLLM serves ranks up to {_VLLM_RANKS[-1]}; use --to merged"]
