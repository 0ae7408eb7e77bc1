"""The audits of a plain and of an anchored run side by side. Writes docs/results/audit.md and docs/results/audit/.

`python scripts/audit_example.py` trains LoRA on the packaged model twice, as scripts/anchor_study.py does, and audits the
anchored run against the plain one with `balora audit`. `--folder` keeps the runs: what is finished there is not run again.
It takes some minutes on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "audit"
PAGE = ROOT / "docs" / "results" / "audit.md"
MODEL = "packaged-model"
ANCHOR = {"generate": 512, "tokens": 64, "weight": 2.0, "share": 0.25}
SEED = 1
CONFIG: dict[str, Any] = {
    "model": MODEL, "task": "generation", "seed": SEED,
    "data": {"train": "train.jsonl", "prompt": "prompt", "response": "response", "max_length": 64},
    "method": {"name": "lora", "rank": 8},
    "training": {
        "max_steps": 150, "per_device_train_batch_size": 16, "learning_rate": 6e-3, "lr_scheduler_type": "cosine",
        "warmup_steps": 5, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 50,
    },
}  # fmt: skip


def main() -> None:
    """Train, audit, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder for the runs (default: a temporary one)")
    given = parser.parse_args()
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
        make(given.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))


def make(folder: Path) -> None:
    """Make runs, audits and page in a folder; the paths in the reports are relative to it."""
    from balora.experiments.quickstart import corpus, model_directory
    from balora.experiments.quickstart.task import train_rows

    shutil.copytree(model_directory(), folder / MODEL, dirs_exist_ok=True)
    write_rows(folder / "train.jsonl", train_rows(SEED))
    documents = itertools.islice(corpus.documents(SEED, split="held_out"), 200)
    write_rows(folder / "general.jsonl", [{"text": document.text} for document in documents])
    for name, settings in (("plain", {}), ("anchored", {"anchor": ANCHOR})):
        (folder / f"{name}.yaml").write_text(json.dumps({**CONFIG, **settings, "output": f"runs/{name}"}))
        if not (folder / "runs" / name / "README.md").is_file():
            balora(folder, "train", f"{name}.yaml")
    balora(folder, "audit", "runs/anchored", "--against", "runs/plain", "--text", "general.jsonl", "--generate", "64")
    audit = folder / "runs" / "anchored" / "audit"
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(audit / "audit.html", RESULTS / "anchored-and-plain.html")
    PAGE.write_text(page(json.loads((audit / "audit.json").read_text(encoding="utf-8"))), encoding="utf-8")


def balora(folder: Path, *arguments: str) -> None:
    """Run a command of balora in a folder."""
    subprocess.run([sys.executable, "-m", "balora", *arguments], cwd=folder, check=True)


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """Return the page: verdicts and measures of both runs beside each other."""
    from balora.auditing.page import describe_short

    other = result["against"]
    answers = [
        f"| {a['asks']} | **{other['answers'][name]['verdict']}** | **{a['verdict']}** |"
        for name, a in result["answers"].items()
        if a["verdict"] != "not measured"
    ]
    measures = [
        f"| {_label(name, measure)} | {describe_short(other['measures'][name])} | {describe_short(measure)} |"
        for name, measure in result["measures"].items()
        if name in other["measures"]
    ]
    return _PAGE.format(answers="\n".join(answers), measures="\n".join(measures))


def _label(name: str, measure: dict[str, Any]) -> str:
    where = " (on text that the base wrote)" if name.startswith("samples") else ""
    return measure["label"].replace("|", "&#124;") + where


_PAGE = """# Two audits side by side

`python scripts/audit_example.py` writes this page. Two LoRA runs (rank 8, 150 steps of 16 rows) teach the
[packaged model](anchors.md) the quickstart's task, whose training rows are wrong in one case of five. One run is plain. The
other has [anchors](../how-to/forgetting.md): 512 texts that the pre-trained model wrote itself. Both are audited on 200 held-out
documents of the pre-training text, which is neither the task nor the anchors.

[The report of both runs](audit/anchored-and-plain.html){{ target="_blank" }} is the page that `balora audit` wrote:

```
balora audit runs/anchored --against runs/plain --text general.jsonl --generate 64
```

| question | plain | anchored |
|---|---|---|
{answers}

The measures, each with its 95 % interval over documents, answers, rows or matrices. A signed number is a change against the base.

| measure | plain | anchored |
|---|---|---|
{measures}

One run each: [the study of five seeds](anchors.md) says what anchors do, and this page shows what an audit looks like.
"""


if __name__ == "__main__":
    main()
