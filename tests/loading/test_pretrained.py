"""Models and tokenizers load from small directories, and every defect is refused with a clear message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants

from balora.config.run_config import RunConfig
from balora.data.collate import ensure_pad_token
from balora.errors import BALoraError
from balora.loading import pretrained as loading
from balora.loading.source import ModelSource
from tiny import tiny_bart, tiny_bert, tiny_llama, tiny_roberta, tiny_tokenizer

DATA = {
    "generation": {"train": "d.jsonl", "text": "t"},
    "seq2seq": {"train": "d.jsonl", "prompt": "p", "response": "r"},
    "classification": {"train": "d.jsonl", "text": "t", "label": "l"},
    "regression": {"train": "d.jsonl", "text": "t", "score": "l"},
}


def source(model: Path | str, task: str = "generation", data: dict | None = None, **more) -> ModelSource:
    config = {"model": str(model), "task": task, "data": {**DATA[task], **(data or {})}, "output": "o", **more}
    return ModelSource.from_config(RunConfig.from_dict(config))


def refused(*args, num_labels: int | None = None, **more) -> str:
    with pytest.raises(BALoraError) as error:
        loading.load_model(source(*args, **more), num_labels)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**config, **changes}.items() if value != "gone"}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name, model in (("llama", tiny_llama()), ("bert", tiny_bert(num_labels=3)), ("bart", tiny_bart())):
        model.save_pretrained(place / name)
        tiny_tokenizer().save_pretrained(place / name)
    return place


@pytest.fixture
def llama(saved, tmp_path) -> Path:
    """Return a copy of the model, to be damaged."""
    return Path(shutil.copytree(saved / "llama", tmp_path / "llama"))


# --- loading ---------------------------------------------------------------------------------------------------------


def test_each_task_has_its_class(saved):
    assert type(loading.load_model(source(saved / "llama"))) is transformers.LlamaForCausalLM
    assert type(loading.load_model(source(saved / "bart", "seq2seq"))) is transformers.BartForConditionalGeneration
    model = loading.load_model(source(saved / "llama", "classification"), 2, {0: "no", 1: "yes"})
    assert type(model) is transformers.LlamaForSequenceClassification
    assert (model.config.num_labels, model.config.id2label, model.config.label2id) == (
        2,
        {0: "no", 1: "yes"},
        {"no": 0, "yes": 1},
    )
    assert model.config.problem_type == "single_label_classification"
    model = loading.load_model(source(saved / "bert", "regression"), 1)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert model.classifier.out_features == 1


def test_weights_equal_the_stored_ones(saved):
    loaded, original = loading.load_model(source(saved / "llama")), tiny_llama()
    assert not loaded.training
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("asked", "got"), [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float16)]
)
def test_weights_have_the_requested_dtype(saved, tmp_path, asked, got):
    tiny_llama().to(torch.float16).save_pretrained(tmp_path / "half")
    assert loading.load_model(source(tmp_path / "half", dtype=asked)).dtype == got


def test_a_stored_head_with_other_classes_is_replaced(saved):
    same = loading.load_model(source(saved / "bert", "classification"), 3)
    assert torch.equal(same.classifier.weight, tiny_bert(num_labels=3).classifier.weight)
    assert loading.load_model(source(saved / "bert", "classification"), 2).classifier.out_features == 2


def test_a_tokenizer_without_pad_token_gets_one(saved, tmp_path):
    assert loading.load_tokenizer(source(saved / "llama")).pad_token_id == 0
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert loading.load_tokenizer(source(saved / "llama", tokenizer=str(tmp_path))).pad_token == "</s>"


def test_the_target_tokenizer_is_loaded_if_named(saved):
    assert loading.load_target_tokenizer(source(saved / "bart", "seq2seq")) is None
    named = source(saved / "bart", "seq2seq", {"target_tokenizer": str(saved / "llama")})
    assert loading.load_target_tokenizer(named).name_or_path == str(saved / "llama")


def test_a_tilde_is_expanded_to_the_home_directory(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved))
    assert loading.load_model(source("~/llama")).config.vocab_size == 97
    assert loading.load_tokenizer(source("~/llama")).vocab_size == 97


def test_the_model_takes_the_pad_token_of_the_tokenizer(llama):
    edit_config(llama, pad_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    ensure_pad_token(tokenizer)
    model = loading.load_model(source(llama, "classification"), 2, tokenizer=tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 2
    # A classifier on a decoder reads the last token that is not padding: padding must not change its answer.
    with torch.no_grad():
        short = model(torch.tensor([[5, 6]])).logits
        padded = model(torch.tensor([[5, 6, 2, 2]]), attention_mask=torch.tensor([[1, 1, 0, 0]])).logits
    torch.testing.assert_close(short, padded)


def test_max_positions():
    assert loading.max_positions(tiny_llama().config) == 256
    assert loading.max_positions(tiny_roberta().config) == 129
    assert loading.max_positions(transformers.T5Config()) is None
    model = tiny_roberta()
    model(torch.full((1, 129), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 130), 5))


def test_real_models_load(shared_dir, stories):
    tokenizer = loading.load_tokenizer(source(stories))
    model = loading.load_model(source(stories), tokenizer=tokenizer)
    assert model.config.vocab_size == len(tokenizer) == 512
    folder = shared_dir / "models" / "bart-g2p"
    named = source(folder, "seq2seq", {"target_tokenizer": str(folder / "target")})
    assert loading.load_model(named, tokenizer=loading.load_tokenizer(named)).config.decoder_start_token_id == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_missing_directory_is_refused_with_the_nearest_name(saved):
    wrong = saved / "lama"
    assert refused(wrong) == f"The model folder {wrong} does not exist. Did you mean 'llama'?"
    assert "is a file. Give the folder it is in" in refused(saved / "llama" / "config.json")
    for name in (wrong, saved / "llama" / "config.json"):  # validate says it once, though two loaders find it
        with pytest.raises(BALoraError) as error:
            loading.load_tokenizer(source(name))
        assert str(error.value) == refused(name)
    with pytest.raises(BALoraError, match=r"The folder .*tok \(data\.target_tokenizer\) does not exist"):
        loading.load_target_tokenizer(source(saved / "bart", "seq2seq", {"target_tokenizer": str(saved / "tok")}))


def test_a_directory_without_config_is_refused(llama):
    (llama / "config.json").unlink()
    assert refused(llama) == f"The model folder {llama} has no config.json, so it is not a transformers model."
    (llama / "adapter_config.json").write_text("{}")
    assert "It holds an adapter. Give the model the adapter was made for" in refused(llama)
    (llama / "adapter_config.json").rename(llama / "run.json")
    assert "It holds a run. Give the model that was trained" in refused(llama)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "it is not JSON"), ("{}", "has no model_type"), ('{"model_type": "nonesuch"}', "nonesuch")],
)
def test_a_broken_config_is_refused(llama, text, said):
    (llama / "config.json").write_text(text)
    message = refused(llama)
    assert str(llama) in message
    assert said in message


def test_a_hub_id_without_network_is_refused(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = "nobody-here/no-such-model (model) is no local folder, and as a hub id it could not be reached. Check the"
    assert said in refused("nobody-here/no-such-model")
    with pytest.raises(BALoraError, match=r"could not be reached\. Check the connection"):
        loading.load_tokenizer(source("nobody-here/no-such-model"))
    assert loading.model_problems(source("nobody-here/no-such-model")) == []


def _raising(monkeypatch, error: Exception) -> None:
    def from_pretrained(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError("x is not a local folder and is not a valid model identifier listed on the hub"),
            "There is no model x",
        ),
        (OSError("You are trying to access a gated repo. Log in."), "you have no access to it"),
        (OSError("Something else.\nMore of it."), "cannot be loaded: Something else."),
    ],
)
def test_errors_of_the_hub_are_explained(monkeypatch, error, said):
    _raising(monkeypatch, error)
    assert said in refused("x")


def test_pickled_weights_are_refused_unless_allowed(llama):
    torch.save(tiny_llama().state_dict(), llama / "pytorch_model.bin")
    assert loading.load_model(source(llama)) is not None, "safetensors beside them are taken"
    (llama / "model.safetensors").unlink()
    message = refused(llama)
    assert "are in pickle form (pytorch_model.bin), which can run any code on loading" in message
    assert "Convert them once" in message
    assert "allow_pickle: true" in message
    allowed = loading.load_model(source(llama, allow_pickle=True))
    assert torch.equal(allowed.lm_head.weight, tiny_llama().lm_head.weight)


def test_pickled_weights_on_the_hub_are_refused(saved, monkeypatch):
    def from_pretrained(*_, use_safetensors, **__):
        assert use_safetensors is True
        raise OSError(
            "x does not appear to have a file named model.safetensors and thus cannot be loaded with `safetensors`."
        )

    monkeypatch.setattr(loading, "load_config", lambda source: transformers.AutoConfig.from_pretrained(saved / "llama"))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    assert "x has no weights in safetensors form, only in pickle form" in refused("x")


def test_missing_weights_are_refused(llama):
    (llama / "model.safetensors").unlink()
    assert refused(llama) == f"The model folder {llama} has no weights (model.safetensors)."
    (llama / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert "are incomplete: model-00001-of-00002.safetensors is missing" in refused(llama)
    (llama / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json is damaged" in refused(llama)


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_damaged_weights_are_refused(llama, size):
    path = llama / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:size])
    message = refused(llama)
    assert message.startswith(f"The weights file {path} is damaged (")
    assert message.endswith("Copy or download it again.")


def test_every_shard_is_loaded_and_checked(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(loading.load_model(source(tmp_path / "m")).lm_head.weight, tiny_llama().lm_head.weight)
    shards[1].write_bytes(shards[1].read_bytes()[:-3])
    assert f"{shards[1]} is damaged" in refused(tmp_path / "m")


def test_code_that_comes_with_a_model_is_refused(llama):
    code = "raise SystemExit('this must never run')"
    for name in ("configuration_own", "modeling_own"):
        (llama / f"{name}.py").write_text(code)
    edit_config(
        llama,
        model_type="own",
        auto_map={"AutoConfig": "configuration_own.A", "AutoModelForCausalLM": "modeling_own.B"},
    )
    message = refused(llama)
    assert "needs code that comes with it" in message
    assert "trust_remote_code: true" in message
    edit_config(llama, model_type="llama")
    assert type(loading.load_model(source(llama))).__module__.startswith("transformers."), (
        "it has no need of its own code"
    )


def test_code_that_comes_with_a_tokenizer_is_refused(llama):
    (llama / "own.py").write_text("raise SystemExit('this must never run')")
    path = llama / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.A", None]}, "tokenizer_class": "A"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    edit_config(llama, model_type="own")
    with pytest.raises(BALoraError, match=r"The tokenizer of .* needs code that comes with it"):
        loading.load_tokenizer(source(llama))


def test_a_directory_without_tokenizer_is_refused(llama):
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BALoraError, match=r"\(model\) has no tokenizer\. Name a folder or hub id that has one"):
        loading.load_tokenizer(source(llama))


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_refused(llama, text):
    (llama / "tokenizer.json").write_text(text)
    with pytest.raises(BALoraError, match=r"The tokenizer of .* cannot be loaded: "):
        loading.load_tokenizer(source(llama))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(saved, tmp_path):
    large = tiny_tokenizer(vocab=120)
    large.save_pretrained(tmp_path)
    with pytest.raises(
        BALoraError, match=r"has 120 tokens and the model .* knows 97\. Take the tokenizer that belongs"
    ):
        loading.load_model(source(saved / "llama"), tokenizer=large)
    assert "has 120 tokens" in refused(saved / "bart", "seq2seq", {"target_tokenizer": str(tmp_path)})
    small = tiny_tokenizer(vocab=50)
    assert loading.load_model(source(saved / "llama"), tokenizer=small) is not None


@pytest.mark.parametrize(
    ("model", "task", "said"),
    [
        ("bart", "generation", "is an encoder-decoder model (bart). Use task: seq2seq"),
        ("bert", "generation", "is an encoder (bert), which does not generate text"),
        (
            "llama",
            "seq2seq",
            "is a llama model, which cannot do task seq2seq. It can do generation, classification, regression",
        ),
        ("bert", "seq2seq", "is a bert model, which cannot do task seq2seq"),
    ],
)
def test_an_architecture_that_cannot_do_the_task_is_refused(saved, model, task, said):
    assert said in refused(saved / model, task)


def test_weights_for_fewer_layers_are_refused(llama):
    edit_config(llama, num_hidden_layers=3)
    message = refused(llama)
    assert "do not fill a LlamaForCausalLM" in message
    assert "tensors would be random, such as model.layers.2." in message
    assert "do not fill a LlamaForSequenceClassification" in refused(llama, "classification", num_labels=2)


def test_weights_of_another_shape_are_refused(llama):
    edit_config(llama, intermediate_size=64)
    assert "should be 32 x 64" in refused(llama)
    assert "do not fill" in refused(llama, "classification", num_labels=2)


def test_out_of_memory_is_not_reported_as_bad_input(saved, monkeypatch):
    def from_pretrained(*_, **__):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(torch.OutOfMemoryError):
        loading.load_model(source(saved / "llama"))


def test_all_problems_are_found_without_loading(saved, llama):
    (llama / "model.safetensors").write_bytes(b"")
    edit_config(llama, is_encoder_decoder=True)
    assert len(loading.model_problems(source(llama))) == 2
    assert loading.model_problems(source(saved / "llama")) == []


def test_shards_without_their_index_and_weights_of_another_name_are_explained(tmp_path, llama):
    tiny_llama().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    assert "lack model.safetensors.index.json, which says which file has which tensor" in refused(tmp_path / "m")
    (llama / "model.safetensors").rename(llama / "model.fp16.safetensors")
    assert "has model.fp16.safetensors, but transformers reads model.safetensors. Rename" in refused(llama)
