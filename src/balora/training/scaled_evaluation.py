"""Evaluation of a finished run with a part of its change, W + a·ΔW: on its own evaluation rows and its own anchors."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from balora.anchoring.rows import FILE
from balora.checkpoints import checkpoint as ckpt
from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.files import read_json, write_text
from balora.loading.trained import find_saved
from balora.methods import load_trainable
from balora.methods.scale import check_scale
from balora.methods.scaling import scaled_change
from balora.training.anchors.anchor_source import make_anchor_term
from balora.training.run import prepare

FOLDER = "scaled"


def scaled_metrics(run: Path, scale: float) -> dict[str, float] | None:
    """Read what `evaluate_scaled` measured; return None if it has not been measured."""
    path = _file(run, scale)
    return read_json(path, "Delete it to measure again.")["metrics"] if path.is_file() else None


def evaluate_scaled(run: Path, scales: Sequence[float], log: Callable[[str], None] = lambda line: None) -> None:
    """Evaluate a finished run at each scale that has no result yet, without training again.

    The metrics have the names of those in ``run.json`` and are written to ``scaled/`` in the run directory.

    Raises:
        BALoraError: The run is not finished, its method's change cannot be scaled, or there is nothing to measure.
    """
    missing = [scale for scale in scales if scaled_metrics(run, scale) is None]
    if not missing:
        return
    saved = find_saved(run)
    for scale in missing:
        check_scale(scale, saved.method)
    if saved.config is None:
        raise BALoraError(f"{run} is not a run directory.")
    quiet = {**saved.config.training, "report_to": "none", "disable_tqdm": True}
    config = RunConfig.from_dict({**saved.config.to_dict(), "training": quiet})
    trainer, _, _ = prepare(config, saved.folder)
    load_trainable(trainer.model, ckpt.read_trained(saved.folder, trainer.model))
    if trainer.anchors is not None:
        if not (run / FILE).is_file():
            raise BALoraError(f"{run / FILE} is missing, so the drift of this run cannot be measured at other scales.")
        trainer.anchor_term = make_anchor_term(trainer, trainer.anchors)
    if trainer.anchor_term is None and trainer.eval_dataset is None:
        raise BALoraError(
            f"{run} has neither evaluation rows (data.eval) nor anchors, so there is nothing to measure at another scale."
        )
    for scale in missing:
        with scaled_change(trainer.model, scale, trainer.teacher.initial, residual_base=saved.method.residual_base):
            metrics = {} if trainer.eval_dataset is None else dict(trainer.evaluate())
            if trainer.anchor_term is not None:
                metrics["anchor_drift"] = trainer.anchor_term.drift(trainer.model).mean
        path = _file(run, scale)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps({"scale": scale, "metrics": metrics}, indent=1) + "\n")
        shown = "  ".join(f"{n} {v:.4g}" for n, v in metrics.items() if n.startswith(("eval_", "anchor_")))
        log(f"Scale {scale:g}: {shown}")


def _file(run: Path, scale: float) -> Path:
    return run / FOLDER / f"scale-{float(scale)!r}.json"
