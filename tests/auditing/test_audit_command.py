"""The command: bounds and status, JSON, resuming, messages, and the page in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from balora.auditing.options import AuditOptions
from balora.auditing.samples import distinct, distinct_left_out
from balora.auditing.verdicts import judge
from balora.errors import BALoraError
from browser import open_browser
from command import Command
from tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    tiny_llama().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "lora")
    (folder / "text.txt").write_text("\n\n".join(f"a paragraph <b>number</b> {n}" for n in range(12)))
    return folder


def test_bounds_json_and_resume(balora: Command, folder: Path, tmp_path: Path) -> None:
    common = ["audit", folder / "lora", "--text", folder / "text.txt", "--output", tmp_path / "a"]
    first = balora(
        *common, "--generate", 4, "--generated-tokens", 8, "--fail-if", "drift > 1e-9, drift.perplexity.base < 0"
    )
    assert first.status == 3
    assert "Bound broken: drift > 1e-09: it is" in first.err and "perplexity" not in first.err
    result = json.loads((tmp_path / "a" / "audit.json").read_text())
    again = balora(*common, "--generate", 4, "--generated-tokens", 8, "--json", "-", "--fail-if", "drift > 100")
    assert again.status == 0 and "All parts were measured before" in again.err
    assert json.loads(again.out)["measures"] == result["measures"]
    for name in ("weights.json",):  # a part that is missing is measured again, with the same numbers
        (tmp_path / "a" / "parts" / name).unlink()
    third = balora(*common, "--generate", 4, "--generated-tokens", 8)
    assert "weights, tuned" in third.out and "drift, tuned" not in third.out
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["measures"] == result["measures"]
    other = balora(*common[:-1], tmp_path / "b", "--generate", 4, "--generated-tokens", 8)  # deterministic
    assert other.status == 0
    assert json.loads((tmp_path / "b" / "audit.json").read_text())["measures"] == result["measures"]
    summary = (tmp_path / "a" / "audit.md").read_text()
    assert "| Does it still say what it said on other text? |" in summary and "## Not measured" in summary
    assert {"bias", "tasks", "noise"} <= result["not_measured"].keys()


def test_against_and_page(balora: Command, folder: Path, tmp_path: Path) -> None:
    done = balora(
        "audit", folder / "lora", "--text", folder / "text.txt", "--output", tmp_path, "--against", folder / "base",
        "--base", folder / "base", "--generate", 4, "--generated-tokens", 8,
    )  # fmt: skip
    assert done.status == 0
    page = tmp_path / "audit.html"
    assert "<b>number</b>" not in page.read_text()
    other = json.loads((tmp_path / "audit.json").read_text())["against"]
    assert other["measures"]["drift"]["value"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    with open_browser() as browser:
        for width, dark in ((1200, False), (390, True)):
            view = browser.open(page, width, dark=dark)
            assert view.problems == [] and len(view.requested) == 1 and view.scroll_width <= width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-if", "drift"], "'drift' is not a bound"),
        (["--fail-if", "drfit > 1"], "Did you mean 'drift'"),
        (["--bias", "crows_pair"], "Did you mean 'crows_pairs'"),
        (["--bias", "winobias"], "--bias-data DIR"),
        (["--tasks", "gsm9k"], "gsm8k"),
        (["--text", "missing.jsonl"], "There is no file or folder missing.jsonl (--text)"),
        (["--columns", "body"], "--columns must have the form"),
        (["--text", "TEXT", "--columns", "txt=body"], "Did you mean 'text'"),
    ],
)
def test_mistakes(balora: Command, folder: Path, arguments: list[str], message: str) -> None:
    given = [str(folder / "text.txt") if value == "TEXT" else value for value in arguments]
    outcome = balora("audit", folder / "lora", *given)
    assert outcome.status == 2 and message in outcome.err and "Traceback" not in outcome.err


def test_bound_on_what_was_not_measured(balora: Command, folder: Path, tmp_path: Path) -> None:
    outcome = balora(
        "audit", folder / "lora", "--text", folder / "text.txt", "--output", tmp_path, "--fail-if", "noise.ece > 0.1"
    )
    assert outcome.status == 2 and "noise.ece was not measured" in outcome.err


def test_other_tokenizer_is_refused(balora: Command, folder: Path, tmp_path: Path) -> None:
    tiny_llama(seed=1).save_pretrained(tmp_path / "tuned")
    tokenizer = tiny_tokenizer()
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "tokenizer.json").write_text(json.dumps(values))
    outcome = balora(
        "audit", tmp_path / "tuned", "--base", folder / "base", "--generate", 0, "--output", tmp_path / "a"
    )
    assert outcome.status == 2 and "different numbers" in outcome.err


def test_verdicts() -> None:
    def verdict(low: float, high: float, name: str = "drift") -> str | None:
        return judge(name, {"value": {"value": (low + high) / 2, "low": low, "high": high}})

    assert [verdict(0.0, 0.005), verdict(0.005, 0.02), verdict(0.02, 0.03)] == ["unchanged", "doubtful", "changed"]
    assert verdict(0.0, 1.0, "drift.p95") is None
    fall = {"change": {"value": 0.2, "low": 0.1, "high": 0.3}, "base": {"value": 0.5}}
    assert judge("collapse.recall.rare", fall) == "unchanged"  # a better recall is no collapse
    assert judge("collapse.distinct_1", fall) == "changed"


def test_distinct_without_each_answer() -> None:
    rows = [[1, 2, 3], [1, 2, 2], [4], []]
    for n in (1, 2):
        expected = [distinct(rows[:at] + rows[at + 1 :], n) for at in range(len(rows))]
        assert distinct_left_out(rows, n) == pytest.approx(expected)


def test_options_list_every_problem() -> None:
    with pytest.raises(BALoraError, match="documents must be") as error:
        AuditOptions(documents=0, generate=-1, dtype="float8")
    assert "generate must be" in str(error.value) and "float8" in str(error.value)


def test_messages_about_cut_documents_name_the_option(caplog: pytest.LogCaptureFixture) -> None:
    from balora.auditing.documents import _other_words, logger

    message = "3 of 4 training rows are longer than 5 tokens (data.max_length) and were cut."
    for flag in ("--text", None):
        with _other_words(flag):
            logger.warning(message)
    assert [record.getMessage() for record in caplog.records] == [
        "--text: 3 of 4 rows are longer than 5 tokens (--tokens) and were cut.",
        message,
    ]
