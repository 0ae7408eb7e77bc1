"""Control of log messages, warnings and progress bars of transformers and the libraries around it."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

from balora.terminal import wrap


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


class _ForScreen(logging.Formatter):
    """Wrap a message between words if the error output is a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return wrap(text) if sys.stderr.isatty() else text


class _EachOnce(logging.Filter):
    """Let a warning through once; other messages may repeat."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.WARNING or text not in self._seen:
            self._seen.add(text)
            return True
        return False


def quiet_libraries(*, warnings_only: bool = False, errors_only: bool = False) -> None:
    """Show balora's log messages, each warning once, and silence the libraries, for the rest of the process.

    With ``warnings_only`` balora's own remarks that are no warnings are left out as well, and with ``errors_only`` its warnings:
    of several processes one shows them. Imports transformers.
    """
    import transformers  # not at import time: this module must stay light

    handler = logging.StreamHandler()
    handler.setFormatter(_ForScreen("%(message)s"))
    handler.addFilter(_EachOnce())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    level = logging.ERROR if errors_only else logging.WARNING if warnings_only else logging.INFO
    logging.getLogger("balora").setLevel(level)
    # These look for faster kernels, devices and versions, and warn if there are none, which no user of balora can act on.
    for library in ("bitsandbytes", "torch", "datasets", "accelerate", "peft", "huggingface_hub", "filelock"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # Progress of loading weights; the progress of training has its own bar.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|trl|accelerate|torch)\b.*")
