"""Anchors that a model writes through vLLM, where it is installed and there is a GPU.

vLLM runs in a process of its own, which reads the model from where it was loaded: when the process ends, all its memory is free
for the training. Sampled as in `balora.anchoring.sampling`: temperature 1, the full distribution, a seed for each sequence.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from balora.anchoring.sampling import chat_turn, end_tokens, start_tokens
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.adapted_model import base_model_of

logger = logging.getLogger("balora")
_SHARE = 0.9
"""Part of the GPU's free memory that vLLM may use."""
_TIME = 3600
"""Seconds after which vLLM is given up."""
Row = dict[str, list[int]]


@dataclasses.dataclass(frozen=True)
class Request:
    """Sequences for vLLM to write. `sample_sequences` describes the plan of a conversation."""

    model: str
    revision: str | None
    dtype: str
    memory: float
    """Part of the GPU's memory that vLLM may use, in (0, 1)."""
    start: list[int]
    opening: list[int] | None
    closing: list[int] | None
    ends: list[int]
    count: int
    tokens: int
    seed: int


def sample_through_vllm(model: nn.Module, tokenizer: Any, count: int, tokens: int, seed: int) -> list[Row] | None:
    """Let the pre-trained model under ``model`` write sequences through vLLM, if that is the same model and it is installed.

    Returns:
        Rows as of `sample_sequences`; None if vLLM cannot be used. If it was tried and failed, a warning says why.
    """
    if importlib.util.find_spec("vllm") is None or not torch.cuda.is_available():
        return None
    base = base_model_of(model)
    why = _other_model(base)
    if why is not None:
        logger.info("Anchors: sampled through transformers and not vLLM, because %s", why)
        return None
    free, total = torch.cuda.mem_get_info()
    turn = chat_turn(tokenizer)
    path = str(base.name_or_path)
    request = Request(
        model=path,
        revision=None if Path(path).is_dir() else getattr(base.config, "_commit_hash", None),
        dtype=str(base.dtype).removeprefix("torch."),
        memory=round(_SHARE * free / total, 3),
        start=start_tokens(tokenizer),
        opening=None if turn is None else turn.opening,
        closing=None if turn is None else turn.closing,
        ends=sorted(end_tokens(model, tokenizer)),
        count=count,
        tokens=tokens,
        seed=seed,
    )
    return run_request(request)


def run_request(request: Request, seconds: float = _TIME) -> list[Row] | None:
    """Run vLLM in a process of its own; None, and a warning, if it fails."""
    with tempfile.TemporaryDirectory(prefix="balora-vllm-") as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "rows.json"
        asked.write_text(json.dumps(dataclasses.asdict(request)), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(asked), str(answer)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
            if done.returncode == 0:
                rows: list[Row] = json.loads(answer.read_text(encoding="utf-8"))
                return rows
            reason = (done.stderr.strip() or f"it ended with exit status {done.returncode}").splitlines()[-1]
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            reason = str(error)
    logger.warning("Anchors: vLLM failed (%s), so they are sampled through transformers.", reason)
    return None


def write_sequences(vllm: Any, request: Request) -> list[Row]:
    """Write the sequences of a request with the module ``vllm``."""
    turn = 0 if request.opening is None else request.count // 2
    longest = len(request.start)
    if request.opening is not None and request.closing is not None:
        longest = max(longest, len(request.opening) + len(request.closing))
    engine = vllm.LLM(
        model=request.model, skip_tokenizer_init=True, dtype=request.dtype, gpu_memory_utilization=request.memory,
        max_model_len=longest + request.tokens, generation_config="vllm", seed=request.seed,
        **({} if request.revision is None else {"revision": request.revision}),
    )  # fmt: skip

    def sample(prompts: list[list[int]], budgets: list[int], stops: list[int], first: int) -> list[list[int]]:
        parameters = [
            vllm.SamplingParams(
                n=1, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=budget, stop_token_ids=stops,
                ignore_eos=True, detokenize=False, seed=request.seed * 1_000_003 + first + number,
            )
            for number, budget in enumerate(budgets)
        ]  # fmt: skip
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], parameters)
        return [_tokens(output.outputs[0], stops) for output in outputs]

    plain = request.count - turn
    texts = sample([request.start] * plain, [request.tokens] * plain, request.ends, 0)
    rows = [_row(request.start, [(new, True)]) for new in texts]
    if turn:
        assert request.opening is not None and request.closing is not None
        closes = sorted({request.closing[0], *request.ends})
        questions = sample([request.opening] * turn, [request.tokens] * turn, closes, plain)
        forced = request.closing[1:]
        left = [request.tokens - len(question) - len(forced) for question in questions]
        answered = [n for n, q in enumerate(questions) if q and q[-1] in closes and left[n] > 0]
        prompts = [[*request.opening, *questions[n], *forced] for n in answered]
        answers = dict(
            zip(
                answered,
                sample(prompts, [left[n] for n in answered], request.ends, plain + turn) if answered else [],
                strict=True,
            )
        )
        for number, question in enumerate(questions):
            parts = [(question, True)]
            if number in answers:
                parts += [(forced, False), (answers[number], True)]
            elif question and question[-1] in closes:
                parts += [(forced[: request.tokens - len(question)], False)]
            rows.append(_row(request.opening, parts))
    return rows


def _tokens(output: Any, stops: list[int]) -> list[int]:
    """Return the sampled tokens with the one that ended them, which vLLM may leave out."""
    found = [int(token) for token in output.token_ids]
    if output.finish_reason == "stop" and isinstance(output.stop_reason, int) and found[-1:] != [output.stop_reason]:
        found.append(output.stop_reason)
    return found


def _row(before: list[int], parts: list[tuple[list[int], bool]]) -> Row:
    labels = [-100] * len(before) + [t if sampled else -100 for tokens, sampled in parts for t in tokens]
    return {"input_ids": [*before, *(t for tokens, _ in parts for t in tokens)], "labels": labels}


def _other_model(base: Any) -> str | None:
    """Return why the model that vLLM would read is not the pre-trained model; None if it is."""
    path = getattr(base, "name_or_path", None)
    if not path:
        return "the model was not loaded from a folder or the hub."
    if any(_quantized(base)):
        return "its weights are quantized here."
    if type(base).__module__.startswith("transformers_modules"):
        return "it has code of its own."
    try:
        stored = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        return f"its config cannot be read ({error})."
    if getattr(stored.get_text_config(), "vocab_size", None) != getattr(
        base.config.get_text_config(), "vocab_size", None
    ):
        return "tokens were added to it."
    return None


def _quantized(base: nn.Module) -> Iterator[bool]:
    yield getattr(base, "is_quantized", False) is True
    yield from (isinstance(module, QuantizedLinear) for module in base.modules())


def _main() -> None:
    asked, answer = Path(sys.argv[1]), Path(sys.argv[2])
    request = Request(**json.loads(asked.read_text(encoding="utf-8")))
    rows = write_sequences(importlib.import_module("vllm"), request)
    answer.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    _main()
