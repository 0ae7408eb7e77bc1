"""Plan a comparison: every variant of a config, with every combination of the varied values and every seed.

A variant is a named way of fine-tuning, such as ``lora``, ``lora+reg`` or ``balora``. A cell is one run of the comparison.
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

from balora.anchors import GENERATED
from balora.config.run_config import MethodConfig, RunConfig
from balora.config.yaml_loader import apply_overrides, parse_yaml
from balora.errors import BALoraError, raise_all, suggest
from balora.methods import METHODS, find_method
from balora.methods.scale import check_scale

REGULARIZED = "+reg"
ANCHORED = "+anchor"
SCALE = "export.scale"
"""Axis of a comparison that is no key of a config: the part of the change that is evaluated, without training again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Fine-tuning method of a comparison, with its regularizers on or off."""

    name: str
    """Name in the tables."""
    method: str
    """Method name from `balora methods`."""
    regularized: bool
    """True: the regularizers of the config, or the paper's if the config has none. False: no regularizers."""
    overrides: tuple[str, ...] = ()
    """Further changes to the config, each as ``dotted.key=value``."""
    anchored: bool | None = None
    """True: held by the config's anchors, or by generated ones if it has none. False: not held. None: as the config says."""
    measured: bool = False
    """True: the drift is measured on the config's anchors also if they do not hold the model."""

    @classmethod
    def parse(cls, name: str, overrides: Sequence[str] = ()) -> Variant:
        """Read a variant from a method name; after the name, ``+reg`` turns the regularizers on and ``+anchor`` the anchors.

        Raises:
            BALoraError: The method does not exist; the message names the nearest one.

        Example:
            >>> Variant.parse("lora+reg").regularized, Variant.parse("lora").regularized, Variant.parse("balora").regularized
            (True, False, True)
        """
        plain, added = name, set[str]()
        while suffix := next((s for s in (REGULARIZED, ANCHORED) if plain.endswith(s) and s not in added), None):
            plain = plain.removesuffix(suffix)
            added.add(suffix)
        method = find_method(plain)
        return cls(
            name=name,
            method=method.name,
            regularized=method.regularized or REGULARIZED in added,
            overrides=tuple(overrides),
            anchored=True if ANCHORED in added else None,
        )


Axes = Mapping[str, Sequence[Any]]
"""Values to try, by dotted config key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Planned run of a comparison."""

    variant: Variant
    axes: dict[str, Any]
    """This run's value of each varied key that the variant uses."""
    seed: int
    config: RunConfig
    """Config of the run, output included."""
    scale: float = 1.0
    """Part of the run's change that is evaluated. Cells that differ in it alone share a run."""

    @property
    def run_directory(self) -> Path:
        """Directory of the run."""
        return Path(self.config.output)

    @property
    def name(self) -> str:
        """Name of the run directory, with the scale if it is not 1."""
        return self.run_directory.name + ("" if self.scale == 1 else f"_scale-{self.scale!r}")

    @property
    def title(self) -> str:
        """Name for the screen and for messages."""
        return f"{configuration_label(self.variant.name, self.axes)}, seed {self.seed}"

    @property
    def run_title(self) -> str:
        """Name of the run without the scale."""
        axes = {key: value for key, value in self.axes.items() if key != SCALE}
        return f"{configuration_label(self.variant.name, axes)}, seed {self.seed}"


def plan_one_by_one(
    config: Mapping[str, Any], variants: Sequence[Variant], seeds: Sequence[int], axes: Axes, output: Path
) -> list[Cell]:
    """List the runs as `plan` does, but vary one key at a time; the others keep the values of the config.

    A variant that ignores every key runs once for each seed.
    """
    refuse_unused(axes, variants, config, "--knob")
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    unused = [v for v in variants if not any(is_used(key, v, config) for key in axes)]
    parts: list[tuple[Axes, Sequence[Variant]]] = [
        ({key: values}, [v for v in variants if is_used(key, v, config)]) for key, values in axes.items()
    ]
    for part, users in [*parts, ({}, unused)]:
        for cell in plan(config, users, seeds, part, output) if users else ():
            known = cells.setdefault(cell.name, cell)
            if (known.axes, known.variant) != (cell.axes, cell.variant):
                problems.append(f"{known.title} and {cell.title} would both use the run directory {cell.name}.")
    raise_all(problems, "The comparison cannot be run")
    return sorted(cells.values(), key=lambda cell: seeds.index(cell.seed))


def plan(
    config: Mapping[str, Any], variants: Sequence[Variant], seeds: Sequence[int], axes: Axes, output: Path
) -> list[Cell]:
    """List the runs of a comparison, one seed after the other, so that a table of all variants is ready early.

    If a variant ignores a varied key, it runs once instead of once per value. The run directories are in ``output / "runs"``.

    Raises:
        BALoraError: The config of a run is invalid; the message lists all problems.
    """
    _refuse_duplicates([variant.name for variant in variants], seeds, axes)
    refuse_unused(axes, variants, config)
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    for seed, combination, variant in itertools.product(seeds, itertools.product(*axes.values()), variants):
        used = {key: value for key, value in zip(axes, combination, strict=True) if is_used(key, variant, config)}
        trained = {key: value for key, value in used.items() if key != SCALE}
        slugs = [f"{_slug(key.rpartition('.')[2])}-{_slug(format_value(v), exact=True)}" for key, v in trained.items()]
        run = "_".join([_slug(variant.name), *slugs, f"seed-{seed}"])
        try:
            scale = check_scale(used.get(SCALE, 1.0), find_method(variant.method))
        except BALoraError as error:
            problems.append(f"{variant.name}: {error}")
            continue
        name = run if scale == 1 else f"{run}_scale-{scale!r}"
        if name in cells:
            if cells[name].axes != used or cells[name].variant != variant:
                both = f"{cells[name].title} and {configuration_label(variant.name, used)}"
                problems.append(f"{both} would both use the run directory {name}. Rename one of the values.")
            continue
        changes = [f"{key}={json.dumps(value)}" for key, value in trained.items()]
        try:
            values = configure(apply_overrides(with_anchor_section(config, variant), changes), variant)
            values |= {"seed": seed, "output": str(output / "runs" / run)}
            own = RunConfig.from_dict(values)
            cells[name] = Cell(variant=variant, axes=used, seed=seed, config=own, scale=scale)
        except BALoraError as error:
            problems.append(f"{variant.name}: {error}")
    raise_all(list(dict.fromkeys(problems)), "The comparison cannot be run")
    return list(cells.values())


def configure(config: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Apply a variant's method, regularization and overrides to a config.

    Options that belong to the config's method and that the variant's method does not have are dropped.

    Example:
        >>> base = {"method": {"name": "pissa", "rank": 4, "svd": "randomized"}, "regularization": {"teacher_head": "probe"}}
        >>> configure(base, Variant.parse("lora"))
        {'method': {'name': 'lora', 'rank': 4}, 'regularization': False, 'training': {'disable_tqdm': True}}
    """
    section = config.get("method") or {}
    if not isinstance(section, Mapping):
        raise BALoraError(f"method is {section!r}, not a section. Write its keys below it, such as name and rank.")
    template = METHODS.get(str(section.get("name", MethodConfig.model_fields["name"].default)))
    foreign = set(template.options if template else ()) - set(find_method(variant.method).options)
    method = {key: value for key, value in section.items() if key not in foreign}
    if isinstance(method.get("options"), Mapping):
        method["options"] = {key: value for key, value in method["options"].items() if key not in foreign}
    regularization = config.get("regularization") if variant.regularized else False
    if variant.regularized and regularization in (None, False, "off", "no"):
        regularization = True
    training = config.get("training") or {}
    if isinstance(training, Mapping):  # RunConfig reports any other type together with the other problems
        training = {"disable_tqdm": True, **training}  # a progress bar would fill the log file
    changed = {"method": {**method, "name": variant.method}, "regularization": regularization, "training": training}
    anchor = config.get("anchor")
    if variant.measured and not variant.anchored:
        changed["anchor"] = {**(anchor or {}), "measure_only": True}
    elif variant.anchored is False:
        config = {key: value for key, value in config.items() if key != "anchor"}
    elif variant.anchored and isinstance(anchor, Mapping) and anchor.get("measure_only"):
        changed["anchor"] = {**anchor, "measure_only": False}
    return apply_overrides({**config, **changed}, variant.overrides)


def with_anchor_section(config: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return a config whose ``anchor`` is a section, so that single keys of it can be changed.

    A variant that is held, or whose drift is measured, gets ``generated`` if the config has no anchors.
    """
    given = config.get("anchor")
    if given in (None, False, "off"):
        if not (variant.anchored or variant.measured):
            return dict(config)
        given = "generated"
    if isinstance(given, str):
        given = {"generate": GENERATED} if given == "generated" else {"text": given}
    return {**config, "anchor": given}


def read_variants(names: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[Variant]]:
    """Read the overrides for all variants, and the variants with their own overrides (``name:key=value``).

    Raises:
        BALoraError: A method does not exist, or an override names a variant that is not compared.

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
            problem = f"The override {override!r} is for {name}, which is not among the methods."
            raise BALoraError(problem + suggest(name, own))
    variants = [Variant.parse(name, own[name]) for name in names]
    if any(variant.anchored for variant in variants):
        variants = [v if v.anchored else dataclasses.replace(v, anchored=False) for v in variants]
    return general, variants


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Read seeds; raise `BALoraError` if one is not a non-negative integer."""
    wrong = [text for text in texts if not text.isdecimal()]
    if wrong:
        raise BALoraError(f"--seeds has {wrong[0]!r}. Give integers separated by commas, such as 42,1024,2024.")
    return [int(text) for text in texts]


def parse_axes(texts: Sequence[str], option: str = "--vary") -> dict[str, list[Any]]:
    """Read varied keys from ``dotted.key=value,value``; values are YAML. ``option`` is the option in messages.

    Raises:
        BALoraError: A text does not have this form, or its key cannot vary.

    Example:
        >>> parse_axes(["method.rank=4,8", "data.imbalance={a: 1, b: 0.1},null"])
        {'method.rank': [4, 8], 'data.imbalance': [{'a': 1, 'b': 0.1}, None]}
    """
    axes: dict[str, list[Any]] = {}
    problems = []
    for text in texts:
        name, equals, values = text.partition("=")
        key = name.strip()
        try:
            parsed = parse_yaml(f"[{values}]")
        except (yaml.YAMLError, ValueError):
            parsed = []
        if not equals or not key or not parsed:
            problems.append(f"{option} {text!r} does not have the form dotted.key=value,value.")
        elif key in axes:
            problems.append(f"{option} names {key} twice. Give all its values at once.")
        elif key.startswith("export.") and key != SCALE:
            problems.append(f"{option} knows no {key}.{suggest(key, [SCALE])}")
        elif key in ("seed", "output", "method.name"):
            problems.append(f"{option} cannot set {key}. Use --seeds, --output or --methods.")
        axes[key] = parsed
    raise_all(problems, "The values to vary cannot be used")
    return axes


def format_value(value: Any) -> str:
    """Format a config value for a table or a message.

    Example:
        >>> format_value("a_b"), format_value(None), format_value([1, "x"])
        ('a_b', 'null', '[1, x]')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")


def configuration_label(variant: str, axes: Mapping[str, Any]) -> str:
    """Name a variant with its varied values, such as ``lora, method.rank 8``."""
    return ", ".join([variant, *(f"{key} {format_value(value)}" for key, value in axes.items())])


def is_used(key: str, variant: Variant, config: Mapping[str, Any]) -> bool:
    """Return whether a config key has an effect on a variant. Methods that train existing weights have no rank."""
    if key.partition(".")[0] == "regularization":
        return variant.regularized
    if key.startswith("anchor."):
        as_written = config.get("anchor") not in (None, False, "off") and not variant.measured
        return as_written if variant.anchored is None else variant.anchored
    return key not in ("method.rank", "method.alpha") or variant.method not in ("full", "bitfit")


def refuse_unused(axes: Axes, variants: Sequence[Variant], config: Mapping[str, Any], option: str = "--vary") -> None:
    """Refuse a varied key that has no effect on any of the variants: its values would be left out without a word.

    Raises:
        BALoraError: There is such a key; the message says which variants it has an effect on.
    """
    needs = {"regularization": "balora and NAME+reg", "anchor": "NAME+anchor", "method": "methods with a rank"}
    raise_all(
        [
            f"{option} {key} has no effect on {', '.join(variant.name for variant in variants)}: it concerns "
            f"{needs[key.partition('.')[0]]}."
            for key in axes
            if variants and not any(is_used(key, variant, config) for variant in variants)
        ],
        "The comparison cannot be run",
    )


def check_baseline(baseline: str | None, variants: Sequence[Variant]) -> None:
    """Refuse a baseline that is not compared."""
    names = [variant.name for variant in variants]
    if baseline is not None and baseline not in names:
        problem = f"The baseline {baseline} is not among the methods {', '.join(names)}."
        raise BALoraError(problem + suggest(baseline, names))


def _refuse_duplicates(names: Sequence[str], seeds: Sequence[int], axes: Axes) -> None:
    problems = []
    for option, values in (("--methods", names), ("--seeds", seeds), *((f"--vary {k}", v) for k, v in axes.items())):
        if not values:
            problems.append(f"{option} is empty.")
        repeated = [format_value(value) for value in values if list(values).count(value) > 1]
        if repeated:
            problems.append(f"{option} has {repeated[0]} more than once.")
    raise_all(problems, "The comparison cannot be run")


def _slug(text: str, *, exact: bool = False) -> str:
    """Shorten a text for a directory name; different texts give different names.

    ``exact`` distinguishes ``_`` from ``-``, as values from the user need. Names of methods and keys never differ only in them.
    """
    plain = re.sub(r"[^A-Za-z0-9.+]+", "-", text).strip("-")
    if plain == (text if exact else text.replace("_", "-")) and len(plain) <= 32:
        return plain
    return f"{plain[:24]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
