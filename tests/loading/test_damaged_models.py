"""Damaged and foreign model folders: one sentence that names the file, before the first step and within seconds."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.loading import pretrained as loading
from balora.loading.head import head_classes
from balora.loading.source import ModelSource
from tiny import tiny_llama, tiny_tokenizer

Damage = Callable[[Path], object]
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a2146' * 8}\nsize 12345\n"
SECONDS = 10.0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "llama"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def source(model: Path | str, **more: Any) -> ModelSource:
    data = {"train": "d.jsonl", "text": "t", **({"label": "l"} if more.get("task") == "classification" else {})}
    values = {"model": str(model), "task": "generation", "data": data, "output": "o", **more}
    return ModelSource.from_config(RunConfig.from_dict(values))


def refusal(model: Path | str, **more: Any) -> str:
    """Load a model in the order of a run, and return the message."""
    where, start = source(model, **more), time.process_time()
    with pytest.raises(BALoraError) as error:
        tokenizer = loading.load_tokenizer(where)
        head_classes(where)
        loading.load_model(where, 3 if where.task == "classification" else None, tokenizer=tokenizer)
    assert time.process_time() - start < SECONDS
    text = str(error.value)
    assert "\n" not in text and len(text) < 700, text
    return text


def put(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def change(name: str, **values: Any) -> Damage:
    """Change keys of a JSON file."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, **values}))

    return damage


def as_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def weights(edit: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(edit(path.read_bytes()))

    return damage


def header(edit: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of the weights."""

    def rewrite(content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        values = json.loads(content[8 : 8 + length])
        text = json.dumps(edit(values) or values).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return weights(rewrite)


def sharded(index: Any, *, keep: bool = True) -> Damage:
    """Put an index in place of the single file, which stays under another name."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part-1.safetensors")
        if not keep:
            (folder / "part-1.safetensors").unlink()
        names = load_file(folder / "part-1.safetensors") if keep else {}
        found = index(dict.fromkeys(names, "part-1.safetensors")) if callable(index) else index
        text = found if isinstance(found, str) else json.dumps(found)
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


def tensor(name: str, value: float, dtype: torch.dtype = torch.float32) -> Damage:
    """Set one number of one tensor."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {key: found.to(dtype) for key, found in load_file(path).items()}
        tensors[name].view(-1)[3] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def first(values: dict[str, Any]) -> str:
    return next(name for name in values if name != "__metadata__")


QUERY = "model.layers.1.self_attn.q_proj.weight"
TOO_MANY_WORDS = change("config.json", vocab_size=10**12)
DAMAGES: list[tuple[Damage, list[str]]] = [
    # config.json.
    (put("config.json", "[]"), ["config.json", "JSON object"]),
    (put("config.json", "null"), ["config.json", "JSON object"]),
    (put("config.json", '"llama"'), ["config.json", "JSON object"]),
    (put("config.json", "7"), ["config.json", "JSON object"]),
    (put("config.json", ""), ["config.json", "empty"]),
    (put("config.json", '{"model_type": "llama", '), ["config.json"]),
    (put("config.json", b'{"model_type": "ll\xe9"}'), ["config.json", "UTF-8"]),
    (put("config.json", "[" * 100_000), ["config.json"]),
    (put("config.json", '{"a": ' * 100_000), ["config.json"]),
    (put("config.json", LFS_POINTER), ["config.json", "git lfs pull"]),
    (put("config.json", "<html>404</html>"), ["config.json"]),
    (put("config.json", "{}"), ["config.json", "model_type"]),
    (as_folder("config.json"), ["config.json", "folder"]),
    (change("config.json", model_type=5), ["model_type"]),
    (change("config.json", model_type=None), ["model_type"]),
    (change("config.json", model_type=["llama"]), ["model_type"]),
    (change("config.json", model_type="nonsense"), ["nonsense"]),
    (change("config.json", architectures=5), ["architectures"]),
    (change("config.json", vocab_size="many"), ["vocab_size"]),
    (change("config.json", vocab_size=-1), ["llama"]),
    (change("config.json", vocab_size=10**30), ["llama"]),
    (TOO_MANY_WORDS, ["llama"]),
    (change("config.json", hidden_size=0), ["llama"]),
    (change("config.json", hidden_size="wide"), ["llama", "hidden_size"]),
    (change("config.json", hidden_size=float("inf")), ["llama"]),
    (change("config.json", num_hidden_layers="two"), ["llama", "num_hidden_layers"]),
    (change("config.json", num_hidden_layers=-1), ["llama"]),
    (change("config.json", num_hidden_layers=10**9), ["llama", "num_hidden_layers"]),
    (change("config.json", num_attention_heads=0), ["llama"]),
    (change("config.json", vocab_size=96), ["lm_head.weight is 97 x 32 and should be 96 x 32 (1 more)"]),
    (change("config.json", hidden_act="warp"), ["does not know the value 'warp'", "config.json"]),
    (change("config.json", num_attention_heads=[4]), ["llama"]),
    (change("config.json", pad_token_id=10**6), ["llama"]),
    (change("config.json", dtype="float99"), ["llama"]),
    (change("config.json", id2label=["a"]), ["llama"]),
    (change("config.json", hidden_act="none-such"), ["llama", "none-such"]),
    (change("config.json", quantization_config="x"), ["llama"]),
    (change("config.json", rope_parameters=[1]), ["llama"]),
    # The tokenizer.
    (put("tokenizer_config.json", "[]"), ["tokenizer_config.json", "JSON object"]),
    (put("tokenizer_config.json", ""), ["tokenizer_config.json", "empty"]),
    (put("tokenizer_config.json", '{"a"'), ["tokenizer_config.json"]),
    (put("tokenizer_config.json", b"\xff\xfe{}"), ["tokenizer_config.json", "UTF-8"]),
    (put("tokenizer_config.json", LFS_POINTER), ["tokenizer_config.json", "git lfs pull"]),
    (as_folder("tokenizer_config.json"), ["tokenizer_config.json", "folder"]),
    (change("tokenizer_config.json", tokenizer_class=5), ["tokenizer"]),
    (change("tokenizer_config.json", tokenizer_class=["Foo"]), ["tokenizer"]),
    (change("tokenizer_config.json", pad_token=5), ["tokenizer"]),
    (put("tokenizer.json", "[]"), ["tokenizer"]),
    (put("tokenizer.json", ""), ["tokenizer.json", "empty"]),
    (put("tokenizer.json", "{"), ["tokenizer"]),
    (put("tokenizer.json", LFS_POINTER), ["tokenizer.json", "git lfs pull"]),
    (put("special_tokens_map.json", "[]"), ["special_tokens_map.json", "JSON object"]),
    (put("added_tokens.json", "[]"), ["added_tokens.json", "JSON object"]),
    # generation_config.json.
    (put("generation_config.json", "[]"), ["generation_config.json", "JSON object"]),
    (put("generation_config.json", "{"), ["generation_config.json"]),
    # The index of sharded weights.
    (sharded("[]"), ["model.safetensors.index.json", "JSON object"]),
    (sharded(""), ["model.safetensors.index.json", "empty"]),
    (sharded('{"weight_map": {'), ["model.safetensors.index.json"]),
    (sharded(LFS_POINTER), ["model.safetensors.index.json", "git lfs pull"]),
    (sharded({}), ["model.safetensors.index.json", "weight_map"]),
    (sharded({"weight_map": []}), ["model.safetensors.index.json", "weight_map"]),
    (sharded({"weight_map": {}}), ["model.safetensors.index.json", "weight_map"]),
    (sharded({"weight_map": {"a": 5}}), ["model.safetensors.index.json", "weight_map"]),
    (sharded({"weight_map": {"a": None}}), ["model.safetensors.index.json", "weight_map"]),
    (sharded({"weight_map": {"a": "../other.safetensors"}}), ["model.safetensors.index.json", "../other.safetensors"]),
    (sharded({"weight_map": {"a": "/etc/passwd"}}), ["model.safetensors.index.json", "/etc/passwd"]),
    (sharded({"weight_map": {"a": "."}}), ["model.safetensors.index.json"]),
    (sharded({"weight_map": {"a": "part-9.safetensors"}}), ["part-9.safetensors is missing"]),
    (
        sharded(lambda names: {"weight_map": {**names, "strange": "part-1.safetensors"}}),
        ["strange", "part-1.safetensors"],
    ),
    # The weights.
    (weights(lambda _: b""), ["model.safetensors", "damaged"]),
    (weights(lambda old: old[:7]), ["model.safetensors", "damaged"]),
    (weights(lambda old: old[:8]), ["model.safetensors", "damaged"]),
    (weights(lambda old: struct.pack("<Q", 2**63) + old[8:]), ["model.safetensors", "damaged"]),
    (weights(lambda old: struct.pack("<Q", len(old)) + old[8:]), ["model.safetensors", "damaged"]),
    (weights(lambda old: struct.pack("<Q", 10) + old[8:]), ["model.safetensors", "damaged"]),
    (weights(lambda old: struct.pack("<Q", 0) + old[8:]), ["model.safetensors", "damaged"]),
    (weights(lambda old: old[:-1]), ["model.safetensors", "damaged"]),
    (weights(lambda old: old + b"x"), ["model.safetensors", "damaged"]),
    (weights(lambda old: old[: len(old) // 2]), ["model.safetensors", "damaged"]),
    (weights(lambda old: b"\0" * len(old)), ["model.safetensors", "damaged"]),
    (weights(lambda _: LFS_POINTER.encode()), ["model.safetensors", "git lfs pull"]),
    (weights(lambda _: b"<!DOCTYPE html>" + b" " * 500), ["model.safetensors", "damaged"]),
    (weights(lambda _: struct.pack("<Q", 2) + b"[]"), ["model.safetensors", "damaged"]),
    (header(lambda old: {"__metadata__": {"format": "pt"}}), ["model.safetensors"]),
    (header(lambda old: old[first(old)].update(dtype="F99")), ["model.safetensors", "damaged"]),
    (header(lambda old: old[first(old)].update(shape=[-1])), ["model.safetensors", "damaged"]),
    (header(lambda old: old[first(old)].update(shape=[10**9, 10**9])), ["model.safetensors", "damaged"]),
    (header(lambda old: old[first(old)].update(data_offsets=[0, 1])), ["model.safetensors", "damaged"]),
    (header(lambda old: {"renamed" if key == QUERY else key: v for key, v in old.items()}), ["q_proj", "random"]),
    (as_folder("model.safetensors"), ["model.safetensors", "folder"]),
    # Values of the weights.
    (tensor(QUERY, float("nan")), [QUERY, "NaN"]),
    (tensor(QUERY, float("inf")), [QUERY, "infinite"]),
    (tensor(QUERY, float("-inf")), [QUERY, "infinite"]),
    (tensor("lm_head.weight", float("nan")), ["lm_head.weight", "NaN"]),
    (tensor("model.norm.weight", float("nan")), ["model.norm.weight", "NaN"]),
    (tensor("model.embed_tokens.weight", float("nan"), torch.bfloat16), ["model.embed_tokens.weight", "NaN"]),
    (tensor("model.embed_tokens.weight", float("inf"), torch.float16), ["model.embed_tokens.weight", "infinite"]),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_model_is_refused(saved: Path, tmp_path: Path, damage: Damage, words: list[str]) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "llama"))
    damage(folder)
    message = refusal(folder)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_validate_says_it_too(saved: Path, tmp_path: Path, number: int) -> None:
    """Check without loading the model: only what compares tensors with its modules is left for `train`."""
    damage, words = DAMAGES[number]
    if "random" in words or damage is TOO_MANY_WORDS:
        pytest.skip("the weights are not compared with the model's tensors")
    folder = Path(shutil.copytree(saved, tmp_path / "llama"))
    damage(folder)
    config = RunConfig.from_dict(
        {
            "model": str(folder), "task": "generation", "data": {"train": str(tmp_path / "d.jsonl"), "text": "t"},
            "method": {"name": "lora", "rank": 2}, "training": {"use_cpu": True}, "output": str(tmp_path / "run"),
        }
    )  # fmt: skip
    (tmp_path / "d.jsonl").write_text('{"t": "what is 1 plus 2?"}\n' * 8)
    from balora.estimation.validate import validate

    assert validate(config).problems


def test_a_value_that_float16_cannot_have_is_named(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "llama"))
    tensor("model.norm.weight", 1e6)(folder)
    message = refusal(folder, dtype="float16")
    assert "model.norm.weight" in message and "float16" in message and "bfloat16" in message, message
    loading.load_model(source(folder, dtype="bfloat16"))


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_weights_in_other_forms_are_named(tmp_path: Path, task: str) -> None:
    def folder(*files: str) -> Path:
        path = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        for file in files:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(b"GGUF" if file.endswith("gguf") else b"x")
        return path

    gguf = folder("llama-2-7b.Q4_K_M.gguf")
    for name in (gguf, gguf / "llama-2-7b.Q4_K_M.gguf"):
        message = refusal(name, task=task)
        assert "GGUF" in message and "llama.cpp" in message and "transformers" in message, message
    assert "GGUF" in refusal("TheBloke/Llama-2-7B-GGUF", task=task)
    assert "is a file" in refusal(folder("model.safetensors") / "model.safetensors", task=task)

    cache = folder(
        "models--org--name/refs/main", "models--org--name/blobs/abc", "models--org--name/snapshots/d1a2/config.json"
    )
    cache = cache / "models--org--name"
    message = refusal(cache, task=task)
    assert "cache" in message and "model: org/name" in message and str(cache / "snapshots" / "d1a2") in message, message
    message = refusal(cache.parent, task=task)
    assert "cache" in message and "org/name" in message, message
    message = refusal(cache / "snapshots", task=task)
    assert "d1a2" in message, message

    assert "ONNX" in refusal(folder("model.onnx", "tokenizer.json"), task=task)
    assert "Meta" in refusal(folder("params.json", "consolidated.00.pth", "tokenizer.model"), task=task)
    assert "TensorFlow" in refusal(folder("tf_model.h5"), task=task)
    assert "Flax" in refusal(folder("flax_model.msgpack"), task=task)
    assert "sentence-transformers" in refusal(folder("modules.json", "1_Pooling/config.json"), task=task)
    assert "diffusers" in refusal(folder("model_index.json", "unet/config.json"), task=task)
    assert "checkpoint-20" in refusal(folder("checkpoint-20/config.json", "checkpoint-10/config.json"), task=task)
    empty = folder("x/y").parent / "nothing"
    empty.mkdir()
    assert "empty" in refusal(empty, task=task)


def test_a_folder_that_is_only_the_weights_is_named(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "model.safetensors", tmp_path)
    assert "config.json" in refusal(tmp_path)


def test_layers_that_the_config_leaves_out_are_said(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "llama"))
    change("config.json", num_hidden_layers=1)(folder)
    with caplog.at_level("WARNING", "balora"):
        loading.load_model(source(folder))
    assert "such as model.layers.1.input_layernorm.weight: 9 tensors are not used" in caplog.text


@pytest.mark.parametrize(
    "section", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}]
)
def test_a_quantization_that_the_weights_do_not_have_is_refused(saved: Path, tmp_path: Path, section: dict) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "llama"))
    change("config.json", quantization_config=section)(folder)
    message = refusal(folder)
    assert section["quant_method"] in message and "method.bits" in message
