"""Every recipe: its values say where they are from, agree with the paper index, and make a run that can be started."""

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
from balora.data import load_examples, render_prompt
from balora.data.prompts import template_of
from balora.estimation.validate import validate
from balora.training.run import run

# accelerate collects garbage at the start of each run, half a second over all that importing has made; that never dies.
gc.freeze()

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
RECIPES = [path for path in FILES if path.parent.name != "parts"]
GLUE = list(stand_ins.GLUE)
QUICK = [
    *("training.max_steps=2", "training.use_cpu=true", "training.save_strategy=no", "training.report_to=[]"),
    *("training.disable_tqdm=true", "training.logging_steps=1", "training.per_device_eval_batch_size=40"),
]
SMALL = [  # for models of width 32, on a processor that knows bfloat16 only slowly
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
    """Folders of tiny models by the hub id they stand for; one per family."""
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


# --- what is written in them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_value_says_where_it_is_from(path: Path) -> None:
    """In a comment beside it, or in one right above; where a run lies and what it builds on need none."""
    lines = path.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        key, colon, value = line.partition(":")
        bare = line.strip().startswith("#") or not colon or not value.partition("#")[0].strip()
        if bare or key.strip() in ("extends", "output", "label"):
            continue
        assert " # " in line or above.strip().startswith("#"), f"{path.name}: {line}"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_a_whole_run_of_its_own(path: Path) -> None:
    settings = load_run_config(path)
    assert settings.output == f"runs/{name(path)}"
    assert settings.model in stand_ins.FAMILIES
    assert settings.seed == 42
    assert settings.training["weight_decay"] == 0
    # One word makes the baseline: the section is not written out, so the method decides.
    assert "regularization" not in read_config(path)
    start = "for_generation" if settings.task in ("generation", "seq2seq") else "for_classification"
    assert settings.regularization == getattr(RegularizationConfig, start)()
    assert not load_run_config(path, ["method.name=pissa"]).regularization.active
    assert load_run_config(path, ["method.name=lora", "regularization=on"]).regularization == settings.regularization


def paper_index(section: str) -> dict[str, dict[str, float]]:
    """The per-task table of a section of the paper index: row name -> task -> number."""
    text = (ROOT / "docs" / "paper_index.md").read_text()
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
def test_the_numbers_per_task_are_those_of_the_paper_index(family: str, section: str, rate: str, task: str) -> None:
    settings, table = load_run_config(ROOT / "recipes" / family / f"{task}.yaml"), paper_index(section)
    assert settings.training["num_train_epochs"] == table["epochs"][task]
    assert settings.training["per_device_train_batch_size"] == table["batch"][task]
    assert settings.training["learning_rate"] == table[rate][task]
    assert settings.method.alpha == table.get("alpha", {}).get(task, 8)
    assert settings.method.rank == 8


def test_deberta_trains_the_parameters_that_table_2_counts() -> None:
    settings = load_run_config(ROOT / "recipes" / "deberta-v3-base" / "rte.yaml")
    config = transformers.DebertaV2Config(
        vocab_size=128100, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        relative_attention=True, position_buckets=256, pos_att_type=["p2c", "c2p"], share_att_key=True,
        norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0, num_labels=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.DebertaV2ForSequenceClassification(config)
    # The same layers and sizes as PiSSA's, which would ask for weights to decompose.
    lora = peft.LoraConfig(
        r=settings.method.rank, target_modules=settings.method.target_modules, task_type=peft.TaskType.SEQ_CLS
    )
    adapted = peft.get_peft_model(model, lora)
    trained = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    assert sum(count for n, count in trained.items() if "lora_" in n) == 1_327_104, "1.33M"
    assert sum(count for n, count in trained.items() if "lora_" not in n) == 2 * 768 + 2, "and the classifier"


# --- what they do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_runs(path: Path, models, hub, tmp_path: Path) -> None:
    """With nothing of the data section changed: the hub's columns, classes and splits are stood in for."""
    model = models(load_run_config(path).model)
    small = SMALL if load_run_config(path).task == "generation" else []
    settings = load_run_config(path, [f"model={model}", f"output={tmp_path / 'run'}", *QUICK, *small])
    report = validate(settings)
    assert not report.problems, report.problems
    assert report.rows == (48 if settings.data.also else 24)
    metrics = run(settings).metrics
    assert math.isfinite(metrics["train_loss"])
    if settings.data.eval is not None:
        score = "eval_accuracy" if settings.data.label else "eval_pearson"
        assert score in metrics
        assert ("eval_unreadable" in metrics) == (settings.task == "seq2seq")
    record = read_record(tmp_path / "run")
    assert record["status"] == "finished"


ASKED = {
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
def test_t5_is_asked_as_it_was_pre_trained(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 saw GLUE in this very form while it was pre-trained (appendix D of its paper)."""
    columns, classes = stand_ins.GLUE[task]
    label = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("float32")
    features = datasets.Features({**{column: datasets.Value("string") for column in columns}, "label": label})
    row = {**dict(zip(columns, "AB", strict=False)), "label": 1 if classes else 2.667}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row, row], features=features)
    )
    data = load_run_config(ROOT / "recipes" / "t5-base" / f"{task}.yaml").data
    example = load_examples(data, "seq2seq").train[0]
    assert (render_prompt(template_of(data), example["prompt"], example["input"]), example["response"]) == ASKED[task]


LOCAL = {
    "rte": ("RTE", 2490, 277, []),
    "cola": ("CoLA", 8551, 1043, []),
    "sst2": ("SST-2", 2000, 872, ["data.split=train[:2000]"]),
    "stsb": ("STS-B", 5749, 1500, ["data.score=score"]),
}


@pytest.mark.parametrize("task", LOCAL)
@pytest.mark.parametrize("family", ["deberta-v3-base", "t5-base"])
def test_a_glue_recipe_takes_local_files(family: str, task: str, shared_dir: Path) -> None:
    place, rows, held_out, more = LOCAL[task]
    local = [f"data.train={shared_dir / 'data' / 'glue' / place}", "data.name=", "data.eval=dev", *more]
    settings = load_run_config(ROOT / "recipes" / family / f"{task}.yaml", local)
    examples = load_examples(settings.data, settings.task)
    assert (len(examples.train), len(examples.eval)) == (rows, held_out)
    assert examples.label_names == stand_ins.GLUE[task][1]
    if family == "t5-base":
        known = stand_ins.GLUE[task][1] or [f"{k / 5:.1f}" for k in range(26)]
        assert set(examples.train["response"][:]) == set(known)
