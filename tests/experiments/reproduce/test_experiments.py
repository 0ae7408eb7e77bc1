"""The paper's experiments by name: the declared runs, a dry run, and a complete experiment on a tiny model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from balora.config.yaml_loader import read_config
from balora.experiments.compare import Variant
from balora.experiments.quickstart import model_directory
from balora.experiments.reproduce import EXPERIMENTS, Paths, Request, Study, noisier_model, reproduce
from balora.experiments.reproduce.preparation import SIMILARITY_CLASSES
from balora.experiments.reproduce.run import render_page
from balora.experiments.reproduce.variants import NO_TERMS, OURS, PRINTED
from comparisons import InProcessEngine, made_up

ROOT = Path(__file__).resolve().parents[3]
PATHS = Paths(shared=Path("../shared"), recipes=ROOT / "recipes")


def request(name: str, scale: str, **more) -> Request:
    return Request(experiment=EXPERIMENTS[name], scale=scale, output=Path("out"), paths=PATHS, **more)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_declared_run_has_a_valid_config(name: str, scale: str):
    asked = request(name, scale)
    directories = [cell.run_directory for study in asked.studies for cell in asked.cells(study)]
    assert len(directories) == len(set(directories)) >= 12
    assert all(study.baseline in {variant.name for variant in study.variants} for study in asked.studies)


DECLARED = {
    "table1": "da72eb83890f", "table2": "bd10e105f0f5", "table3": "3a9dc3f28f86", "table4": "a1dd6cae9e33",
    "table5": "5c5c4e5e3e04", "table10": "9d9bf540f187", "figure2": "90ecb88d22be", "figure3": "02b037dc1400",
    "figure4": "137fcef10c97", "figure5": "4a8d8fcbf839", "figure6": "9d7f3f6e1119", "table4-flawed": "1d9f18e7b62f",
    "fitted-head": "79c1eebed2f4", "inheritance": "8157b162d529",
}  # fmt: skip
"""Digests of the small scale's studies. An interrupted experiment can be continued only while its studies do not change."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_studies_of_the_small_scale_are_those_of_the_published_results(name: str):
    asked = dataclasses.replace(request(name, "small"), paths=Paths(shared=Path("shared")))
    declared = []
    for study in asked.studies:
        variants = [[v.name, v.method, v.regularized, list(v.overrides)] for v in study.variants]
        plan = asked.evaluation(study)
        evaluation = plan and [list(plan.tasks), dict(plan.options)]
        axes = {key: list(values) for key, values in study.axes.items()}
        declared.append([study.name, asked.config(study), variants, study.baseline, axes, evaluation])
    text = json.dumps(declared, sort_keys=True)
    text = text.replace(str(model_directory()), "QUICKSTART").replace(asked.paths.minilm, "MINILM")
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == DECLARED[name]


def test_every_experiment_has_its_texts_and_they_state_the_declared_numbers():
    for experiment in EXPERIMENTS.values():
        assert experiment.title and experiment.reported.startswith(("The authors report", "Our copy"))
        assert experiment.advice and experiment.limits
    limits = EXPERIMENTS["table3"].limits
    assert f"{noisier_model.ROWS:,} rows" in limits and f"{noisier_model.ROWS // 16} steps" in limits
    assert f"{noisier_model.NOISE:.0%} of their labels" in limits
    (_, low), (middle, middle_end), (high, _) = SIMILARITY_CLASSES.values()
    words = f"(low: at most {low:g}; middle: {middle:g} to {middle_end:g}; high: {high:g} and above"
    assert words in EXPERIMENTS["figure3"].limits


def test_table4_has_each_term_alone_in_pairs_and_all():
    asked = request("table4", "paper", seeds=[42])
    study = asked.experiment.paper[0]
    found = {}
    for cell in asked.cells(study):
        terms = cell.config.regularization
        found[cell.variant.name] = tuple(bool(x) for x in (terms.consistency, terms.diversity, terms.spectral))
        assert cell.config.method.name == "pissa"
    assert found == {
        NO_TERMS: (False, False, False), "C": (True, False, False), "D": (False, True, False), "S": (False, False, True),
        "C+D": (True, True, False), "C+S": (True, False, True), "D+S": (False, True, True), "C+D+S": (True, True, True),
    }  # fmt: skip


def test_ours_and_the_printed_form_differ_in_head_and_targets():
    asked = request("table4", "small", seeds=[42])
    cells = {cell.variant.name: cell.config.regularization for cell in asked.cells(asked.experiment.small[0])}
    assert {variant.name for variant in [*PRINTED, *OURS]} == set(cells)
    printed = cells["C+D+S"]
    assert (printed.teacher_head, printed.spectral_target, printed.variance) == ("initial", "logits", 0)
    ours = cells["ours: C+D+V+S"]
    assert (ours.teacher_head, ours.diversity_target, ours.spectral_target) == ("probe", "features", "features")
    assert (ours.consistency, ours.diversity, ours.spectral, ours.variance) == (0.15, 0.03, 0.03, 0.03)


def test_only_the_last_row_of_fitted_head_has_terms_and_every_other_one_with_head_has_the_head_alone():
    asked = request("fitted-head", "small", seeds=[1])
    for study in asked.studies:
        found = {cell.variant.name: cell.config for cell in asked.cells(study)}
        for name, config in found.items():
            terms = config.regularization
            weights = [terms.consistency, terms.diversity, terms.spectral, terms.variance] if terms else []
            assert any(weights) == ("C+D+V+S" in name), name
            assert (terms is not None and terms.teacher_head == "probe") == ("+head" in name), name
            assert config.method.name == name.partition("+")[0]
        rates = {name: config.training["learning_rate"] for name, config in found.items()}
        assert (
            rates["lora"] == rates["lora+head"] != rates["pissa"] == rates["pissa+head"] == rates["pissa+head+C+D+V+S"]
        )


def test_figure6_lets_alpha_follow_the_rank_and_runs_full_fine_tuning_once_a_seed():
    asked = request("figure6", "paper", seeds=[42, 1024])
    cells = asked.cells(asked.experiment.paper[0])
    assert all(cell.config.method.alpha == cell.config.method.rank for cell in cells if cell.axes)
    assert [cell.config.method.rank for cell in cells if cell.variant.name == "lora" and cell.seed == 42] == [
        1, 2, 4, 8, 16, 32, 64, 128,
    ]  # fmt: skip
    assert sum(cell.variant.name == "full" for cell in cells) == 2


def test_findings_follow_the_direction_of_the_score():
    values = {NO_TERMS: (1.0, 2.0, 3.0), "C": (0.9, 1.9, 2.901), "D": (1.2, 2.2, 3.201), "S": (0.9, 2.1, 3.0)}
    study = dataclasses.replace(EXPERIMENTS["table4"].small[1], variants=[Variant.parse("pissa")])
    for score, better, worse in (("loss", "C", "D"), ("accuracy", "D", "C")):
        comparison = made_up(values, NO_TERMS, score)
        study = dataclasses.replace(study, score=score)
        _, text, *_ = EXPERIMENTS["table4"].render([study], {study.name: comparison}, Path())
        found = re.search(r"better: (\S+) .*; worse: (\S+) .*; not told apart: S\.", text)
        assert found, text
        assert found.groups() == (better, worse)


def test_our_terms_are_also_compared_with_their_own_fitted_head():
    values = {NO_TERMS: (0.7, 0.71), "ours: none": (0.8, 0.8101), "ours: C": (0.75, 0.75998)}
    study = EXPERIMENTS["table4"].small[0]
    _, text, *_ = EXPERIMENTS["table4"].render([study], {study.name: made_up(values, NO_TERMS)}, Path())
    to_pissa, to_head = text.splitlines()
    assert "better: `ours: none` (+0.1001)" in to_pissa
    assert "`ours: C` (+0.0500)" in to_pissa
    assert "compared with `ours: none`: better: none; worse: `ours: C` (-0.0501" in to_head


def test_each_row_of_fitted_head_is_compared_with_its_own_kind():
    values = {
        "lora": [0.80, 0.81], "lora+head": [0.825, 0.83501], "pissa": [0.7, 0.71], "pissa+head": [0.75, 0.77],
        "pissa+head+C+D+V+S": [0.735, 0.75501],
    }  # fmt: skip
    experiment = EXPERIMENTS["fitted-head"]
    study = experiment.small[0]
    _, text, *_ = experiment.render([study], {study.name: made_up(values, "pissa")}, Path())
    to_pissa, to_lora, to_head = text.splitlines()
    assert all(name in to_pissa for name in values if name != "pissa")
    assert "compared with lora: better: lora+head (+0.0250" in to_lora and "pissa" not in to_lora
    assert "compared with pissa+head: better: none; worse: pissa+head+C+D+V+S (-0.0150" in to_head


def test_the_papers_numbers_are_marked_as_the_papers():
    text = "\n\n".join(EXPERIMENTS["table2"].render(EXPERIMENTS["table2"].paper, {}, Path()))
    assert "**The paper's numbers, not ours**" in text
    assert "| BA-LoRA | 1.33M | 91.26±0.49 |" in text
    assert "not in our copy" in "\n".join(EXPERIMENTS["table5"].render(EXPERIMENTS["table5"].paper, {}, Path()))
    assert EXPERIMENTS["figure6"].paper_numbers is None


def test_an_experiment_runs_and_leaves_its_page(config: Path, tmp_path: Path):
    def tiny(paths: Paths) -> dict:
        values = read_config(config)
        values["training"] |= {"max_steps": 1, "report_to": "none"}
        return values | {"data": {**values["data"], "eval": 0.25}}

    study = Study(
        name="tiny", title="A tiny model", config=tiny, variants=[Variant.parse("lora"), Variant.parse("full")],
        baseline="full", axes={"method.rank": [2]},
    )  # fmt: skip
    asked = Request(
        experiment=dataclasses.replace(EXPERIMENTS["figure6"], small=[study]), scale="small", output=tmp_path / "out",
        paths=PATHS, seeds=[1],
    )  # fmt: skip
    page = reproduce(asked, InProcessEngine())
    text = page.read_text()
    assert "small stand-in" in text
    assert "no result" not in text
    assert "figure6.png" in text
    for name in ("figure6.png", "figure6.svg", "tiny/table.md"):
        assert (tmp_path / "out" / name).stat().st_size > 300
    assert "full fine-tuning" in (tmp_path / "out" / "figure6.svg").read_text()
    assert "\nOf the paper: appendix C.4, figure 6. " in text
    own = dataclasses.replace(asked.experiment, source="not of the paper; a question of ours")
    again = reproduce(dataclasses.replace(asked, experiment=own), InProcessEngine()).read_text()
    assert "\nNot of the paper; a question of ours. " in again
    assert "Of the paper:" not in again


def test_a_page_says_what_to_do_then_the_numbers_then_the_doubts():
    asked = request("table4", "small")
    study = asked.studies[0]
    values = {NO_TERMS: (0.7, 0.71), "ours: none": (0.8, 0.815)}
    text = render_page(asked, {study.name: made_up(values, NO_TERMS)})
    order = [
        "Compare the row of each term",
        "## Findings",
        "## Scores",
        "interval of the mean difference over 2 seeds",
        "## Limits",
    ]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    assert "Not run yet: GSM8K." in text


def test_a_dry_run_lists_what_is_missing_and_writes_nothing(balora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    outcome = balora("reproduce", "figure6", "--dry-run", "--seeds", "42", "--shared", "absent")
    assert outcome.status == 0, outcome.err
    assert "13 runs, 0 finished" in outcome.out
    assert "missing: model absent/models/stories260K: no such file or directory" in outcome.out
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
def test_a_mistake_is_reported_in_one_sentence(
    balora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    outcome = balora("reproduce", *arguments)
    assert outcome.status == 2
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "results").exists()
