"""Silence where transformers reports what is no news."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import transformers


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """No load reports inside (a head that the pre-trained weights lack comes from the run).

    Args:
        bars: Whether progress bars stay.
    """
    log = transformers.utils.logging
    level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if not bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown and not bars:
            log.enable_progress_bar()


def quiet_libraries() -> None:
    """Keep the libraries' chatter off the screen for good; what matters to the user balora says itself."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("balora").setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()  # of loading weights; the bar of training is another
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|trl|accelerate|torch)\b.*")
