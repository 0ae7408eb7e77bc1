"""The other processes of a run: which one failed first, and why.

If one process of a run fails, the others wait for it in a collective operation, or end with an error of gloo or NCCL that says
nothing about the cause. So every process reports its failure in the store that the launcher keeps for all of them, and a thread
of every process looks there. It also sees when a process of the same machine is gone without a report (killed, or out of
memory). The first report is what the user reads and what ``run.json`` keeps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import distributed as dist

from balora.errors import BALoraError

GRACE = 8.0
"""Seconds that a process has to end by itself after another one has failed; it may wait in a collective operation."""
_POLL = 0.3
_END = 3.0
"""Seconds to wait for the thread's last look at the store."""
_PATIENCE = 5.0
"""Seconds to wait for the reason of a lost connection."""
_LOST = re.compile(
    r"gloo|NCCL|nccl|connection (was )?(closed|reset|refused)|connection timeout|broken pipe|socket|TCPStore|store->|"
    r"process group|collective operation timeout",
    re.I,
)
_FAILURE, _SPOKEN = "failure", "spoken"


class PeerFailed(BALoraError):
    """Another process of the run failed first. ``spoken``: the user has read the reason, so it is not printed again."""

    def __init__(self, message: str, *, spoken: bool) -> None:
        super().__init__(message)
        self.spoken = spoken


@dataclasses.dataclass(frozen=True)
class Failure:
    """First failure of a run."""

    rank: int
    reason: str
    reported: bool
    """Whether the process itself gave the reason and has printed it."""

    def text(self) -> str:
        """Return the sentence for the user."""
        size = os.environ.get("WORLD_SIZE", "?")
        if not self.reported:
            return f"Process {self.rank} of {size} (numbered from 0) {self.reason}"
        return self.reason if self.rank == 0 else f"{self.reason} (Process {self.rank} of {size}, numbered from 0.)"


def rank() -> int:
    """Return the rank of this process, as the launcher has set it."""
    return int(os.environ.get("RANK", "0"))


def lost_connection(error: BaseException) -> bool:
    """Return whether an error says no more than that another process is gone or does not answer."""
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or bool(_LOST.search(str(error))))


class Peers:
    """The processes of one run, for the process that calls; with one process every method does nothing.

    Args:
        write: Writes the text of a failure into the run's record. Called in at most one process per failure besides rank 0.
    """

    _runs = 0

    def __init__(self, write: Callable[[str], None] = lambda text: None) -> None:
        self.rank, self.size = rank(), int(os.environ.get("WORLD_SIZE", "1"))
        self._write = write
        Peers._runs += 1
        self._number = Peers._runs
        self._store: Any = None
        self._members: dict[int, tuple[int, str]] = {}
        self._ended = threading.Event()
        self._seen: Failure | None = None
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the other processes until the block ends; turn errors that another process has caused into `PeerFailed`."""
        if self.size == 1:
            yield
            return
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # the launcher's store is there already
            self.connect()
        try:
            yield
        except BaseException as error:
            before = _ignore_sigterm()
            failure = self._cause_of(error)
            self._end()
            if failure is None:
                self._leave()
                if before is not None:
                    signal.signal(signal.SIGTERM, before)
                raise
            if failure.rank == self.rank:
                self._write(failure.text())
                raise
            raise PeerFailed(failure.text(), spoken=not self._speaks(failure)) from error
        self._end()
        self._leave()

    def connect(self) -> None:
        """Join the store of the run, and start the thread. Without torchrun the store exists once the process group does."""
        if self.size == 1 or self._store is not None:
            return
        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if not host or not port:
            return
        # Neither an earlier start of the launcher nor an earlier run of these processes counts.
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{self._number}"
        try:
            store = dist.TCPStore(host, int(port), is_master=False, timeout=datetime.timedelta(seconds=60))
            self._store = dist.PrefixStore(f"balora/{attempt}/", store)
            own = {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_of(os.getpid())}
            self._store.set(f"member/{self.rank}", json.dumps(own))
        except RuntimeError:  # the run works without the store, only its failures say less
            self._store = None
            return
        self._thread = threading.Thread(target=self._watch, daemon=True, name="balora-peers")
        self._thread.start()

    def failed(self) -> Failure | None:
        """Return the first failure of the run, if any process has failed."""
        return self._seen or self._look()

    def _cause_of(self, error: BaseException) -> Failure | None:
        """Return the failure that an error of this process follows from; report the error if it is the first itself."""
        interrupted = isinstance(error, KeyboardInterrupt)
        lost = lost_connection(error) or (error.__cause__ is not None and lost_connection(error.__cause__))
        if interrupted or lost:
            until = time.monotonic() + (_PATIENCE if lost else 0.0)
            while (failure := self.failed()) is None and time.monotonic() < until:
                time.sleep(0.1)
            if failure is not None or interrupted:
                return failure
            reason = "The connection to another process of the run was lost, and that process gave no reason."
            return self._report(Failure(self.rank, _first_line(f"{reason} {error}"), True))
        known = (
            str(error) if isinstance(error, BALoraError) else _first_line(f"unexpected {type(error).__name__}: {error}")
        )
        return self._report(Failure(self.rank, known, True))

    def _report(self, failure: Failure) -> Failure:
        """Report a failure; return the one that was reported first."""
        content = json.dumps(dataclasses.asdict(failure))
        try:
            first = (
                Failure(**json.loads(self._store.compare_set(_FAILURE, "", content)))
                if self._store is not None
                else failure
            )
        except RuntimeError:
            first = self._seen or failure
        self._seen = self._seen or first
        return self._seen

    def _look(self) -> Failure | None:
        """Look for a report, and for processes of this machine that are gone without one."""
        if self._store is None:
            return None
        try:
            if self._store.check([_FAILURE]):
                self._seen = Failure(**json.loads(self._store.get(_FAILURE)))
                return self._seen
            for peer, (pid, start) in self._on_this_machine().items():
                if _start_of(pid) != start and not self._store.check([f"left/{peer}"]):
                    # It may have reported between the two looks.
                    return self._report(Failure(peer, _KILLED, False))
        except RuntimeError:  # the store is gone, and with it the process that kept it
            if self._ended.is_set() or self.rank == 0:
                return None
            self._seen = Failure(0, _KILLED, False)
            return self._seen
        return None

    def _on_this_machine(self) -> dict[int, tuple[int, str]]:
        if len(self._members) < self.size:
            for peer in range(self.size):
                if peer not in self._members and self._store.check([f"member/{peer}"]):
                    member = json.loads(self._store.get(f"member/{peer}"))
                    here = member["host"] == socket.gethostname()
                    self._members[peer] = (member["pid"], member["start"]) if here else (0, "")
        return {peer: at for peer, at in self._members.items() if peer != self.rank and at[0]}

    def _watch(self) -> None:
        """Thread: if another process has failed and this one does not end by itself, end it."""
        while not self._ended.wait(_POLL):
            failure = self.failed()
            if failure is None or failure.rank == self.rank:
                continue
            if self._ended.wait(GRACE):
                return
            if self._speaks(failure):
                os.write(2, f"balora: {failure.text()}\n".encode())
            os._exit(2)  # the main thread waits in a collective operation, which cannot be interrupted

    def _speaks(self, failure: Failure) -> bool:
        """Return whether this process prints a failure, and write it into the record if its process could not."""
        if self.rank == 0:
            self._write(failure.text())
        if failure.reported:
            return False
        try:
            first = self._store.compare_set(_SPOKEN, "", str(self.rank)).decode() == str(self.rank)
        except RuntimeError:
            first = self.rank == min(set(range(self.size)) - {failure.rank})
        if first and failure.rank == 0:
            self._write(failure.text())
        return first

    def _end(self) -> None:
        """Stop the thread. If it were in a call to the store when Python exits, torch would abort the process."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=_END)

    def _leave(self) -> None:
        with contextlib.suppress(RuntimeError):
            if self._store is not None:
                self._store.set(f"left/{self.rank}", "")


_KILLED = (
    "ended without a message: it was killed, or its machine ran out of memory. Run the same command again to continue with "
    "what was saved."
)


def _first_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _start_of(pid: int) -> str:
    """Return the start time of a process, which together with its number is unique; empty if it is gone or a zombie."""
    if not sys.platform.startswith("linux"):
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "running"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _ignore_sigterm() -> Any:
    """Ignore SIGTERM from now on, and return the handler before; None in a thread, which cannot set handlers.

    The launcher sends SIGTERM to the remaining processes, and a second message would hide the first.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.SIG_IGN)
