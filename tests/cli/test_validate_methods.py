"""`balora validate` reports a method that a model cannot carry, from the sizes alone, without reading a weight."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from balora.config.run_config import load_run_config
from balora.estimation.validate import validate
from bench import SMALL
from families import FAMILIES
from tiny import tiny_llama, tiny_tokenizer


@pytest.fixture
def no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    load = PreTrainedModel.from_pretrained.__func__

    def load_on_meta(cls, *given: object, **options: object):
        if options.get("device_map") != "meta":
            read()
        return load(cls, *given, **options)

    monkeypatch.setattr(safetensors.torch, "load_file", read)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(load_on_meta))


def save(folder: Path, model) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


REFUSED = {
    "bitfit on Llama": ("bitfit", tiny_llama, [], "LlamaForCausalLM has no bias terms"),
    "loraga, rank": ("loraga", tiny_llama, ["method.rank=12", "method.samples=4"], "needs 2r = 24 singular directions"),
    "dora on experts": ("dora", FAMILIES["Mixtral"], [], "stacks the weights of several experts, and this method does not"),
    "adalora on experts": ("adalora", FAMILIES["Mixtral"], [], "stacks the weights of several experts"),
    "corda on experts": ("corda", FAMILIES["Mixtral"], ["method.samples=4"], "the inputs of each expert cannot be recorded"),
    "houlsby on experts": ("houlsby", FAMILIES["Qwen3-MoE"], [], "no single feed-forward layer for a"),
    "dropout in experts": ("balora", FAMILIES["Mixtral"], ["method.dropout=0.1"], "or set dropout: 0"),
    "adalora, too short": ("adalora", tiny_llama, ["method.warmup=0.8", "method.final=0.4"], "no step left to prune in"),
    "adalora, nothing to prune": ("adalora", tiny_llama, ["method.initial_rank=4"], "there is nothing to prune"),
    "pissa, rank": ("pissa", tiny_llama, ["method.rank=17"], "Rank 17 is too high"),
}  # fmt: skip


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_method_is_reported_before_weights_are_loaded(
    balora, config: Path, tmp_path: Path, case: str
) -> None:
    method, make, overrides, message = REFUSED[case]
    folder = save(tmp_path / "other", make())
    outcome = balora("validate", config, f"model={folder}", f"method.name={method}", *overrides)
    assert outcome.status == 2, outcome.out
    problems = [line for line in outcome.out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 1, problems
    assert re.search(message, problems[0]), problems
    assert "Traceback" not in outcome.err


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("method", ["full", "houlsby", "adalora", "dora", "loraga", "cordapp"])
def test_a_possible_method_is_estimated(balora, config: Path, method: str) -> None:
    own = [f"method.{name}={json.dumps(value)}" for name, value in SMALL.get(method, {}).items()]
    outcome = balora("validate", config, f"method.name={method}", *own)
    assert outcome.status == 0, outcome.out + outcome.err
    assert "trainable parameters" in outcome.out
    assert "activations unknown" not in outcome.out


@pytest.mark.usefixtures("no_weight_is_read")
def test_too_few_calibration_rows_are_a_note(balora, config: Path) -> None:
    outcome = balora("validate", config, "method.name=cordapp", "method.samples=4")
    assert outcome.status == 0, outcome.out + outcome.err
    assert "32 training rows (method.samples), and there are 24: 8 samples of 3 rows are used." in " ".join(
        outcome.out.split()
    )


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_estimate_of_activations_uses_the_dtype_of_the_run(
    config: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """Check for checkpoints of several dtypes that the config's dtype decides. The chunk of the loss is float32 in any case."""
    folder = save(tmp_path / "other", tiny_llama().to(stored))
    estimates = []
    for dtype in ("float32", "bfloat16"):
        report = validate(load_run_config(config, [f"model={folder}", f"dtype={dtype}"]))
        assert not report.problems
        assert report.estimate is not None
        estimates.append(report.estimate.activations_gib)
    assert 1.2 < estimates[0] / estimates[1] < 2.0, estimates
