"""Control of log messages, warnings and progress bars of transformers and the libraries around it."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence transformers while a model is loaded; its report of missing heads and the like is not for the user.

    Args:
        bars: If true, progress bars stay visible.
    """
    import transformers  # not at import time: this module must stay light

    log = transformers.utils.logging
    level, bars_were_on = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if not bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars_were_on and not bars:
            log.enable_progress_bar()


def quiet_libraries() -> None:
    """Show balora's log messages and silence those of the libraries, for the rest of the process. Imports transformers."""
    import transformers  # not at import time: this module must stay light

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("balora").setLevel(logging.INFO)
    # Progress of loading weights; the progress of training has its own bar.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|trl|accelerate|torch)\b.*")
