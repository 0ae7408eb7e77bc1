"""The model card describes what was done and measured, in the hub's format, and claims nothing else."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from balora.checkpoints.model_card import ModelDescription, model_card, with_audit
from balora.config.run_config import RunConfig

PROVENANCE = {
    "time": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11.7", "torch": "2.9.0", "trl": None},
    "hardware": {"device": "Some GPU", "cores": 8, "threads": 4},
    "commit": {"id": "abc123", "dirty": True},
    "data": {"train": "meta-math/MetaMathQA, train[:100]", "eval": None, "digest": "feedbeef"},
}
RESULTS = {
    "train_loss": 0.51234,
    "eval_loss": 0.75,
    "train_runtime": 12.5,
    "peak_memory_mib": 512.0,
    "epoch": 1,
    "note": "x",
}


def settings(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": "meta-llama/Llama-2-7b-hf", "task": "generation", "output": "runs/a",
        "data": {"train": "meta-math/MetaMathQA", "prompt": "query", "response": "response", "eval": 0.01},
        "method": {"rank": 128, "target_modules": ["q_proj", "v_proj"]},
        "training": {"learning_rate": 2e-5, "bf16": True, "logging_steps": 3},
    }  # fmt: skip
    return RunConfig.from_dict({**values, **changes})


CLASSES = {
    "task": "classification", "model": "roberta-base",
    "data": {"train": "train.tsv", "text": "sentence", "label": "label", "labels": ["bad", "good"]},
}  # fmt: skip


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_is_valid_for_the_hub() -> None:
    card = model_card(settings(), RESULTS, PROVENANCE)
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == "meta-llama/Llama-2-7b-hf"
    assert data["base_model_relation"] == "adapter"
    assert (data["library_name"], data["pipeline_tag"]) == ("peft", "text-generation")
    assert data["datasets"] == ["meta-math/MetaMathQA"]
    assert data["tags"] == ["balora", "lora"]
    assert data["license"] == "unknown"  # not ours to name


@pytest.mark.parametrize(
    ("form", "method", "library", "relation"),
    [
        ("run", "balora", "peft", "adapter"),
        ("lora", "lora", "peft", "adapter"),
        ("merged", "balora", "transformers", "finetune"),
        ("run", "full", "transformers", "finetune"),
    ],
)
def test_library_and_relation_fit_the_form(form, method: str, library: str, relation: str) -> None:
    found = front(model_card(settings(method={"name": method}), {}, {}, form=form))
    assert (found["library_name"], found["base_model_relation"]) == (library, relation)
    assert ("lora" in found["tags"]) == (library == "peft")


def test_local_models_and_data_are_not_given_as_hub_ids(tmp_path: Path) -> None:
    base, rows = tmp_path / "secret" / "my-base", tmp_path / "secret" / "rows.jsonl"
    base.mkdir(parents=True)
    data = {"train": str(rows), "prompt": "q", "response": "a"}
    card = model_card(settings(model=str(base), data=data), {}, {}, form="lora")
    assert "base_model" not in front(card) and "datasets" not in front(card)
    assert "`my-base` (local)" in card and "`rows.jsonl` (local)" in card
    assert "secret" not in card  # a card may be published


def test_a_card_describes_model_data_and_training() -> None:
    card = model_card(settings(), RESULTS, PROVENANCE)
    for line in (
        "| Adapter | rank 128, alpha 128, dropout 0, on q_proj, v_proj |",
        "| Trained on | `meta-math/MetaMathQA` |",
        "| Columns | prompt: query, response: response |",
        "| Digest | feedbeef |",
        "| consistency | 0.025 | cosine |",
        "| diversity | 0.005 | two_phase |",
        "| spectral | 0.005 | two_phase |",
        "| learning_rate | 2e-05 |",
        "| seed | 42 |",
        "| bf16 | True |",
    ):
        assert line in card, line
    assert "variance |" not in card  # its weight is 0
    assert "logging_steps" not in card  # changes no weight


def test_terms_of_weight_0_are_not_listed() -> None:
    card = model_card(settings(method={"name": "lora"}), {}, {})
    assert "The task loss alone" in card and "| consistency" not in card


def test_results_are_the_measured_numbers_with_seed_and_hardware() -> None:
    card = model_card(settings(seed=1024), RESULTS, PROVENANCE)
    assert "Measured in one run, seed 1024 on Some GPU." in card
    for line in (
        "| train_loss | 0.5123 |",
        "| eval_loss | 0.75 |",
        "| train_runtime | 12.5 s |",
        "| peak_memory_mib | 512 MiB |",
    ):
        assert line in card
    assert "note" not in card.split("## Results")[1].split("##")[0]


def test_a_resumed_run_is_marked_and_has_no_time() -> None:
    results = {**RESULTS, "train_samples_per_second": 3.0, "train_steps_per_second": 1.0}
    card = model_card(settings(), results, {**PROVENANCE, "resumed": True})
    assert "The run was interrupted and resumed, so its time is not known." in card
    assert "| train_loss | 0.5123 |" in card
    assert "train_runtime" not in card and "per_second" not in card
    assert "resumed" not in model_card(settings(), results, {**PROVENANCE, "resumed": False})


def test_a_card_without_results_claims_none() -> None:
    card = model_card(settings(), {}, {})
    assert "Nothing was measured." in card
    results = card.split("## Results")[1].split("## ")[0]
    assert not re.search(r"\d", results)
    assert "## Made with" not in card


def test_a_term_that_was_switched_off_is_not_listed() -> None:
    """With two classes the spectral term of the logits is constant, so it is switched off."""
    data = {"train": "rows.jsonl", "text": "s", "label": "label"}
    own = settings(task="classification", data=data, regularization="on")
    objective = model_card(own, {}, {"data": {"labels": ["neg", "pos"]}}).split("## Objective")[1].split("## ")[0]
    assert "| consistency | 0.15 |" in objective
    assert "| spectral |" not in objective and "The spectral term is constant" in objective
    many = model_card(own, {}, {"data": {"labels": list("abcdefg")}}).split("## Objective")[1].split("## ")[0]
    assert "| spectral | 0.03 |" in many and "is constant" not in many


def test_a_measured_nan_is_listed() -> None:
    assert "| eval_pearson | nan |" in model_card(settings(), {"eval_pearson": math.nan}, {})


def test_versions_and_commit_are_listed() -> None:
    card = model_card(settings(), RESULTS, PROVENANCE)
    assert "| torch | 2.9.0 |" in card and "| trl" not in card
    assert "| balora commit | `abc123` with uncommitted changes |" in card


@pytest.mark.parametrize(
    ("form", "method", "expected"),
    [
        ("run", "balora", 'model = balora.load("THIS_FOLDER")'),
        ("run", "full", 'AutoModelForCausalLM.from_pretrained("THIS_FOLDER/model")'),
        ("lora", "balora", 'AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf")'),
        ("merged", "balora", 'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'),
    ],
)
def test_the_example_code_is_valid_and_fits_the_form(form, method: str, expected: str) -> None:
    card = model_card(settings(method={"name": method}), {}, {}, form=form)
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert expected in code
    assert ("import balora" in code) == (form == "run" and method != "full")


def test_the_example_code_of_a_classifier_has_its_classes() -> None:
    card = model_card(settings(**CLASSES), {}, {}, form="lora")
    assert "from_pretrained(\"roberta-base\", id2label={0: 'bad', 1: 'good'}, ignore_mismatched_sizes=True)" in card
    assert "| Classes | 0 = bad, 1 = good |" in card
    unnamed = {**CLASSES, "data": {"train": "train.tsv", "text": "sentence", "label": "label"}}
    assert "| Classes | 0 = no, 1 = yes |" in model_card(settings(**unnamed), {}, {"data": {"labels": ["no", "yes"]}})
    scores = {"task": "regression", "data": {"train": "sts.tsv", "text": ["a", "b"], "score": "score"}}
    assert "num_labels=1" in model_card(settings(**scores), {}, {}, form="lora")


def test_a_revision_is_in_the_example_code() -> None:
    card = model_card(settings(revision="v2"), {}, {}, form="lora")
    assert "revision `v2`" in card and 'revision="v2"' in card


def test_special_characters_in_tables_are_escaped() -> None:
    data = {"train": "a/b", "prompt": "q", "response": "a", "prompt_template": "Ask | answer:\n{prompt}"}
    card = model_card(settings(data=data), {}, {})
    row = next(line for line in card.splitlines() if line.startswith("| Prompt template"))
    assert row == "| Prompt template | `Ask \\| answer:\\n{prompt}` |"


def test_a_model_without_a_config_has_a_shorter_card() -> None:
    description = ModelDescription(
        base=None, task="generation", method="balora", rank=8, comparison="largest logit difference 1e-06"
    )
    card = model_card(None, {}, {}, form="lora", description=description)
    assert "a LoRA of rank 8 on the untouched base model" in card and "largest logit difference 1e-06" in card
    assert "## Data" not in card and "## Training" not in card
    assert "base_model" not in front(card)


HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[free](https://evil.example)", "https://evil.example/x",
    "www.evil.example", "![x](https://evil.example/p.png)", "a | b", "**bold** _it_ `code`", "line | # head",
    "me@evil.example", "&lt;b&gt;", "back\\slash*",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_data_or_config_are_shown_as_they_are(name: str) -> None:
    """Render the card as the hub does, and look for anything but the text of the name."""
    from markdown_it import MarkdownIt

    labels = [name, "other"]
    data = {"train": "train.tsv", "text": name, "label": "label", "labels": labels, "split": f"train{name}"}
    config = settings(
        **{**CLASSES, "data": data}, revision=name, training={"run_name": name, "lr_scheduler_kwargs": {"a": name}}
    )
    card = model_card(config, {name: 0.5}, {**PROVENANCE, "hardware": {"device": name}})
    body = card.split("---\n", 2)[2]
    page = MarkdownIt("commonmark").enable("table").render(body)
    shown = re.sub(r"<code.*?</code>", "", page, flags=re.DOTALL)
    assert not re.search(r"<(script|img|a|b|strong|em|h1)\b", shown.split("</h1>")[1]), shown
    source = re.sub(r"```.*?```|(`+)[^\n]*?\1", "", body, flags=re.DOTALL)
    assert not re.search(r"://|www\.|(?<!&)@", source), "viewers make links of addresses, but not of entities"
    rows = [re.sub(r"`+.*?`+", "", line) for line in body.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 5}, "no name adds a column"


def test_a_models_name_and_code_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<b>m`o`del"
    folder.mkdir()
    card = model_card(settings(model=str(folder), revision='a"); import os #'), {}, {}, form="lora")
    assert "\n# &lt;b&gt;m\\`o\\`del, fine-tuned" in card
    assert "| Base model | `` <b>m`o`del `` (local), revision" in card
    assert 'revision="a\\"); import os #"' in card


AUDIT = {
    "base": "org/base", "identity": {"tuned": {"weights": "w"}},
    "answers": {
        "drift": {"asks": "Same words?", "verdict": "changed", "sentence": "No: a | b <i>0.2</i> nats."},
        "bias": {"asks": "Same bias?", "verdict": "not measured", "sentence": ""},
    },
}  # fmt: skip


def test_the_audit_is_a_section_and_a_new_audit_replaces_it() -> None:
    plain = model_card(settings(), RESULTS, PROVENANCE)
    card = model_card(settings(), RESULTS, PROVENANCE, audit=AUDIT)
    assert card.count("## What fine-tuning changed") == 1 and "Not measured: bias." in card
    assert "| Same words? | changed | No: a \\| b &lt;i&gt;0.2&lt;/i&gt; nats. |" in card
    added = with_audit(plain, AUDIT)
    assert added == card
    answers = {**AUDIT["answers"], "drift": {**AUDIT["answers"]["drift"], "verdict": "unchanged"}}
    again = with_audit(added, {**AUDIT, "answers": answers})
    assert again == card.replace("| changed |", "| unchanged |")
    assert with_audit("by hand", AUDIT).startswith("by hand\n\n## What fine-tuning changed")
