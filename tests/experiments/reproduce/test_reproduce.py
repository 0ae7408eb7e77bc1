"""The paper's experiments by name: what they declare, what they would run, and a whole one on a tiny model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from balora.config.yaml_loader import read_config
from balora.experiments.compare import Comparison, LocalEngine, Row, Variant, summarise
from balora.experiments.reproduce import EXPERIMENTS, Places, Request, Study, reproduce
from balora.experiments.reproduce.reported import is_reported, reported_markdown
from balora.experiments.reproduce.table4 import BASELINE, OURS, PRINTED, show

ROOT = Path(__file__).resolve().parents[3]
PLACES = Places(shared=Path("../shared"), recipes=ROOT / "recipes")


def request(name: str, scale: str, **more) -> Request:
    return Request(experiment=EXPERIMENTS[name], scale=scale, output=Path("out"), places=PLACES, **more)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_declared_run_has_valid_settings(name: str, scale: str):
    asked = request(name, scale)
    studies = asked.experiment.studies(scale)
    folders = [cell.run_directory for study in studies for cell in asked.cells(study)]
    assert len(folders) == len(set(folders)) >= 12
    assert all(study.baseline in {variant.name for variant in study.variants} for study in studies)


def test_table4_has_each_term_alone_in_pairs_and_all():
    asked = request("table4", "paper", seeds=[42])
    study = asked.experiment.paper[0]
    found = {}
    for cell in asked.cells(study):
        terms = cell.config.regularization
        found[cell.variant.name] = tuple(bool(x) for x in (terms.consistency, terms.diversity, terms.spectral))
        assert cell.config.method.name == "pissa"
    assert found == {
        BASELINE: (False, False, False), "C": (True, False, False), "D": (False, True, False), "S": (False, False, True),
        "C+D": (True, True, False), "C+S": (True, False, True), "D+S": (False, True, True), "C+D+S": (True, True, True),
    }  # fmt: skip


def test_ours_and_the_printed_form_differ_in_head_and_targets():
    asked = request("table4", "small", seeds=[42])
    cells = {cell.variant.name: cell.config.regularization for cell in asked.cells(asked.experiment.small[0])}
    assert {variant.name for variant in [*PRINTED, *OURS]} == set(cells)
    assert (cells["C+D+S"].teacher_head, cells["C+D+S"].spectral_target, cells["C+D+S"].variance) == (
        "initial",
        "logits",
        0,
    )
    ours = cells["ours: C+D+V+S"]
    assert (ours.teacher_head, ours.diversity_target, ours.spectral_target) == ("probe", "features", "features")
    assert (ours.consistency, ours.diversity, ours.spectral, ours.variance) == (0.15, 0.03, 0.03, 0.03)


def test_figure6_lets_alpha_follow_the_rank_and_runs_full_fine_tuning_once_a_seed():
    asked = request("figure6", "paper", seeds=[42, 1024])
    cells = asked.cells(asked.experiment.paper[0])
    assert all(cell.config.method.alpha == cell.config.method.rank for cell in cells if cell.axes)
    assert [cell.config.method.rank for cell in cells if cell.variant.name == "lora" and cell.seed == 42] == [
        1, 2, 4, 8, 16, 32, 64, 128,
    ]  # fmt: skip
    assert sum(cell.variant.name == "full" for cell in cells) == 2


def test_what_differs_beyond_the_interval_is_said_in_the_scores_own_direction():
    def row(variant: str, seed: int, loss: float) -> Row:
        return Row(run="r", variant=variant, method="pissa", regularized=False, axes={}, seed=seed, status="finished",
                   scores={"loss": loss, "accuracy": loss}, provenance={})  # fmt: skip

    values = {BASELINE: (1.0, 2.0), "C": (0.9, 1.8), "D": (1.2, 2.1), "S": (0.9, 2.1)}
    rows = [row(name, seed, pair[seed]) for name, pair in values.items() for seed in (0, 1)]
    study = dataclasses.replace(EXPERIMENTS["table4"].small[1], variants=[Variant.parse("pissa")])
    for score, better, worse in (("loss", "C", "D"), ("accuracy", "D", "C")):
        made = Comparison(
            groups=summarise(rows, [score], BASELINE), rows=rows, scores=[score], baseline=BASELINE, about={}
        )
        text = show({study.name: made}, [dataclasses.replace(study, score=score)], Path())[-1]
        found = re.search(r"better: (\S+) .*; worse: (\S+) .*; not told apart: S\.", text)
        assert found, text
        assert found.groups() == (better, worse)


def test_our_terms_are_also_held_against_their_own_fitted_head():
    def row(variant: str, seed: int, accuracy: float) -> Row:
        return Row(run="r", variant=variant, method="pissa", regularized=True, axes={}, seed=seed, status="finished",
                   scores={"accuracy": accuracy}, provenance={})  # fmt: skip

    values = {BASELINE: 0.7, "ours: none": 0.8, "ours: C": 0.75}
    rows = [row(name, seed, value + seed / 100) for name, value in values.items() for seed in (0, 1)]
    study = EXPERIMENTS["table4"].small[0]
    made = Comparison(
        groups=summarise(rows, ["accuracy"], BASELINE), rows=rows, scores=["accuracy"], baseline=BASELINE, about={}
    )
    to_none, to_head = show({study.name: made}, [study], Path())[-1].splitlines()
    assert "better: ours: none (+0.1000" in to_none
    assert r"ours: C (+0.0500\*)" in to_none
    assert "against ours: none: better: none; worse: ours: C (-0.0500" in to_head


def test_students_interval_is_wider_than_the_bootstraps_with_few_pairs():
    rows = [
        Row(run="r", variant=name, method="pissa", regularized=False, axes={}, seed=seed, status="finished",
            scores={"loss": value}, provenance={})
        for name, values in {"a": (0.0, 0.0, 0.0), "b": (1.0, 2.0, 3.0)}.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    gap = summarise(rows, ["loss"], "a")[1].differences["loss"]
    # Mean 2, deviation 1, three pairs: 2 ± 4.3027 / √3.
    assert gap.t_interval == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert gap.low is not None
    assert gap.t_interval[0] < 0 < gap.low


def test_the_papers_numbers_are_marked_as_the_papers():
    text = reported_markdown("table2")
    assert text.startswith("**The paper's numbers, not ours**")
    assert "| BA-LoRA | 1.33M | 91.26±0.49 |" in text
    assert "not in our copy" in reported_markdown("table5")
    assert not is_reported("figure6")


def test_an_experiment_runs_and_leaves_its_page(config: Path, tmp_path: Path):
    def tiny(places: Places) -> dict:
        values = read_config(config)
        values["training"] |= {"max_steps": 1, "report_to": "none"}
        return values | {"data": {**values["data"], "eval": 0.25}}

    study = Study(
        name="tiny", title="A tiny model", config=tiny, variants=[Variant.parse("lora"), Variant.parse("full")], baseline="full",
        score="loss", axes={"method.rank": [2]},
    )  # fmt: skip
    asked = Request(
        experiment=dataclasses.replace(EXPERIMENTS["figure6"], small=[study]), scale="small", output=tmp_path / "out",
        places=PLACES, seeds=[1],
    )  # fmt: skip
    page = reproduce(asked, LocalEngine())
    text = page.read_text()
    assert "small stand-in" in text
    assert "no result" not in text
    assert "figure6.png" in text
    for name in ("figure6.png", "figure6.svg", "tiny/table.md"):
        assert (tmp_path / "out" / name).stat().st_size > 300
    assert "full fine-tuning" in (tmp_path / "out" / "figure6.svg").read_text()
    assert "\nOf the paper: appendix C.4, figure 6. " in text
    own = dataclasses.replace(asked.experiment, source="not of the paper; a question of ours")
    again = reproduce(dataclasses.replace(asked, experiment=own), LocalEngine()).read_text()
    assert "\nNot of the paper; a question of ours. " in again
    assert "Of the paper:" not in again


def test_a_dry_run_says_what_is_missing_and_writes_nothing(balora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    outcome = balora("reproduce", "figure6", "--dry-run", "--seeds", "42", "--shared", "absent")
    assert outcome.status == 0, outcome.err
    assert "13 runs, 0 finished" in outcome.out
    assert "missing: model absent/models/stories260K: no such file or folder" in outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tabel4"], ["tabel4", "'table4'"]),
        (["figure6", "--shared", "absent"], ["absent/models/stories260K", "--shared"]),
        (["table4", "--scale", "paper", "--recipes", "absent"], ["absent/llama-2-7b/metamathqa.yaml", "--recipes"]),
        (["table4", "methd.rank=4"], ["methd", "'method'"]),
    ],
)
def test_a_mistake_is_one_sentence(balora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    outcome = balora("reproduce", *arguments)
    assert outcome.status == 2
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "results").exists()
