"""Progress on the screen: the bar, the lines, the result."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

import balora as library
from balora.config.run_config import RunConfig
from balora.logging_control import _EachOnce
from balora.training.progress import ProgressBar, ProgressLines, RunScreen, next_commands, result_lines
from command import Command
from small_runs import trainer
from tiny import pair_rows, tiny_bart, tiny_llama, token_rows

CONFIG = RunConfig.from_dict(
    {"model": "m", "task": "generation", "data": {"train": "d.jsonl", "text": "t"}, "output": "runs/a b"}
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def adapted() -> object:
    return library.adapt(tiny_llama(), rank=4)


def test_the_bar_shows_steps_loss_speed_and_time(tmp_path: Path) -> None:
    screen, lines = io.StringIO(), []
    run = trainer(adapted(), tmp_path, eval_dataset=token_rows(8), eval_strategy="steps", eval_steps=2)
    bar = ProgressBar(run, Console(file=screen, force_terminal=True, width=80), lines.append)
    run.add_callback(bar)
    run.train()
    shown = ESCAPES.sub("", screen.getvalue())
    rows = re.split(r"[\r\n]+", shown)
    assert any(re.search(r"step [1-4]/4 .* loss \d\S* +[\d,]+ tok/s +0:0\d left", row) for row in rows), rows
    assert "evaluating" in shown
    assert max(map(len, rows)) <= 80
    assert [line[:8] for line in lines] == ["step 2/4", "step 4/4"]
    assert all("eval_loss" in line for line in lines)
    assert bar._progress is None


def test_lines_have_the_speed_and_do_not_repeat(tmp_path: Path) -> None:
    lines: list[str] = []
    run = trainer(adapted(), tmp_path, eval_dataset=token_rows(8), eval_strategy="steps", eval_steps=4)
    run.add_callback(ProgressLines(run, lines.append))
    run.train()
    run.evaluate()
    assert len(lines) == 5  # four steps and one evaluation, although it was run twice
    assert re.search(r"step 2/4 .*[\d,]+ tok/s  0:0\d left", lines[1])


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_tokens_are_counted_without_padding(tmp_path: Path, kind: str) -> None:
    rows = token_rows(16) if kind == "causal" else pair_rows(16)
    model = adapted() if kind == "causal" else library.adapt(tiny_bart(), rank=4)
    run = trainer(model, tmp_path, rows=rows, max_steps=-1, num_train_epochs=1)
    run.train()
    expected = sum(len(row["input_ids"]) + (len(row["labels"]) if kind == "seq2seq" else 0) for row in rows)
    assert run.take_tokens() == expected
    assert run.take_tokens() == 0


def test_a_result_has_three_lines_and_commands_to_copy() -> None:
    metrics = {
        "train_runtime": 75.4,
        "train_loss": 0.5,
        "eval_loss": 0.25,
        "eval_runtime": 1.0,
        "eval_samples_per_second": 9.0,
    }
    lines = result_lines(CONFIG, metrics, 12, Path("runs/a b/adapter"), 1234)
    assert lines[:2] == ["Trained 12 steps in 1:15, loss 0.5", "Evaluation: loss 0.25"]
    assert lines[2].startswith("Saved in runs/a b/adapter: 1,234 trained parameters of m")
    assert "not measured" in result_lines(CONFIG, {}, 12, Path("x"), 1)[1]
    held = {"anchor_drift": 0.0312, "anchor_drift_error": 0.002, "anchor_budget": 0.03, "anchor_scale": 0.93}
    line = result_lines(CONFIG, held, 12, Path("x"), 1)[0]
    assert line.endswith(
        "drift 0.0312 ± 0.002 nats a token on the anchors held out (budget 0.03), 93% of the change kept"
    )
    assert next_commands(CONFIG, Path("runs/a b"))[0] == "balora chat 'runs/a b'"


def test_a_stage_is_shown_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    with RunScreen(print, bars=None).stage("loading"):
        pass
    assert capsys.readouterr() == ("", "")
    assert not RunScreen(print, "quiet", bars=True).bars


def test_a_warning_passes_once_and_remarks_always() -> None:
    each_once = _EachOnce()

    def passes(level: int, text: str) -> bool:
        return bool(each_once.filter(logging.LogRecord("balora", level, "f", 1, text, (), None)))

    assert [passes(logging.WARNING, "a"), passes(logging.WARNING, "a"), passes(logging.WARNING, "b")] == [
        True,
        False,
        True,
    ]
    assert [passes(logging.INFO, "c"), passes(logging.INFO, "c")] == [True, True]


def test_the_command_ends_with_the_result(balora: Command, config: Path) -> None:
    outcome = balora("train", config)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[-7].startswith("Trained 6 steps in 0:0")
    assert lines[-6].startswith("Evaluation: ")
    assert lines[-4] == "Next:"
    assert "Loading weights" not in outcome.err


def test_a_quiet_run_says_nothing(balora: Command, config: Path) -> None:
    outcome = balora("train", "-q", config)
    assert (outcome.status, outcome.out) == (0, ""), outcome.err
    assert outcome.err == ""
    refused = balora("train", "-q", "-v", config)
    assert refused.status == 2
    assert "contradict" in refused.err
