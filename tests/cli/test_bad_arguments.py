"""Bad arguments of every verb, and damaged files of a run: status 2 and one message, without a traceback."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import tiny_llama, tiny_tokenizer

SECONDS = 15.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a config, an empty folder and a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "{model: m, task: generation, data: {train: d.jsonl, prompt: p, response: r}, output: out}"
    )
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    return tmp_path


ARGUMENTS: list[tuple[str, list[str]]] = [
    ("", ["Usage"]),
    ("nonsense", ["No such command"]),
    ("--nonsense", ["No such option"]),
    # train, validate and teacher take a config.
    *(
        (f"{verb} {rest}", words)
        for verb in ("train", "validate", "teacher")
        for rest, words in (
            ("", ["Missing argument"]),
            ("empty", ["is a folder"]),
            ("file", ["key: value"]),
            ("absent.yaml", ["no config file"]),
            ("run.yaml --nonsense", ["No such option"]),
            ("run.yaml rank", ["dotted.key=value"]),
            ("run.yaml =3", ["dotted.key=value"]),
            ("run.yaml method.rank=", ["m"]),
            ("run.yaml method.rank=[", ["not valid YAML"]),
            ("run.yaml method.rank=1e400", ["method.rank"]),
            ("run.yaml model.x=3", ["not a section"]),
            ("run.yaml lora_r=8", ["method.rank"]),
        )
    ),
    ("teacher run.yaml --top-k many", ["--top-k"]),
    ("teacher run.yaml --top-k 0", ["--top-k"]),
    ("teacher run.yaml --top-k=-5", ["--top-k"]),
    # methods.
    ("methods loraa", ["Did you mean 'lora'?"]),
    ("methods lora extra", ["extra"]),
    ("methods --nonsense", ["No such option"]),
    # compare.
    ("compare", ["Missing argument"]),
    ("compare absent.yaml", ["no config file"]),
    ("compare run.yaml --methods ''", ["--methods"]),
    ("compare run.yaml --methods ,", ["--methods"]),
    ("compare run.yaml --methods lora,lora", ["lora"]),
    ("compare run.yaml --methods loraa", ["Did you mean 'lora'?"]),
    ("compare run.yaml --seeds ''", ["--seeds"]),
    ("compare run.yaml --seeds one", ["--seeds"]),
    ("compare run.yaml --seeds 1.5", ["--seeds"]),
    ("compare run.yaml --seeds=-1", ["seed"]),
    ("compare run.yaml --seeds 1,1", ["1"]),
    ("compare run.yaml --seeds 99999999999999999999", ["seed"]),
    ("compare run.yaml --vary rank", ["--vary"]),
    ("compare run.yaml --vary method.rank=", ["--vary"]),
    ("compare run.yaml --vary =4,8", ["--vary"]),
    ("compare run.yaml --vary method.rnak=4,8", ["method.rnak"]),
    ("compare run.yaml --vary method.rank=[", ["--vary"]),
    ("compare run.yaml --vary method.rank=0,4", ["method.rank"]),
    ("compare run.yaml --vary seed=1,2", ["seed"]),
    ("compare run.yaml --vary output=a,b", ["output"]),
    ("compare run.yaml --jobs 0", ["--jobs"]),
    ("compare run.yaml --jobs many", ["--jobs"]),
    ("compare run.yaml --engine slurm", ["--engine"]),
    ("compare run.yaml --baseline pisa", ["pisa"]),
    ("compare run.yaml --output file", ["file"]),
    # reproduce.
    ("reproduce", ["Missing argument"]),
    ("reproduce tabel4", ["Did you mean 'table4'?"]),
    ("reproduce table4 --scale large", ["--scale"]),
    ("reproduce table4 --seeds x", ["--seeds"]),
    ("reproduce table4 --seeds=-1", ["seed"]),
    ("reproduce table4 --jobs 0", ["--jobs"]),
    ("reproduce table4 --shared absent", ["absent"]),
    ("reproduce table4 --scale paper --recipes absent", ["absent"]),
    ("reproduce table4 nonsense", ["dotted.key=value"]),
    ("reproduce table1 --judge-url http://x", ["--judge-model"]),
    ("reproduce table4 --output file", ["file"]),
    # export.
    ("export", ["Missing"]),
    ("export empty", ["--to"]),
    ("export empty --to lora", ["--output"]),
    ("export empty --to gguf --output x", ["--to must be lora or merged"]),
    ("export absent --to lora --output x", ["absent"]),
    ("export file --to lora --output x", ["file"]),
    ("export empty --to lora --output x", ["empty"]),
    ("export empty --to lora --output file", ["file"]),
    # evaluate.
    ("evaluate", ["Missing argument"]),
    ("evaluate empty", ["--tasks"]),
    ("evaluate empty --tasks ''", ["Name the tasks"]),
    ("evaluate empty --tasks gsm9k", ["gsm8k"]),
    ("evaluate empty --tasks gsm8k", ["empty"]),
    ("evaluate file --tasks gsm8k", ["file"]),
    ("evaluate ./absent --tasks gsm8k", ["absent"]),
    ("evaluate empty --tasks gsm8k --data x", ["TASK=PATH"]),
    ("evaluate empty --tasks gsm8k --data gms8k=x", ["gms8k"]),
    ("evaluate empty --tasks gsm8k --limit 0", ["limit"]),
    ("evaluate empty --tasks gsm8k --limit 1e9", ["--limit"]),
    ("evaluate empty --tasks gsm8k --batch-size 0", ["batch"]),
    ("evaluate empty --tasks gsm8k --batch-size=-1", ["batch"]),
    ("evaluate empty --tasks gsm8k --max-new-tokens 0", ["max"]),
    ("evaluate empty --tasks gsm8k --temperature=-1", ["temperature"]),
    ("evaluate empty --tasks gsm8k --top-p nan", ["top"]),
    ("evaluate empty --tasks gsm8k --top-p 0", ["top"]),
    ("evaluate empty --tasks humaneval --samples 0", ["samples"]),
    ("evaluate empty --tasks humaneval --k x", ["--k"]),
    ("evaluate empty --tasks humaneval --k ''", ["--k"]),
    ("evaluate empty --tasks humaneval --k 10", ["samples"]),
    ("evaluate empty --tasks humaneval --code-timeout 0", ["timeout"]),
    ("evaluate empty --tasks humaneval --workers 0", ["workers"]),
    ("evaluate empty --tasks gsm8k --engine onnx", ["engine"]),
    ("evaluate empty --tasks gsm8k --dtype float31", ["dtype"]),
    # report.
    ("report", ["Missing argument"]),
    ("report absent", ["absent"]),
    ("report empty", ["empty"]),
    ("report file", ["file"]),
    ("report empty --samples=-1", ["--samples"]),
    ("report empty --output empty", ["empty"]),
    # quickstart.
    ("quickstart --output file", ["file"]),
    ("quickstart extra", ["extra"]),
]


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS)
def test_bad_arguments(balora, folder: Path, arguments: str, words: list[str]) -> None:
    before, start = sorted(folder.rglob("*")), time.process_time()
    outcome = balora(*[part.strip("'") for part in arguments.split()])
    assert time.process_time() - start < SECONDS
    told = outcome.err + (outcome.out if arguments.startswith("validate") or not arguments else "")
    assert outcome.status == 2, f"{outcome.status}: {told}"
    assert "Traceback" not in told and "balora: unexpected" not in told, told
    for word in words:
        assert word in told, told
    assert sorted(folder.rglob("*")) == before, "nothing was written"


# Files of a run.

RUN = {"status": "running", "data": {"digest": "x"}, "provenance": {}}
WRONG_JSON = ["", "[]", "null", "7", '"text"', "{", "[" * 100_000, "\ufeff[", "\0"]


@pytest.fixture
def run(folder: Path) -> Path:
    """Run directory without weights; the model it names is there."""
    tiny_llama().save_pretrained(folder / "m")
    tiny_tokenizer().save_pretrained(folder / "m")
    (folder / "d.jsonl").write_text('{"p": "what is 1 plus 2?", "r": "it is 3."}\n' * 8)
    config = (
        "{model: m, task: generation, data: {train: d.jsonl, prompt: p, response: r}, method: {name: lora, rank: 2}, "
        "training: {max_steps: 1, use_cpu: true, disable_tqdm: true}, output: out}"
    )
    (folder / "run.yaml").write_text(config)
    (folder / "out").mkdir()
    (folder / "out" / "config.yaml").write_text(config)
    (folder / "out" / "run.json").write_text(json.dumps(RUN))
    return folder / "out"


@pytest.mark.parametrize("content", WRONG_JSON)
def test_a_damaged_record_is_named_by_every_verb(balora, run: Path, content: str) -> None:
    (run / "run.json").write_text(content, encoding="utf-8")
    for arguments in (("train", "run.yaml"), ("report", "out"), ("evaluate", "out", "--tasks", "gsm8k")):
        outcome = balora(*arguments)
        assert outcome.status == 2 and "run.json" in outcome.err, (arguments, outcome.err)
        assert "balora: unexpected" not in outcome.err


@pytest.mark.parametrize(
    "values",
    [
        {"data": "x"}, {"data": [1]}, {"data": {"digest": 5}}, {"data": {"labels": 5}}, {"provenance": "x"},
        {"provenance": {"versions": 5}}, {"metrics": 5}, {"metrics": {"train_loss": "x"}}, {"parameters": [1]},
        {"status": ["finished"]}, {"status": {}}, {"error": {"a": 1}}, {"notices": 5}, {"notices": [1]}, {"resumed": "x"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", ["running", "finished"])
def test_wrong_values_in_a_record_are_named_or_shown(balora, run: Path, status: str, values: dict[str, object]) -> None:
    (run / "run.json").write_text(json.dumps({**RUN, "status": status, **values}))
    outcome = balora("report", "out")
    assert outcome.status in (0, 2), outcome.err
    assert "balora: unexpected" not in outcome.err
    if outcome.status == 2:
        assert "run.json" in outcome.err, outcome.err


Damage = Callable[[Path], object]


def put(name: str, content: str | bytes) -> Damage:
    def damage(run: Path) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (put("config.yaml", ""), ["config.yaml"]),
        (put("config.yaml", "[1]"), ["config.yaml"]),
        (put("config.yaml", b"\xff\xfe\0"), ["config.yaml"]),
        (put("config.yaml", "a: &a [*a]"), ["config.yaml"]),
        (put("config.yaml", "[" * 10_000), ["config.yaml"]),
        (put("config.yaml", "method: 5\nregularization: [1]\nseed: x\n"), ["config.yaml"]),
        (put("evaluation/gsm8k.json", "[]"), ["gsm8k.json"]),
        (put("evaluation/gsm8k.json", '{"scores": {"main": 5}}'), ["gsm8k.json"]),
        (put("evaluation/gsm8k.json", '{"scores": {"main": "accuracy", "accuracy": "x"}}'), ["gsm8k.json"]),
        (put("metrics.jsonl", "[1]\n7\nnull\n{\n"), []),
        (put("metrics.jsonl", '{"step": "x", "loss": "y"}\n'), []),
        (put("metrics.jsonl", b"\xff\xfe\n"), []),
        (put("metrics.jsonl", '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1e400}\n'), []),
    ],
)
def test_report_names_or_skips_damaged_files(balora, run: Path, damage: Damage, words: list[str]) -> None:
    damage(run)
    outcome = balora("report", "out")
    assert outcome.status in (0, 2) and "unexpected" not in outcome.err, outcome.err
    if outcome.status == 2:
        for word in words:
            assert word in outcome.err, outcome.err


@pytest.fixture
def finished(balora, run: Path) -> Path:
    shutil.rmtree(run)
    outcome = balora("train", "run.yaml")
    assert outcome.status == 0, outcome.err
    return run


def test_damaged_files_of_a_finished_run_are_named(balora, finished: Path) -> None:
    """Each file of the result with several wrong contents, one after the other; the run is trained only once."""
    for name in ("manifest.json", "origin.json", "initial.safetensors", "adapter_model.safetensors"):
        path = finished / "adapter" / name
        content = path.read_bytes()
        for wrong in (
            b"",
            b"[]",
            b"null",
            b"{",
            b'{"a": 5}',
            b'{"a": [1, 2, 3]}',
            b'{"a": ["x", "y"]}',
            content[:-1],
            content[:9],
        ):
            path.write_bytes(wrong)
            outcome = balora("export", "out", "--to", "lora", "--output", "x")
            assert outcome.status == 2 and "unexpected" not in outcome.err, (name, wrong[:20], outcome.err)
            assert str(path.parent) in str(Path.cwd() / outcome.err.split(": ", 1)[1]) or "adapter" in outcome.err
            assert not Path("x").exists()
        path.write_bytes(content)
