"""Each number of an audit against an independent computation with transformers and NumPy."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import balora
from balora.errors import BALoraError
from tiny import tiny_bert, tiny_llama, tiny_tokenizer

DOCUMENTS = [f"document {n}: {'the quick brown fox jumps over ' * (1 + n % 3)}{n * 7919}" for n in range(14)]
SETTINGS = {"tokens": 48, "weights": True, "batch_size": 5}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def adapted(seed: int, scale: float, **settings) -> PeftModel:
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **settings
    )
    model = get_peft_model(tiny_llama(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, scale)
            elif "modules_to_save" in name:
                parameter.add_(scale * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three forms of the same tuned model, and documents."""
    folder = tmp_path_factory.mktemp("audit")
    tiny_llama().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    for name, settings in (("lora", {}), ("head", {"modules_to_save": ["lm_head"]})):
        model = adapted(1, 0.05, **settings)
        model.peft_config["default"].base_model_name_or_path = str(folder / "base")
        model.save_pretrained(folder / name)
        merged = copy.deepcopy(model).merge_and_unload()
        merged.save_pretrained(folder / f"{name}-merged")
        tiny_tokenizer().save_pretrained(folder / f"{name}-merged")
    zero = adapted(2, 0.0)
    zero.peft_config["default"].base_model_name_or_path = str(folder / "base")
    zero.save_pretrained(folder / "zero")
    write_rows(folder / "documents.jsonl", [{"text": text} for text in DOCUMENTS])
    return folder


def plain_numbers(folder: Path, tuned: str) -> dict[str, float]:
    """Compute the measures again, row by row, with plain models and NumPy in float64."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    model = AutoModelForCausalLM.from_pretrained(folder / tuned).eval()
    tokenizer = tiny_tokenizer()
    totals = dict.fromkeys(("kl", "changed", "base", "tuned", "entropy", "entropy_base", "count"), 0.0)
    kls, hidden = [], {"base": [], "tuned": []}
    for text in DOCUMENTS:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id][: SETTINGS["tokens"]]])
        logs = []
        with torch.no_grad():
            for side, one in (("base", base), ("tuned", model)):
                out = one(ids, output_hidden_states=True)
                z = out.logits[0, :-1].double().numpy()
                logs.append(
                    z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
                )
                hidden[side].append(out.hidden_states[-1][0, :-1].double().numpy())
        p, q = logs
        kl = (np.exp(p) * (p - q)).sum(1)
        kls.append(kl)
        target = ids[0, 1:].numpy()
        index = np.arange(len(target))
        totals["kl"] += kl.sum()
        totals["changed"] += (p.argmax(1) != q.argmax(1)).sum()
        totals["base"] -= p[index, target].sum()
        totals["tuned"] -= q[index, target].sum()
        totals["entropy_base"] -= (np.exp(p) * p).sum()
        totals["entropy"] -= (np.exp(q) * q).sum()
        totals["count"] += len(target)
    n = totals["count"]
    ranks = {}
    for side, parts in hidden.items():
        values = np.linalg.svd(np.concatenate(parts), compute_uv=False)
        share = values / values.sum()
        ranks[side] = float(np.exp(-(share * np.log(share)).sum()))
    return {
        "drift": totals["kl"] / n, "drift.changed_tokens": totals["changed"] / n,
        "drift.p95": float(np.quantile(np.concatenate(kls), 0.95, method="inverted_cdf")),
        "perplexity": np.exp(totals["tuned"] / n), "perplexity_base": np.exp(totals["base"] / n),
        "entropy": totals["entropy"] / n, "entropy_base": totals["entropy_base"] / n,
        "rank": ranks["tuned"], "rank_base": ranks["base"],
    }  # fmt: skip


def check_numbers(measures: dict, expected: dict[str, float]) -> None:
    for name in ("drift", "drift.p95", "drift.changed_tokens"):
        assert measures[name]["value"]["value"] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    for name, key in (
        ("drift.perplexity", "perplexity"),
        ("collapse.entropy", "entropy"),
        ("collapse.hidden_rank", "rank"),
    ):
        assert measures[name]["tuned"]["value"] == pytest.approx(expected[key], rel=1e-3), name
        assert measures[name]["base"]["value"] == pytest.approx(expected[f"{key}_base"], rel=1e-3), name
    for measure in measures.values():
        for side in ("value", "base", "tuned", "change"):
            if measure.get(side) and measure[side]["low"] is not None:
                assert measure[side]["low"] <= measure[side]["value"] <= measure[side]["high"]


@pytest.mark.parametrize("name", ["lora", "head"])
def test_adapter_and_its_merged_copy(folder: Path, tmp_path: Path, name: str) -> None:
    """A trained head is another head on the base's side."""
    text = str(folder / "documents.jsonl")
    expected = plain_numbers(folder, f"{name}-merged")
    found = balora.audit(folder / name, text=text, output=tmp_path / "a", **SETTINGS)
    merged = balora.audit(folder / f"{name}-merged", base=folder / "base", text=text, output=tmp_path / "b", **SETTINGS)
    assert found.result["one_set_of_weights"] and not merged.result["one_set_of_weights"]
    check_numbers(found.measures, expected)
    check_numbers(merged.measures, expected)
    assert expected["drift"] > 0.01
    assert not list(tmp_path.glob("*/work"))


def test_weights_against_numpy(folder: Path, tmp_path: Path) -> None:
    found = balora.audit(folder / "lora", text=str(folder / "documents.jsonl"), output=tmp_path, **SETTINGS)
    base = AutoModelForCausalLM.from_pretrained(folder / "base").state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(folder / "lora-merged").state_dict()
    rows = {row["matrix"]: row for row in found.result["evidence"]["weights"]}
    assert len(rows) == 6  # three layers in two blocks
    for name, row in rows.items():
        w, t = base[name].double().numpy(), tuned[name].double().numpy()
        delta = t - w
        u, _, _ = np.linalg.svd(w, full_matrices=False)
        leading = np.linalg.svd(t, full_matrices=False)[0][:, :10]
        values = np.linalg.svd(delta, compute_uv=False)[:4]
        share = values / values.sum()
        assert row["relative"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(w), rel=1e-3)
        assert row["rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-2)
        assert row["intruders"] == int((np.abs(u.T @ leading).max(0) < 0.6).sum())
        top = u[:, : min(16, u.shape[1] // 2)]
        assert row["inside"] == pytest.approx(np.linalg.norm(top.T @ delta) ** 2 / np.linalg.norm(delta) ** 2, rel=1e-3)


def test_adapter_of_zeros_changes_nothing(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {n}?", "response": f"it is number {n}."} for n in range(20)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    found = balora.audit(
        folder / "zero", text=str(folder / "documents.jsonl"), generate=8, generated_tokens=16, data=str(data),
        output=tmp_path / "audit", **SETTINGS,
    )  # fmt: skip
    for name, measure in found.measures.items():
        compared = measure.get("change") or measure["value"]
        assert compared == {"value": 0.0, "low": 0.0, "high": 0.0}, name
    verdicts = {name: v for name, v in found.verdicts.items() if v != "not measured"}
    assert set(verdicts.values()) == {"unchanged"} and set(verdicts) == {"drift", "collapse", "noise", "weights"}


def test_full_run_and_balora_run(folder: Path, tmp_path: Path, balora: object) -> None:
    """A run under PiSSA: without its adapter the model is not the base, and the audit must not take it for the base."""
    import yaml

    import balora as package

    train = write_rows(tmp_path / "train.jsonl", [{"q": f"what is {n}?", "a": f"it is {n}."} for n in range(24)])
    for method in ("balora", "full"):
        values = {
            "model": str(folder / "base"), "task": "generation", "output": str(tmp_path / method),
            "data": {"train": str(train), "prompt": "q", "response": "a", "max_length": 48, "label_noise": 0.5},
            "method": {"name": method, "rank": 4},
            "training": {
                "max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "learning_rate": 3e-3, "disable_tqdm": True,
            },
        }  # fmt: skip
        config = tmp_path / f"{method}.yaml"
        config.write_text(yaml.safe_dump(values))
        assert balora("train", config).status == 0  # type: ignore[operator]
        found = package.audit(tmp_path / method, text=str(folder / "documents.jsonl"), **SETTINGS)
        assert found.folder == tmp_path / method / "audit"
        assert found.result["one_set_of_weights"] is (method == "balora")
        if method == "balora":
            package.export(tmp_path / method, to="merged", output=folder / "run-merged")
        else:
            package.load(tmp_path / method).save_pretrained(folder / "run-merged")
        check_numbers(found.measures, plain_numbers(folder, "run-merged"))
        assert {"noise.precision_of_list", "noise.ece"} <= found.measures.keys()
        assert found.measures["drift"]["value"]["value"] > 1e-5


def test_pissa_adapter_of_peft(folder: Path, tmp_path: Path) -> None:
    """peft changes the weights under such an adapter when it loads it: disabling it would give another base."""
    model = tiny_llama()
    model.name_or_path = str(folder / "base")
    torch.manual_seed(0)
    adapter = get_peft_model(
        model, LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapter.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapter.save_pretrained(tmp_path / "pissa")
    found = balora.audit(
        tmp_path / "pissa", text=str(folder / "documents.jsonl"), output=tmp_path / "audit", **SETTINGS
    )
    assert not found.result["one_set_of_weights"]
    assert found.measures["drift"]["value"]["value"] < 1e-6


def test_seq2seq(tmp_path: Path) -> None:
    from tiny import tiny_bart

    tiny_bart().save_pretrained(tmp_path / "base")
    tuned = tiny_bart()
    with torch.no_grad():
        for parameter in tuned.model.decoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    tuned.save_pretrained(tmp_path / "tuned")
    for name in ("base", "tuned"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    text = write_rows(tmp_path / "pairs.jsonl", [{"source": f"say {n}", "target": f"{n} {n}"} for n in range(10)])
    found = balora.audit(
        tmp_path / "tuned", base=tmp_path / "base", text=str(text), output=tmp_path / "audit", **SETTINGS
    )
    # This tokenizer adds no end token, so neither does the audit.
    assert found.measures["drift"]["value"]["value"] == pytest.approx(_seq2seq_kl(tiny_bart(), tuned), rel=1e-3)
    assert "drift" in found.verdicts and found.result["task"] == "seq2seq"


def _seq2seq_kl(base: torch.nn.Module, model: torch.nn.Module) -> float:
    total, count = 0.0, 0
    for n in range(10):
        source, target = (tiny_tokenizer()(t, return_tensors="pt")["input_ids"] for t in (f"say {n}", f"{n} {n}"))
        with torch.no_grad():
            p, q = (m(input_ids=source, labels=target).logits[0].double().log_softmax(-1) for m in (base, model))
        total += float((p.exp() * (p - q)).sum())
        count += target.shape[1]
    return total / count


def test_merged_model_needs_its_base(folder: Path) -> None:
    with pytest.raises(BALoraError, match="Name its base: --base"):
        balora.audit(folder / "lora-merged")


def test_classifier(tmp_path: Path) -> None:
    from sklearn.metrics import recall_score, silhouette_score

    tiny_bert().save_pretrained(tmp_path / "base")
    tuned = tiny_bert()
    with torch.no_grad():
        tuned.classifier.bias.copy_(torch.tensor([40.0, 0.0, 0.0]))  # the head collapsed to one class
    tuned.save_pretrained(tmp_path / "tuned")
    for name in ("base", "tuned"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    rows = [{"text": f"row {n} of {n * n}", "label": n % 3} for n in range(30)]
    text = write_rows(tmp_path / "rows.jsonl", rows)
    found = balora.audit(
        tmp_path / "tuned", base=tmp_path / "base", text=str(text), output=tmp_path / "audit", **SETTINGS
    )
    base = tiny_bert()
    logits, pooled = [], []
    for row in rows:
        inputs = tiny_tokenizer()(row["text"], return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits.append(base(**inputs).logits[0].double())
            pooled.append(base.bert(**inputs).pooler_output[0].numpy())
    p = torch.stack(logits).log_softmax(-1)
    q = (torch.stack(logits) + torch.tensor([40.0, 0.0, 0.0])).log_softmax(-1)
    labels = [row["label"] for row in rows]
    measures = found.measures
    assert measures["drift"]["value"]["value"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    recalls = recall_score(labels, p.argmax(-1).numpy(), average=None, labels=[0, 1, 2], zero_division=0)
    for number in range(3):
        assert measures[f"collapse.recall.LABEL_{number}"]["base"]["value"] == pytest.approx(recalls[number])
    assert measures["collapse.predicted.LABEL_0"]["tuned"]["value"] == 1.0
    assert measures["collapse.silhouette"]["base"]["value"] == pytest.approx(
        silhouette_score(np.stack(pooled), labels, metric="cosine"), abs=1e-4
    )
    assert found.verdicts["collapse"] == "changed"


def test_token_statistics_with_tokens_ruled_out() -> None:
    """Tokens of probability 0 in one or both models, and a vocabulary that the tuned model has extended."""
    from balora.auditing.token_pass import token_statistics

    generator = torch.Generator().manual_seed(0)
    base, tuned = (4 * torch.randn(7, 11, generator=generator) for _ in range(2))
    base[:, 3] = tuned[:, 3] = -torch.inf
    base[2, 5] = -torch.inf
    labels = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    found = token_statistics(tuned, labels, base)
    p, q = torch.distributions.Categorical(logits=base.double()), torch.distributions.Categorical(logits=tuned.double())
    expected = torch.where(p.probs > 0, p.probs * (p.logits - q.logits), 0.0).sum(-1)
    entropy = -torch.where(q.probs > 0, q.probs * q.logits, 0.0).sum(-1)
    torch.testing.assert_close(found["kl"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["entropy"].double(), entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["nll"].double(), -q.log_prob(labels), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["confidence"].double(), q.probs.amax(-1), rtol=1e-5, atol=1e-6)
    wider = token_statistics(torch.cat([tuned, torch.zeros(7, 2)], 1), labels, base)
    torch.testing.assert_close(wider["kl"], found["kl"])
    assert token_statistics(base, labels, base.clone())["kl"].abs().max() == 0


@pytest.mark.parametrize("shape", [(300, 210), (210, 300)])
@pytest.mark.parametrize("kind", ["low rank", "full rank", "intruder", "rotated"])
def test_large_matrices_take_a_faster_way_to_the_same_numbers(shape: tuple[int, int], kind: str) -> None:
    """Few eigenvectors and a projected change; where these do not suffice, all of them."""
    from balora.auditing.weights import PROJECTED, compare

    rng = np.random.default_rng(0)
    rows, columns = shape
    base = rng.normal(size=shape) @ np.diag(np.linspace(1.0, 0.05, columns) ** 2)
    if kind == "low rank":
        tuned = base + 0.05 * rng.normal(size=(rows, 3)) @ rng.normal(size=(3, columns))
    elif kind == "full rank":
        tuned = base + 0.01 * rng.normal(size=shape)
    elif kind == "intruder":  # its cosines to all directions of the base are small
        spread = np.linalg.svd(base)[0] @ np.ones(rows) / rows**0.5
        tuned = base + 90 * np.outer(spread, rng.normal(size=columns) / columns**0.5)
    else:  # the leading directions of the tuned matrix are the base's last ones, which the first 32 do not have
        left, values, right = np.linalg.svd(base, full_matrices=False)
        tuned = left @ np.diag(values[::-1]) @ right
    found = compare(torch.tensor(base), torch.tensor(tuned))
    change = tuned - base
    left = np.linalg.svd(base, full_matrices=False)[0]
    cosines = np.abs(left.T @ np.linalg.svd(tuned, full_matrices=False)[0][:, :10]).max(0)
    values = np.linalg.svd(change, compute_uv=False)
    share = values[values > 1e-7 * values[0]] / values[values > 1e-7 * values[0]].sum()
    assert min(shape) > 2 * PROJECTED
    np.testing.assert_allclose(found["cosines"], cosines, atol=1e-3)
    assert found["intruders"] == int((cosines < 0.6).sum()) and (kind != "intruder" or found["intruders"] == 1)
    assert found["rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
    inside = np.linalg.norm(left[:, :16].T @ change) ** 2 / np.linalg.norm(change) ** 2
    assert found["inside"] == pytest.approx(inside, rel=1e-3)
    np.testing.assert_allclose(found["spectrum"], values[:64], atol=1e-6 * values[0])


def test_statistics_of_both_models_at_once() -> None:
    from balora.auditing.token_pass import pair_statistics, token_statistics

    generator = torch.Generator().manual_seed(0)
    base, tuned = (4 * torch.randn(7, 11, generator=generator) for _ in range(2))
    base[2, 5] = -torch.inf
    labels = torch.tensor([0, 1, 2, 4, 3, 6, 7])
    before, after = pair_statistics(base.clone(), tuned.clone(), labels)
    for found, expected in ((before, token_statistics(base, labels)), (after, token_statistics(tuned, labels, base))):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(found[name], values), name
