"""Adapters that peft alone made: classifiers with and without a head in the base, an encoder-decoder, and class names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.metrics import recall_score, silhouette_score
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import balora
from balora.errors import BALoraError
from tiny import tiny_bart, tiny_bert, tiny_tokenizer

NAMES = ("bad", "fair", "good")
ROWS = [{"text": f"row {n} of {n * n}", "label": NAMES[n % 3]} for n in range(30)]
LABELS = [n % 3 for n in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head, the same without, labelled rows, and a LoRA for each."""
    folder = tmp_path_factory.mktemp("plain")
    named = tiny_bert()
    named.config.id2label = dict(enumerate(NAMES))
    named.save_pretrained(folder / "named")
    named.bert.save_pretrained(folder / "headless")
    for base in ("named", "headless"):
        tiny_tokenizer().save_pretrained(folder / base)
        labels = {} if base == "named" else {"num_labels": 3}
        model = AutoModelForSequenceClassification.from_pretrained(folder / base, **labels)
        adapt_randomly(model, folder / f"{base}-lora", task_type="SEQ_CLS", target_modules=["query", "value"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def adapt_randomly(model: torch.nn.Module, where: Path, **settings) -> PeftModel:
    torch.manual_seed(3)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
            elif "modules_to_save" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(where)
    return model


def outputs(model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and pooled features, row by row."""
    model.eval()
    logs, pooled = [], []
    encoder = next(m for name, m in model.named_modules() if name.endswith("bert"))
    for row in ROWS:
        inputs = tiny_tokenizer()(row["text"], return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logs.append(model(**inputs).logits[0].double().log_softmax(-1).numpy())
            pooled.append(encoder(**inputs).pooler_output[0].numpy())
    return np.stack(logs), np.stack(pooled)


def plain_pair(folder: Path, base: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    settings = {} if base == "named" else {"num_labels": 3}
    first, second = (
        AutoModelForSequenceClassification.from_pretrained(folder / base, **settings).eval() for _ in range(2)
    )
    return first, PeftModel.from_pretrained(second, folder / f"{base}-lora").eval()


def test_classifier_whose_base_has_the_head(folder: Path, tmp_path: Path) -> None:
    found = balora.audit(
        folder / "named-lora", text=str(folder / "rows.jsonl"), data=str(folder / "rows.jsonl"), output=tmp_path / "a"
    )
    (p, features), (q, tuned_features) = map(outputs, plain_pair(folder, "named"))
    measures = found.measures
    assert found.result["one_set_of_weights"]
    assert measures["drift"]["value"]["value"] == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-3)
    assert measures["drift"]["value"]["value"] > 0.01
    assert measures["collapse.entropy"]["tuned"]["value"] == pytest.approx(-(np.exp(q) * q).sum(1).mean(), rel=1e-3)
    for side, logs in (("base", p), ("tuned", q)):
        recalls = recall_score(LABELS, logs.argmax(1), average=None, labels=[0, 1, 2], zero_division=0)
        for number, name in enumerate(NAMES):
            assert measures[f"collapse.recall.{name}"][side]["value"] == pytest.approx(recalls[number])
    losses = measures["noise.loss"]
    assert losses["base"]["value"] == pytest.approx(-p[range(30), LABELS].mean(), rel=1e-3)
    assert losses["tuned"]["value"] == pytest.approx(-q[range(30), LABELS].mean(), rel=1e-3)
    for side, x in (("base", features), ("tuned", tuned_features)):
        expected = silhouette_score(x, LABELS, metric="cosine")
        assert measures["collapse.silhouette"][side]["value"] == pytest.approx(expected, abs=1e-3)
    assert all(row["response"] == ROWS[row["row"]]["label"] for row in found.result["evidence"]["rows"])


def test_classifier_whose_base_has_no_head(folder: Path, tmp_path: Path) -> None:
    """The base's head would be random, so nothing is compared with it; a collapse is still found, against the labels."""
    text = folder / "rows.jsonl"
    found = balora.audit(folder / "headless-lora", text=str(text), data=str(text), output=tmp_path / "a")
    (_, features), (q, tuned_features) = map(outputs, plain_pair(folder, "headless"))
    measures, missing = found.measures, found.result["not_measured"]
    assert "random" in missing["drift"] and "random" in missing["noise: suspicious rows"]
    assert found.verdicts["drift"] == "not measured" and "drift" not in measures
    recalls = recall_score(LABELS, q.argmax(1), average=None, labels=[0, 1, 2], zero_division=0)
    for number, name in enumerate(NAMES):
        assert measures[f"collapse.recall.{name}"]["tuned"]["value"] == pytest.approx(recalls[number])
        share = (q.argmax(1) == number).mean() - 1 / 3
        assert measures[f"collapse.predicted.{name}"]["value"]["value"] == pytest.approx(share)
    assert measures["noise.loss"]["tuned"]["value"] == pytest.approx(-q[range(30), LABELS].mean(), rel=1e-3)
    assert "base" not in measures["noise.loss"] and "base" not in measures["noise.ece"]
    for side, x in (("base", features), ("tuned", tuned_features)):
        expected = silhouette_score(x, LABELS, metric="cosine")
        assert measures["collapse.silhouette"][side]["value"] == pytest.approx(expected, abs=1e-3)
    assert found.verdicts["weights"] != "not measured"
    # The merged copy, a full model, gives the same numbers against the same base.
    merged = plain_pair(folder, "headless")[1].merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    again = balora.audit(tmp_path / "merged", base=folder / "headless", text=str(text), output=tmp_path / "b")
    assert "random" in again.result["not_measured"]["drift"]
    for name in ("collapse.entropy", "collapse.silhouette"):
        assert again.measures[name]["tuned"]["value"] == pytest.approx(measures[name]["tuned"]["value"], rel=1e-3)


def test_classes_in_another_order(folder: Path, tmp_path: Path) -> None:
    """Row k of one head is another class than row k of the other: a divergence would be a number without meaning."""
    tuned = AutoModelForSequenceClassification.from_pretrained(folder / "named")
    tuned.config.id2label = dict(enumerate(reversed(NAMES)))
    tuned.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    rows = str(folder / "rows.jsonl")
    found = balora.audit(tmp_path / "tuned", base=folder / "named", text=rows, weights=False, output=tmp_path / "a")
    assert "the base's classes are bad, fair, good" in found.result["not_measured"]["drift"]


def test_classifier_as_the_base_of_a_generator(folder: Path, tmp_path: Path) -> None:
    tiny_bart().save_pretrained(tmp_path / "bart")
    tiny_tokenizer().save_pretrained(tmp_path / "bart")
    with pytest.raises(BALoraError, match="is a classifier, and"):
        balora.audit(tmp_path / "bart", base=folder / "named", output=tmp_path / "a")


def test_encoder_decoder_adapter(tmp_path: Path) -> None:
    tiny_bart().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    model = adapt_randomly(base, tmp_path / "lora", task_type="SEQ_2_SEQ_LM", target_modules=["q_proj", "v_proj"])
    pairs = [{"source": f"say {n}", "target": f"{n} {n} times {n}"} for n in range(10)]
    text = tmp_path / "pairs.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    found = balora.audit(tmp_path / "lora", text=str(text), output=tmp_path / "a", tokens=48)
    total = {"kl": 0.0, "base": 0.0, "tuned": 0.0, "count": 0}
    for row in pairs:
        source, target = (tiny_tokenizer()(row[key], return_tensors="pt")["input_ids"] for key in ("source", "target"))
        with torch.no_grad():
            q = model(input_ids=source, labels=target).logits[0].double().log_softmax(-1).numpy()
            with model.disable_adapter():
                p = model(input_ids=source, labels=target).logits[0].double().log_softmax(-1).numpy()
        index = np.arange(target.shape[1]), target[0].numpy()
        total["kl"] += (np.exp(p) * (p - q)).sum()
        total["base"] -= p[index].sum()
        total["tuned"] -= q[index].sum()
        total["count"] += target.shape[1]
    measures = found.measures
    assert found.result["task"] == "seq2seq" and found.result["one_set_of_weights"]
    assert measures["drift"]["value"]["value"] == pytest.approx(total["kl"] / total["count"], rel=1e-3)
    for side in ("base", "tuned"):
        expected = np.exp(total[side] / total["count"])
        assert measures["drift.perplexity"][side]["value"] == pytest.approx(expected, rel=1e-3)


def test_collapse_without_a_base_to_compare_with() -> None:
    """The predicted classes are judged by the labels."""
    from balora.auditing.classifiers import classifier_drift
    from balora.auditing.verdicts import answers

    labels = np.arange(90) % 3
    for collapsed, verdict in ((True, "changed"), (False, "unchanged")):
        logits = np.eye(3)[labels] * 5.0
        if collapsed:
            logits[:] = [9.0, 0.0, 0.0]
        found = classifier_drift(None, logits, labels, NAMES, seed=0).to_dict()["measures"]
        answer = next(a for a in answers(found) if a.question == "collapse")
        assert answer.verdict == verdict
    assert "it calls 33.3 % of the rows bad" in answer.sentence
