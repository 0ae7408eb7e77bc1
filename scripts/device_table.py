"""Write the table of docs/how-to/several-devices.md: runs of `balora train` in two processes beside those of one.

`python scripts/device_table.py` trains every way to share a model × task × form on the CPU (some minutes); a way that is not
installed is left out and named. Arguments are the ways to train again; the rows of the others stay.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-to" / "several-devices.md"
BEGIN, END = "<!-- written by scripts/device_table.py -->", "<!-- end of the table -->"
HEAD = "| shared by | task | form | weights | losses | resumed | saved and loaded | exported |\n|---|---|---|---|---|---|---|---|"
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import device_cases  # noqa: E402
import launched  # noqa: E402


def main(kinds: list[str]) -> None:
    """Train, compare, and write the rows into the page."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if importlib.util.find_spec("deepspeed") is None:
        kinds = [kind for kind in kinds if not kind.startswith("ZeRO")]
        print("DeepSpeed is not installed, so the rows of ZeRO stay as they are.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        launched.write_inputs(folder)
        device_cases.write_caches(folder)
        train(folder, "one")
        for kind in kinds:
            train(folder, kind)
            write({(kind, task, form): row(folder, kind, task, form) for task, form in device_cases.CASES})


def train(folder: Path, kind: str) -> None:
    """Train all cases of a kind, in one process or two."""
    names, begun = device_cases.write_configs(folder, kind), time.monotonic()
    environment = {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"} if kind.startswith("ZeRO") else {}
    done = launched.launch(
        folder,
        *names,
        script=Path(device_cases.__file__),
        processes=1 if kind == "one" else 2,
        seconds=1800,
        **environment,
    )
    print(f"{kind}: status {done.returncode} after {time.monotonic() - begun:.0f} s")
    if done.returncode:
        print(done.stderr[-3000:])
    file = folder / f"{names[0]}.problems.json"
    problems = json.loads(file.read_text()) if file.is_file() else {kind: "no process came to its end"}
    print("\n".join(f"  {name}: {problem}" for name, problem in problems.items()) or "  without a problem")


def row(folder: Path, kind: str, task: str, form: str) -> str:
    """Return one row of the table, with the reason in place of numbers if the case failed."""
    if (kind, task) in device_cases.REFUSED:
        return f"| {kind} | {task} | {form} | refused | | | | |"
    try:
        found = device_cases.compare(folder, kind, task, form)
    except Exception as error:
        print(f"{kind} {task} {form}: {type(error).__name__}: {error}")
        return f"| {kind} | {task} | {form} | failed | | | | |"
    resumed = f"{found['resumed']:.1e}" if found["resumed"] else "equal"
    yes = {True: "yes", False: "no"}
    return (
        f"| {kind} | {task} | {form} | {found['weights']:.1e} | {found['losses']:.1e} | "
        f"{resumed if found['was_resumed'] else 'not resumed'} | {yes[found['loaded']]} | {yes[found['exported']]} |"
    )


def write(rows: dict[tuple[str, str, str], str]) -> None:
    """Replace these rows of the page's table, and keep the others."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    kept = {tuple(re.findall(r"[^|]+", line)[:3]): line for line in table.splitlines() if line.startswith("| ")}
    merged = {tuple(name.strip() for name in names): line for names, line in kept.items()} | rows
    merged = {names: line for names, line in merged.items() if names[0] in device_cases.KINDS}
    order = [(kind, task, form) for kind in device_cases.KINDS for task, form in device_cases.CASES]
    lines = [merged[names] for names in order if names in merged]
    PAGE.write_text("\n".join([before + BEGIN, HEAD, *lines, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(device_cases.KINDS))
