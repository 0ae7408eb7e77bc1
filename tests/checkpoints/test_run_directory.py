"""The run directory under races, kills and links."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from balora.checkpoints import run_directory
from balora.checkpoints.checkpoint import STAGING
from balora.checkpoints.lock import LOCK, locked
from balora.checkpoints.run_directory import RunDirectory
from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.files import open_to_append, temporary_path, write_text


def directory(output: Path, **changes) -> RunDirectory:
    values = {"model": "m", "task": "generation", "data": {"train": "d.jsonl", "text": "story"}, "output": str(output)}
    return RunDirectory(RunConfig.from_dict({**values, **changes}))


def test_a_run_that_another_process_finished_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    first, second = directory(tmp_path / "run"), directory(tmp_path / "run", seed=7)
    assert first.resume_checkpoint() is second.resume_checkpoint() is None  # both have checked
    with first.lock():
        first.update_record(status="finished")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(BALoraError, match="finished run"), second.lock():
        raise AssertionError("the second run must not start")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_run_that_another_process_has_trained_meanwhile_starts_from_its_checkpoint(tmp_path: Path) -> None:
    first, second = directory(tmp_path / "run"), directory(tmp_path / "run")
    assert second.resume_checkpoint() is None
    with first.lock():
        (tmp_path / "run" / "checkpoint-3").mkdir()
    with pytest.raises(BALoraError, match="Run the same command again"), second.lock():
        raise AssertionError
    with second.lock(tmp_path / "run" / "checkpoint-3"):
        pass


def test_a_locked_directory_is_left_alone(tmp_path: Path) -> None:
    with directory(tmp_path).lock():
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(BALoraError, match="Another process is running"), directory(tmp_path, seed=9).lock():
            raise AssertionError
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def hold(folder: Path, seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with locked(folder, "busy"):
                with open_to_append(log) as file:
                    file.write("in\n")
                time.sleep(0.001)
                with open_to_append(log) as file:
                    file.write("out\n")
        except BALoraError:
            pass


def test_the_lock_admits_one_process_at_a_time_however_often_it_changes_hands(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=hold, args=(tmp_path / "a", 1.0, tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) > 20 and lines == ["in", "out"] * (len(lines) // 2)


@pytest.mark.parametrize("left", [(), (LOCK,), (LOCK, STAGING), (LOCK, ".config.yaml.tmp"), (LOCK, "config.yaml")])
def test_a_kill_before_or_after_the_first_config_does_not_lock_the_folder(
    left: tuple[str, ...], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    for name in left:
        (output / name).mkdir() if name == STAGING else (output / name).write_text("mod")
    run = directory(output)
    assert run.resume_checkpoint() is None
    with run.lock():
        assert sorted(path.name for path in output.iterdir()) == [LOCK, "config.yaml"]
    (output / "config.yaml").rename(output / "notes.txt")
    with pytest.raises(BALoraError, match="not a run's"):
        run.resume_checkpoint()


@pytest.mark.parametrize(
    "name", ["config.yaml", "run.json", "metrics.jsonl", "README.md", "adapter", "checkpoint-5", LOCK, STAGING, "runs"]
)
def test_links_in_the_folder_are_not_followed(name: str, tmp_path: Path) -> None:
    output, target = tmp_path / "run", tmp_path / "elsewhere"
    output.mkdir()
    target.write_text("mine")
    (output / name).symlink_to(target)
    for step in (directory(output).check, directory(output).lock().__enter__):
        with pytest.raises(BALoraError, match=f"{name} is a symbolic link"):
            step()
    assert target.read_text() == "mine" and [path.name for path in output.iterdir() if not path.is_symlink()] in (
        [],
        [LOCK],
    )


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large-disk")
    with directory(tmp_path / "run").lock():
        assert (tmp_path / "large-disk" / "config.yaml").is_file()


def test_a_file_is_written_beside_a_link_and_never_through_it(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "run.json"
    target.write_text("mine")
    for link in (path, temporary_path(path)):
        link.symlink_to(target)
        write_text(path, "new")
        assert path.read_text() == "new" and not path.is_symlink() and target.read_text() == "mine"
    (tmp_path / "log").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        open_to_append(tmp_path / "log")


def test_text_is_utf_8_in_every_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_pyio.text_encoding", lambda *_: "latin-1", raising=False)
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1", raising=False)
    write_text(tmp_path / "a", "été 日本 \udce9")
    assert (tmp_path / "a").read_bytes() == "été 日本 \\udce9".encode()


def test_every_text_file_of_the_package_has_an_encoding() -> None:
    import ast

    source = Path(run_directory.__file__).parents[1]
    missing = []
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(
                keyword.arg in ("encoding", "opener") for keyword in node.keywords
            ):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            positional = [
                arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
            text_open = name == "open" and not owner.endswith(
                ("os", "_opener", "self", "fsspec", "lzma", "gzip", "bz2")
            )
            if text_open and any("b" in mode for mode in positional if len(mode) <= 3):
                continue
            of_path = name in ("read_text", "write_text") and owner and owner != "metrics" and owner != "self"
            if text_open or of_path:
                missing.append(f"{path.relative_to(source)}:{node.lineno} {ast.unparse(node)[:60]}")
    assert missing == []


def test_a_moved_and_interrupted_run_keeps_its_other_entries(tmp_path: Path) -> None:
    run = directory(tmp_path / "run")
    with run.lock():
        run.update_record(status="running", data={"digest": "a"})
        run.update_record(status="interrupted")
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"status": "interrupted", "data": {"digest": "a"}}
    assert os.listdir(tmp_path / "run").count(LOCK) == 1
