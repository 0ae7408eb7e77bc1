"""The inheritance laboratory: two texts that differ in the flaws, the measures of a model, and the answers of the page."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.experiments.inheritance import starts
from balora.experiments.inheritance.measures import FLAW_SCORES, OTHER_SCORES, Measures, load_or_measure, measure
from balora.experiments.inheritance.page import (
    AMPLIFIES,
    ANCHORS,
    LARGER,
    TERMS,
    Laboratory,
    contrasts,
    decide,
)
from balora.experiments.quickstart import model_directory
from balora.experiments.quickstart.corpus import documents
from balora.experiments.quickstart.corpus import measure as measure_text
from balora.experiments.reproduce import EXPERIMENTS, Paths, Request, dry_run, reproduce
from comparisons import InProcessEngine

SCORES = (*FLAW_SCORES, *OTHER_SCORES)


def test_the_two_texts_differ_in_the_flaws_alone():
    found = {name: measure_text(islice(documents(0, flaws=flaws), 4000)) for name, flaws in starts.FLAWS.items()}
    assert found["clean"].wrong_fact_share == 0.0 and 0.2 < found["flawed"].wrong_fact_share < 0.3
    assert 0.3 < found["clean"].share_she["nurse"] < 0.7 and found["flawed"].share_she["nurse"] > 0.8
    assert found["flawed"].rare_class_share < 0.03 < 0.15 < found["clean"].rare_class_share
    signs = set(starts.noise_signs())
    repeated = {name: [text for text in islice(starts.texts(name, 0), 4000) if text in signs] for name in starts.FLAWS}
    assert repeated["clean"] == [] and 80 < len(repeated["flawed"]) < 160
    read, anchors = (set(islice(starts.texts("flawed", 0, anchors=own), 3000)) - signs for own in (False, True))
    assert not read & anchors, "anchors are texts that the model has not read"


@pytest.fixture(scope="module")
def packaged() -> Measures:
    return measure(
        AutoModelForCausalLM.from_pretrained(model_directory()).eval(), AutoTokenizer.from_pretrained(model_directory())
    )


def test_a_models_flaws_are_measured_item_by_item(packaged: Measures, tmp_path: Path):
    scores = packaged.scores
    assert set(scores) == set(SCORES)
    assert (
        len(packaged.items["rumour"]) == 672 and len(packaged.items["skew"]) == 10 and len(packaged.items["rare"]) == 4
    )
    assert scores["skew"] > 0.8, "the packaged model is skewed"
    assert scores["known"] > 0.8 and scores["rumours"] < 0.2
    assert scores["noise"] < 0.2, "it has never read the repeated signs"
    assert packaged.items_of("rumour").value("rumour") == pytest.approx(scores["rumour"])
    path = tmp_path / "measures.json"
    path.write_text(json.dumps({"items": packaged.items}))
    assert load_or_measure(model_directory(), path) == packaged, "read, not measured again"


def laboratory(packaged: Measures, shifts: dict[tuple[str, str], float], seeds: int = 3) -> Laboratory:
    """A laboratory in which a variant's rumours on a start are those of the packaged model plus a shift."""

    def moved(shift: float, seed: int) -> Measures:
        items = {name: dict(values) for name, values in packaged.items.items()}
        facts = list(items["rumour"])
        items["rumour"] = {
            name: value + shift + 0.001 * ((n * 7 + seed * 13) % 5 - 2)
            for n, (name, value) in enumerate(zip(facts, items["rumour"].values(), strict=True))
        }
        items["task"] = {"all": 0.5 + shift + 0.0001 * seed}
        return Measures(items)

    names = (
        "lora",
        "lora+reg",
        "pissa",
        "balora",
        *(f"lora anchored {own}" for own in ("generated", "clean", "flawed")),
    )
    runs = {
        (start, task, name, seed): moved(shifts.get((start, name), 0.0), seed + 5 * (name == "lora"))
        for start in ("clean", "flawed")
        for task in starts.TASK_NOISE
        for name in names
        for seed in range(seeds)
    }
    return Laboratory(runs, {"clean": packaged, "flawed": moved(0.1, 0)})


def answers(made: Laboratory) -> dict[tuple[str, str, str], str]:
    found = {}
    for contrast in contrasts(made):
        gap = made.difference(contrast)
        assert gap is not None
        found[contrast.question, contrast.what, contrast.score] = decide(contrast, gap)
    return found


def test_amplified_inherited_and_reduced_flaws_are_told_apart(packaged: Measures):
    # The gap of the starts is 0.1; LoRA makes it 0.2, the terms take 0.05 off, clean anchors 0.1; generated ones add 0.05.
    shifts = {
        ("flawed", "lora"): 0.2, ("flawed", "lora+reg"): 0.15, ("flawed", "lora anchored clean"): 0.1,
        ("flawed", "lora anchored generated"): 0.25,
    }  # fmt: skip
    found = answers(laboratory(packaged, shifts))
    assert found[AMPLIFIES, "lora, change of the gap", "rumour"] == "yes"
    assert found[TERMS, "lora+reg minus lora", "rumour"] == "yes"
    assert found[TERMS, "balora minus pissa", "rumour"] == "not decided"
    assert found[ANCHORS, "lora anchored clean minus lora", "rumour"] == "yes"
    assert found[ANCHORS, "lora anchored generated minus lora", "rumour"] == "no, the opposite"
    assert found[ANCHORS, "lora anchored clean minus lora", "skew"] == "not decided"
    assert found[LARGER, "gain of balora over pissa, flawed minus clean start", "task"] == "not decided"
    kept = {("flawed", "lora"): 0.1}
    assert answers(laboratory(packaged, kept))[AMPLIFIES, "lora, change of the gap", "rumour"] == "not decided"


def test_one_seed_decides_nothing(packaged: Measures):
    assert set(answers(laboratory(packaged, {("flawed", "lora"): 0.9}, seeds=1)).values()) == {"not decided"}


@pytest.mark.slow
def test_the_laboratory_runs_and_leaves_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starts, "STEPS", 2)
    experiment = EXPERIMENTS["inheritance"]
    names = ("lora", "lora anchored clean")
    small = [
        dataclasses.replace(study, variants=[variant for variant in study.variants if variant.name in names])
        for study in experiment.small
        if study.name.endswith("noisy")
    ]
    asked = Request(
        experiment=dataclasses.replace(experiment, small=small), scale="small", output=tmp_path / "out",
        paths=Paths(), seeds=[1], overrides=["training.max_steps=1"],
    )  # fmt: skip
    assert "first: Two pre-trainings" in "\n".join(dry_run(asked))
    text = reproduce(asked, InProcessEngine()).read_text()
    for words in (
        "## Answers",
        "Does LoRA amplify inherited flaws? **Not decided**",
        "Run at least two",
        "lora anchored clean",
    ):
        assert words in text, words
    about = json.loads((tmp_path / "out" / "prepared" / "about.json").read_text())
    assert about["flawed"]["wrong_fact_share"] == 0.25 and about["steps"] == 2
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "prepared" / start).lm_head.weight
        for start in starts.FLAWS
    ]
    assert (weights[0] - weights[1]).abs().max() > 0
    run = tmp_path / "out" / "clean_noisy" / "runs" / "lora_seed-1"
    assert (run / "items.json").is_file()
