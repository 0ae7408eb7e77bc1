"""Trials of `Trainer.hyperparameter_search`: each has a freshly adapted model with its own teacher, and its own directory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import HPSearchBackend

from balora.errors import BALoraError
from balora.objective import Objective

# At run time the mixin has no base: it is placed before a Trainer class.
if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

_PREFIX = "regularization."
"""Beginning of the names of a search space that are fields of the regularization."""


class TrialsMixin(_Base):
    """`model_init` and `hyperparameter_search` of `RegularizedTrainerMixin`.

    A name ``regularization.FIELD`` in the search space changes that field for the trial; all other names are fields of
    TrainingArguments, or what ``model_init`` reads from the trial it is given.
    """

    hp_space: Any
    hp_search_backend: Any
    _trial: Any = None
    _is_bound = False

    _objective: Objective
    _search_value: Any = None

    @property
    def objective(self) -> Any:
        """The regularized objective. During a search it is the value of the trial, which transformers keeps under this name."""
        return self._objective if getattr(self, "hp_search_backend", None) is None else self._search_value

    @objective.setter
    def objective(self, value: Any) -> None:
        self._search_value = value

    def _bind(self, changes: Mapping[str, Any]) -> None:
        """Make everything that belongs to the model; ``changes`` are the trial's fields of the regularization."""
        raise NotImplementedError

    def _release(self) -> None:
        """Drop everything that belongs to the model; the next trial makes it again."""
        raise NotImplementedError

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make the model of a trial, and with it its teacher and objective."""
        model = super().call_model_init(trial)
        if self._is_bound:  # the first call is that of the Trainer's __init__
            if self.place_model_on_device:
                self._move_model_to_device(model, self.args.device)
            self.model = model
            self._bind(self._own_values(trial))
        return model

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Search as the Trainer does. Each trial calls ``model_init``, which must load and adapt a model anew.

        Raises:
            BALoraError: The trainer has no ``model_init``.
        """
        if self.model_init is None:
            raise BALoraError(
                "hyperparameter_search needs a fresh model for each trial. Give the trainer model_init=, a function that loads "
                "and adapts a model, in place of model= (docs/how-to/python.md)."
            )
        self._release()  # Ray sends the trainer to its workers, and the model does not belong to a trial
        return super().hyperparameter_search(*args, **kwargs)

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the trial's training arguments; the Trainer would warn of names that are fields of the regularization."""
        if self.hp_search_backend is None or trial is None:
            return super()._hp_search_setup(trial)
        if self.hp_search_backend != HPSearchBackend.OPTUNA:
            super()._hp_search_setup({name: value for name, value in trial.items() if not name.startswith(_PREFIX)})
            self._trial = trial
            return None
        space: Callable[[Any], dict[str, Any]] = self.hp_space
        self.hp_space = lambda given: {n: value for n, value in space(given).items() if not n.startswith(_PREFIX)}
        try:
            return super()._hp_search_setup(trial)
        finally:
            self.hp_space = space

    def _own_values(self, trial: Any) -> dict[str, Any]:
        """Return the trial's fields of the regularization. Optuna gives the same values each time it is asked in a trial."""
        if trial is None or self.hp_search_backend is None:
            return {}
        values = self.hp_space(trial) if self.hp_search_backend == HPSearchBackend.OPTUNA else trial
        return {name.removeprefix(_PREFIX): value for name, value in values.items() if name.startswith(_PREFIX)}

    def results_directory(self) -> Path:
        """Return the directory of the checkpoints: ``output_dir``, or that of the trial in it."""
        in_trial = getattr(self, "hp_search_backend", None) is not None and self._trial is not None
        # The Trainer's own method: that of `SavingMixin` names the staging directory while a checkpoint is written.
        return Path(Trainer._get_output_dir(self, self._trial) if in_trial else self.args.output_dir or ".")
