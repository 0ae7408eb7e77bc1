"""Everything that is measured on a GPU, by one command: parts in subprocesses, each with its own time limit.

    python benchmarks/gpu_session.py --model SmolLM2-135M-Instruct --data data --output results

It leaves at most six files in ``--output``: ``gpu.jsonl``, ``real_run.jsonl``, ``cuda_only.jsonl``, ``pack.jsonl``,
``gpu_session.jsonl`` (a row for each part) and ``gpu_session.log``. The same command goes on where an earlier
one stopped: a finished part is not run again, and of ``pack`` only the missing runs are. On another machine, give the earlier
files with ``--resume``. `--tiny` runs everything on any machine, with the packaged model.

Expected seconds on an H100 (a start of Python with all imports takes 10, a step of a 135M model 0.1): ``gpu`` 300 to 400 in
all; ``real`` and ``cuda_only``, whose parts run at the same time, 150 to 180; ``pack`` 180.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import result_rows

HERE = Path(__file__).parent
GROUPS = ("gpu", "real", "cuda_only", "pack")
LOG = "gpu_session.log"
LOG_BYTES = 150_000
"""Most of one part's output that the log keeps: its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A subprocess of the session."""

    name: str
    group: str
    command: tuple[str, ...]
    limit: float
    """Seconds after which it is stopped."""
    stage: int
    """Parts of one stage run at the same time, stages one after the other."""


def parts(given: argparse.Namespace) -> list[Part]:
    """Return all parts in order."""
    tiny = ("--tiny",) if given.tiny else ()
    inputs = (*tiny, *_option("--model", given.model), *_option("--data", given.data))
    test = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=")
    triton = str(HERE.parent / "tests" / "losses" / "test_triton_token_terms.py")
    found = [Part(name="loss", group="gpu", command=_script("gpu", *tiny, "--parts", "loss"), limit=90, stage=0)]
    if not given.tiny:
        found.append(Part(name="triton-tests", group="gpu", command=(*test, triton), limit=120, stage=1))
    found += [
        Part(name=name, group="gpu", command=_script("gpu", *tiny, "--parts", name), limit=limit, stage=stage)
        for name, limit, stage in (("7b", 180, 2), ("8b", 180, 3), ("start", 120, 4))
    ]
    for variant in ("plain", "anchored", "budget"):
        command = _script("real_run", *inputs, "--variant", variant)
        found.append(Part(name=f"real-{variant}", group="real", command=command, limit=240, stage=5))
    for name, limit, *chosen in (
        ("numbers", 120, "autocast", "fused_adamw", "flash"),
        ("memory", 150, "memory"),
        ("compile", 180, "compile"),
        ("four-bits", 120, "four_bits"),
        ("fsdp", 120, "fsdp"),
        ("random-state", 180, "random_state"),
    ):
        command = _script("cuda_only", *inputs, "--parts", *chosen)
        found.append(Part(name=name, group="cuda_only", command=command, limit=limit, stage=5))
    pack = _script("pack", *inputs, "--seconds", str(given.pack_seconds), "--done", str(given.output / "pack.jsonl"))
    found.append(Part(name="pack", group="pack", command=(*pack, *given.pack), limit=given.pack_seconds + 60, stage=6))
    chosen = [part for part in found if part.group in given.parts and (not given.only or part.name in given.only)]
    # A CPU with other work takes several times as long to import everything.
    return [dataclasses.replace(part, limit=5 * part.limit) for part in chosen] if given.tiny else chosen


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / f"{name}.py"), *arguments)


def _option(name: str, value: Path | None) -> tuple[str, ...]:
    return () if value is None else (name, str(value.resolve()))


class Session:
    """Runs parts, gathers their rows and their output, and remembers which are finished."""

    def __init__(self, output: Path, work: Path, seconds: float) -> None:
        self.output, self.work, self.deadline = output, work, time.monotonic() + seconds
        output.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        self.rows = result_rows.Rows("gpu_session", output)
        self.rows.rows = result_rows.read("gpu_session", output)
        self.logs = {row["part"]: "" for row in self.rows.rows}

    def run(self, todo: list[Part], jobs: int) -> None:
        """Run the parts that are not finished, stage by stage."""
        finished = {row["part"] for row in self.rows.rows if row["status"] == "ok"}
        todo = [part for part in todo if part.name not in finished]
        for stage in sorted({part.stage for part in todo}):
            waiting = [part for part in todo if part.stage == stage]
            running: list[_Running] = []
            while waiting or running:
                while waiting and len(running) < jobs:
                    part = waiting.pop(0)
                    if time.monotonic() > self.deadline:
                        self._finish(part, "not started: the session's time is over", 0.0)
                    else:
                        running.append(_Running(part, self.work / part.name, self.deadline, len(running)))
                time.sleep(0.2)
                for one in list(running):
                    status = one.status()
                    if status is not None:
                        running.remove(one)
                        self._gather(one)
                        self._finish(one.part, status, time.monotonic() - one.begun, beside=one.beside)
                for one in running:
                    if one.gather_again():  # rows of a part that a killed session would lose
                        self._gather(one)

    def _finish(self, part: Part, status: str, seconds: float, **more: Any) -> None:
        self.rows.rows = [row for row in self.rows.rows if row["part"] != part.name]
        limit = part.limit
        self.rows.add(
            kind="part", part=part.name, group=part.group, status=status, seconds=seconds, limit=limit, **more
        )

    def _gather(self, one: _Running) -> None:
        """Put a part's rows in place of those of its last run, and its output into the log."""
        for path in sorted(one.folder.glob("*.jsonl")):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            # Rows without a part are of a script that ran alone.
            replaced = (None, one.part.name)
            earlier = [row for row in result_rows.read(path.stem, self.output) if row.get("part") not in replaced]
            place = self.output / path.name
            temporary = place.with_suffix(".tmp")
            rows = [*earlier, *({**row, "part": one.part.name} for row in lines)]
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(temporary, place)
        with (one.folder / "log").open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LOG_BYTES, 0))
            self.logs[one.part.name] = file.read().decode(errors="replace")
        text = "".join(f"\n=== {name} ===\n{said}" for name, said in self.logs.items() if said)
        (self.output / LOG).write_text(text)


class _Running:
    """A part that runs."""

    def __init__(self, part: Part, folder: Path, deadline: float, beside: int) -> None:
        self.part, self.folder, self.beside = part, folder, beside
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.begun = self._gathered = time.monotonic()
        self._late = False
        self.end = min(self.begun + part.limit, max(deadline, self.begun + 5))
        extra = () if "pytest" in part.command else ("--output", str(folder))
        extra += () if part.group in ("gpu",) else ("--work", str(folder / "work"))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                (*part.command, *extra),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )

    def status(self) -> str | None:
        """Return None while it runs, else ``ok`` or what went wrong; stop it at its limit."""
        code = self.process.poll()
        if code is None and time.monotonic() > self.end:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._late = True
        elif code is None:
            return None
        if self._late:
            return f"stopped after {self.part.limit:.0f} seconds or at the end of the session's time"
        if code:
            return f"failed: exit status {code}"
        bad = [row for path in self.folder.glob("*.jsonl") for row in map(json.loads, path.read_text().splitlines())
               if row["status"] != "ok"]  # fmt: skip
        return "ok" if not bad else f"{len(bad)} rows not ok: {str(bad[0]['status'])[:200]}"

    def gather_again(self) -> bool:
        """Return whether five seconds have passed since the last time."""
        if time.monotonic() - self._gathered < 5:
            return False
        self._gathered = time.monotonic()
        return True


def _environment() -> dict[str, str]:
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }  # fmt: skip


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the session on any machine")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ and instruct/")
    parser.add_argument("--parts", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--only", nargs="+", default=(), help="names of single parts, such as memory")
    parser.add_argument("--output", type=Path, default=result_rows.RESULTS)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "balora-gpu-session")
    parser.add_argument("--resume", type=Path, help="folder with the files of an earlier session")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop everything after this time")
    parser.add_argument("--pack-seconds", type=float, default=180.0, help="start no run of the pack after this time")
    parser.add_argument("--pack", nargs=argparse.REMAINDER, default=[], help="further arguments of pack.py; last")
    parser.add_argument("--jobs", type=int, help="parts of a stage that run at the same time; default 5, with --tiny 1")
    given = parser.parse_args()
    given.output = given.output.resolve()
    if given.resume and given.resume.is_dir():
        given.output.mkdir(parents=True, exist_ok=True)
        for file in given.resume.iterdir():
            if file.is_file() and not (given.output / file.name).exists():
                shutil.copyfile(file, given.output / file.name)
    session = Session(given.output, given.work, given.seconds)
    session.run(parts(given), given.jobs or (1 if given.tiny else 5))


if __name__ == "__main__":
    main()
