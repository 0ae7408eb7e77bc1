"""Generation through vLLM, with a fake vLLM: the real one cannot be installed with this version of torch.

The tests check the arguments that vLLM gets and the use of its results. They do not check vLLM itself.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation.engines import vllm as vllm_engine
from evaluation_models import generator_at
from tiny import tiny_llama
from trained_runs import trained_run


@dataclasses.dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: list[str] | None


class LLM:
    """Fake of vLLM's class: loads a model directory with transformers, and generates one prompt at a time."""

    calls: list[tuple[list[dict], list[SamplingParams]]] = []  # noqa: RUF012

    def __init__(self, model: str, tokenizer: str, dtype: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        config = types.SimpleNamespace(max_model_len=256)
        self.llm_engine = types.SimpleNamespace(model_config=config)

    def generate(self, prompts: list[dict], parameters: list[SamplingParams]) -> list:
        LLM.calls.append((prompts, parameters))
        return [self.one(p["prompt_token_ids"], how) for p, how in zip(prompts, parameters, strict=True)]

    def one(self, ids: list[int], how: SamplingParams):
        with torch.no_grad():
            row = self.model.generate(
                torch.tensor([ids]), max_new_tokens=how.max_tokens, do_sample=False, pad_token_id=0
            )[0, len(ids) :].tolist()
        row = row[: row.index(2)] if 2 in row else row
        text = " " + self.tokenizer.decode(row, skip_special_tokens=True)
        reason = "stop" if len(row) < how.max_tokens else "length"
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(text=text, token_ids=row, finish_reason=reason)])


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    LLM.calls = []
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"question": "?" * (n + 1), "answer": "#### 1"}) + "\n" for n in range(5)))
    return path


def outputs(model: Path, problems: Path, folder: Path, **options) -> list[str]:
    how = EvaluationOptions(data={"gsm8k": str(problems)}, max_new_tokens=8, device="cpu", **options)
    result = evaluate(model, ["gsm8k"], output=folder, options=how).results["gsm8k"]
    return [sample["output"] for sample in result["samples"]]


def test_both_engines_get_the_same_tokens_and_give_the_same_answers(tmp_path: Path, problems: Path) -> None:
    model = generator_at(tmp_path / "m")
    through_vllm = outputs(model, problems, tmp_path / "vllm", engine="vllm")
    assert through_vllm == outputs(model, problems, tmp_path / "transformers")
    prompts, parameters = LLM.calls[0]
    assert len(prompts) == 5 and parameters[0].temperature == 0 and parameters[0].seed is None
    assert parameters[0].stop == ["\n### Instruction", "\n### Question"]


def test_the_adapter_of_a_run_is_merged(tmp_path: Path, problems: Path) -> None:
    run = trained_run(tmp_path / "run", tiny_llama(), "generation")
    tuned = outputs(run.folder, problems, tmp_path / "vllm", engine="vllm")
    assert tuned == outputs(run.folder, problems, tmp_path / "transformers")
    assert tuned != outputs(run.base, problems, tmp_path / "base", engine="vllm", prompt_template="none")


def test_answers_are_written_after_each_chunk_and_seeds_differ(
    tmp_path: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "_CHUNK", 2)
    outputs(generator_at(tmp_path / "m"), problems, tmp_path / "out", engine="vllm", temperature=0.7)
    assert [len(prompts) for prompts, _ in LLM.calls] == [2, 2, 1]
    seeds = [how.seed for _, parameters in LLM.calls for how in parameters]
    assert len(set(seeds)) == 5


def test_a_sample_has_the_same_seed_after_a_resume(tmp_path: Path, problems: Path) -> None:
    model = generator_at(tmp_path / "m")
    outputs(model, problems, tmp_path / "whole", engine="vllm", temperature=0.7)
    outputs(model, problems, tmp_path / "parts", engine="vllm", temperature=0.7, limit=2)
    outputs(model, problems, tmp_path / "parts", engine="vllm", temperature=0.7)
    whole, first, rest = ([how.seed for how in parameters] for _, parameters in LLM.calls)
    assert len(first) == 2 and first + rest == whole
