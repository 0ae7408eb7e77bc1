"""Anchors through vLLM, with a stand-in of its module that samples from given answers."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch

import balora
from balora.anchoring import vllm_sampling
from balora.anchoring.vllm_sampling import Request, run_request, sample_through_vllm, write_sequences
from tiny import tiny_llama

REQUEST = Request(
    model="m", revision=None, dtype="bfloat16", memory=0.5, start=[1], opening=[5, 6], closing=[7, 8, 9], ends=[2],
    count=4, tokens=6, seed=3,
)  # fmt: skip
FAKE = """
class LLM:
    def __init__(self, *, model, skip_tokenizer_init, dtype, gpu_memory_utilization, max_model_len, generation_config, seed,
                 revision=None):
        assert max_model_len == 5 + 6 and skip_tokenizer_init and generation_config == "vllm"
    def generate(self, prompts, params):
        return [Request(p["prompt_token_ids"], s) for p, s in zip(prompts, params, strict=True)]
class SamplingParams:
    def __init__(self, *, n, temperature, top_p, top_k, min_p, max_tokens, stop_token_ids, ignore_eos, detokenize, seed):
        assert (n, temperature, top_p, top_k, min_p, ignore_eos, detokenize) == (1, 1.0, 1.0, 0, 0.0, True, False)
        self.max_tokens, self.stops, self.seed = max_tokens, stop_token_ids, seed
class Output: pass
class Request:
    def __init__(self, prompt, params):
        # A text runs on; the first question is closed and answered, the second is not.
        tokens = {1: [11] * 9, 6: [12, 7] if params.seed % 2 else [13] * 9, 9: [14, 2]}[prompt[-1]]
        output = Output()
        at = next((n for n, t in enumerate(tokens) if t in params.stops), None)
        output.token_ids = tokens[: params.max_tokens] if at is None else tokens[:at]  # without the token that stops
        output.finish_reason = "length" if at is None else "stop"
        output.stop_reason = None if at is None else tokens[at]
        self.outputs = [output]
"""
ROWS = [
    {"input_ids": [1, *[11] * 6], "labels": [-100, *[11] * 6]},
    {"input_ids": [1, *[11] * 6], "labels": [-100, *[11] * 6]},
    {"input_ids": [5, 6, 12, 7, 8, 9, 14, 2], "labels": [-100, -100, 12, 7, -100, -100, 14, 2]},
    {"input_ids": [5, 6, *[13] * 6], "labels": [-100, -100, *[13] * 6]},
]


def fake() -> types.ModuleType:
    module = types.ModuleType("vllm")
    exec(FAKE, module.__dict__)
    return module


def test_texts_and_conversations_are_written_with_the_full_distribution():
    assert write_sequences(fake(), REQUEST) == ROWS


def test_a_failure_is_said_and_leaves_the_sampling_to_transformers(tmp_path, monkeypatch, caplog):
    class Failed:
        returncode, stderr = 1, "Traceback\nRuntimeError: no memory"

    monkeypatch.setattr(vllm_sampling.subprocess, "run", lambda *args, **kwargs: Failed)
    with caplog.at_level(logging.WARNING, "balora"):
        assert run_request(REQUEST) is None
    assert "vLLM failed (RuntimeError: no memory), so they are sampled through transformers" in caplog.text


@pytest.mark.parametrize("case", ["not installed", "no gpu", "not from a folder"])
def test_what_vllm_cannot_sample_is_left_to_transformers(case, monkeypatch):
    monkeypatch.setattr(vllm_sampling.importlib.util, "find_spec", lambda name: None if case == "not installed" else 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: case == "not from a folder")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: pytest.fail("another model would be sampled"))
    model = balora.adapt(tiny_llama(), "pissa", rank=4)
    assert sample_through_vllm(model, None, 4, 6, 3) is None


@pytest.mark.slow
def test_it_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *filter(None, sys.path)]))
    assert run_request(REQUEST, 120) == ROWS
