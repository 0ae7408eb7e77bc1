"""The objective inside transformers' Trainer, for generation: gradients, logs, evaluation, and what stops a run."""

from __future__ import annotations

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import Trainer

import balora
from balora import BALoraError, BALoraTrainer, PretrainedTeacher, RegularizationConfig
from balora.models.hidden_states import valid_targets
from balora.regularizers import consistency, spectral_ratio, topk_negative_entropy
from small_runs import (
    ALL_TERMS,
    CONSTANT,
    OFF,
    TOKEN_TERMS,
    Batches,
    Do,
    Gradients,
    arguments,
    flat,
    history,
    pissa,
    trainer,
)
from tiny import pad_rows, pair_rows, tiny_bart, tiny_bert, tiny_causal, tiny_llama, tiny_t5, token_rows

SEQUENTIAL = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0}


def gradients(folder, *, steps: int = 2, rows=None, config=TOKEN_TERMS, **changes) -> list[dict[str, torch.Tensor]]:
    """Return the optimizer's gradients of each step. Plain gradient descent, because Adam would amplify rounding."""
    seen = Gradients()
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_steps": steps, **SEQUENTIAL, **changes}
    trainer(pissa(tiny_llama), folder, config=config, rows=rows, callbacks=[seen], **settings).train()
    assert len(seen.steps) == steps
    return seen.steps


def assert_same(found: list[dict], expected: list[dict], tolerance: float = 1e-5) -> None:
    for step, (left, right) in enumerate(zip(found, expected, strict=True)):
        assert left.keys() == right.keys()
        size = torch.stack([g.norm() for g in right.values()]).norm()
        assert size > 1e-2
        for name in right:
            gap = (left[name] - right[name]).norm()
            assert gap <= tolerance * right[name].norm() + 1e-7 * size, f"step {step}, {name}: {gap}"


# -- accumulation (method.md, departure 7) -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undivided(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """Gradients of two steps over eight rows each, in one micro-batch per step."""
    return gradients(tmp_path_factory.mktemp("undivided"), per_device_train_batch_size=8)


@pytest.mark.parametrize("path", ["fused", "plain"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_any_split_into_micro_batches_gives_the_same_gradient(batch, path, undivided, tmp_path):
    found = gradients(
        tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch, loss_path=path
    )
    assert_same(found, undivided)


def test_a_mean_of_micro_batch_means_has_another_gradient(undivided, tmp_path):
    """The rows differ enough in length for the usual mistake to show in the test above."""
    rows = token_rows()[:8]
    halves = [gradients(tmp_path, steps=1, rows=rows[i : i + 4])[0] for i in (0, 4)]
    gap = torch.stack([((halves[0][n] + halves[1][n]) / 2 - g).norm() for n, g in undivided[0].items()]).norm()
    assert gap > 1e-3 * torch.stack([g.norm() for g in undivided[0].values()]).norm()


def test_the_last_incomplete_accumulation_is_a_step_of_its_own(tmp_path):
    rows = token_rows(10)
    # Five micro-batches of two rows, four per step: the second step has only the last two rows. The weights do not change.
    fixed = {"learning_rate": 0.0, "config": ALL_TERMS, "per_device_train_batch_size": 2}
    found = gradients(tmp_path, rows=rows, gradient_accumulation_steps=4, **fixed)
    alone = gradients(tmp_path, rows=rows[8:], steps=1, **fixed)
    assert_same(found[1:], alone)


def test_batch_statistics_are_averaged_over_micro_batches(tmp_path):
    config = RegularizationConfig(consistency=0.0, diversity=0.0, spectral=5.0, **CONSTANT)
    rows = token_rows(4)
    # The same rows twice: means over micro-batches and over tokens are those of one micro-batch.
    once = gradients(tmp_path, steps=1, rows=rows, config=config)
    twice = gradients(tmp_path, steps=1, rows=rows + rows, config=config, gradient_accumulation_steps=2)
    assert_same(twice, once)


def test_two_steps_equal_the_plain_formulas(tmp_path):
    """Compare loss, parts, weights and gradients of two steps of two micro-batches with the plain formulas."""
    config = RegularizationConfig(
        consistency=0.5, diversity=0.3, spectral=0.2, temperature=1.5, top_k=7, spectral_rank=3,
        consistency_schedule="cosine", focus_schedule="linear_warmup", focus_warmup=1.0,
    )  # fmt: skip
    batches, seen = Batches(), Gradients()
    model = pissa(tiny_llama)
    reference = pissa(tiny_llama)
    run = trainer(
        model, tmp_path, config=config, data_collator=batches, callbacks=[seen], optim="sgd", learning_rate=0.5,
        lr_scheduler_type="constant", max_steps=2, gradient_accumulation_steps=2, logging_steps=2, max_grad_norm=0.0,
    )  # fmt: skip
    run.train()

    original = tiny_llama()
    logged = dict.fromkeys(("loss", "task", "consistency", "diversity", "spectral"), 0.0)
    logged |= {
        f"{name}_{kind}": 0.0 for name in ("consistency", "diversity", "spectral") for kind in ("weight", "weighted")
    }
    for step, (t, lambda_1) in enumerate([(0.0, 0.5), (0.5, 0.1 * 0.5 + 0.9 * 0.5 * 0.5)]):
        micro = batches.used[2 * step : 2 * step + 2]
        items = sum(int((b["labels"][:, 1:] != -100).sum()) for b in micro)
        total = torch.zeros(())
        values = dict.fromkeys(("task", "consistency", "diversity", "spectral"), 0.0)
        for b in micro:
            inputs = {"input_ids": b["input_ids"], "attention_mask": b["attention_mask"]}
            keep = b["labels"][:, 1:] != -100
            z, targets = reference(**inputs).logits[:, :-1][keep], b["labels"][:, 1:][keep]
            with torch.no_grad():
                p = original(**inputs).logits[:, :-1][keep]
            share = len(targets) / items
            parts = {
                "task": F.cross_entropy(z, targets) * share,
                "consistency": consistency(z, p, 1.5) * share,
                "diversity": topk_negative_entropy(z, 7) * share,
                "spectral": spectral_ratio(z, 3, norm="frobenius") / 2,
            }
            weights = {"task": 1.0, "consistency": lambda_1, "diversity": 0.3 * t, "spectral": 0.2 * t}
            total = total + sum(weights[name] * parts[name] for name in parts if weights[name])
            for name, part in parts.items():
                values[name] += float(part)
        reference.zero_grad()
        total.backward()
        for name, p in reference.named_parameters():
            if p.requires_grad:
                torch.testing.assert_close(seen.steps[step][name], p.grad, atol=2e-6, rtol=1e-3)
                p.data -= 0.5 * p.grad
        logged["loss"] += float(total) / 2
        logged["task"] += values["task"] / 2
        for name in ("consistency", "diversity", "spectral"):
            # A term with weight 0 is not computed: the raw mean is over the steps that computed it.
            logged[name] += values[name] / 2 if name == "consistency" else values[name] * (t > 0)
            logged[f"{name}_weight"] += weights[name] / 2
            logged[f"{name}_weighted"] += weights[name] * values[name] / 2
    (entry,) = [e for e in run.state.log_history if "loss" in e]
    for name, value in logged.items():
        assert entry[name] == pytest.approx(value, rel=2e-4, abs=1e-7), name
    weighted = sum(entry[f"{name}_weighted"] for name in ("consistency", "diversity", "spectral"))
    assert entry["loss"] == pytest.approx(entry["task"] + weighted, rel=1e-5)


# -- compared with the stock Trainer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["fused", "plain"])
def test_with_all_weights_0_every_step_equals_the_stock_trainers(path, tmp_path):
    settings = {"max_steps": 6, "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    settings["per_device_eval_batch_size"] = 10  # one batch: over several, the stock loss is a mean of their means
    rows, held_out = token_rows(), token_rows(10, seed=9)
    ours = trainer(
        pissa(tiny_llama), tmp_path, config=OFF, rows=rows, eval_dataset=held_out, loss_path=path, **settings
    )
    stock = trainer(pissa(tiny_llama), tmp_path, kind=Trainer, rows=rows, eval_dataset=held_out, **settings)
    ours.train()
    stock.train()
    for name in ("loss", "eval_loss", "grad_norm"):
        assert len(history(stock, name)) == (2 if name == "eval_loss" else 6)
        assert history(ours, name) == pytest.approx(history(stock, name), rel=1e-5), name
    assert history(stock, "loss")[-1] < history(stock, "loss")[0]
    torch.testing.assert_close(flat(ours.model), flat(stock.model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny_bart, tiny_t5], ids=["bart", "t5"])
def test_an_encoder_decoder_with_labels_only_equals_the_stock_trainers(make, tmp_path):
    rows, held_out = pair_rows(), pair_rows(6, seed=9)
    runs = {}
    for kind in (BALoraTrainer, Trainer):
        runs[kind] = trainer(
            pissa(make), tmp_path, kind=kind, config=OFF, rows=rows, eval_dataset=held_out, per_device_eval_batch_size=6
        )
        runs[kind].train()
        runs[kind].log(runs[kind].evaluate())
    for name in ("loss", "eval_loss"):
        assert history(runs[BALoraTrainer], name) == pytest.approx(history(runs[Trainer], name), rel=1e-5)


@pytest.mark.parametrize("make", [tiny_bart, tiny_t5], ids=["bart", "t5"])
def test_an_encoder_decoder_trains_with_every_term_on_either_path(make, tmp_path):
    losses = []
    for path in ("fused", "plain"):
        run = trainer(pissa(make), tmp_path, rows=pair_rows(), loss_path=path, gradient_accumulation_steps=2)
        assert run.task == "seq2seq"
        run.train()
        losses.append(history(run, "loss"))
        assert history(run, "consistency")[0] == pytest.approx(0.0, abs=1e-6)
        assert history(run, "consistency")[-1] > 1e-6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_given_decoder_inputs_are_used(tmp_path):
    model = pissa(tiny_bart)
    run = trainer(model, tmp_path, config=OFF, rows=pair_rows())
    batch = pad_rows(pair_rows(4))
    given = torch.randint(4, 97, batch["labels"].shape)
    model.eval()
    loss = run.compute_loss(model, {**batch, "decoder_input_ids": given})
    expected = model(**batch, decoder_input_ids=given).loss
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(run.compute_loss(model, batch)) == pytest.approx(float(model(**batch).loss), rel=1e-5)


def test_predictions_are_logits(tmp_path):
    held_out = token_rows(6, shortest=9, longest=10)
    model = pissa(tiny_llama)
    run = trainer(
        model,
        tmp_path,
        rows=token_rows(),
        eval_dataset=held_out,
        compute_metrics=lambda p: {"rows": len(p.predictions)},
    )
    expected = model(**{n: v for n, v in pad_rows(held_out).items() if n != "labels"}).logits.detach()
    assert run.evaluate()["eval_rows"] == 6
    torch.testing.assert_close(torch.tensor(run.predict(held_out).predictions), expected, atol=1e-5, rtol=1e-5)
    without = trainer(model, tmp_path, rows=token_rows(), eval_dataset=held_out)
    torch.testing.assert_close(torch.tensor(without.predict(held_out).predictions), expected, atol=1e-5, rtol=1e-5)
    metrics = without.evaluate()
    assert metrics["eval_loss"] == pytest.approx(run.evaluate()["eval_loss"], rel=1e-5)


# -- effects of the terms ----------------------------------------------------------------------------------------------


def test_consistency_keeps_the_student_close_to_the_pre_trained_model(tmp_path):
    drift = {}
    batch = pad_rows(token_rows(8, seed=5))
    for weight in (0.0, 5.0):
        config = RegularizationConfig(consistency=weight, diversity=0.0, spectral=0.0, temperature=1.0, **CONSTANT)
        run = trainer(pissa(tiny_llama), tmp_path, config=config, max_steps=20)
        run.train()
        with torch.no_grad():
            student, original = (m.eval()(batch["input_ids"]).logits for m in (run.model, tiny_llama()))
        drift[weight] = float(consistency(student, original, 1.0))
    assert 0 < drift[5.0] < 0.7 * drift[0.0]


def test_the_schedules_run_over_the_steps_of_the_run(tmp_path):
    config = RegularizationConfig(consistency=1.0, diversity=1.0, spectral=0.0, focus_warmup=0.5, focus_ramp=0.25)
    run = trainer(pissa(tiny_llama), tmp_path, config=config, max_steps=8)
    run.train()
    assert history(run, "diversity_weight") == [0, 0, 0, 0, 0, 0.5, 1, 1]
    assert history(run, "consistency_weight")[0] == 1.0
    assert history(run, "consistency_weight")[4] == pytest.approx(0.55)
    assert len(history(run, "diversity")) == 3, "not computed while its weight is 0"
    assert history(run, "diversity_weighted")[0] == 0.0


def test_every_part_is_logged_raw_weighted_and_with_its_weight(tmp_path):
    run = trainer(pissa(tiny_llama), tmp_path, max_steps=4, logging_steps=2)
    run.train()
    entries = [e for e in run.state.log_history if "loss" in e]
    assert len(entries) == 2
    parts = ("consistency", "diversity", "spectral")
    expected = {"task", *parts, *(f"{p}_weight" for p in parts), *(f"{p}_weighted" for p in parts)}
    for entry in entries:
        assert expected <= entry.keys()
        assert not [name for name in entry if "variance" in name]
        total = entry["task"] + sum(entry[f"{p}_weighted"] for p in parts)
        assert entry["loss"] == pytest.approx(total, rel=1e-5)
        assert entry["spectral_weighted"] == pytest.approx(0.2 * entry["spectral"], rel=1e-5)


def test_the_default_weights_are_the_papers_for_the_models_task(tmp_path):
    run = BALoraTrainer(
        model=pissa(tiny_llama), args=arguments(tmp_path), train_dataset=token_rows(), data_collator=pad_rows
    )
    assert (run.task, run.regularization) == ("generation", RegularizationConfig.for_generation())
    run = BALoraTrainer(model=pissa(tiny_bert), args=arguments(tmp_path), train_dataset=[], data_collator=pad_rows)
    assert (run.task, run.regularization) == ("classification", RegularizationConfig.for_classification())
    run = BALoraTrainer(
        model=pissa(lambda: tiny_bert(num_labels=1)), args=arguments(tmp_path), train_dataset=[], data_collator=pad_rows
    )
    assert run.task == "regression"


# -- micro-batches without targets (method.md, departure 8) ------------------------------------------------------------


def masked(rows: list[dict]) -> list[dict]:
    return [{**row, "labels": [-100] * len(row["labels"])} for row in rows]


@pytest.mark.parametrize("path", ["fused", "plain"])
def test_a_fully_masked_batch_has_loss_0_and_changes_no_weight(path, tmp_path):
    model, seen, after = pissa(tiny_llama), Gradients(), []
    before = flat(model)
    run = trainer(
        model,
        tmp_path,
        rows=[*masked(token_rows(8)), *token_rows(4)],
        train_sampling_strategy="sequential",
        callbacks=[seen, Do("on_step_end", 2, lambda: after.append(flat(model)))],
        max_steps=3,
        loss_path=path,
        optim="sgd",
    )
    run.train()
    assert history(run, "loss")[:2] == [0.0, 0.0]
    assert history(run, "task")[:2] == [0.0, 0.0]
    for name, gradient in seen.steps[0].items():
        assert not gradient.any(), name
    assert seen.steps[0].keys() == {n for n, p in model.named_parameters() if p.requires_grad}, "attached to the graph"
    assert torch.equal(after[0], before)
    assert not torch.equal(flat(model), before), "the third batch has targets"


def test_a_masked_micro_batch_does_not_dilute_the_others(tmp_path):
    rows = token_rows(4)
    alone = gradients(tmp_path, steps=1, rows=rows)
    beside = gradients(tmp_path, steps=1, rows=masked(rows) + rows, gradient_accumulation_steps=2)
    assert_same(beside, alone)


@pytest.mark.parametrize("form", [list, Dataset.from_list], ids=["list", "dataset"])
def test_rows_without_a_target_are_refused_before_the_first_step(form, tmp_path):
    run = trainer(pissa(tiny_llama), tmp_path, rows=form(masked(token_rows(8))))
    with pytest.raises(BALoraError, match="No training row has a target"):
        run.train()
    assert run.state.log_history == []


def test_the_first_token_of_a_causal_model_is_no_target(tmp_path):
    rows = [{**row, "labels": [row["labels"][0], *[-100] * (len(row["labels"]) - 1)]} for row in token_rows(8)]
    with pytest.raises(BALoraError, match="No training row has a target"):
        trainer(pissa(tiny_llama), tmp_path, rows=rows).train()


def test_a_collator_that_masks_every_label_is_refused_though_evaluation_rows_have_targets(tmp_path):
    run = trainer(
        pissa(tiny_llama),
        tmp_path,
        data_collator=lambda rows: pad_rows(rows if "target" in rows[0] else masked(rows)),
        rows=token_rows(8),
        eval_dataset=[{**row, "target": True} for row in token_rows(4)],
        eval_strategy="epoch",
        max_steps=-1,
        num_train_epochs=2,
    )
    with pytest.raises(BALoraError, match="No training row has a target"):
        run.train()
    assert run.state.epoch == 1


# -- runs without a step ------------------------------------------------------------------------------------------------


def test_rows_that_fill_no_batch_are_refused(tmp_path):
    settings = {"dataloader_drop_last": True, "per_device_train_batch_size": 32}
    with pytest.raises(BALoraError, match="no step: there are 8 training rows, one batch of all processes takes 32"):
        trainer(pissa(tiny_llama), tmp_path, rows=token_rows(8), **settings).train()


def test_a_stream_without_rows_is_refused(tmp_path):
    class Empty(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(BALoraError, match="The run took no step"):
        trainer(pissa(tiny_llama), tmp_path, rows=Empty(), accelerator_config={"dispatch_batches": False}).train()


def test_a_batch_without_labels_is_refused(tmp_path):
    rows = [{"input_ids": row["input_ids"]} for row in token_rows(8)]
    with pytest.raises(BALoraError, match=r"The batch has no labels, only input_ids\. Check the data collator"):
        trainer(pissa(tiny_llama), tmp_path, rows=rows).train()


# -- precision, memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, tmp_path):
    plain = gradients(tmp_path)
    saved = gradients(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_same(saved, plain)


def test_mixed_precision_takes_the_fused_path_with_similar_losses(tmp_path, caplog):
    losses = {}
    for bf16 in (False, True):
        with caplog.at_level(logging.WARNING, logger="balora"):
            run = trainer(pissa(tiny_llama), tmp_path, bf16=bf16, max_steps=6)
            run.train()
        assert run.step._fused, "autocast does not force full logits"
        losses[bf16] = history(run, "loss")
    assert losses[True] == pytest.approx(losses[False], abs=0.02)
    assert losses[True] != losses[False]
    assert not caplog.records


def test_a_bfloat16_model_trains(tmp_path):
    run = trainer(pissa(lambda: tiny_llama().bfloat16()), tmp_path, max_steps=15, rows=token_rows(4))
    run.train()
    assert history(run, "consistency")[0] == pytest.approx(0.0, abs=1e-4)
    assert history(run, "task")[-1] < history(run, "task")[0] - 0.1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_methods_train_with_the_same_objective(method, tmp_path):
    model = balora.adapt(tiny_llama(), method=method, **({} if method == "full" else {"rank": 4}))
    run = trainer(model, tmp_path, max_steps=5, rows=token_rows(4), learning_rate=1e-3 if method == "full" else 1e-2)
    run.train()
    assert history(run, "loss")[-1] < history(run, "loss")[0]
    assert history(run, "consistency")[0] == pytest.approx(0.0, abs=1e-6) and history(run, "consistency")[-1] > 0


def test_a_soft_capped_head_takes_the_fused_path(tmp_path):
    make = lambda: tiny_causal("Gemma2", final_logit_softcapping=1.5)  # noqa: E731
    losses = []
    for path in ("fused", "plain"):
        run = trainer(pissa(make), tmp_path, loss_path=path, max_steps=3)
        run.train()
        assert run.step._fused == (path == "fused")
        losses.append(history(run, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -- refused models and stopped runs -----------------------------------------------------------------------------------


def test_a_model_changed_after_the_teacher_was_made_is_refused_before_the_first_step(tmp_path):
    model = pissa(tiny_llama)
    run = trainer(model, tmp_path)
    with torch.no_grad():
        model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight").add_(0.1)
    before = flat(model)
    with pytest.raises(
        BALoraError,
        match=r"The teacher is not the model .* KL divergence .* is \d.* nats, and rounding explains at most 1e-06",
    ):
        run.train()
    assert torch.equal(flat(model), before)


def test_a_trained_adapter_that_balora_did_not_make_gives_a_warning(tmp_path, caplog):
    def peft_adapter(trained):
        model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        if trained:
            model.get_parameter("base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight").data.add_(0.1)
        return model

    with caplog.at_level("WARNING", logger="balora"):
        trainer(peft_adapter(trained=False), tmp_path)
        trainer(peft_adapter(trained=True), tmp_path, config=OFF)
        trainer(pissa(tiny_llama), tmp_path)
        assert "not made by balora.adapt" not in caplog.text
        trainer(peft_adapter(trained=True), tmp_path)
    assert "so the teacher is the model as it is now" in caplog.text


def test_a_second_stage_keeps_the_teacher_of_the_first(tmp_path):
    """A second stage of training needs the initial values of the first; other values are refused."""
    first = trainer(pissa(tiny_llama), tmp_path / "first")
    first.train()
    with pytest.raises(BALoraError, match="not at its initial value"):
        trainer(first.model, tmp_path / "second")
    second = trainer(first.model, tmp_path / "second", initial=first.teacher.initial, learning_rate=0.0)
    second.train()
    assert history(second, "consistency")[0] > 1e-4
    wrong = {name: value + 0.1 for name, value in first.teacher.initial.items()}
    with pytest.raises(BALoraError, match="not at its initial value"):
        trainer(first.model, tmp_path / "third", initial=wrong)


@pytest.mark.parametrize("config", [ALL_TERMS, OFF], ids=["regularized", "off"])
def test_a_merged_or_disabled_adapter_is_refused(tmp_path, config):
    """With a merged adapter teacher and student are the same function, and nothing would learn."""
    model = pissa(tiny_llama)
    model.merge_adapter()
    with pytest.raises(BALoraError, match="q_proj is merged"):
        trainer(model, tmp_path, config=config).train()
    model.unmerge_adapter()
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer._disable_adapters = True  # peft's own method also freezes the factors, so there would be nothing to train
    with pytest.raises(BALoraError, match="q_proj is disabled"):
        trainer(model, tmp_path, config=config).train()


def test_a_small_change_is_refused_and_rounding_is_not(tmp_path):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight"
    for size, refused in ((3e-2, True), (1e-6, False)):
        model = pissa(tiny_llama)
        run = trainer(model, tmp_path, max_steps=1)
        with torch.no_grad():
            model.get_parameter(name).mul_(1 + size)
        if refused:
            with pytest.raises(BALoraError, match="The teacher is not the model"):
                run.train()
        else:
            run.train()


def test_without_consistency_the_teacher_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(PretrainedTeacher, "active", lambda self: pytest.fail("the teacher was run"))
    config = RegularizationConfig(consistency=0.0, diversity=0.3, spectral=0.2, **CONSTANT)
    trainer(pissa(tiny_llama), tmp_path, config=config, max_steps=2).train()


def test_an_adapter_trained_before_is_refused_at_construction(tmp_path):
    model = pissa(tiny_llama)
    with torch.no_grad():
        model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight").add_(0.1)
    with pytest.raises(BALoraError, match="is not at its initial value"):
        trainer(model, tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_term_stops_the_run_and_names_the_last_checkpoint(bad, tmp_path):
    model = pissa(tiny_llama)
    run = trainer(model, tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    break_teacher = lambda: next(iter(run.teacher.initial.values())).fill_(bad)  # noqa: E731
    run.add_callback(Do("on_step_begin", 3, break_teacher))
    with pytest.raises(BALoraError) as caught:
        run.train()
    message = str(caught.value)
    assert message.startswith("The consistency term became NaN or infinite at step 4.")
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-2'}." in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2"]
    assert flat(model).isfinite().all()


def test_a_non_finite_task_loss_stops_a_run_without_a_checkpoint(tmp_path):
    model = pissa(tiny_llama)
    run = trainer(model, tmp_path)
    run.add_callback(
        Do("on_step_begin", 1, lambda: next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.nan))
    )
    with pytest.raises(
        BALoraError, match=r"The task loss became NaN or infinite at step 2\. There is no checkpoint yet\."
    ):
        run.train()


def test_non_finite_weights_are_never_saved(tmp_path):
    model = pissa(tiny_llama)
    run = trainer(model, tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"
    run.add_callback(Do("on_step_end", 4, lambda: model.get_parameter(name).data[0].fill_(torch.inf)))
    with pytest.raises(BALoraError, match=rf"The weight {name} became NaN or infinite at step 4.*checkpoint-2"):
        run.train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2"]
    with pytest.raises(BALoraError, match=f"The weight {name} became NaN"):
        run.save_model(str(tmp_path / "result"))
    assert not (tmp_path / "result").exists()


def test_unsupported_arguments_are_refused(tmp_path):
    with pytest.raises(BALoraError, match="label_smoothing_factor"):
        trainer(pissa(tiny_llama), tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(BALoraError, match="hf upload"):
        trainer(pissa(tiny_llama), tmp_path, push_to_hub=True)
    with pytest.raises(BALoraError, match="compute_loss_func"):
        BALoraTrainer(
            model=pissa(tiny_llama),
            args=arguments(tmp_path),
            train_dataset=token_rows(),
            compute_loss_func=lambda *_: 0,
        )
    with pytest.raises(BALoraError, match="needs a fresh model for each trial"):
        trainer(pissa(tiny_llama), tmp_path).hyperparameter_search()
    with pytest.raises(BALoraError, match="LlamaModel is neither a causal nor"):
        trainer(balora.adapt(tiny_llama().model, rank=4, target_modules=["q_proj"]), tmp_path)
    with pytest.raises(BALoraError, match="loss_path must be fused or plain"):
        trainer(pissa(tiny_llama), tmp_path, loss_path="quick")


def test_num_items_counts_the_valid_targets(tmp_path):
    run = trainer(pissa(tiny_llama), tmp_path)
    batches = [pad_rows(token_rows(3, seed=s)) for s in range(2)]
    expected = sum(len(valid_targets(b["labels"], shift=True)[1]) for b in batches)
    assert int(run._get_num_items_in_batch(batches, torch.device("cpu"))) == expected
    batches[0]["labels"].fill_(-100)
    batches[1]["labels"].fill_(-100)
    assert int(run._get_num_items_in_batch(batches, torch.device("cpu"))) == 1
