"""The transformers arguments of a run, validated by constructing them."""

import copy
import importlib.util
from typing import Any

from transformers import Trainer, TrainingArguments

from balora.config.run_config import RunConfig
from balora.errors import BALoraError, raise_all, suggest
from balora.methods.optimizers import optimizer_problem
from balora.training.argument_checks import late_problems
from balora.training.metrics import SCORES

DEFAULTS = {"logging_steps": 10, "report_to": ["tensorboard"], "weight_decay": 0.0, "logging_nan_inf_filter": False}
"""Defaults that differ from those of transformers.

The paper uses no weight decay (section 3.1). The filter would leave batches with a NaN out of the evaluation loss in silence.
"""


def training_arguments(config: RunConfig) -> TrainingArguments:
    """Build the transformers arguments of a run: the config's ``training`` section over balora's defaults.

    Raises:
        BALoraError: transformers refuses the values, or they ask for an evaluation, a score or a tracker that is missing.
    """
    fixed = {
        "output_dir": config.output,
        "seed": config.seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
    }
    # Copied, because transformers writes into its arguments (fsdp_config), and a resume compares the config.
    values = {**DEFAULTS, **_early_stopping_defaults(config), **copy.deepcopy(config.training), **fixed}
    try:
        arguments = TrainingArguments(**values)
    except Exception as error:  # any exception, because the values are the user's
        raise BALoraError(f"The training section cannot be used: {error}") from error
    raise_all(
        _missing_requirements(arguments, config) + late_problems(arguments), "The training section cannot be used"
    )
    return arguments


def _early_stopping_defaults(config: RunConfig) -> dict[str, Any]:
    """Return the arguments that early stopping needs: a score, and a checkpoint at every evaluation to go back to."""
    if config.early_stopping is None:
        return {}
    same = {
        f"save_{name}": config.training[f"eval_{name}"]
        for name in ("strategy", "steps")
        if f"eval_{name}" in config.training
    }
    return {"metric_for_best_model": "loss", "load_best_model_at_end": True, **same}


def _missing_requirements(arguments: TrainingArguments, config: RunConfig) -> list[str]:
    """List what the arguments need and the run does not have; the Trainer would notice after the model is loaded."""
    problems = []
    if arguments.eval_strategy != "no" and config.data.eval is None:
        problems.append(
            f"training.eval_strategy is {arguments.eval_strategy.value}, and there are no rows to evaluate on. Name them in "
            "data.eval (0.05 takes 5 % of the training rows), or leave eval_strategy out."
        )
    if config.early_stopping is not None and arguments.eval_strategy == "no":
        problems.append(
            "early_stopping needs evaluations during training: set training.eval_strategy (epoch or steps) and data.eval."
        )
    optimizer = _optimizer_problem(arguments, config.method.name)
    problems += [optimizer] if optimizer else []
    scores, best = _scores(config), arguments.metric_for_best_model
    if best is not None and best.removeprefix("eval_") not in scores:
        problems.append(
            f"training.metric_for_best_model is {best}, which no evaluation of this task computes.{suggest(best, scores)} Choose "
            f"from {', '.join(scores)}."
        )
    problems += [
        f"training.report_to: {name} needs a package that is not installed: pip install 'balora[{name}]'."
        for name in ("wandb", "trackio")
        if name in (arguments.report_to or ()) and importlib.util.find_spec(name) is None
    ]
    return problems


def _optimizer_problem(arguments: TrainingArguments, method: str) -> str | None:
    """Return why the optimizer cannot be used: a missing package, or a method with an optimizer of its own."""
    try:
        kind, _ = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        missing = isinstance(error, ImportError) or "install" in reason or "import" in reason
        # GaLore, APOLLO and LOMO also ask for the model, which the Trainer passes.
        return f"training.optim is {arguments.optim.value}, which cannot be used here: {reason}" if missing else None
    return optimizer_problem(method, kind)


def _scores(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the metrics that an evaluation during training computes."""
    if config.task == "seq2seq" and config.data.form != "pair":  # classes or scores as text
        return ("loss", *SCORES["classification"], *SCORES["regression"], "unreadable")
    return ("loss", *SCORES.get(config.task, ()))
