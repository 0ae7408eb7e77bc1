"""Recipes: every value names its source and agrees with the paper index, and every recipe runs."""

from __future__ import annotations

import gc
import math
import re
from pathlib import Path

import datasets
import peft
import pytest
import torch
import transformers

import stand_ins
from balora import RegularizationConfig
from balora.checkpoints.run_directory import read_record
from balora.config.run_config import load_run_config
from balora.config.yaml_loader import read_config
from balora.data.examples import load_examples
from balora.data.prompts import render_prompt, template_of
from balora.estimation.validate import validate
from balora.training.run import run

# accelerate collects garbage at the start of each run. Without the objects of the imports, this saves half a second.
gc.freeze()

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
RECIPES = [path for path in FILES if path.parent.name != "parts"]
GLUE = list(stand_ins.GLUE)
QUICK = [
    *("training.max_steps=2", "training.use_cpu=true", "training.save_strategy=no", "training.report_to=[]"),
    *("training.disable_tqdm=true", "training.logging_steps=1", "training.per_device_eval_batch_size=40"),
]
SMALL = [  # for models of width 32, on a processor that is slow in bfloat16
    *(
        "method.rank=4",
        "method.alpha=4",
        "training.per_device_train_batch_size=2",
        "training.gradient_accumulation_steps=2",
    ),
]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Function that returns the folder of a tiny model in place of a hub model; one per family."""
    made: dict[str, Path] = {}

    def folder(hub_id: str) -> Path:
        family = stand_ins.FAMILIES[hub_id]
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            stand_ins.save_stand_in(family, made[family])
        return made[family]

    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", stand_ins.load_dataset)


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_value_names_its_source(path: Path) -> None:
    """Check for a comment in the line or directly above. Keys for the output and the base file need none."""
    lines = path.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        key, colon, value = line.partition(":")
        bare = line.strip().startswith("#") or not colon or not value.partition("#")[0].strip()
        if bare or key.strip() in ("extends", "output", "label"):
            continue
        assert " # " in line or above.strip().startswith("#"), f"{path.name}: {line}"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_a_complete_run(path: Path) -> None:
    config = load_run_config(path)
    assert config.output == f"runs/{name(path)}"
    assert config.model in stand_ins.FAMILIES
    assert config.seed == 42
    assert config.training["weight_decay"] == 0
    # Changing the method makes the baseline: without this section, the method decides.
    assert "regularization" not in read_config(path)
    preset = "for_generation" if config.task in ("generation", "seq2seq") else "for_classification"
    assert config.regularization == getattr(RegularizationConfig, preset)()
    assert not load_run_config(path, ["method.name=pissa"]).regularization.active
    assert load_run_config(path, ["method.name=lora", "regularization=on"]).regularization == config.regularization


def paper_index(section: str) -> dict[str, dict[str, float]]:
    """Return the table per task of a section of the paper index: row name -> task -> number."""
    text = (ROOT / "docs" / "reference" / "paper-index.md").read_text()
    text = re.search(rf"^## {section}\n(.*?)(^## |\Z)", text, re.M | re.S)[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    head = next(at for at, row in enumerate(rows) if row[1:2] == ["MNLI"])
    tasks = [task.lower().replace("-", "") for task in rows[head][1:]]
    return {row[0]: dict(zip(tasks, map(float, row[1:]), strict=True)) for row in rows[head + 2 :]}


@pytest.mark.parametrize("task", GLUE)
@pytest.mark.parametrize(
    ("family", "section", "rate"),
    [
        ("deberta-v3-base", r"DeBERTa-v3-base \(GLUE\)", "learning rate (PiSSA's)"),
        ("roberta-base", r"RoBERTa-base \(GLUE\)", "learning rate (LoRA's)"),
    ],
)
def test_the_numbers_per_task_equal_those_of_the_paper_index(family: str, section: str, rate: str, task: str) -> None:
    config, table = load_run_config(ROOT / "recipes" / family / f"{task}.yaml"), paper_index(section)
    assert config.training["num_train_epochs"] == table["epochs"][task]
    assert config.training["per_device_train_batch_size"] == table["batch"][task]
    assert config.training["learning_rate"] == table[rate][task]
    assert config.method.alpha == table.get("alpha", {}).get(task, 8)
    assert config.method.rank == 8


def test_deberta_trains_the_parameters_that_table_2_counts() -> None:
    config = load_run_config(ROOT / "recipes" / "deberta-v3-base" / "rte.yaml")
    model_config = transformers.DebertaV2Config(
        vocab_size=128100, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        relative_attention=True, position_buckets=256, pos_att_type=["p2c", "c2p"], share_att_key=True,
        norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0, num_labels=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.DebertaV2ForSequenceClassification(model_config)
    # LoRA has the same layers and sizes as PiSSA, and does not need weights to decompose.
    lora = peft.LoraConfig(
        r=config.method.rank, target_modules=config.method.target_modules, task_type=peft.TaskType.SEQ_CLS
    )
    adapted = peft.get_peft_model(model, lora)
    trained = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    assert sum(count for n, count in trained.items() if "lora_" in n) == 1_327_104, "1.33M"
    assert sum(count for n, count in trained.items() if "lora_" not in n) == 2 * 768 + 2, "and the classifier"


# --- runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_runs(path: Path, models, hub, tmp_path: Path) -> None:
    """Run a recipe with its data section unchanged; a stand-in for the hub has its columns, classes and splits."""
    model = models(load_run_config(path).model)
    small = SMALL if load_run_config(path).task == "generation" else []
    config = load_run_config(path, [f"model={model}", f"output={tmp_path / 'run'}", *QUICK, *small])
    report = validate(config)
    assert not report.problems, report.problems
    assert report.rows == (48 if config.data.also else 24)
    metrics = run(config).metrics
    assert math.isfinite(metrics["train_loss"])
    if config.data.eval is not None:
        score = "eval_accuracy" if config.data.label else "eval_pearson"
        assert score in metrics
        assert ("eval_unreadable" in metrics) == (config.task == "seq2seq")
    record = read_record(tmp_path / "run")
    assert record["status"] == "finished"


INPUT_AND_ANSWER = {
    "mnli": ("mnli hypothesis: B premise: A", "neutral"),
    "sst2": ("sst2 sentence: A", "positive"),
    "mrpc": ("mrpc sentence1: A sentence2: B", "equivalent"),
    "cola": ("cola sentence: A", "acceptable"),
    "qnli": ("qnli question: A sentence: B", "not_entailment"),
    "qqp": ("qqp question1: A question2: B", "duplicate"),
    "rte": ("rte sentence1: A sentence2: B", "not_entailment"),
    "stsb": ("stsb sentence1: A sentence2: B", "2.6"),
}


@pytest.mark.parametrize("task", GLUE)
def test_t5_reads_glue_in_the_form_of_its_pre_training(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with appendix D of T5's paper: its pre-training contained GLUE in this form."""
    columns, classes = stand_ins.GLUE[task]
    label = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("float32")
    features = datasets.Features({**{column: datasets.Value("string") for column in columns}, "label": label})
    row = {**dict(zip(columns, "AB", strict=False)), "label": 1 if classes else 2.667}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row, row], features=features)
    )
    data = load_run_config(ROOT / "recipes" / "t5-base" / f"{task}.yaml").data
    example = load_examples(data, "seq2seq").train[0]
    assert (
        render_prompt(template_of(data), example["prompt"], example["input"]),
        example["response"],
    ) == INPUT_AND_ANSWER[task]


LOCAL = {
    "rte": ("RTE", 2490, 277, []),
    "cola": ("CoLA", 8551, 1043, []),
    "sst2": ("SST-2", 2000, 872, ["data.split=train[:2000]"]),
    "stsb": ("STS-B", 5749, 1500, ["data.score=score"]),
}


@pytest.mark.parametrize("task", LOCAL)
@pytest.mark.parametrize("family", ["deberta-v3-base", "t5-base"])
def test_a_glue_recipe_accepts_local_files(family: str, task: str, shared_dir: Path) -> None:
    folder, rows, evaluation_rows, more = LOCAL[task]
    local = [f"data.train={shared_dir / 'data' / 'glue' / folder}", "data.name=", "data.eval=dev", *more]
    config = load_run_config(ROOT / "recipes" / family / f"{task}.yaml", local)
    examples = load_examples(config.data, config.task)
    assert (len(examples.train), len(examples.eval)) == (rows, evaluation_rows)
    assert examples.label_names == stand_ins.GLUE[task][1]
    if family == "t5-base":
        known = stand_ins.GLUE[task][1] or [f"{k / 5:.1f}" for k in range(26)]
        assert set(examples.train["response"][:]) == set(known)
