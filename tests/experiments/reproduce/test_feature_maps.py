"""Figure 3: the three similarity classes, the scores of features, and the complete experiment on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from balora import BALoraError
from balora.config.run_config import RunConfig
from balora.data.examples import load_examples
from balora.data.files.readers import read_table
from balora.experiments.compare import LocalEngine, Variant
from balora.experiments.reproduce import EXPERIMENTS, Paths, Request, dry_run, feature_maps, preparation, reproduce
from balora.experiments.reproduce.experiment import ABOUT, Results
from balora.experiments.reproduce.feature_maps import (
    BALANCED,
    IMBALANCED,
    Features,
    Measured,
    load_or_extract,
    score_parts,
)
from balora.plots.tsne import EmbeddingPanel, embedding_figure
from comparisons import InProcessEngine, made_up
from tiny import tiny_bert, tiny_tokenizer

FIGURE3 = EXPERIMENTS["figure3"]
WORDS = ["cat", "dog", "sits", "runs", "red", "mat", "the", "a"]


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Pairs with ratings of the complete scale, and some long ones."""
    rng = random.Random(seed)
    lengths = rng.choices([2, 4, 20], [5, 5, 1], k=count)
    return [
        {
            "sentence1": " ".join(rng.choices(WORDS, k=length)),
            "sentence2": f"{number} {' '.join(rng.choices(WORDS, k=length))}",
            "score": f"{rng.randrange(21) / 4:.3f}",
        }
        for number, length in enumerate(lengths)
    ]


def paths_with_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, dev: int) -> Paths:
    """A shared directory with tiny data in place of STS-B, and a smaller sample."""
    folder = tmp_path / "shared" / "data" / "glue" / "STS-B"
    folder.mkdir(parents=True)
    evaluated = pairs(12 * dev + 60, seed=1)
    for split, rows in (("train", [*pairs(12 * train + 60, seed=2), *evaluated]), ("dev", evaluated)):
        lines = ["sentence1\tsentence2\tscore", *("\t".join(row.values()) for row in rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(preparation, "PAIRS_PER_CLASS", {"dev": dev, "train": train})
    return Paths(shared=tmp_path / "shared", recipes=Path("recipes"))


def test_the_sample_has_equal_classes_at_the_stated_ratings_and_no_long_pair():
    rows = pairs(300)
    made = preparation.sample_pairs(rows, 20)
    assert Counter(row["label"] for row in made) == {"low": 20, "middle": 20, "high": 20}
    for row in made:
        low, high = {"low": (0, 1.5), "middle": (2, 3.25), "high": (4, 5)}[row["label"]]
        assert low <= float(row["score"]) <= high
        assert len(f"{row['sentence1']} {row['sentence2']}".split()) <= 24
    assert preparation.sample_pairs(rows, 20) == made
    assert preparation.sample_pairs(rows, 20, seed=1) != made
    with pytest.raises(BALoraError, match=r"short pairs of low similarity, but 200 are needed"):
        preparation.sample_pairs(rows, 200)


def test_both_conditions_have_equally_many_rows_and_one_is_100_10_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = paths_with_pairs(tmp_path, monkeypatch, train=1080, dev=5)
    asked = Request(experiment=FIGURE3, scale="small", output=tmp_path / "out", paths=paths, seeds=[42])
    assert asked.preparation is not None
    asked.preparation.ensure(asked.own_paths)
    assert json.loads((asked.own_paths.prepared / ABOUT).read_text())["train"]["per_class"] == 1080
    train, dev = (read_table(asked.own_paths.prepared / f"{name}.jsonl").rows for name in ("train", "dev"))
    assert not {row["sentence2"] for row in train} & {row["sentence2"] for row in dev}, (
        "though the source has them in both"
    )
    found = {}
    for study in FIGURE3.small:
        settings = asked.cells(study)[0].config
        examples = load_examples(settings.data, settings.task, 42)
        assert len(examples.eval) == 15
        found[study.name] = Counter(examples.label_names[number] for number in examples.train["labels"])
    assert sum(found[BALANCED].values()) == 1110
    assert min(found[BALANCED].values()) > 330
    counts = found[IMBALANCED]
    assert 970 < counts["high"] < 1030
    assert counts["middle"] == pytest.approx(counts["high"] / 10, rel=0.05)
    assert counts["low"] == pytest.approx(counts["high"] / 100, abs=0.6)


def test_silhouette_and_recall_against_their_definitions():
    features_Nd = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 1.0]]).half()
    labels_N = torch.tensor([0, 0, 1, 1, 1])
    logits_ND = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    scores = Features(features_Nd=features_Nd, logits_ND=logits_ND, labels_N=labels_N, classes=("a", "b", "c")).scores()
    unit = torch.nn.functional.normalize(features_Nd.float(), dim=-1)
    distance = 1 - unit @ unit.T
    each = []
    for i, own in enumerate(labels_N):
        same = [float(distance[i, j]) for j in range(5) if j != i and labels_N[j] == own]
        other = [float(distance[i, j]) for j in range(5) if labels_N[j] != own]
        near, far = sum(same) / len(same), sum(other) / len(other)
        each.append((far - near) / max(far, near))
    assert scores["silhouette"] == pytest.approx(sum(each) / 5, abs=1e-3)
    assert scores["accuracy"] == 0.6
    assert (scores["recall_a"], scores["recall_b"]) == (0.5, pytest.approx(2 / 3))
    odds_N = logits_ND.softmax(-1)[:, 1]
    wins = [float(odds_N[i] > odds_N[j]) for i in (2, 3, 4) for j in (0, 1)]
    assert scores["auc_b"] == pytest.approx(sum(wins) / 6)
    assert scores["recall_c"] != scores["recall_c"], "NaN: no row has this class"


def measured(study_name: str, values: dict[str, tuple[float, ...]]) -> Measured:
    study = next(study for study in FIGURE3.small if study.name == study_name)
    study = dataclasses.replace(study, variants=[Variant.parse(name) for name in values])
    by_score = {
        name: {"silhouette": line, "recall_low": line, "accuracy": [0.5] * len(line)} for name, line in values.items()
    }
    return Measured(study, made_up(by_score, "pissa"), {})


def test_the_tables_have_the_numbers_and_the_findings_follow_them():
    balanced = measured(BALANCED, {"pissa": (0.4, 0.5), "balora": (0.4, 0.5)})
    imbalanced = measured(IMBALANCED, {"pissa": (0.1, 0.2), "balora": (0.3, 0.40001)})
    results = Results(studies=FIGURE3.small, comparisons={}, directory=Path(), experiment=FIGURE3)
    scores = ["silhouette", "recall_low", "accuracy"]
    _, text, _, table, _, _, _, changes = score_parts([balanced, imbalanced], scores, results)
    assert "balanced (silhouette) | 100:10:1 (silhouette) | balanced (recall_low)" in table
    assert (
        "| balora | 0.4500 ± 0.0707 (se 0.0500)<br>+0.0000 [+0.0000, +0.0000] | 0.3500 ± 0.0707 (se 0.0500)<br>+0.2000"
        in table
    )
    lines = text.splitlines()
    assert lines[0].startswith("- balanced, silhouette, compared with pissa: better: none; worse: none")
    assert lines[1].startswith("- 100:10:1, silhouette, compared with pissa: better: balora (+0.2000")
    assert "| pissa | -0.3000 | -0.3000" in changes, "equal on both seeds: no interval"
    assert "| balora | -0.1000 [" in changes


def test_the_figure_names_methods_conditions_and_classes(tmp_path: Path):
    rng = torch.Generator().manual_seed(0)
    panel = EmbeddingPanel(
        title="pissa", caption="silhouette 0.10", points=torch.randn(30, 2, generator=rng).numpy(),
        classes=(torch.arange(30) % 3).numpy(),
    )  # fmt: skip
    written = embedding_figure(
        [("balanced", [None, panel]), ("100:10:1", [panel, panel])], ["x", "y", "z"], tmp_path / "f"
    )
    assert [path.suffix for path in written] == [".png", ".svg"]
    text = written[1].read_text()
    for words in ("pissa", "silhouette 0.10", "balanced", "100:10:1", "true class"):
        assert words in text
    assert text.count("silhouette 0.10") == 3


def test_a_dry_run_lists_the_preparation_and_the_files_it_needs(tmp_path: Path):
    paths = Paths(shared=tmp_path / "absent", recipes=Path("recipes"))
    asked = Request(experiment=FIGURE3, scale="small", output=tmp_path / "out", paths=paths, seeds=[42])
    text = "\n".join(dry_run(asked))
    assert "first: STS-B cut into three classes" in text
    assert text.count("missing: ") - text.count("missing: model") == 2
    assert "STS-B/train.tsv: no such file" in text
    with pytest.raises(BALoraError, match=r"STS-B/dev\.tsv: no such file"):
        reproduce(asked, LocalEngine())
    assert not (tmp_path / "out").exists()


def test_the_complete_experiment_runs_and_caches_its_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = paths_with_pairs(tmp_path, monkeypatch, train=20, dev=6)
    model = tmp_path / "model"
    tiny_bert().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    changes = [
        f"model={model}", "training.max_steps=2", "training.warmup_steps=0", "data.max_length=32",
        "training.per_device_train_batch_size=4",
    ]  # fmt: skip
    variants = [Variant.parse("pissa")]
    subsample = {BALANCED: 30, IMBALANCED: 60}

    def small(study):
        def config(paths: Paths) -> dict:
            values = study.config(paths)
            return values | {"data": values["data"] | {"subsample": subsample[study.name]}}

        return dataclasses.replace(study, config=config, variants=variants)

    tiny = dataclasses.replace(FIGURE3, small=[small(study) for study in FIGURE3.small])
    asked = Request(experiment=tiny, scale="small", output=tmp_path / "out", paths=paths, seeds=[1], overrides=changes)
    text = reproduce(asked, InProcessEngine()).read_text()
    assert "no result" not in text
    assert "small stand-in" in text
    assert "figure3.png" in text
    assert "100:10:1 (recall_low)" in text
    assert (tmp_path / "out" / "figure3.svg").stat().st_size > 3000

    run = tmp_path / "out" / IMBALANCED / "runs" / "pissa_seed-1"
    kept = tmp_path / "out" / "features" / IMBALANCED / "pissa_seed-1.safetensors"
    monkeypatch.setattr(feature_maps, "_extract", lambda model: pytest.fail("the features were there"))
    found = load_or_extract(run, kept)
    row = next(
        row for row in read_table(tmp_path / "out" / IMBALANCED / "rows.jsonl").rows if row["variant"] == "pissa"
    )
    assert found.features_Nd.shape == (18, 32)
    assert found.scores()["accuracy"] == pytest.approx(row["scores"]["accuracy"])
    settings = RunConfig.from_dict(dict(asked.config(tiny.small[1]), output="-", seed=1))
    assert found.labels_N.tolist() == load_examples(settings.data, settings.task, 1).eval["labels"]
    other = tmp_path / "out" / BALANCED / "runs" / "pissa_seed-1"
    with pytest.raises(pytest.fail.Exception):  # the kept features are of other weights
        load_or_extract(other, kept)
