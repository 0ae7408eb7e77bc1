"""Look into the built wheel: is what a user needs in it, and nothing that does not belong there?

Usage: python .ci/check_package.py DIST. It compares the wheel with the source tree, unpacks it into an empty folder and
imports every module of it from there, so that a file that only the checkout has shows here and not at the user's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LARGEST_WHEEL = 5_000_000
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import balora
here = pathlib.Path(balora.__file__).resolve()
assert here.is_relative_to(pathlib.Path(sys.argv[1]).resolve()), f"imported {here}, not the unpacked wheel"
names = [m.name for m in pkgutil.walk_packages(balora.__path__, "balora.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(f"{len(names)} modules import from the wheel")
"""


def problems_of(wheel: Path, sdist: Path, source: Path) -> list[str]:
    """Name what is missing from the wheel or the sdist, and what is too large."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(source.parent).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    problems = [f"{name} is in src/ but not in the wheel" for name in sorted(expected - inside)]
    foreign = {name.split("/")[0] for name in inside} - {"balora", f"balora-{wheel.name.split('-')[1]}.dist-info"}
    problems += [f"{name} has no place in the wheel" for name in sorted(foreign)]
    if not any(name.endswith("licenses/LICENSE") for name in inside):
        problems.append("the wheel has no LICENSE")
    if wheel.stat().st_size > LARGEST_WHEEL:
        problems.append(f"the wheel has {wheel.stat().st_size:,} bytes, more than {LARGEST_WHEEL:,}")
    with tarfile.open(sdist) as archive:
        shipped = {name.split("/", 1)[-1] for name in archive.getnames()}
    needed = ("pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "Makefile", "constraints.txt")
    return problems + [f"{name} is not in the sdist" for name in needed if name not in shipped]


def main(dist: Path) -> int:
    """Check the one wheel and the one sdist in ``dist``; return the exit status."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    problems = problems_of(wheel, sdist, Path(__file__).resolve().parents[1] / "src" / "balora")
    print(*problems, sep="\n") if problems else print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, complete")
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        result = subprocess.run(
            [sys.executable, "-c", IMPORT_ALL, folder],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            check=False,
        )
    return int(bool(problems) or result.returncode != 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
