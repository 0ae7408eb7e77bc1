"""Stop a run in good order at Ctrl-C or SIGTERM: after the step, with a checkpoint."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from balora.signals import signal_handlers

_ONCE_MORE = {signal.SIGINT: " Press Ctrl-C again to stop immediately."}


class StopRequest:
    """Request of the user or the system to stop a run.

    The first Ctrl-C or SIGTERM is recorded in ``signal_number``. A second Ctrl-C ends the process with status 130. Further
    SIGTERMs change nothing, because launchers such as torchrun repeat every signal as SIGTERM.
    """

    def __init__(
        self, on_request: Callable[[], None] = lambda: None, is_futile: Callable[[], bool] | None = None
    ) -> None:
        """``on_request`` is called in the signal handler at the first signal; its errors are ignored.

        ``is_futile``, for a run of several processes, returns whether another process has failed, which is why the launcher
        sends the signal. Then no checkpoint can be written, and the user is told nothing.
        """
        self._is_futile = is_futile
        self.signal_number: int | None = None
        self._on_request = on_request
        self._wakeup: int | None = None
        self._wakeup_before = -1

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals until the block ends."""
        try:
            with signal_handlers({signal.SIGINT: self._receive, signal.SIGTERM: self._receive}):
                yield
        finally:
            if self._wakeup is not None:
                signal.set_wakeup_fd(self._wakeup_before)
                os.close(self._wakeup)  # ends the thread
                self._wakeup = None

    def _receive(self, number: int, _: object) -> None:
        if self.signal_number is not None:
            return
        self.signal_number = number
        self._exit_at_second_interrupt()
        # Not print: the signal may have come in the middle of another print.
        hint = _ONCE_MORE.get(signal.Signals(number), "")
        message = f"\nbalora: stopping after this step, with a checkpoint.{hint}\n".encode()
        if self._is_futile is None:
            os.write(2, message)
        else:  # in a thread, because the question takes time
            threading.Thread(target=self._announce, args=(message, self._is_futile), daemon=True).start()
        with contextlib.suppress(Exception):
            self._on_request()

    @staticmethod
    def _announce(message: bytes, is_futile: Callable[[], bool]) -> None:
        time.sleep(1.0)  # a dead process is found within this time
        if not is_futile():
            os.write(2, message)

    def _exit_at_second_interrupt(self) -> None:
        """Let a thread wait for the next Ctrl-C: Python's own handlers wait until the main thread leaves a long call into C."""
        read, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)

        def wait() -> None:
            while number := os.read(read, 1):
                if number[0] == signal.SIGINT:
                    os._exit(130)
            os.close(read)

        threading.Thread(target=wait, daemon=True, name="balora-second-interrupt").start()
