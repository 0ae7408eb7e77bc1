"""Exports: the notes on serving, the dtype, and the upload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import balora as library
from balora.data.conversations.chat_templates import CHAT_TEMPLATES
from balora.errors import BALoraError
from balora.exporting import upload as uploading
from balora.exporting.gguf import gguf_notes
from balora.exporting.modelfile import modelfile, turn_template
from balora.exporting.rounding import round_model, round_tensors
from balora.exporting.serving import vllm_problem, write_serving
from command import Command
from tiny import tiny_llama, tiny_tokenizer

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "kept_runs"
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|system|>Be kind.</s>{% endif %}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRIPPING = CHAT_TEMPLATES["zephyr"].replace(
    "message['content'] + eos_token }}{% end", "message['content'][:2] }}{% end"
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("base", "finished"):
        shutil.copytree(FIXTURE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class FakeHub:
    """The methods of `huggingface_hub.HfApi` that an upload calls, over a folder."""

    def __init__(self, root: Path, *, existing: bool | None = None, error: Exception | None = None) -> None:
        self.root, self.private, self.error = root, existing, error

    def whoami(self) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        return {"name": "me"}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool, repo_type: str) -> SimpleNamespace:
        assert (exist_ok, repo_type) == (True, "model")
        self.private = private if self.private is None else self.private
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: str, repo_type: str, commit_message: str) -> None:
        shutil.copytree(folder_path, self.root / repo_id)

    def repo_info(self, repo_id: str, *, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)


def test_the_command_rounds_uploads_and_writes_how_to_serve(
    balora: Command, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(kept / "hub")
    monkeypatch.setattr(uploading, "_api", lambda: hub)
    call = ("export", "finished", "--to", "lora", "--output", "small", "--dtype", "bfloat16", "--push", "me/small")
    outcome = balora(*call)
    assert outcome.status == 0, outcome.err
    assert "Rounded to bfloat16: relative error 0.00" in outcome.out
    assert "(private)" in outcome.out
    assert "names its base as the folder" in outcome.out
    assert {tensor.dtype for tensor in load_file("small/adapter_model.safetensors").values()} == {torch.bfloat16}
    assert {path.name for path in (kept / "hub/me/small").iterdir()} >= {"README.md", "adapter_config.json"}
    text = Path("small/SERVING.md").read_text()
    rank = json.loads(Path("small/adapter_config.json").read_text())["r"]
    assert f"It is {rank} and not the {rank // 2} of the training" in text
    assert "--max-lora-rank" in text
    for wrong, message in (
        (("--dtype", "int8"), "--dtype must be float32, bfloat16, float16"),
        (("--public",), "--public is for --push"),
        (("--push", "a/b/c"), "is no name of a repository"),
    ):
        refused = balora("export", "finished", "--to", "lora", "--output", "other", *wrong)
        assert refused.status == 2
        assert message in refused.err
    hub.error = ConnectionError("offline")
    refused = balora("export", "finished", "--to", "lora", "--output", "other", "--push", "me/other")
    assert (refused.status, Path("other").exists()) == (2, False)
    assert "the hub cannot be reached, so nothing was exported" in refused.err


def test_a_merged_model_is_summed_before_it_is_rounded(kept: Path) -> None:
    library.export("finished", to="merged", output="exact")
    report = library.export("finished", to="merged", output="half", dtype="float16")
    exact, half = load_file("exact/model.safetensors"), load_file("half/model.safetensors")
    assert all(torch.equal(half[name], tensor.to(torch.float16)) for name, tensor in exact.items())
    squares = sum(float((exact[name] - half[name].float()).double().square().sum()) for name in exact)
    whole = sum(float(tensor.double().square().sum()) for tensor in exact.values())
    assert report.rounding is not None
    assert report.rounding.error == pytest.approx((squares / whole) ** 0.5, rel=0.05)
    assert Path("half/Modelfile").read_text().startswith("FROM ./model.gguf\n")
    assert "convert_hf_to_gguf.py" in Path("half/SERVING.md").read_text()


def test_a_value_that_would_overflow_is_refused() -> None:
    with pytest.raises(BALoraError, match=r"big has a value of 1e\+05, which float16 cannot hold"):
        round_tensors({"big": torch.tensor([1e5])}, torch.float16)
    layer = nn.Linear(1, 1)
    layer.weight.data.fill_(1e5)
    with pytest.raises(BALoraError, match="weight has a value"):
        round_model(layer, torch.float16)
    assert round_tensors({"big": torch.tensor([1e5])}, torch.bfloat16)[1].error > 0


def test_an_upload_keeps_the_visibility_and_the_export(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    said = uploading.upload(tmp_path / "out", "me/x", api=FakeHub(tmp_path / "hub", existing=False))
    assert said.endswith("It existed already and stays public.")
    with pytest.raises(BALoraError, match=r"The export is in .*out, and its upload to me/x failed"):
        uploading.upload(tmp_path / "out", "me/x", api=FakeHub(tmp_path / "hub"))  # it has the folder already
    with pytest.raises(BALoraError, match=r"not logged in to the hub \(401\), so nothing was exported"):
        uploading.check_upload("me/x", FakeHub(tmp_path, error=ValueError("401")))


@pytest.mark.parametrize(("template", "told"), [
    (CHAT_TEMPLATES["zephyr"], True), (CHAT_TEMPLATES["chatml"], True), (DEFAULT_SYSTEM, True), (STRIPPING, False),
    ("{% for m in messages %}{{ m['content'] | trim | upper }}{% endfor %}", False),
])  # fmt: skip
def test_a_chat_template_becomes_a_modelfile(tmp_path: Path, template: str, told: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    found = turn_template(tokenizer)
    assert (found is not None) == told
    text, notes = modelfile(tmp_path, tokenizer, "./w.gguf")
    assert ("TEMPLATE" in text) == told
    assert any("no TEMPLATE" in note for note in notes) == (not told)
    if found is not None:
        assert found.as_go().startswith('{{ range .Messages }}{{ if eq .Role "system" }}<|')
    if template is DEFAULT_SYSTEM:
        assert 'SYSTEM """Be kind."""' in text
        assert 'PARAMETER stop "</s>"' in text


def test_the_folder_is_compared_with_what_the_converter_reads(tmp_path: Path) -> None:
    tiny_llama().to(torch.float64).save_pretrained(tmp_path)
    notes = gguf_notes(tmp_path)
    assert any("no tokenizer that the converter reads" in note for note in notes)
    assert any("(F64)" in note and "--dtype" in note for note in notes)
    assert not any("table for this architecture" in note for note in notes)
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_llama().save_pretrained(tmp_path)
    assert not any("not compared" not in note for note in gguf_notes(tmp_path))
    write_serving(tmp_path, tiny_tokenizer())
    assert (tmp_path / "Modelfile").is_file()


def test_what_vllm_would_not_load_is_said() -> None:
    assert vllm_problem({"r": 16}) is None
    for adapter in ({"r": 1024}, {"r": 8, "use_dora": True}, {"r": 8, "modules_to_save": ["lm_head"]}):
        assert "--to merged" in str(vllm_problem(adapter))
