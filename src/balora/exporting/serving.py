"""How to serve an exported model: commands for the screen, and the notes ``SERVING.md`` and ``Modelfile`` beside the weights."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from balora.exporting.gguf import gguf_notes
from balora.exporting.modelfile import modelfile
from balora.files import read_json

SERVING, MODELFILE = "SERVING.md", "Modelfile"
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank."""
_GGUF = "model.gguf"


def serving_lines(folder: Path, task: str | None = None) -> list[str]:
    """Return commands that serve what `balora.export` wrote to a folder; none for a classifier.

    ``task`` is the task of the run, if it is known.
    """
    if task not in (None, "generation"):
        return []
    name = shlex.quote(str(folder))
    config = folder / CONFIG_NAME
    if not config.is_file():
        notes = [f"# more in {folder / SERVING}"] if (folder / SERVING).is_file() else []
        return [
            f"vllm serve {name}",
            f"python convert_hf_to_gguf.py {name} --outfile {name}/{_GGUF}   # from llama.cpp",
            *notes,
        ]
    adapter = read_json(config)
    base = adapter.get("base_model_name_or_path")
    if not base:
        return []
    problem = vllm_problem(adapter)
    serve = _vllm_command(str(base), adapter, name)
    return [f"balora chat {name}", f"# {problem}" if problem else serve]


def vllm_problem(adapter: Mapping[str, Any]) -> str | None:
    """Return why vLLM would not load a LoRA, by its ``adapter_config.json``; None if nothing speaks against it."""
    if adapter["r"] > _VLLM_RANKS[-1]:
        return f"vLLM serves ranks up to {_VLLM_RANKS[-1]}; use --to merged"
    if adapter.get("use_dora"):
        return "vLLM does not serve DoRA; use --to merged"
    if adapter.get("modules_to_save") or adapter.get("trainable_token_indices"):
        return "vLLM does not serve a LoRA with fully trained modules or embeddings; use --to merged"
    if adapter.get("target_parameters"):
        return "vLLM was not tried with a LoRA on the weights of experts; use --to merged"
    return None


def _vllm_command(base: str, adapter: Mapping[str, Any], name: str) -> str:
    rank = next((known for known in _VLLM_RANKS if adapter["r"] <= known), None)
    return f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank} --lora-modules tuned={name}"


def write_serving(
    folder: Path,
    tokenizer: Any | None,
    *,
    run_rank: int | None = None,
    moved: bool = False,
    base_note: str | None = None,
) -> None:
    """Write ``SERVING.md``, and for a merged model a ``Modelfile``, into the folder of an exported causal language model.

    Args:
        folder: Folder of the export, complete but for these files.
        tokenizer: Its tokenizer; None if it has none.
        run_rank: Rank of the adapter in training, for a LoRA.
        moved: Whether the method moved a part of the weights into the adapter.
        base_note: How the base of a LoRA must be loaded, if it is not loaded as usual.
    """
    if (folder / CONFIG_NAME).is_file():
        text = _lora_notes(folder, run_rank, moved, base_note)
    else:
        content, notes = modelfile(folder, tokenizer, f"./{_GGUF}")
        (folder / MODELFILE).write_text(content, encoding="utf-8")
        text = _merged_notes(notes, gguf_notes(folder))
    (folder / SERVING).write_text(text, encoding="utf-8")


def _lora_notes(folder: Path, run_rank: int | None, moved: bool, base_note: str | None) -> str:
    adapter = read_json(folder / CONFIG_NAME)
    base, rank = adapter.get("base_model_name_or_path") or "BASE", adapter["r"]
    problem = vllm_problem(adapter)
    doubled = (
        f" It is {rank} and not the {run_rank} of the training, because the training began with a part of the weights in the "
        "adapter and this LoRA is for the original model."
        if moved and run_rank is not None and rank != run_rank
        else ""
    )
    vllm = f"{problem[0].upper()}{problem[1:]}." if problem else f"```\n{_vllm_command(str(base), adapter, '.')}\n```"
    return _joined(
        "# Serving this LoRA",
        f"The commands are for this folder as the current one. The base is `{base}`: the original model, as it was published."
        + (f" {base_note}" if base_note else ""),
        f"## vLLM\n\nThe limit for the rank must be at least that of the LoRA.{doubled}\n\n{vllm}",
        "## transformers and peft\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, "
        f'AutoTokenizer\n\nmodel = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), ".")\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")\n```',
        f"## llama.cpp and Ollama\n\nllama.cpp converts a LoRA for some architectures:\n\n```\npython "
        f"llama.cpp/convert_lora_to_gguf.py . --base-model-id {shlex.quote(str(base))} --outfile lora.gguf\n"
        "llama-server -m base.gguf --lora lora.gguf\n```\n\nFor Ollama, export with `--to merged`, which writes a Modelfile.",
    )


def _merged_notes(modelfile_notes: list[str], converter_notes: list[str]) -> str:
    checked = (
        "\n".join(f"- {note}" for note in converter_notes)
        if converter_notes
        else "The architecture, the tokenizer's files, and the names and dtypes of all tensors are what the converter reads."
    )
    told = "".join(f"\n\n{note}" for note in modelfile_notes)
    return _joined(
        "# Serving this model",
        "The commands are for this folder as the current one.",
        "## vLLM\n\n```\nvllm serve .\n```",
        "## transformers\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```',
        "## llama.cpp\n\nThe converter is a script of llama.cpp's repository; no package has it.\n\n```\n"
        "git clone https://github.com/ggml-org/llama.cpp\npip install -r llama.cpp/requirements.txt\n"
        f"python llama.cpp/convert_hf_to_gguf.py . --outfile {_GGUF}\nllama-server -m {_GGUF}\n```\n\n"
        f"This folder was compared with what it reads:\n\n{checked}",
        f"## Ollama\n\n```\nollama create tuned -f {MODELFILE}\nollama run tuned\n```\n\n`{MODELFILE}` takes the converted "
        f"`{_GGUF}`. For the architectures that Ollama converts by itself, `FROM .` works in its place.{told}",
    )


def _joined(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"
