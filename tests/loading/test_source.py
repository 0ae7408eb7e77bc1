"""A model's name becomes a hub id or a directory once, with everything that its loading needs."""

from __future__ import annotations

from pathlib import Path

from balora.config.run_config import RunConfig
from balora.loading.source import Location, ModelSource


def test_a_hub_id_has_no_directory_and_is_its_own_path():
    location = Location("meta-llama/Llama-2-7b-hf")
    assert (location.directory, location.path, location.missing) == (None, "meta-llama/Llama-2-7b-hf", False)


def test_a_local_path_is_expanded_and_may_be_missing(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    location = Location("~/model")
    assert (location.directory, location.path, location.missing) == (tmp_path / "model", str(tmp_path / "model"), True)
    (tmp_path / "model").mkdir()
    assert not location.missing


def test_a_location_is_decided_once(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    location = Location("owner/model")
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert location.directory is None, "a directory that is made later does not change it"
    assert Location("owner/model").directory == Path("owner/model")


def test_a_config_gives_model_tokenizers_and_options():
    values = {
        "model": "owner/model", "tokenizer": "./own", "revision": "v2", "task": "seq2seq", "dtype": "bfloat16", "seed": 7,
        "output": "o", "trust_remote_code": True, "allow_pickle": True,
        "data": {"train": "d.jsonl", "prompt": "p", "response": "r", "target_tokenizer": "./target"},
    }  # fmt: skip
    source = ModelSource.from_config(RunConfig.from_dict(values))
    assert source == ModelSource(
        model=Location("owner/model"), task="seq2seq", tokenizer=Location("./own", "tokenizer"),
        target_tokenizer=Location("./target", "data.target_tokenizer"), revision="v2", dtype="bfloat16", seed=7,
        trust_remote_code=True, allow_pickle=True,
    )  # fmt: skip


def test_another_model_is_loaded_with_the_same_options_but_no_revision():
    moved = ModelSource(model=Location("owner/model"), revision="v2", dtype="bfloat16").with_model("./moved")
    assert moved == ModelSource(model=Location("./moved"), dtype="bfloat16")
