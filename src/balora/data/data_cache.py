"""Cache of examples and tokens: large data are read, checked and tokenized once, and mapped into memory after that.

A directory of the cache belongs to a fingerprint of everything that the result depends on: the content of the files, the
``data`` section, the seed, the classes of the model's head, the tokenizer, and this package's code. Another value of any of them
gives another directory. The cache lies in the directory of the `datasets` library (``HF_DATASETS_CACHE``), under ``balora``, and
can be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
import tokenizers
import transformers
from filelock import FileLock

from balora.config.sections import DataConfig
from balora.data.files.hub import looks_local
from balora.data.files.readers import ENDINGS
from balora.files import read_json

CACHED_FROM = 16 * 2**20
"""Size of local files, in bytes, from which their rows are cached. Smaller data take no longer to read anew."""
FACTS = "facts.json"
_Made = TypeVar("_Made")
logger = logging.getLogger("balora")


def cache_directory() -> Path:
    """Return the directory of the cache."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "balora"


def fingerprint(*parts: Any) -> str:
    """Return a digest of values that JSON can write, and of the code and the libraries that make the result."""
    text = json.dumps([*parts, _code()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


@functools.lru_cache(maxsize=1)
def _code() -> str:
    digest = hashlib.sha256(f"{datasets.__version__} {transformers.__version__} {tokenizers.__version__}".encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files_fingerprint(data: DataConfig) -> str | None:
    """Return a digest of the content of all local files that a ``data`` section names.

    None: the files are smaller than `CACHED_FROM`, or a source is no local file or directory, so the rows are not cached. (Hub
    datasets are in the cache of `datasets` already, but are converted anew.)
    """
    paths: list[Path] = []
    for section in data.sources:
        names = [*section.train_sources, *([section.eval] if isinstance(section.eval, str) else [])]
        for name in names:
            found = _files_of(name)
            if found is None and name in section.train_sources:
                return None
            paths += found or []
    if sum(path.stat().st_size for path in paths) < CACHED_FROM:
        return None
    digest = hashlib.blake2b()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        digest.update(str(path).encode(errors="surrogateescape") + b"\0" + content)
    return digest.hexdigest()


def _files_of(name: str) -> list[Path] | None:
    """Return the files of a path, a pattern or a directory; None if it is something else, such as a hub id or a split."""
    import glob

    name = name.partition("[")[0] if name.endswith("]") and not Path(name).exists() else name
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if not looks_local(name, ENDINGS):
        return None
    matched = [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]
    files = [file for one in matched for file in (sorted(one.rglob("*")) if one.is_dir() else [one]) if file.is_file()]
    return files or None


def cached(
    directory: Path, make: Callable[[Path], dict[str, Any]], read: Callable[[Path, dict[str, Any]], _Made]
) -> _Made:
    """Return what is in a directory of the cache; make it first if it is missing.

    Of several processes that want it at once, one makes it and the others wait.

    Args:
        directory: Directory of the cache.
        make: Function that writes the files to the directory that it is given, and returns facts that JSON can write.
        read: Function from the directory and the facts to the result.
    """
    if not (directory / FACTS).is_file():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):
            if not (directory / FACTS).is_file():
                _make(directory, make)
    else:
        logger.debug("Read from the cache %s.", directory)
    return read(directory, read_json(directory / FACTS))


def _make(directory: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f"{directory.name}-", dir=directory.parent))
    try:
        facts = make(staging)
        (staging / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)  # left by a process that was killed
        os.replace(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def recorded_messages() -> Iterator[list[str]]:
    """Collect the texts of balora's warnings, which are also shown, so that a run that reads the cache shows them too."""
    messages: list[str] = []

    class Record(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Record(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
