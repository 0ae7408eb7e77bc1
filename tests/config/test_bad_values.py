"""Bad config files and values: one sentence that names the key or the line, and an answer within a second."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from balora.config.foreign_keys import FOREIGN_KEYS
from balora.config.run_config import RunConfig, load_run_config
from balora.config.sections import DataConfig, FurtherData, MethodConfig
from balora.config.training_arguments import training_fields
from balora.errors import BALoraError, suggest
from balora.methods.registry import METHODS
from balora.regularization import RegularizationConfig

BASE = "model: m\ntask: generation\ndata: {train: d.jsonl, text: story}\noutput: runs/a\n"
SECOND = 1.0
"""Seconds of CPU for an answer; all answers take a few milliseconds."""


def refusal(path: Path, *overrides: str) -> str:
    """Return the message for a config that is refused in time."""
    start = time.process_time()
    with pytest.raises(BALoraError) as error:
        load_run_config(path, overrides)
    assert time.process_time() - start < SECOND
    text = str(error.value)
    assert len(text) < 2000, f"{len(text)} characters: {text[:300]}"
    return text


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k0: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join(['*' + old] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # Bombs and nesting.
        (BASE + BOMB, ["aliases", "line"]),
        (BASE + MERGE_BOMB, ["aliases", "line"]),
        (BASE + "x: &x [*x]\n", ["x", "itself", "line 5"]),
        (BASE + "training: &x {fsdp_config: *x}\n", ["itself", "line 5"]),
        (BASE + "training: " + "[" * 100_000 + "]" * 100_000, ["nested", "line 5"]),
        (BASE + "training: " + "{a: " * 5_000 + "1" + "}" * 5_000, ["nested", "line 5"]),
        (BASE + "training:\n" + "".join(" " * n + "a:\n" for n in range(1, 900)), ["nested", "line"]),
        (BASE + "x: [" + "a, " * 700_000 + "]", ["large", "1 MB"]),
        # Tags.
        (BASE + "revision: !!timestamp 2024-01-01\n", ["!!timestamp", "line 5"]),
        (BASE + "revision: !!timestamp nonsense\n", ["!!timestamp", "line 5"]),
        (BASE + "revision: !!binary aGVsbG8=\n", ["!!binary", "line 5"]),
        (BASE + "training: !!set {a, b}\n", ["!!set", "line 5"]),
        (BASE + "training: !!omap [a: 1]\n", ["!!omap", "line 5"]),
        (BASE + "training: !!pairs [a: 1]\n", ["!!pairs", "line 5"]),
        (BASE + "seed: !!bool maybe\n", ["maybe", "true or false", "line 5"]),
        (BASE + "seed: !!int many\n", ["many", "whole number", "line 5"]),
        (BASE + "seed: !!float many\n", ["many", "number", "line 5"]),
        (BASE + "seed: !env SEED\n", ["!env", "line 5"]),
        (BASE + "seed: !!python/object/apply:os.system [ls]\n", ["!!python", "line 5"]),
        (BASE + "seed: !!python/tuple [1]\n", ["!!python/tuple", "line 5"]),
        (BASE + "training: !!map [a]\n", ["line 5"]),
        # Keys.
        (BASE + "seed: 1\n'seed': 2\n", ["'seed' is given twice", "line 6"]),
        (BASE + "1: a\n0x1: b\n", ["given twice", "line 6"]),
        (BASE + "true: a\nTrue: b\n", ["given twice", "line 6"]),
        (BASE + "? [a, b]\n: c\n", ["key", "line 5"]),
        (BASE + "{a: 1}: 2\n", ["key", "line 5"]),
        (BASE + "? {a: 1}\n: c\n", ["key", "line 5"]),
        (BASE + "null: 1\n", ["null"]),
        (BASE + "'': 1\n", ["empty"]),
        (BASE + "7: 1\n", ["Unknown key 7"]),
        # Numbers.
        (BASE + "seed: " + "9" * 5000 + "\n", ["too large", "line 5"]),
        (BASE + "seed: 0x" + "F" * 5000 + "\n", ["too large", "line 5"]),
        (BASE + "seed: 1e400\n", ["seed"]),
        (BASE + "training: {max_steps: " + "9" * 200 + "}\n", ["too large", "line 5"]),
        # Encodings and contents.
        ((BASE + "revision: caf\u00e9\n").encode("latin-1"), ["UTF-8", "run.yaml"]),
        (BASE.encode("utf-16"), ["UTF-16", "UTF-8"]),
        (BASE.encode("utf-16-le"), ["run.yaml"]),
        (BASE.encode("utf-32"), ["UTF-8"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ["UTF-8", "run.yaml"]),
        (b"\x1f\x8b\x08\x00rest", ["UTF-8", "run.yaml"]),
        (b"PK\x03\x04\x00\x00", ["YAML", "run.yaml"]),
        (b"\x00" * 64, ["YAML", "run.yaml"]),
        ("\x1b[31mmodel: m", ["YAML", "run.yaml"]),
        ("", ["empty"]),
        ("\n\n# only a comment\n", ["empty"]),
        ("---\n...\n", ["empty"]),
        ("null\n", ["empty"]),
        ("7\n", ["single value"]),
        ("[1, 2]\n", ["list"]),
        ("model = 'm'\ntask = 'generation'\n", ["key: value"]),
        ("<html><body>404: Not Found</body></html>", ["run.yaml"]),
        (BASE + "---\n" + BASE, ["expected a single document", "line 5"]),
        (BASE + "seed: [1\n", ["line"]),
        (BASE + "seed: *nothing\n", ["nothing", "line 5"]),
        (BASE + "seed: 'a\n", ["line"]),
        (BASE + "\tseed: 1\n", ["line 5"]),
        ("%YAML 3.0\n---\n" + BASE, ["line 1"]),
        ("extends: run.yaml\n" + BASE, ["circle"]),
        ("extends: .\n" + BASE, ["extends", "no file"]),
        ("extends: 5\n" + BASE, ["extends"]),
        ("extends: {a: b}\n" + BASE, ["extends"]),
        ("extends: [run.yaml, 7]\n" + BASE, ["extends"]),
    ],
)
def test_a_bad_file(tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    message = refusal(write(tmp_path, content))
    for word in words:
        assert word in message, message


def test_a_config_that_is_not_a_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "no config file" in refusal(tmp_path / "absent.yaml")
    assert "no config file" in refusal(write(tmp_path, BASE) / "below.yaml")
    assert "too long" in refusal(tmp_path / ("x" * 300))
    assert "large" in refusal(Path("/dev/zero"))
    assert "empty" in refusal(Path("/dev/null"))
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "loop.yaml" in refusal(tmp_path / "loop.yaml")

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    message = refusal(tmp_path / "run.yaml")
    assert "run.yaml cannot be read: Permission denied" in message, message


def test_aliases_and_merge_keys_in_use_still_work(tmp_path: Path) -> None:
    text = BASE.replace("data:", "data: &data") + "training: &t {seed_like: 1}\n"
    text = text.replace("training: &t {seed_like: 1}\n", "training: &t {max_steps: 3}\nmethod: {rank: 4}\n")
    assert load_run_config(write(tmp_path, text)).training == {"max_steps": 3}
    shared = "x: &x {max_steps: 3}\ntraining: {<<: *x, save_steps: 2}\n"
    assert "Unknown key x" in refusal(write(tmp_path, BASE + shared))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        # Absurd numbers.
        ("training.max_steps=1e400", ["training.max_steps", "whole number"]),
        ("training.max_steps=1000000000000000000000000000000", ["training.max_steps", "at most"]),
        ("training.max_steps=-5", ["training.max_steps", "-1"]),
        ("training.max_steps=0", ["training.max_steps", "-1"]),
        ("training.learning_rate=.inf", ["training.learning_rate", "finite"]),
        ("training.learning_rate=.nan", ["training.learning_rate"]),
        ("training.learning_rate=1e400", ["training.learning_rate", "finite"]),
        ("training.learning_rate=-1e-4", ["training.learning_rate", "above 0"]),
        ("training.num_train_epochs=.inf", ["training.num_train_epochs", "finite"]),
        ("training.num_train_epochs=1e30", ["training.num_train_epochs", "at most"]),
        ("training.weight_decay=.nan", ["training.weight_decay"]),
        ("training.weight_decay=.inf", ["training.weight_decay", "finite"]),
        ("training.adam_beta1=1.5", ["training.adam_beta1", "below 1"]),
        ("training.adam_beta2=-0.1", ["training.adam_beta2"]),
        ("training.adam_epsilon=-1", ["training.adam_epsilon"]),
        ("training.adam_epsilon=.nan", ["training.adam_epsilon"]),
        ("training.max_grad_norm=.nan", ["training.max_grad_norm"]),
        ("training.gradient_accumulation_steps=0", ["training.gradient_accumulation_steps", "above 0"]),
        ("training.per_device_train_batch_size=-4", ["training.per_device_train_batch_size", "above 0"]),
        ("training.per_device_train_batch_size=1000000000000000000000000000000", ["per_device_train_batch_size"]),
        ("training.warmup_steps=-1", ["training.warmup_steps", "at least 0"]),
        ("training.dataloader_num_workers=-1", ["training.dataloader_num_workers", "at least 0"]),
        ("training.dataloader_num_workers=100000", ["training.dataloader_num_workers", "at most"]),
        ("training.save_total_limit=-1", ["training.save_total_limit"]),
        ("training.data_seed=-1", ["training.data_seed"]),
        ("training.data_seed=99999999999999999999999", ["training.data_seed"]),
        ("training.eval_accumulation_steps=0", ["training.eval_accumulation_steps"]),
        ("training.eval_delay=-1", ["training.eval_delay"]),
        ("training.neftune_noise_alpha=.inf", ["training.neftune_noise_alpha"]),
        ("training.neftune_noise_alpha=-1", ["training.neftune_noise_alpha"]),
        ("training.dataloader_prefetch_factor=0", ["training.dataloader_prefetch_factor"]),
        ("training.ddp_timeout=-1", ["training.ddp_timeout"]),
        ("method.rank=-8", ["method.rank", "at least 1"]),
        ("method.rank=1e400", ["method.rank", "finite number"]),
        ("method.rank=1000000000000000000000000000000", ["method.rank", "at most"]),
        ("method.rank=8.5", ["method.rank", "whole number"]),
        ("method.rank=.nan", ["method.rank"]),
        ("method.rank=eight", ["method.rank"]),
        ("method.rank=9000000000000000000", ["method.rank", "at most 65,536"]),
        ("method.alpha=1e300", ["method.alpha", "at most"]),
        ("method.alpha=.inf", ["method.alpha"]),
        ("method.alpha=.nan", ["method.alpha"]),
        ("method.alpha=-1", ["method.alpha"]),
        ("method.dropout=1", ["method.dropout"]),
        ("method.dropout=-0.1", ["method.dropout"]),
        ("method.svd_iterations=1000000000000000000000", ["method.svd_iterations", "at most"]),
        ("method.svd_iterations=-1", ["method.svd_iterations"]),
        ("regularization.consistency=.inf", ["regularization.consistency"]),
        ("regularization.consistency=.nan", ["regularization.consistency"]),
        ("regularization.consistency='0.1'", ["regularization.consistency", "'0.1'"]),
        ("regularization.temperature=1e400", ["regularization.temperature", "finite"]),
        ("regularization.top_k=2.5", ["regularization.top_k"]),
        ("regularization.top_k=1000000000000000000000000000000", ["regularization.top_k", "at most"]),
        ("regularization.spectral_rank=0", ["regularization.spectral_rank"]),
        ("regularization.consistency_every=1000000000000000000000000000000", ["consistency_every", "at most"]),
        ("regularization.spectral_target=[logits]", ["regularization.spectral_target"]),
        ("regularization.batch_statistics={a: b}", ["regularization.batch_statistics"]),
        ("data.max_length=1000000000000000000000000000000", ["data.max_length", "at most"]),
        ("data.max_length=-1", ["data.max_length"]),
        ("data.max_length=.inf", ["data.max_length"]),
        ("data.eval=.nan", ["data.eval"]),
        ("data.eval=-0.1", ["data.eval"]),
        ("data.eval=1", ["data.eval"]),
        ("data.eval=true", ["data.eval"]),
        ("data.eval=[a]", ["data.eval"]),
        ("data.subsample=-3", ["data.subsample"]),
        ("data.subsample=.inf", ["data.subsample"]),
        ("data.subsample=1000000000000000000000000000000", ["data.subsample", "at most"]),
        ("data.subsample=0", ["data.subsample"]),
        ("data.label_noise=2", ["data.label_noise"]),
        ("data.label_noise=.nan", ["data.label_noise"]),
        ("data.duplicate={share: 0.5, times: 1000000000000000000000}", ["data.duplicate"]),
        ("data.duplicate={share: .nan}", ["data.duplicate"]),
        ("data.duplicate={share: 0.5, times: .inf}", ["data.duplicate"]),
        ("seed=-1", ["seed"]),
        ("seed=4294967296", ["seed"]),
        ("seed=.nan", ["seed"]),
        ("seed=true", ["seed"]),
        ("seed=1.5", ["seed"]),
        # Names and paths.
        ('output="a\\0b"', ["output", "control character"]),
        ('model="a\\0b"', ["model", "control character"]),
        ('model="m\\n"', ["model", "line break"]),
        ('data.train="d\\0"', ["data.train", "control character"]),
        ('teacher_cache="d\\0"', ["teacher_cache", "control character"]),
        ("output=" + "x" * 300, ["output", "255"]),
        ("model=" + "x/" * 3000, ["model", "long"]),
        ("data.train=./" + "x" * 300, ["data.train", "255"]),
        ('output="\\ud800"', ["output"]),
        ("output='  '", ["output"]),
        ("model='  '", ["model"]),
        ("data.train=''", ["data.train"]),
        ("tokenizer=''", ["tokenizer"]),
        ("teacher_cache=''", ["teacher_cache"]),
        ("revision=''", ["revision"]),
        ("data.text=''", ["data.text"]),
        ("data.text=[]", ["data.text"]),
        # Options and overrides.
        ("method={name: pissa, svd: exact, options: {svd: randomized}}", ["method.svd", "twice"]),
        ("method.options=[svd]", ["method.options"]),
        ("method.options={svd: [exact]}", ["method.svd"]),
        ("method.options={svd: {a: b}}", ["method.svd"]),
        ("method.bits=[4]", ["method.bits"]),
        ("method.bits=5", ["method.bits"]),
        ("method.name=[lora]", ["method.name"]),
        ("method.target_modules=''", ["method.target_modules"]),
        ("method.target_modules=[q_proj, '']", ["method.target_modules"]),
        ("method.target_modules='('", ["method.target_modules", "regular expression"]),
        ("method.target_modules=[q_proj, 7]", ["method.target_modules"]),
        ("extends=base.yaml", ["extends"]),
        ("training.lr_scheduler_kwargs=[1]", ["training.lr_scheduler_kwargs"]),
        ("training.optim_args={a: b}", ["training.optim_args"]),
        ("training.report_to=5", ["training.report_to"]),
        ("training.fsdp=[7]", ["training.fsdp"]),
        ("training.bf16=auto", ["training.bf16", "true or false"]),
        ("training.deepspeed=7", ["training.deepspeed"]),
        ("training.local_rank=3", ["training.local_rank"]),
    ],
)
def test_a_bad_value(tmp_path: Path, override: str, words: list[str]) -> None:
    message = refusal(write(tmp_path, BASE), override)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "text", ["1e5", "12e45", "0x1F", "007", "1:30", "yes", "off", "2024-01-01", "~", "null", ".inf", "<<", "="]
)
def test_a_text_that_looks_like_another_type_is_kept_in_the_run_directory(tmp_path: Path, text: str) -> None:
    """A commit such as 12e45 was written without quotes, and read back as a number."""
    config = load_run_config(write(tmp_path, BASE), [f"revision='{text}'"])
    assert config.revision == text
    assert load_run_config(write(tmp_path, config.dump_yaml())) == config
    assert yaml.safe_load(config.dump_yaml())["revision"] == text


# Every key, every kind of wrong value: refused with the key's name, or accepted and kept.

ODD_VALUES: list[Any] = [
    "nonsense", "", " ", [], ["a"], [[]], [1], {}, {"a": 1}, {"a": {"b": []}}, True, False, 0, -1, 1.5, math.nan, math.inf,
    -math.inf, 10**30, -(10**30), "1e400", "\0", "\ud800", b"bytes", (1,), {1}, object(), 1j,
]  # fmt: skip
SECTIONS = {
    "": list(RunConfig.model_fields),
    "data.": [*DataConfig.model_fields],
    "method.": [
        *MethodConfig.model_fields,
        *sorted({option for method in METHODS.values() for option in method.options}),
    ],
    "regularization.": [field.name for field in dataclasses.fields(RegularizationConfig)],
    "training.": [*training_fields()],
}
KEYS = [f"{section}{name}" for section, names in SECTIONS.items() for name in names]


@pytest.mark.parametrize("key", [*KEYS, *(f"data.also.0.{name}" for name in FurtherData.model_fields)])
def test_an_odd_value_of_any_key_is_named_or_kept(tmp_path: Path, key: str) -> None:
    for value in ODD_VALUES:
        values: dict[str, Any] = {
            "model": "m", "task": "generation", "data": {"train": "d.jsonl", "text": "story", "also": [{"train": "e.jsonl"}]},
            "method": {}, "regularization": {}, "training": {}, "output": "runs/a",
        }  # fmt: skip
        *path, last = key.split(".")
        section: Any = values
        for part in path:
            section = section[int(part) if part.isdigit() else part]
        section[last] = value
        start = time.process_time()
        try:
            config = RunConfig.from_dict(values)
        except BALoraError as error:
            text = str(error)
            assert last.removesuffix("s") in text and len(text) < 4000, f"{key} = {value!r}: {text}"
        else:
            kept = tmp_path / "kept.yaml"
            kept.write_text(config.dump_yaml(), encoding="utf-8")
            assert load_run_config(kept) == config, f"{key} = {value!r}"
        assert time.process_time() - start < SECOND


# Keys of other programs.


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("base_model", ["axolotl", "model"]),
        ("model_name_or_path", ["LLaMA-Factory", "TRL", "model"]),
        ("sequence_len", ["axolotl", "data.max_length"]),
        ("cutoff_len", ["LLaMA-Factory", "data.max_length"]),
        ("max_seq_length", ["TRL", "data.max_length"]),
        ("lora_r", ["axolotl", "method.rank"]),
        ("lora_rank", ["LLaMA-Factory", "method.rank"]),
        ("lora_alpha", ["method.alpha"]),
        ("lora_dropout", ["method.dropout"]),
        ("lora_target", ["LLaMA-Factory", "method.target_modules"]),
        ("lora_target_modules", ["method.target_modules"]),
        ("micro_batch_size", ["axolotl", "training.per_device_train_batch_size"]),
        ("num_epochs", ["axolotl", "training.num_train_epochs"]),
        ("optimizer", ["axolotl", "training.optim"]),
        ("lr_scheduler", ["axolotl", "training.lr_scheduler_type"]),
        ("val_set_size", ["axolotl", "data.eval"]),
        ("val_size", ["LLaMA-Factory", "data.eval"]),
        ("datasets", ["axolotl", "data.train"]),
        ("dataset", ["LLaMA-Factory", "data.train"]),
        ("dataset_name", ["TRL", "data.train"]),
        ("dataset_text_field", ["TRL", "data.text"]),
        ("output_dir", ["output"]),
        ("adapter", ["axolotl", "method.name"]),
        ("finetuning_type", ["LLaMA-Factory", "method.name"]),
        ("stage", ["LLaMA-Factory", "task"]),
        ("template", ["LLaMA-Factory", "data.messages"]),
        ("sample_packing", ["axolotl", "data.packing"]),
        ("neat_packing", ["LLaMA-Factory", "data.packing"]),
        ("quantization_bit", ["LLaMA-Factory", "method.bits"]),
        ("load_in_4bit", ["method.bits"]),
        ("load_in_8bit", ["method.bits"]),
        ("torch_dtype", ["TRL", "dtype"]),
        ("wandb_project", ["axolotl", "training.report_to"]),
        ("max_samples", ["LLaMA-Factory", "data.subsample"]),
        ("pissa_init", ["LLaMA-Factory", "method.name"]),
        ("use_dora", ["method.name", "dora"]),
        ("use_rslora", ["method.name", "rslora"]),
        ("loraplus_lr_ratio", ["method.lr_ratio"]),
        ("train_on_inputs", ["axolotl", "response"]),
        ("early_stopping_patience", ["axolotl"]),
        ("do_train", ["LLaMA-Factory", "leave it out"]),
        ("hf_hub_token", ["hf auth login"]),
    ],
)
def test_a_key_of_another_program_is_named_with_our_key(tmp_path: Path, key: str, words: list[str]) -> None:
    path = write(tmp_path, BASE)
    section = next((word.split(".")[0] for word in words if "." in word), "training")
    for override in dict.fromkeys((f"{key}=x", f"{section}.{key}=x")):
        if override == f"training.{key}=x" and key in training_fields():
            continue  # a field of transformers, with a message of its own
        message = refusal(path, override)
        for word in ["Unknown key", key, *words]:
            assert word in message, message


def test_our_keys_are_no_foreign_keys() -> None:
    elsewhere = {"output_dir", "do_train", "do_eval", "resume_from_checkpoint"}
    assert not FOREIGN_KEYS.keys() & (RunConfig.model_fields.keys() | training_fields().keys()) - elsewhere
    targets = {target for _, target, _ in FOREIGN_KEYS.values() if target}
    assert targets <= {*KEYS, "method.bits", "method.lr_ratio"}, targets - {*KEYS}


def test_a_whole_config_of_another_program_is_named_for_what_it_is(tmp_path: Path) -> None:
    text = "base_model: m\nadapter: lora\nlora_r: 8\nmicro_batch_size: 2\ndatasets: [{path: d, type: alpaca}]\n"
    assert "axolotl" in refusal(write(tmp_path, text)).splitlines()[0]
    text = "model_name_or_path: m\nstage: sft\nfinetuning_type: lora\ndataset: identity\ntemplate: llama3\ncutoff_len: 2048\n"
    assert "LLaMA-Factory" in refusal(write(tmp_path, text)).splitlines()[0]


# Suggestions.


@pytest.mark.parametrize(
    ("word", "known", "nearest"),
    [
        ("loraa", METHODS, "lora"),
        ("lorra", METHODS, "lora"),
        ("LoRA", METHODS, "lora"),
        ("BA-LoRA", METHODS, "balora"),
        ("lora-ga", METHODS, "loraga"),
        ("lora+", METHODS, "loraplus"),
        ("pisa", METHODS, "pissa"),
        ("corda++", METHODS, "cordapp"),
        ("rs-lora", METHODS, "rslora"),
        ("ia3", METHODS, None),
        ("vera", METHODS, None),
        ("prefix", METHODS, None),
        ("rnak", ["rank", "name"], "rank"),
        ("early_stopping_patience", training_fields(), None),
        ("learning_rat", training_fields(), "learning_rate"),
        ("learnig_rate", training_fields(), "learning_rate"),
        ("lrn_rate", ["learning_rate", "output"], "learning_rate"),
        ("num_epochs", training_fields(), "num_train_epochs"),
        ("scheduler", ["seed", "resume"], None),
        ("packing", training_fields(), None),
        ("x", ["seed", "x1"], None),
        ("colour", ["output", "column"], None),
        ("Training", ["training"], "training"),
        ("learning-rate", ["learning_rate"], "learning_rate"),
    ],
)
def test_only_a_close_name_is_suggested(word: str, known: Any, nearest: str | None) -> None:
    assert suggest(word, known) == (f" Did you mean {nearest!r}?" if nearest else "")
