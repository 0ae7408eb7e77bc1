"""Data files of a folder, by split."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from balora.data.files.readers import COMPRESSIONS, SPLIT_NAMES, SUFFIXES, data_suffix, is_data_file
from balora.errors import BALoraError, suggest

logger = logging.getLogger("balora")
# The number of a shard: 00000, -00000-of-00002, -00000-of-00002-HASH, -00000-UUID-c000.snappy
_NUMBERS = re.compile(r"(^|[-_.])\d+([-_]of[-_]\d+)?([-_](tid-)?[0-9a-f-]{8,}.*)?$", re.I)
_OF = re.compile(r"(?P<start>.*[-_])(?P<number>\d+)(?P<of>[-_]of[-_])(?P<count>\d+)(?P<end>.*)")


def files_by_split(folder: Path, configuration: str | None = None) -> dict[str, list[Path]]:
    """Find the data files of a folder: ``train.tsv``, ``dev.tsv``, shards such as ``train-00000-of-00002.parquet``, the files
    that the README of a cloned hub dataset lists, or those in its folder ``data``.

    Hidden files are left alone. Files of no split, such as ``part-00000``, are training rows.

    Raises:
        BALoraError: There is no data file or no such configuration, or it is not clear which files belong to a split.
    """
    configurations = _configurations(folder)
    if configuration is not None or configurations:
        listed = _listed_files(folder, configurations, configuration)
        if listed:
            return listed
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_data_file(path))
    if files:
        return _by_name(folder, files)
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    if (folder / "data").is_dir():
        return files_by_split(folder / "data")
    splits = {SPLIT_NAMES[path.name.lower()]: path for path in folders if path.name.lower() in SPLIT_NAMES}
    found = {split: sorted(filter(is_data_file, path.iterdir())) for split, path in splits.items()}
    if any(found.values()):
        return {split: files for split, files in found.items() if files}
    inner = [path.name for path in folders if any(map(is_data_file, path.iterdir()))]
    raise BALoraError(
        f"The folder {folder} holds no data file ({', '.join(SUFFIXES)}; also compressed: {', '.join(COMPRESSIONS)})."
        + (f" There are some in {', '.join(inner[:10])}; give the path of one of these folders." if inner else "")
    )


def split_of(path: Path) -> str:
    """Return the name of the split that a file's name gives, such as ``validation`` for ``dev-00000-of-00002.parquet``.

    Example:
        >>> split_of(Path("dev-00000-of-00002.parquet")), split_of(Path("pairs.jsonl")), split_of(Path("0000.parquet"))
        ('validation', 'pairs', '')
    """
    name = _NUMBERS.sub("", _stem(path))
    return SPLIT_NAMES.get(name.lower(), name)


def _stem(path: Path) -> str:
    """Return the name without the suffix of its kind and all that follows."""
    suffix = data_suffix(path.name)
    return path.name[: path.name.lower().rindex(suffix)] if suffix else path.name.partition(".")[0]


def _by_name(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(split_of(path), []).append(path)
    if len(files) == 1 and "train" not in found:
        return {"train": files}
    if "train" not in found:
        found = _by_part_of_name(found)
    for name, paths in found.items():
        complete = [path for path in paths if _stem(path).lower() == _NUMBERS.sub("", _stem(path)).lower()]
        if len(paths) > 1 and (complete or len({path.name.removeprefix(_stem(path)) for path in paths}) > 1):
            raise BALoraError(
                f"The folder {folder} holds several files for the split {name}: {', '.join(p.name for p in paths)}. "
                "Give the path of one file, or a list of the files."
            )
        _warn_of_missing_shards(folder, paths)
    if len(found) == 1 and not set(found) & set(SPLIT_NAMES.values()):
        return {"train": files}
    return found


def _by_part_of_name(found: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Name splits by the first or last word of their files' names, as in ``squad-train.json``, if that names each once."""
    words = {name: re.split(r"[-_.]", name.lower()) for name in found}
    splits = {name: SPLIT_NAMES.get(w[-1]) or SPLIT_NAMES.get(w[0]) or name for name, w in words.items()}
    return {splits[name]: files for name, files in found.items()} if len(set(splits.values())) == len(found) else found


def _warn_of_missing_shards(folder: Path, paths: list[Path]) -> None:
    matches = [match for path in paths if (match := _OF.fullmatch(path.name))]
    if matches and len({(match["start"], match["count"]) for match in matches}) == 1:
        numbers = {int(match["number"]) for match in matches}
        count = int(matches[0]["count"])
        if len(numbers) < count:
            logger.warning(
                "The folder %s holds %s of the %s files %s*%s: the rows of the others are not read.",
                *(folder, len(numbers), f"{count:,}", matches[0]["start"], matches[0]["end"]),
            )


def _configurations(folder: Path) -> list[dict[str, Any]]:
    """Return the configurations that the README of a hub dataset lists, each with its name and files."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8-sig")
        front_matter = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError, RecursionError):
        return []
    listed = front_matter.get("configs") if isinstance(front_matter, Mapping) else None
    entries = listed if isinstance(listed, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("data_files")]


def _listed_files(folder: Path, entries: list[dict[str, Any]], name: str | None) -> dict[str, list[Path]]:
    """Return the files of a configuration by split. Without a name, it is the default one or the only one."""
    names = [str(entry.get("config_name", "default")) for entry in entries]
    if not names and (folder / str(name)).is_dir():
        return files_by_split(folder / str(name))
    if not names:
        raise BALoraError(
            f"data.name {name!r} is the configuration of a hub dataset, but {folder} is a local path whose README lists none; "
            "leave it out."
        )
    wanted = name or next((n for n, entry in zip(names, entries, strict=True) if entry.get("default")), None)
    if wanted is None:
        wanted = "default" if "default" in names or len(names) > 1 else names[0]
    if wanted not in names:
        if name is None:
            raise BALoraError(f"{folder} has several configurations; choose one in data.name: {', '.join(names)}.")
        hint = suggest(name, names)
        raise BALoraError(f"{folder} has no configuration {name!r} (data.name).{hint} It has {', '.join(names)}.")
    given = entries[names.index(wanted)]["data_files"]
    if isinstance(given, Mapping):
        given = [{"split": split, "path": path} for split, path in given.items()]
    parts = given if isinstance(given, list) else [given]
    found: dict[str, list[Path]] = {}
    for part in parts:
        split, patterns = (
            (str(part.get("split", "train")), part.get("path")) if isinstance(part, Mapping) else ("train", part)
        )
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            found.setdefault(split, []).extend(_matches(folder, str(pattern)))
    if not any(found.values()):
        raise BALoraError(f"The README of {folder} lists files for {wanted} that are not there. Were they downloaded?")
    for paths in found.values():
        _warn_of_missing_shards(folder, paths)
    return {split: paths for split, paths in found.items() if paths}


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that a pattern of its README matches, never a file outside."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        return []
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    except (ValueError, NotImplementedError):  # not a pattern
        return []
