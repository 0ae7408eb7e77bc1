"""Copy the results of an experiment into the docs: its page, its figures, and each study's table and rows.

    python scripts/keep_results.py results/table4-small docs/results

The runs themselves (adapters, logs) are not copied.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path


def keep(results: Path, docs: Path) -> Path:
    """Copy the results of one experiment into ``docs/NAME`` and return the path of its page there."""
    target = docs / results.name.removesuffix("-small")
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for file in sorted(results.iterdir()):
        if file.name == "README.md":
            shutil.copy(file, target / "index.md")
        elif file.suffix in (".png", ".svg"):
            shutil.copy(file, target / file.name)
        elif (file / "table.json").is_file():
            (target / file.name).mkdir()
            for name in ("table.md", "table.json"):
                # The directory of an installed package is private and says nothing about the run.
                text = re.sub(r'[^"\s]*/(site-packages|src)/', "", (file / name).read_text())
                (target / file.name / name).write_text(text)
    return target / "index.md"


if __name__ == "__main__":
    *directories, docs = map(Path, sys.argv[1:])
    for directory in directories:
        print(keep(directory, docs))
