"""Check a merged model against what llama.cpp's converter to GGUF reads, without running the converter.

The converter (``convert_hf_to_gguf.py``) is a script of llama.cpp and part of no package. It reads ``config.json``, the
tokenizer's files and the tensors of the safetensors files. The package ``gguf``, if it is installed, has the table of the tensor
names of every architecture.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("spiece.model",))
_READ = ("F32", "F16", "BF16")
_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gpt_neox": "gptneox",
    "cohere": "command-r",
    "smollm3": "smollm3",
}
"""Name of the architecture in the package gguf, by transformers' model type where they differ."""
_SKIPPED = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
"""Buffers that the converter leaves out."""


def gguf_notes(folder: Path) -> list[str]:
    """Return a sentence for each thing in a merged model's folder that the converter would not read or that was not checked."""
    notes = []
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not config.get("architectures"):
        notes.append("config.json names no architecture (key architectures), by which the converter chooses its code.")
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        notes.append("There is no tokenizer that the converter reads (tokenizer.json or tokenizer.model).")
    tensors = _tensors(folder)
    odd = sorted(f"{name} ({dtype})" for name, dtype in tensors.items() if dtype not in _READ)
    if odd:
        notes.append(f"Tensors in a dtype that the converter does not read: {_some(odd)}. Export with --dtype.")
    unknown = _unknown_names(config, list(tensors))
    if unknown is None:
        notes.append(
            "The names of the tensors were not compared with the converter's table; `pip install gguf` has it, and it knows "
            "the common architectures."
        )
    elif unknown:
        notes.append(f"Tensors whose names are not in the converter's table for this architecture: {_some(unknown)}.")
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _tensors(folder: Path) -> dict[str, str]:
    """Return the dtypes of the tensors in the safetensors files by name, without reading the values."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: file.get_slice(name).get_dtype() for name in file.keys()})  # noqa: SIM118
    return found


def _unknown_names(config: dict[str, Any], names: list[str]) -> list[str] | None:
    """Return the tensors that the package gguf does not know for the architecture; None if it cannot tell."""
    try:
        import gguf
    except ImportError:
        return None
    kind = str(config.get("model_type"))
    wanted = _ARCHITECTURES.get(kind, kind.removesuffix("_text").replace("_", "-")).replace("-", "")
    arch = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name.replace("-", "") == wanted), None)
    text = config.get("text_config", config)
    layers = next((text[key] for key in ("num_hidden_layers", "n_layer") if isinstance(text.get(key), int)), None)
    if arch is None or layers is None:
        return None
    table = gguf.get_tensor_name_map(arch, layers)
    known = (".weight", ".bias")
    # The converter stacks the experts of a layer, and looks their stack up.
    stacked = {name: re.sub(r"experts\.\d+\.", "experts.", name) for name in names}
    return [n for n in names if table.get_name(stacked[n], try_suffixes=known) is None and not _SKIPPED.search(n)]
