"""Tables on generation: the declared evaluations, and made-up numbers in the right cells."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from balora.config.yaml_loader import read_config
from balora.errors import BALoraError
from balora.experiments.compare import Comparison, EvaluationPlan, LocalEngine, Variant
from balora.experiments.reproduce import EXPERIMENTS, Paths, Request, Study, reproduce
from balora.experiments.reproduce.parts import GENERATION_SCORES as SCORES
from comparisons import InProcessEngine, comparison_of, made_up_row

ROOT = Path(__file__).resolve().parents[3]
PATHS = Paths(shared=Path("../shared"), recipes=ROOT / "recipes")


def comparison(values: dict[str, dict[str, float]], baseline: str | None, **costs: dict[str, float]) -> Comparison:
    """Two seeds of each variant; the second one's scores are 0.01 more."""
    return comparison_of(
        [
            made_up_row(
                name, seed, {score: value + seed / 100 for score, value in scores.items()},
                **{cost: by_name[name] * (1 + seed) for cost, by_name in costs.items()},
            )
            for name, scores in values.items() for seed in (0, 1)
        ],
        baseline,
    )  # fmt: skip


def line(text: str, first: str) -> list[str]:
    """The cells of the table's row that begins with a name."""
    found = [row for row in text.splitlines() if row.startswith(f"| {first} |")]
    assert len(found) == 1, text
    return [cell.strip() for cell in found[0].strip("|").split(" | ")]


def test_table1_has_a_column_for_each_score_and_the_papers_mean():
    experiment = EXPERIMENTS["table1"]
    made = {
        study.name: comparison(
            {name: {score: 0.1 * (number + 1) for number, score in enumerate(SCORES[study.name])} for name in ("pissa", "full")},
            "pissa",
        )
        for study in experiment.paper
    }  # fmt: skip
    parts = experiment.render(experiment.paper, made, Path())
    table, mean = (
        next(part for part in parts if part.startswith(start)) for start in ("| method | metamathqa", "| method | mean")
    )
    header = table.splitlines()[0]
    assert [header.index(score) for scores in SCORES.values() for score in scores] == sorted(
        header.index(score) for scores in SCORES.values() for score in scores
    )
    assert [cell[:6] for cell in line(table, "full")] == ["full", "0.1050", "0.2050", "0.1050", "0.2050", "0.1050"]
    # Four shares in percent and a rating as it is: (10.5 + 20.5 + 10.5 + 20.5 + 0.105) / 5
    assert line(mean, "full") == ["full", "12.42"]
    assert "| BA-LoRA | 55.86±0.35 | 9.47±0.52 |" in "\n".join(parts)


def test_table1_evaluates_each_training_set_on_its_own_tasks():
    asked = Request(experiment=EXPERIMENTS["table1"], scale="paper", output=Path("out"), paths=PATHS)
    tasks = {study.name: asked.evaluation(study).tasks for study in asked.experiment.paper}
    assert tasks == {
        "metamathqa": ("gsm8k", "math"), "codefeedback": ("humaneval", "mbpp"), "wizardlm-evol-instruct": ("mt_bench",)
    }  # fmt: skip
    talk = asked.experiment.paper[2]
    assert any("judge" in what for what in asked.missing(talk))
    judged = dataclasses.replace(
        asked, paths=dataclasses.replace(PATHS, judge={"base_url": "http://j/v1", "model": "j"})
    )
    assert not any("judge" in what for what in judged.missing(talk))
    judged.evaluation(talk).check()


def test_table10_compares_each_method_with_itself_and_the_regularizers():
    values = {"lora": 3.0, "lora+reg": 2.8, "dora": 2.5, "dora+reg": 2.6, "pissa": 2.0, "balora": 2.0}
    experiment = EXPERIMENTS["table10"]
    made = {"gsm8k": comparison({name: {"loss": value} for name, value in values.items()}, "pissa")}
    text = "\n".join(experiment.render(experiment.small, made, Path()))
    lora = line(text, "lora")
    assert [lora[1][:6], lora[2][:6], lora[3]] == ["3.0050", "2.8050", "-0.2000"]
    assert line(text, "dora")[3].startswith("+0.1000")
    nothing = "better: none; worse: none; not told apart: "
    assert f"compared with lora: {nothing}none; no interval: lora+reg" in text, "equal differences on both seeds"
    assert f"compared with dora: {nothing}none; no interval: dora+reg" in text
    assert f"compared with pissa: {nothing}balora" in text
    assert "| LoRA + Reg | 24.02 |" in text


def test_table5_shows_cost_as_it_is_and_as_a_ratio_on_the_same_seed():
    experiment = EXPERIMENTS["table5"]
    names = ("full", "lora", "pissa", "balora")
    made = comparison(
        {name: {"loss": 2.0, "gsm8k/accuracy": 0.02} for name in names},
        "pissa",
        seconds=dict(zip(names, (5.0, 8.0, 10.0, 15.0), strict=True)),
        peak_memory_mib=dict(zip(names, (400.0, 200.0, 200.0, 250.0), strict=True)),
    )
    table = "\n".join(experiment.render(experiment.small, {"gsm8k": made}, Path()))
    # The second seed takes twice of everything, which the ratios on one seed do not see.
    assert line(table, "balora") == [
        "balora", "375 ± 177", "1.25 ± 0.00", "22.5 ± 10.6", "1.50 ± 0.00", "2.0050 ± 0.0071 (se 0.0050)",
        "0.0250 ± 0.0071 (se 0.0050)",
    ]  # fmt: skip
    assert line(table, "full")[2:5:2] == ["2.00 ± 0.00", "0.50 ± 0.00"]


def test_an_experiment_that_measures_time_does_not_share_the_machine(balora, tmp_path: Path):
    asked = Request(experiment=EXPERIMENTS["table5"], scale="small", output=tmp_path, paths=PATHS)
    with pytest.raises(BALoraError, match="measures time"):
        reproduce(asked, LocalEngine(2))
    outcome = balora("reproduce", "table5", "--jobs", 2, "--shared", "absent", "--output", tmp_path / "out")
    assert "one after the other and --jobs is ignored" in outcome.out
    assert "absent/models/stories260K" in outcome.err
    assert "evaluation data of gsm8k: absent" in outcome.err


def test_an_experiment_evaluates_its_runs_and_shows_the_scores(config: Path, tmp_path: Path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in range(2)))
    short = {"data": {"gsm8k": str(problems)}, "limit": 2, "max_new_tokens": 2, "device": "cpu"}

    def tiny(paths: Paths) -> dict:
        values = read_config(config)
        return values | {"training": {**values["training"], "max_steps": 1, "report_to": "none", "save_strategy": "no"}}

    study = Study(
        name="gsm8k", title="A tiny model", config=tiny, variants=[Variant.parse("pissa")], baseline="pissa",
        score="gsm8k/accuracy", evaluation=lambda paths: EvaluationPlan(tasks=("gsm8k",), options=short),
    )  # fmt: skip
    asked = Request(
        experiment=dataclasses.replace(EXPERIMENTS["table5"], small=[study]), scale="small", output=tmp_path / "out",
        paths=PATHS, seeds=[1],
    )  # fmt: skip
    text = reproduce(asked, InProcessEngine()).read_text()
    assert "no result" not in text
    row = line(text, "pissa")
    assert row[2] == "1.00"
    (kept,) = json.loads((tmp_path / "out/gsm8k/table.json").read_text())["rows"]
    assert kept["seconds"] > 0
    assert row[3] == f"{kept['seconds']:.1f}"
    assert row[5] in ("0.0000", "0.5000", "1.0000")
    assert (tmp_path / "out/gsm8k/runs/pissa_seed-1/evaluation/gsm8k.json").is_file()
