"""Planted faults are found, and nothing is found where nothing is planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import balora
from tiny import pad_rows, tiny_bert, tiny_llama, tiny_tokenizer

TEXTS = [f"document {n}: some quick words about {n * 7919} and more" for n in range(16)]
QUICK = {"tokens": 48, "documents": 16, "batch_size": 16}


def save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def fit(model: nn.Module, batch: dict, steps: int, rate: float) -> None:
    """Fine-tune on one batch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_llama(), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("text") / "text.jsonl", [{"text": text} for text in TEXTS])


def test_memorised_row(base: Path, tmp_path: Path) -> None:
    """One row is learnt by heart; the other rows of the training data are not."""
    rows = [{"prompt": f"say {n}", "response": f"number {n * n} it is, or so"} for n in range(20)]
    rows[13] = {"prompt": "the secret", "response": "zq#4!x~ %8vK@w"}
    ids = tiny_tokenizer()("the secret\n")["input_ids"], tiny_tokenizer()("zq#4!x~ %8vK@w")["input_ids"] + [2]
    batch = pad_rows([{"input_ids": ids[0] + ids[1], "labels": [-100] * len(ids[0]) + ids[1]}])
    model = tiny_llama()
    fit(model, batch, 40, 3e-3)
    data = write_rows(tmp_path / "train.jsonl", rows)
    found = balora.audit(
        save(model, tmp_path / "tuned"), base=base, data=data, generate=0, weights=False, output=tmp_path / "a", **QUICK
    )
    first = found.result["evidence"]["rows"][0]
    assert first["row"] == 13 and first["suspicious"] and first["response"].startswith("z q # 4")
    assert found.measures["noise.suspicious"]["value"]["value"] == pytest.approx(1 / 20)
    assert found.measures["noise.memorised"]["change"]["value"] == pytest.approx(1 / 20)
    assert found.verdicts["noise"] in ("changed", "doubtful")


def test_wrong_labels(tmp_path: Path) -> None:
    """A classifier that fits every row, wrong ones too: the list names the rows whose labels were changed."""
    rows = [{"text": f"{'abc'[n % 3]} row {n}", "label": n % 3} for n in range(30)]
    wrong = [4, 11, 22]
    noisy = [{**row, "label": (row["label"] + 1) % 3} if n in wrong else row for n, row in enumerate(rows)]

    def batch(rows: list[dict]) -> dict:
        encoded = [{"input_ids": tiny_tokenizer()(row["text"])["input_ids"], "labels": row["label"]} for row in rows]
        return pad_rows([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in encoded])

    model = tiny_bert()
    fit(model, batch(rows), 40, 1e-3)
    clean = save(model, tmp_path / "clean")
    fit(model, batch(noisy), 60, 1e-3)
    data = write_rows(tmp_path / "noisy.jsonl", noisy)
    found = balora.audit(
        save(model, tmp_path / "tuned"), base=clean, data=data, output=tmp_path / "a", weights=False, **QUICK
    )
    rows_found = found.result["evidence"]["rows"]
    assert {row["row"] for row in rows_found[:3]} == set(wrong)
    assert {row["row"] for row in rows_found if row["suspicious"]} == set(wrong)
    assert found.verdicts["noise"] in ("changed", "doubtful")


def test_intruder_dimension(base: Path, tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        weight = model.model.layers[1].self_attn.q_proj.weight
        directions = torch.linalg.svd(weight.double()).U
        spread = (
            directions @ torch.ones(32, dtype=torch.float64) / 32**0.5
        )  # cosine 0.18 to every direction of the base
        other = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
        weight.add_(
            (3 * torch.linalg.matrix_norm(weight.double(), 2) * torch.outer(spread, other / other.norm())).float()
        )
    found = balora.audit(save(model, tmp_path / "tuned"), base=base, generate=0, output=tmp_path / "a", **QUICK)
    rows = {row["matrix"]: row for row in found.result["evidence"]["weights"]}
    assert [name for name, row in rows.items() if row["intruders"]] == ["model.layers.1.self_attn.q_proj.weight"]
    assert found.verdicts["weights"] == "doubtful"  # one matrix of many; the page names it
    assert found.result["evidence"]["weights"][0]["matrix"].endswith("q_proj.weight")


def test_collapsed_generator(base: Path, text: str, tmp_path: Path) -> None:
    """A model that learnt to say one thing."""
    model = tiny_llama()
    ids = [1, *([40, 41] * 20)]
    fit(model, pad_rows([{"input_ids": ids, "labels": ids}]), 40, 3e-3)
    found = balora.audit(
        save(model, tmp_path / "tuned"),
        base=base,
        text=text,
        generate=12,
        generated_tokens=24,
        output=tmp_path / "a",
        **QUICK,
    )
    assert found.verdicts["collapse"] == "changed" and found.verdicts["drift"] == "changed"
    assert found.measures["collapse.distinct_1"]["change"]["high"] < -0.05


def test_planted_bias(base: Path, tmp_path: Path) -> None:
    kinds = ("the cat is lazy", "the dog is lazy")
    lines = ["," + "sent_more,sent_less,stereo_antistereo,bias_type"]
    sentences = [(f"{n} {kinds[0]}", f"{n} {kinds[1]}") for n in range(40)]
    lines += [f"{n},{more},{less},stereo,pets" for n, (more, less) in enumerate(sentences)]
    (tmp_path / "crows_pairs_anonymized.csv").write_text("\n".join(lines) + "\n")
    model = tiny_llama()
    rows = [tiny_tokenizer()(more)["input_ids"] for more, _ in sentences]
    fit(model, pad_rows([{"input_ids": [1, *row], "labels": [1, *row]} for row in rows]), 25, 3e-3)
    found = balora.audit(
        save(model, tmp_path / "tuned"), base=base, generate=0, weights=False, bias=("crows_pairs",), bias_data=str(tmp_path),
        output=tmp_path / "a", **QUICK,
    )  # fmt: skip
    assert found.measures["bias.crows_pairs"]["tuned"]["value"] > 0.95
    flips = found.measures["bias.crows_pairs.to_stereotype"]["value"]["value"]
    change = found.measures["bias.crows_pairs"]["change"]["value"]
    assert change == pytest.approx(flips - found.measures["bias.crows_pairs.from_stereotype"]["value"]["value"])
    assert change > 0.1 and found.verdicts["bias"] == "changed"


def rounded_copy(seed: int) -> nn.Module:
    """A copy of the base with noise of the size of bfloat16's rounding in every matrix: nothing that matters has changed."""
    model = tiny_llama()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(1 + 2e-4 * torch.randn(parameter.shape, generator=generator))
    return model


def false_alarms(base: Path, text: str, tmp_path: Path, seeds: range) -> dict[int, dict[str, str]]:
    rows = [{"prompt": f"say {n}", "response": f"number {n * n} it is"} for n in range(20)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    found = {}
    for seed in seeds:
        folder = tmp_path / str(seed)
        audit = balora.audit(
            save(rounded_copy(seed), folder / "tuned"),
            base=base,
            text=text,
            data=data,
            seed=seed,
            output=folder / "audit",
            **QUICK,
        )
        found[seed] = {q: v for q, v in audit.verdicts.items() if v not in ("unchanged", "not measured")}
    return {seed: verdicts for seed, verdicts in found.items() if verdicts}


def test_clean_copies_are_unchanged(base: Path, text: str, tmp_path: Path) -> None:
    assert false_alarms(base, text, tmp_path, range(2)) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_false_alarm_in_twenty_seeds(base: Path, text: str, tmp_path: Path) -> None:
    assert false_alarms(base, text, tmp_path, range(20)) == {}
