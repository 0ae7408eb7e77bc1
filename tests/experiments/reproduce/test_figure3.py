"""Figure 3: the cut into three classes, what is measured on features, and the whole experiment on a tiny model."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from balora import BALoraError
from balora.config.run_config import RunConfig
from balora.data import load_examples
from balora.data.readers import read_table
from balora.experiments.compare import Comparison, LocalEngine, Row, Variant, summarise
from balora.experiments.reproduce import EXPERIMENTS, Places, Request, dry_run, features, reproduce, similarity
from balora.experiments.reproduce.features import Features, features_of
from balora.experiments.reproduce.figure3 import BALANCED, IMBALANCED, Measured, tables
from balora.experiments.reproduce.prepare import read_about
from balora.plots.tsne import EmbeddingPanel, embedding_figure
from tiny import tiny_bert, tiny_tokenizer

FIGURE3 = EXPERIMENTS["figure3"]
WORDS = ["cat", "dog", "sits", "runs", "red", "mat", "the", "a"]


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Pairs with ratings all over the scale, some of them too long."""
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


def places_with_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, dev: int) -> Places:
    """A shared folder with tiny data in STS-B's place, and a cut that suits them."""
    folder = tmp_path / "shared" / "data" / "glue" / "STS-B"
    folder.mkdir(parents=True)
    evaluated = pairs(12 * dev + 60, seed=1)
    for split, rows in (("train", [*pairs(12 * train + 60, seed=2), *evaluated]), ("dev", evaluated)):
        lines = ["sentence1\tsentence2\tscore", *("\t".join(row.values()) for row in rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(similarity, "PER_CLASS", {"dev": dev, "train": train})
    return Places(shared=tmp_path / "shared", recipes=Path("recipes"))


def test_the_cut_has_equal_classes_at_the_stated_ratings_and_no_long_pair():
    rows = pairs(300)
    made = similarity.cut(rows, 20)
    assert Counter(row["label"] for row in made) == {"low": 20, "middle": 20, "high": 20}
    for row in made:
        low, high = {"low": (0, 1.5), "middle": (2, 3.25), "high": (4, 5)}[row["label"]]
        assert low <= float(row["score"]) <= high
        assert len(f"{row['sentence1']} {row['sentence2']}".split()) <= 24
    assert similarity.cut(rows, 20) == made
    assert similarity.cut(rows, 20, seed=1) != made
    with pytest.raises(BALoraError, match=r"short pairs of low similarity, fewer than the 200"):
        similarity.cut(rows, 200)


def test_the_conditions_have_as_many_rows_and_one_is_100_10_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    places = places_with_pairs(tmp_path, monkeypatch, train=1080, dev=5)
    asked = Request(experiment=FIGURE3, scale="small", output=tmp_path / "out", places=places, seeds=[42])
    assert asked.preparation is not None
    asked.preparation.ensure(asked.here)
    assert read_about(asked.here.prepared)["train"]["per_class"] == 1080
    train, dev = (read_table(asked.here.prepared / f"{name}.jsonl").rows for name in ("train", "dev"))
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
    truth_N = torch.tensor([0, 0, 1, 1, 1])
    logits_ND = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    scores = Features(features_Nd=features_Nd, logits_ND=logits_ND, truth_N=truth_N, classes=("a", "b", "c")).scores()
    unit = torch.nn.functional.normalize(features_Nd.float(), dim=-1)
    distance = 1 - unit @ unit.T
    each = []
    for i, own in enumerate(truth_N):
        same = [float(distance[i, j]) for j in range(5) if j != i and truth_N[j] == own]
        other = [float(distance[i, j]) for j in range(5) if truth_N[j] != own]
        near, far = sum(same) / len(same), sum(other) / len(other)
        each.append((far - near) / max(far, near))
    assert scores["silhouette"] == pytest.approx(sum(each) / 5, abs=1e-3)
    assert scores["accuracy"] == 0.6
    assert (scores["recall_a"], scores["recall_b"]) == (0.5, pytest.approx(2 / 3))
    odds_N = logits_ND.softmax(-1)[:, 1]
    wins = [float(odds_N[i] > odds_N[j]) for i in (2, 3, 4) for j in (0, 1)]
    assert scores["auc_b"] == pytest.approx(sum(wins) / 6)
    assert scores["recall_c"] != scores["recall_c"], "no row is of it, so there is nothing to measure"


def made_up(study_name: str, values: dict[str, tuple[float, ...]]) -> Measured:
    rows = [
        Row(run=f"{name}-{seed}", variant=name, method="pissa", regularized=False, axes={}, seed=seed, status="finished",
            scores={"silhouette": value, "recall_low": value, "accuracy": 0.5}, provenance={})
        for name, line in values.items() for seed, value in enumerate(line)
    ]  # fmt: skip
    scores = ["silhouette", "recall_low", "accuracy"]
    study = next(study for study in FIGURE3.small if study.name == study_name)
    study = dataclasses.replace(study, variants=[Variant.parse(name) for name in values])
    groups = summarise(rows, scores, "pissa")
    return Measured(study, Comparison(groups=groups, rows=rows, scores=scores, baseline="pissa", about={}), {})


def test_the_tables_hold_the_numbers_and_the_words_follow_them():
    balanced = made_up(BALANCED, {"pissa": (0.4, 0.5), "balora": (0.4, 0.5)})
    imbalanced = made_up(IMBALANCED, {"pissa": (0.1, 0.2), "balora": (0.3, 0.4)})
    table, _, _, words, _, changes = tables([balanced, imbalanced], ["silhouette", "recall_low", "accuracy"])
    assert "balanced (silhouette) | 100:10:1 (silhouette) | balanced (recall_low)" in table
    assert "| balora | 0.4500 ± 0.0707<br>+0.0000 [+0.0000, +0.0000] | 0.3500 ± 0.0707<br>+0.2000" in table
    lines = words.splitlines()
    assert lines[0].startswith("- balanced, silhouette, against pissa: better: none; worse: none")
    assert lines[1].startswith("- 100:10:1, silhouette, against pissa: better: balora (+0.2000")
    assert "| pissa | -0.3000 [-0.3000, -0.3000] | -0.3000" in changes
    assert "| balora | -0.1000 [-0.1000, -0.1000] |" in changes


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


def test_a_dry_run_says_that_data_are_cut_first_and_what_that_needs(tmp_path: Path):
    places = Places(shared=tmp_path / "absent", recipes=Path("recipes"))
    asked = Request(experiment=FIGURE3, scale="small", output=tmp_path / "out", places=places, seeds=[42])
    text = "\n".join(dry_run(asked))
    assert "first: STS-B cut into three classes" in text
    assert text.count("missing: ") - text.count("missing: model") == 2
    assert "STS-B/train.tsv: no such file" in text
    with pytest.raises(BALoraError, match=r"STS-B/dev\.tsv: no such file"):
        reproduce(asked, LocalEngine())
    assert not (tmp_path / "out").exists()


def test_the_experiment_runs_whole_and_its_features_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    places = places_with_pairs(tmp_path, monkeypatch, train=20, dev=6)
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
        def config(places: Places) -> dict:
            values = study.config(places)
            return values | {"data": values["data"] | {"subsample": subsample[study.name]}}

        return dataclasses.replace(study, config=config, variants=variants)

    tiny = dataclasses.replace(FIGURE3, small=[small(study) for study in FIGURE3.small])
    asked = Request(
        experiment=tiny, scale="small", output=tmp_path / "out", places=places, seeds=[1], overrides=changes
    )
    text = reproduce(asked, LocalEngine()).read_text()
    assert "no result" not in text
    assert "small stand-in" in text
    assert "figure3.png" in text
    assert "100:10:1 (recall_low)" in text
    assert (tmp_path / "out" / "figure3.svg").stat().st_size > 3000

    run = tmp_path / "out" / IMBALANCED / "runs" / "pissa_seed-1"
    kept = tmp_path / "out" / "features" / IMBALANCED / "pissa_seed-1.safetensors"
    monkeypatch.setattr(features, "_take", lambda subject: pytest.fail("the features were there"))
    found = features_of(run, kept)
    row = next(
        row for row in read_table(tmp_path / "out" / IMBALANCED / "rows.jsonl").rows if row["variant"] == "pissa"
    )
    assert found.features_Nd.shape == (18, 32)
    assert found.scores()["accuracy"] == pytest.approx(row["scores"]["accuracy"])
    settings = RunConfig.from_dict(dict(asked.config(tiny.small[1]), output="-", seed=1))
    assert found.truth_N.tolist() == load_examples(settings.data, settings.task, 1).eval["labels"]
    other = tmp_path / "out" / BALANCED / "runs" / "pissa_seed-1"
    with pytest.raises(pytest.fail.Exception):  # the kept features are of other weights
        features_of(other, kept)
