"""Where a family cannot carry a method, `balora validate` says so, by the sizes alone: no weight is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from balora.config.run_config import load_run_config
from balora.estimation.validate import validate
from bench import SMALL
from families import FAMILIES
from tiny import tiny_llama, tiny_tokenizer


@pytest.fixture
def no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("balora.loading.pretrained.load_model", read)
    monkeypatch.setattr(safetensors.torch, "load_file", read)
    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", read)


def place(folder: Path, model) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


REFUSED = {
    "bitfit on Llama": ("bitfit", tiny_llama, [], "LlamaForCausalLM has no bias terms"),
    "loraga, rank": ("loraga", tiny_llama, ["method.rank=12", "method.samples=4"], "takes 2r = 24 singular directions"),
    "dora on experts": ("dora", FAMILIES["Mixtral"], [], "stacks the weights of several experts, and this method does not"),
    "adalora on experts": ("adalora", FAMILIES["Mixtral"], [], "stacks the weights of several experts"),
    "corda on experts": ("corda", FAMILIES["Mixtral"], ["method.samples=4"], "what each of them meets cannot be seen"),
    "houlsby on experts": ("houlsby", FAMILIES["Qwen3-MoE"], [], "no single feed-forward layer to follow"),
    "dropout in experts": ("balora", FAMILIES["Mixtral"], ["method.dropout=0.1"], "or set dropout: 0"),
    "adalora, too short": ("adalora", tiny_llama, ["method.warmup=0.8", "method.final=0.4"], "no step left to prune in"),
    "adalora, nothing to prune": ("adalora", tiny_llama, ["method.initial_rank=4"], "there is nothing in between"),
    "corda, too little data": ("corda", tiny_llama, [], "wants 256 rows of training data to start from, and there are 24"),
    "cordapp, too little data": ("cordapp", tiny_llama, ["method.samples=4"], "wants 32 rows .* and there are 24"),
    "pissa, rank": ("pissa", tiny_llama, ["method.rank=17"], "Rank 17 is above"),
}  # fmt: skip


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_loaded(balora, config: Path, tmp_path: Path, case: str) -> None:
    method, make, overrides, sentence = REFUSED[case]
    folder = place(tmp_path / "other", make())
    outcome = balora("validate", config, f"model={folder}", f"method.name={method}", *overrides)
    assert outcome.status == 2, outcome.out
    problems = [line for line in outcome.out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 1, problems
    assert re.search(sentence, problems[0]), problems
    assert "Traceback" not in outcome.err


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("method", ["full", "houlsby", "adalora", "dora", "loraga", "cordapp"])
def test_what_can_be_is_estimated(balora, config: Path, method: str) -> None:
    own = [f"method.{name}={json.dumps(value)}" for name, value in SMALL.get(method, {}).items()]
    outcome = balora("validate", config, f"method.name={method}", *own)
    assert outcome.status == 0, outcome.out + outcome.err
    assert "trainable parameters" in outcome.out
    assert "activations unknown" not in outcome.out


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_activations_are_in_the_dtype_that_the_run_holds_its_weights_in(
    config: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """Whatever the checkpoint is stored in: the run decides, and the chunk of the loss is float32 in both."""
    folder = place(tmp_path / "other", tiny_llama().to(stored))
    found = []
    for dtype in ("float32", "bfloat16"):
        report = validate(load_run_config(config, [f"model={folder}", f"dtype={dtype}"]))
        assert not report.problems
        assert report.estimate is not None
        found.append(report.estimate.activations_gib)
    assert 1.2 < found[0] / found[1] < 2.0, found
