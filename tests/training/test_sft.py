"""trl's SFTTrainer with our objective: its data preparation, our loss."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

import balora
from balora import BALoraSFTTrainer
from balora.checkpoints import checkpoint as ckpt
from balora.training.trainer import regularization_of
from small_runs import ALL_TERMS, OFF, Gradients, flat, history
from tiny import tiny_causal, tiny_llama, tiny_tokenizer

CHAT = (
    "{% for message in messages %}{% if message.role == 'assistant' %}A:{% generation %}{{ message.content + '</s>' }}"
    "{% endgeneration %}{% else %}Q:{{ message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
WORDS = ["ab", "cat sat", "to be or", "x", "hello there", "one two three", "why", "so it is"]
PAIRS = Dataset.from_list([{"prompt": f"{w}?", "completion": w[::-1] * (1 + i % 3)} for i, w in enumerate(WORDS)])
CHATS = Dataset.from_list(
    [{"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": w[::-1]}]} for w in WORDS]
)


def model(make=tiny_llama, method="balora") -> torch.nn.Module:
    return balora.adapt(make(), method, rank=4)


def trainer(
    folder, *, kind: type = BALoraSFTTrainer, config=ALL_TERMS, data=PAIRS, make=tiny_llama, method="balora", **changes
):
    quiet = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "max_steps": 3, "learning_rate": 1e-2,
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "bf16": False,
        "max_length": 64, "dataloader_pin_memory": False,
    }  # fmt: skip
    own = {
        name: changes.pop(name)
        for name in ("eval_dataset", "callbacks", "compute_metrics", "loss_path")
        if name in changes
    }
    if kind is BALoraSFTTrainer:
        own["regularization"] = config
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(
            model=model(make, method), args=SFTConfig(str(folder), **{**quiet, **changes}), train_dataset=data,
            processing_class=tokenizer, **own,
        )  # fmt: skip


CASES = {
    "prompt and completion": {},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "messages": {"data": CHATS},
    "messages, assistant only": {"data": CHATS, "assistant_only_loss": True},
    "packing": {"packing": True, "per_device_train_batch_size": 2},
    "padding-free": {"padding_free": True, "max_length": None},
    "a soft-capped head": {"make": lambda: tiny_causal("Gemma2", final_logit_softcapping=1.5)},
}


@pytest.mark.parametrize("name", CASES)
def test_with_all_weights_0_every_step_equals_trls(name, tmp_path):
    ours = trainer(tmp_path, config=OFF, eval_dataset=PAIRS if "data" not in CASES[name] else CHATS, **CASES[name])
    theirs = trainer(
        tmp_path, kind=SFTTrainer, eval_dataset=PAIRS if "data" not in CASES[name] else CHATS, **CASES[name]
    )
    for run in (ours, theirs):
        run.train()
        run.evaluate()
    for key in ("loss", "grad_norm", "eval_loss"):
        assert len(history(theirs, key)) == (1 if key == "eval_loss" else 3)
        assert history(ours, key) == pytest.approx(history(theirs, key), rel=1e-4), key
    torch.testing.assert_close(flat(ours.model), flat(theirs.model), atol=1e-4, rtol=1e-3)
    assert not [key for entry in ours.state.log_history for key in entry if "token_accuracy" in key]


@pytest.mark.parametrize("name", CASES)
def test_fused_and_plain_path_have_the_same_losses(name, tmp_path):
    runs = [trainer(tmp_path, loss_path=path, **CASES[name]) for path in ("fused", "plain")]
    for run in runs:
        run.train()
    assert runs[0].step._fused, "trl's patched forward does not hide the head"
    for key in ("loss", "task", "consistency", "diversity", "spectral"):
        assert history(runs[0], key) == pytest.approx(history(runs[1], key), rel=1e-4, abs=1e-6), key
    assert history(runs[0], "consistency")[0] == pytest.approx(0.0, abs=1e-6)
    assert history(runs[0], "consistency")[-1] > 1e-6


def test_prompts_do_not_contribute_to_the_loss(tmp_path):
    run = trainer(tmp_path, config=OFF)
    batch = next(iter(run.get_train_dataloader()))
    tokenizer = run.processing_class
    for tokens, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = tokenizer.decode(labels[labels != -100]).replace(" ", "")
        assert text.endswith("</s>") and "?" not in text
        assert "?" in tokenizer.decode(tokens)
    run.model.eval()
    loss = run.compute_loss(run.model, dict(batch)).detach()
    logits = run.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].detach()
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    everything = F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    assert abs(float(loss) - float(everything)) > 1e-3


@pytest.mark.parametrize("name", ["packing", "padding-free"])
def test_packed_rows_do_not_attend_to_each_other(name, tmp_path):
    packed = trainer(tmp_path, **{**CASES[name], "per_device_train_batch_size": 8})
    apart = trainer(tmp_path, per_device_train_batch_size=8)
    for run in (packed, apart):
        run.model.eval()
    batches = [next(iter(run.get_train_dataloader())) for run in (packed, apart)]
    assert batches[0]["input_ids"].shape[0] == 1 and batches[1]["input_ids"].shape[0] == 8
    assert "attention_mask" not in batches[0]
    counts = [int((b["labels"] != -100).sum()) for b in batches]
    assert counts[0] == counts[1], "packing neither loses a label nor adds one at a border"
    losses = [
        float(run.compute_loss(run.model, dict(b)).detach()) for run, b in zip((packed, apart), batches, strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_gradient_checkpointing_is_trls_default_and_changes_nothing(tmp_path):
    found = []
    for settings in ({}, {"gradient_checkpointing": False}):
        seen = Gradients()
        run = trainer(tmp_path, callbacks=[seen], max_steps=1, max_grad_norm=0.0, **settings)
        assert run.args.gradient_checkpointing == (not settings)
        run.train()
        found.append(seen.steps[0])
    assert sum(float(g.norm()) for g in found[0].values()) > 0.1
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-6, rtol=1e-4)


def test_every_part_is_logged_in_training_and_the_task_loss_in_evaluation(tmp_path):
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=2, eval_dataset=PAIRS)
    run.train()
    training = [e for e in run.state.log_history if "loss" in e]
    for part in ("consistency", "diversity", "spectral"):
        assert all({part, f"{part}_weight", f"{part}_weighted"} <= e.keys() for e in training)
    evaluations = [e for e in run.state.log_history if "eval_loss" in e]
    assert evaluations and not [key for entry in evaluations for key in entry if "consistency" in key]


def test_compute_metrics_gets_the_predictions(tmp_path):
    shapes = []
    metric = lambda p: shapes.append(p.predictions.shape) or {"rows": len(p.predictions)}  # noqa: E731
    run = trainer(tmp_path, eval_dataset=PAIRS, compute_metrics=metric)
    assert run.evaluate()["eval_rows"] == len(WORDS)
    assert shapes[0][-1] == 97


def test_a_checkpoint_is_complete_and_resumes_bit_for_bit(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = trainer(tmp_path, **settings)
    first.train()
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"checkpoint-2", "checkpoint-4"}
    ckpt.check_manifest(Path(tmp_path / "checkpoint-2"))
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(flat(first.model), flat(again.model))


def test_an_adapter_on_4_bit_weights_keeps_its_initial_values(tmp_path):
    pytest.importorskip("bitsandbytes")
    run = trainer(tmp_path, method="qbalora")  # trl would round the adapter to bfloat16
    assert {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.float32}
    run.train()
    assert history(run, "consistency")[0] < 1e-6 < history(run, "consistency")[-1]


def test_the_old_import_path_warns_and_names_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"is now balora\.training\.sft_trainer\.BALoraSFTTrainer"):
        from balora.training.sft import BALoraSFTTrainer as old
    assert old is BALoraSFTTrainer


@pytest.mark.parametrize("value", ["on", {"consistency": 0.5}])
def test_every_form_of_regularization_reaches_the_trainer(tmp_path: Path, value: object) -> None:
    assert trainer(tmp_path, config=value).regularization == regularization_of(value, "generation")


def test_early_stopping_and_metrics_work_as_with_transformers(tmp_path: Path) -> None:
    """Both trainers share the mixin; this one has transformers' callback, compute_metrics and the best model at the end."""
    run = trainer(
        tmp_path, eval_dataset=PAIRS, max_steps=6, callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        compute_metrics=lambda found: {"constant": float(len(found.predictions))}, metric_for_best_model="constant",
        greater_is_better=True, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1,
    )  # fmt: skip
    run.train()
    assert run.state.global_step == 3, "the first evaluation is the best, and two more are not better"
    assert run.state.best_global_step == 1 and run.evaluate()["eval_constant"] == len(PAIRS)
