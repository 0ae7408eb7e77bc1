"""The teacher cache on disk: built by the command, shared by methods and seeds, refused if it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from balora import BALoraError
from balora.config.run_config import RunConfig, load_run_config
from balora.losses import LinearHead, TopKTeacher, generation_loss
from balora.teacher.cache import TeacherCache, open_cache
from balora.teacher.cache_builder import build_teacher_cache
from balora.training.run import run
from small_runs import CONSTANT, flat
from tiny import tiny_bart, tiny_causal, tiny_llama, tiny_tokenizer

TERMS = {"consistency": 0.5, "diversity": 0.3, "spectral": 0.2, **CONSTANT}


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    """Write answers of different length, so that confused rows change the loss."""
    path = tmp_path / "train.jsonl"
    rows = [
        {"question": f"what is {a} plus {b}?", "answer": f"it is {a + b}" + "." * b} for a in range(6) for b in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(config: Path, tmp_path: Path):
    """Return a function that makes the config of a run with a cache, with dotted changes."""

    def make(*changes: str) -> RunConfig:
        terms = [f"regularization.{name}={value}" for name, value in TERMS.items()]
        return load_run_config(config, [*terms, f"teacher_cache={tmp_path / 'cache'}", *changes])

    return make


def test_the_command_builds_a_cache_once(balora, config, tmp_path, asked):
    cache = tmp_path / "cache"
    outcome = balora("teacher", config, f"teacher_cache={cache}", "--top-k", "97")
    assert outcome.status == 0 and "24 rows, 24 new" in outcome.out and "mean tail 0:" in outcome.out
    again = balora("teacher", config, f"teacher_cache={cache}", "--top-k", "97")
    assert "24 rows, 0 new" in again.out
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    run_ = balora("train", config, f"teacher_cache={cache}")
    assert run_.status == 0, run_.err
    assert len(asked) == 2  # the check before the first step and the check of the cache
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


@pytest.mark.parametrize("change", ["method.name=balora", "method.name=lora", "seed=7", "loss_path=plain"])
def test_methods_and_seeds_share_a_cache_and_train_as_with_the_teacher_itself(change, settings, tmp_path):
    # All tokens are cached, so that only float16 makes a difference.
    build_teacher_cache(settings("seed=3", "method.name=pissa"), top_k=97)
    cached = run(settings(change, f"output={tmp_path / 'cached'}"))
    online = run(settings(change, f"output={tmp_path / 'online'}", "teacher_cache=off"))
    update = flat(online.trainer.model) - torch.cat([v.flatten() for v in online.trainer.teacher.initial.values()])
    assert (flat(cached.trainer.model) - flat(online.trainer.model)).norm() <= 0.02 * update.norm()
    logs = [[e["consistency"] for e in r.trainer.state.log_history if "consistency" in e] for r in (cached, online)]
    assert logs[0] == pytest.approx(logs[1], rel=0.05, abs=2e-3) and logs[1][-1] > 1e-4


def test_a_cache_without_the_targets(settings, tmp_path):
    own = "regularization.consistency_tokens=non_target"
    build_teacher_cache(settings(own), top_k=97)
    cached = run(settings(own, f"output={tmp_path / 'cached'}"))
    online = run(settings(own, f"output={tmp_path / 'online'}", "teacher_cache=off"))
    update = flat(online.trainer.model) - torch.cat([v.flatten() for v in online.trainer.teacher.initial.values()])
    assert (flat(cached.trainer.model) - flat(online.trainer.model)).norm() <= 0.02 * update.norm()
    with pytest.raises(BALoraError, match="built for consistency_tokens non_target, and the run is at all"):
        run(settings(f"output={tmp_path / 'other'}"))


@pytest.mark.parametrize("task", ["seq2seq", "softcap"])
def test_other_model_types_use_a_cache(task, settings, tmp_path, model_dir, asked):
    changes = []
    if task == "seq2seq":
        tiny_bart().save_pretrained(model_dir)
        changes = ["task=seq2seq"]
    else:
        tiny_causal("Gemma2", final_logit_softcapping=5.0).save_pretrained(model_dir)
    build_teacher_cache(settings(*changes), top_k=16)
    result = run(settings(*changes))
    assert len(asked) == 2 and result.trainer.state.global_step == 6


def test_cached_values_are_the_models(settings, model_dir, tmp_path):
    build_teacher_cache(settings(), top_k=5)
    cache = TeacherCache(tmp_path / "cache")
    model = tiny_llama()
    tokens = tiny_tokenizer()("what is 3 plus 2?\nit is 5..")["input_ids"]
    prompt = len(tiny_tokenizer()("what is 3 plus 2?\n")["input_ids"])
    row = {"input_ids": [*tokens, 2], "labels": [-100] * prompt + [*tokens[prompt:], 2]}
    from balora.teacher.row_keys import row_key

    bos = {"input_ids": [1, *row["input_ids"]], "labels": [-100, *row["labels"]]}
    found = next(r for r in (row, bos) if row_key(r) in cache)
    cached = cache.read([row_key(found)])
    logits = model(torch.tensor([found["input_ids"]])).logits[0, :-1][torch.tensor(found["labels"][1:]) != -100]
    expected = (logits / 2.0).softmax(-1).topk(5)
    torch.testing.assert_close(cached.log_probs_MK.float().exp(), expected.values, atol=5e-4, rtol=1e-3)
    torch.testing.assert_close(cached.log_tail_M.exp(), 1 - expected.values.sum(-1), atol=1e-5, rtol=1e-4)


def test_an_interrupted_build_continues(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("balora.teacher.cache_builder.SHARD_ROWS", 10)
    lines = []
    build_teacher_cache(settings(), top_k=5, log=lines.append)
    assert lines == ["10 of 24 rows", "20 of 24 rows", "24 of 24 rows"]
    cache = tmp_path / "cache"
    shards = sorted(cache.glob("shard-*"))
    before = shards[0].read_bytes()
    shards[1].unlink()
    (cache / ".shard-00001.safetensors.tmp").write_bytes(b"half")  # left by a killed process
    with pytest.raises(BALoraError, match="lacks 10 of the 24 training rows"):
        run(settings())
    assert build_teacher_cache(settings(), top_k=5).new_rows == 10
    assert shards[0].read_bytes() == before and len(TeacherCache(cache)) == 24
    run(settings())


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        ("weights", "built from other weights: model.layers.0.mlp.down_proj.weight differs"),
        ("tokenizer", "built with another tokenizer"),
        ("temperature", "at temperature 2.0, and the run is at 1.5"),
        ("dtype", "with the model in float32, and the run has it in bfloat16"),
        ("data", "lacks 24 of the 25 training rows"),
        ("length", "lacks 24 of the 24 training rows"),
        ("folder", "has no teacher cache. Build it with `balora teacher CONFIG`"),
        ("index", "index.json is damaged"),
        ("shard", "shard-00000.safetensors is damaged"),
        ("form", "has a format that this version cannot read"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_with_the_reason(
    break_it, sentence, settings, model_dir, train_file, tmp_path
):
    build_teacher_cache(settings(), top_k=5)
    changes, cache = [], tmp_path / "cache"
    match break_it:
        case "weights":
            model = tiny_llama()
            with torch.no_grad():
                model.model.layers[0].mlp.down_proj.weight[0, 0] += 0.1
            model.save_pretrained(model_dir)
        case "tokenizer":
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template = "{{ messages }}"
            tokenizer.save_pretrained(model_dir)
        case "temperature":
            changes = ["regularization.temperature=1.5"]
        case "dtype":
            changes = ["dtype=bfloat16"]
        case "data":
            train_file.write_text(train_file.read_text().replace("plus", "and") + '{"question": "x", "answer": "y"}\n')
            sentence = "lacks 25 of the 25 training rows"
        case "length":
            changes = ["data.max_length=20"]
        case "folder":
            changes = [f"teacher_cache={tmp_path / 'elsewhere'}"]
        case "index":
            (cache / "index.json").write_text("{")
        case "shard":
            (cache / "shard-00000.safetensors").write_bytes(b"\0" * 9)
        case "form":
            (cache / "index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(BALoraError, match=sentence):
        run(settings(*changes))
    assert not (tmp_path / "run").exists()


def test_the_builder_refuses_unsuitable_directories_and_configs(balora, config, settings, tmp_path):
    build_teacher_cache(settings(), top_k=5)
    with pytest.raises(BALoraError, match="has 5 tokens per position, not 6"):
        build_teacher_cache(settings(), top_k=6)
    with pytest.raises(BALoraError, match="is neither an empty directory nor a teacher cache"):
        build_teacher_cache(settings(f"teacher_cache={tmp_path / 'model'}"))
    outcome = balora("teacher", config)
    assert outcome.status == 2 and "teacher_cache names no directory" in outcome.err and "Traceback" not in outcome.err
    outcome = balora("teacher", config, "teacher_cache=x", "--top-k", "0")
    assert outcome.status == 2 and "greater than or equal to 1" in " ".join(outcome.err.split())
    outcome = balora("validate", config, f"teacher_cache={tmp_path / 'nowhere'}")
    assert outcome.status == 2 and "has no teacher cache" in outcome.out
    labelled = yaml.safe_load(config.read_text())
    labelled |= {
        "task": "classification",
        "teacher_cache": "x",
        "data": {"train": "t.jsonl", "text": "a", "label": "b"},
    }
    with pytest.raises(BALoraError, match="in memory and needs no cache on disk"):
        build_teacher_cache(RunConfig.from_dict(labelled))
    with pytest.raises(BALoraError, match="set teacher_cache to auto or off"):
        open_cache(RunConfig.from_dict(labelled))


def test_a_cache_of_another_model_is_detected_by_its_values(settings, tmp_path):
    """A cache opened from Python is not compared by fingerprint, but by its values at the first batch."""
    build_teacher_cache(settings(), top_k=5)
    cache = TeacherCache(tmp_path / "cache")
    cached = cache.read(list(cache._rows)[:3])
    with pytest.raises(BALoraError, match="was built from another model: a cached probability differs by"):
        cache.check(cached, torch.randn(len(cached), 97), torch.zeros(len(cached), dtype=torch.long))
    with pytest.raises(BALoraError, match="lacks 1 of the batch's 2 rows"):
        cache.read([next(iter(cache._rows)), b"?" * 16])


def test_the_gradient_error_is_within_its_bound():
    """Check the bounds of cost.md per token: gradient summed over the logits 2 T · tail, value T² · tail · divergence."""
    torch.manual_seed(3)
    student = (2 * torch.randn(40, 12, dtype=torch.float64)).requires_grad_()
    teacher = student.detach() + 0.5 * torch.randn(40, 12, dtype=torch.float64)
    head = torch.eye(
        12, dtype=torch.float64
    )  # hidden states equal logits, so the gradient over the logits is available
    labels, off = torch.zeros(40, dtype=torch.int64), []
    full = generation_loss(student, labels, head, teacher, consistency=1.0, num_items=1)
    (exact,) = torch.autograd.grad(full.loss, student)
    for top_k in (1, 3, 6, 11):
        topk = TopKTeacher.of(teacher, LinearHead(head), top_k=top_k, temperature=2.0)
        parts = generation_loss(student, labels, head, consistency=1.0, num_items=1, topk_teacher=topk)
        (near,) = torch.autograd.grad(parts.loss, student)
        tail = topk.log_tail_M.exp()
        error = (near - exact).abs().sum(-1)
        assert (error <= 2 * 2.0 * tail + 1e-9).all()
        assert (error.max() > 0.01) == (top_k < 11)  # a tail of one token is known exactly
        # The value lacks T² times the tail times the divergence within the tail.
        inside = torch.ones(40, 12, dtype=torch.bool).scatter(1, topk.tokens_MK, False)
        p, f = ((x.detach() / 2.0).masked_fill(~inside, -torch.inf).log_softmax(-1) for x in (teacher, student))
        within = torch.where(inside, p.exp() * (p - f), 0.0).nan_to_num().sum(-1)
        assert float(full.consistency - parts.consistency) == pytest.approx(float((4 * tail * within).sum()), abs=1e-9)
        off.append(float(error.sum()))
    assert off == sorted(off, reverse=True)
