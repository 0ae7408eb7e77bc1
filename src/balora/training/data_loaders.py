"""Data loaders of the regularized trainers: rows with keys for a cached teacher, and checks of what a batch is made of."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from balora.teacher.cache import TeacherCache
from balora.teacher.logit_cache import LogitCache
from balora.teacher.row_keys import KeyedCollator
from balora.training.distributed.repeated_rows import num_sampled_rows
from balora.training.padding_check import CheckedCollator
from balora.training.steps.train_step import TrainStep
from balora.training.trainer_checks import refuse_masked_rows, refuse_training_without_step

# At run time the mixin has no base: it is placed before a Trainer class.
if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class DataLoadersMixin(_Base):
    """Data loaders of `RegularizedTrainerMixin`."""

    task: str
    step: TrainStep
    teacher_cache: TeacherCache | None
    logit_cache: LogitCache | None
    _train_rows: int | None = None

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's data loader; if the teacher is cached, its batches also carry the keys of their rows."""
        collate: Any = self.data_collator  # type: ignore[has-type]
        cached = self.teacher_cache is not None or self.logit_cache is not None
        if cached and not isinstance(self.train_dataset, IterableDataset):
            self.data_collator = KeyedCollator(collate)
        try:
            with self._padding_checked():
                loader = super().get_train_dataloader()
        finally:
            self.data_collator = collate
        self._train_rows = num_sampled_rows(loader)
        refuse_training_without_step(
            loader, self.train_dataset, self._train_batch_size * self.accelerator.num_processes
        )
        refuse_masked_rows(self.train_dataset, self.step.count_items)
        return loader

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's data loader, which refuses rows that the collator does not pad."""
        with self._padding_checked():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's data loader, which refuses rows that the collator does not pad."""
        with self._padding_checked():
            return super().get_test_dataloader(*args, **kwargs)

    @contextlib.contextmanager
    def _padding_checked(self) -> Iterator[None]:
        """Give the data loaders that are made meanwhile a `CheckedCollator`."""
        collate: Any = self.data_collator
        checked: Any = CheckedCollator(collate, self.task)
        self.data_collator = checked
        try:
            yield
        finally:
            self.data_collator = collate

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        """Keep the order of evaluation rows: the Trainer would group them by length as in training, and mix up predictions."""

    def _rows_per_process(self, batch_size: int) -> int:
        return batch_size // self.accelerator.num_processes if self.accelerator.split_batches else batch_size
