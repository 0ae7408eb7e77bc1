"""What a comparison runs: every variant of a config, on every point of the varied axes, with every seed.

A variant is a way of fine-tuning with a name: ``lora``, ``lora+reg``, ``balora``. A cell is one run of the comparison.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from balora.config.run_config import MethodConfig, RunConfig
from balora.config.yaml_loader import apply_overrides, parse_yaml
from balora.errors import BALoraError, raise_all, suggest
from balora.methods import METHODS, find_method

REGULARIZED = "+reg"
_WITHOUT_RANK = ("full", "bitfit")
"""Methods that train what the model has: rank and alpha mean nothing to them, so they run once along such an axis."""
_NO_REGULARIZATION: tuple[Any, ...] = (None, False, "off", "no")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One side of a comparison."""

    name: str
    """As the table shows it."""
    method: str
    """A name from `balora methods`."""
    regularized: bool
    """With the regularizers of the config's section, or the paper's; else they are off, whatever the config says."""
    overrides: tuple[str, ...] = ()
    """What else differs, as ``dotted.key=value``."""

    @classmethod
    def parse(cls, name: str, overrides: Sequence[str] = ()) -> Variant:
        """Read a method's name, with ``+reg`` for that method with the regularizers on.

        Raises:
            BALoraError: There is no such method; the nearest is named.

        Example:
            >>> Variant.parse("lora+reg").regularized, Variant.parse("lora").regularized, Variant.parse("balora").regularized
            (True, False, True)
        """
        method = find_method(name.removesuffix(REGULARIZED))
        regularized = method.regularized or name.endswith(REGULARIZED)
        return cls(name=name, method=method.name, regularized=regularized, overrides=tuple(overrides))


Axes = Mapping[str, Sequence[Any]]
"""Values to go through, by dotted key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison."""

    variant: Variant
    axes: dict[str, Any]
    """The varied keys that mean something to the variant, with this cell's values."""
    seed: int
    settings: RunConfig
    """Of the run, its folder included."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.settings.output)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @property
    def title(self) -> str:
        """For people."""
        axes = [f"{key} {shown(value)}" for key, value in self.axes.items()]
        return ", ".join([self.variant.name, *axes, f"seed {self.seed}"])


def plan(
    config: Mapping[str, Any], variants: Sequence[Variant], seeds: Sequence[int], axes: Axes, output: Path
) -> list[Cell]:
    """Lay out the runs of a comparison, seed by seed, so that a table over all methods is there early.

    Args:
        config: Plain values of a run's config; its method's name, seed and output are replaced.
        variants: What is compared.
        seeds: Of the runs, all different.
        axes: Further keys to vary, with their values.
        output: The comparison's folder; runs go below ``runs``.

    Returns:
        The cells. A variant has one cell for all values of an axis that means nothing to it.

    Raises:
        BALoraError: A cell's settings cannot be used; all problems are listed.
    """
    _refuse_repeats([variant.name for variant in variants], seeds, axes)
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    for seed, point, variant in itertools.product(seeds, points, variants):
        own = {key: value for key, value in point.items() if _matters(key, variant)}
        name = "_".join([_slug(variant.name), *(_part(k, v) for k, v in own.items()), f"seed-{seed}"])
        if name in cells:
            if cells[name].axes != own or cells[name].variant != variant:
                point_name = ", ".join(f"{key} {shown(value)}" for key, value in own.items())
                problems.append(
                    f"{cells[name].title} and {point_name} would share the folder {name}; rename one of the values."
                )
            continue
        changed = [f"{key}={json.dumps(value)}" for key, value in own.items()]
        try:
            values = configure(apply_overrides(dict(config), changed), variant)
            values |= {"seed": seed, "output": str(output / "runs" / name)}
            cells[name] = Cell(variant=variant, axes=own, seed=seed, settings=RunConfig.from_dict(values))
        except BALoraError as error:
            problems.append(f"{variant.name}: {error}")
    raise_all(list(dict.fromkeys(problems)), "The comparison cannot be run")
    return list(cells.values())


def configure(config: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """A config with a variant's method, regularization and overrides.

    The config's method may have options of its own; those another method does not know are left out for it.

    Example:
        >>> base = {"method": {"name": "pissa", "rank": 4, "svd": "randomized"}, "regularization": {"teacher_head": "probe"}}
        >>> configure(base, Variant.parse("lora"))
        {'method': {'name': 'lora', 'rank': 4}, 'regularization': False, 'training': {'disable_tqdm': True}}
    """
    section = config.get("method") or {}
    if not isinstance(section, Mapping):
        raise BALoraError(f"method is a section with keys of its own, not {section!r}.")
    origin = METHODS.get(str(section.get("name", MethodConfig.model_fields["name"].default)))
    foreign = set(origin.options if origin else ()) - set(find_method(variant.method).options)
    kept = {key: value for key, value in section.items() if key not in foreign}
    if isinstance(kept.get("options"), Mapping):
        kept["options"] = {key: value for key, value in kept["options"].items() if key not in foreign}
    regularization: Any = False
    if variant.regularized:
        regularization = config.get("regularization")
        regularization = True if regularization in _NO_REGULARIZATION else regularization
    training = config.get("training") or {}
    if isinstance(training, Mapping):  # anything else is reported with the other problems
        training = {"disable_tqdm": True, **training}  # a bar in a log file is noise
    changed = {
        **config,
        "method": {**kept, "name": variant.method},
        "regularization": regularization,
        "training": training,
    }
    return apply_overrides(changed, variant.overrides)


def read_variants(names: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[Variant]]:
    """The variants of a comparison, each with the overrides that begin with its name and a colon.

    Returns:
        The overrides for all, and the variants.

    Raises:
        BALoraError: A name is no method's, or an override is for a variant that is not there.

    Example:
        >>> general, variants = read_variants(["lora", "full"], ["seed=1", "full:training.learning_rate=1e-5"])
        >>> general, variants[1].overrides
        (['seed=1'], ('training.learning_rate=1e-5',))
    """
    general: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        name, colon, rest = override.partition(":")
        if not colon or "=" in name:
            general.append(override)
        elif name in own:
            own[name].append(rest)
        else:
            raise BALoraError(
                f"The override {override!r} is for {name}, which is not among the methods.{suggest(name, own)}"
            )
    return general, [Variant.parse(name, own[name]) for name in names]


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Read seeds.

    Raises:
        BALoraError: One is not a whole number.
    """
    wrong = [text for text in texts if not text.isdecimal()]
    if wrong:
        raise BALoraError(f"--seeds takes whole numbers with commas, such as 42,1024,2024, not {wrong[0]!r}.")
    return [int(text) for text in texts]


def parse_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``dotted.key=value,value`` as the command takes it; values are YAML.

    Raises:
        BALoraError: It is not of that form.

    Example:
        >>> parse_axes(["method.rank=4,8", "data.imbalance={a: 1, b: 0.1},null"])
        {'method.rank': [4, 8], 'data.imbalance': [{'a': 1, 'b': 0.1}, None]}
    """
    axes: dict[str, list[Any]] = {}
    problems = []
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            parsed = parse_yaml(f"[{values}]")
        except (yaml.YAMLError, ValueError):
            parsed = []
        if not equals or not key.strip() or not parsed:
            problems.append(f"--vary {text!r} is not of the form dotted.key=value,value.")
        elif key.strip() in axes:
            problems.append(f"--vary names {key.strip()} twice; give all its values at once.")
        elif key.strip() in ("seed", "output", "method.name"):
            problems.append(f"--vary cannot set {key.strip()}; use --seeds, --output or --methods.")
        axes[key.strip()] = parsed
    raise_all(problems, "The axes cannot be used")
    return axes


def shown(value: Any) -> str:
    """A value of an axis as a table shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")


def _matters(key: str, variant: Variant) -> bool:
    if key.partition(".")[0] == "regularization":
        return variant.regularized
    return not (key in ("method.rank", "method.alpha") and variant.method in _WITHOUT_RANK)


def _refuse_repeats(names: Sequence[str], seeds: Sequence[int], axes: Axes) -> None:
    problems = []
    for what, values in (("--methods", names), ("--seeds", seeds), *((f"--vary {k}", v) for k, v in axes.items())):
        if not values:
            problems.append(f"{what} is empty.")
        repeated = [shown(value) for value in values if list(values).count(value) > 1]
        if repeated:
            problems.append(f"{what} has {repeated[0]} more than once.")
    raise_all(problems, "The comparison cannot be run")


def _part(key: str, value: Any) -> str:
    return f"{_slug(key.rpartition('.')[2])}-{_slug(shown(value), exact=True)}"


def _slug(text: str, *, exact: bool = False) -> str:
    """Text as part of a folder's name: short, and different for different texts.

    A name from balora's own list may have its ``_`` as ``-``; of what a user writes, exactly, both may occur.
    """
    plain = re.sub(r"[^A-Za-z0-9.+]+", "-", text).strip("-")
    if plain == (text if exact else text.replace("_", "-")) and len(plain) <= 32:
        return plain
    return f"{plain[:24]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
